"""The checkers of lab 06: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from labsupport import export, fusion, models, quantization, recordings, runtimes
from labsupport.exercises import lab06, lab06_stand_ins
from labsupport.exercises.base import assert_checker, assert_complete


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The plain network's graph, untrained, and its calibration."""
    model = models.resnet18(15, width=8, size=32)
    graph = export.to_onnx(model, model.example_input(2), path=tmp_path_factory.mktemp("onnx") / "plain.onnx")
    return graph, quantization.calibrate(graph, [model.example_input(8).numpy()])


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab06, ["speed", "affine", "clip_it", "keep_wide", "converts", "mend"])


def test_affine():
    def untouched(low, high):
        scale = ...
        return scale

    def zero_of(rule):
        return lambda low, high: ((high - low) / 255, rule(low, (high - low) / 255))

    def stepwise(low, high):
        steps = np.float64(high - low) / np.float64(255)
        return [steps, np.rint(0 - low / steps)]

    assert_checker(
        lab06.affine,
        untouched,
        wrong=[
            (lambda low, high: ((high - low) / 256, 0), "you divide by 256"),
            (lambda low, high: (max(-low, high) / 127, 128), "that of a symmetric range"),
            (lambda low, high: (high - low, 0), "shared by the steps"),
            (zero_of(lambda low, s: -low / s + 0.25), "a code, so a whole number"),
            (zero_of(lambda low, s: round(low / s)), "Mind the sign"),
            (zero_of(lambda low, s: 128), "zero would get the code 128"),
            (
                lambda low, high: ((high - low) / 255, None),
                r"the zero point of unsigned\(-1.0, 2.5\) is None .NoneType.; a number is wanted",
            ),
            (lambda low, high: ("a", 0), "the scale of unsigned.* is 'a'"),
            (zero_of(lambda low, s: float("nan")), "a finite number is wanted"),
            (dict, "hand in the function"),
            (lambda low, high: 1.0, "wanted are two numbers"),
            ((1.0, 2), "hand in the function itself"),
        ],
        right=[zero_of(lambda low, s: round(-low / s)), stepwise],
        namespace={},
    )


def test_clip_it():
    best = quantization.histogram(lab06.VALUES).threshold("mse", format="int4")
    assert_checker(
        lab06.clip_it,
        wrong=[
            (float(abs(lab06.VALUES).max()), "clips nothing"),
            (-1, "a magnitude, so above 0"),
            (1.0, "most of it clipping: a larger limit"),
            (15.0, "most of it rounding: a smaller limit"),
            ("5", "a number is wanted"),
        ],
        right=[best, np.float32(best * 1.02)],
        namespace={},
    )


def test_values_are_made_when_asked_for_and_nothing_else_is():
    assert lab06.VALUES.shape == (lab06.TAIL_COUNT,) and lab06.VALUES is lab06.VALUES
    with pytest.raises(AttributeError, match="WALUES"):
        _ = lab06.WALUES


def test_keep_wide(plain):
    graph, known = plain
    names = quantization.layers(graph)

    def quantized(**options):
        return quantization.to_qdq(graph, known, **options)

    small = models.article_cnn()
    tiny = export.to_onnx(small, small.example_input(2))
    tiny = quantization.to_qdq(tiny, [small.example_input(8).numpy()], exclude=quantization.layers(tiny)[:1])
    assert_checker(
        lab06.keep_wide,
        wrong=[
            (graph, "no Q/DQ node. Is it the FP32 graph"),
            (quantized(), "all 21 layers are quantized"),
            (graph.path, "hand in the graph"),
            (quantized(exclude=names[-1:]), f"{names[-1]} stayed wide, and it is not the first"),
            (quantized(exclude=names[:2]), "2 layers stayed wide"),
            (
                quantization.to_qdq(
                    graph, [np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype("f")], target="onnxruntime"
                ),
                "activations are unsigned",
            ),
            (tiny, "a graph of 3 layers; take the plain network's"),
        ],
        right=[quantized(exclude=names[:1]), quantized(exclude={names[0]}, method="max")],
        namespace={"graph": graph, "known": known, "quantization": quantization},
    )


def test_converts():
    plan = fusion.xray(recordings.load_plan(lab06.PLAN))
    right = len(quantization.conversions(plan))
    assert right == 1
    assert_checker(
        lab06.converts,
        wrong=[
            (0, "somebody has to turn the FP32 picture"),
            (len(plan.launched), "kernels run in all"),
            (5, "not 5. Look at the column"),
            (1.5, "a whole number"),
        ],
        right=[right, float(right)],
        namespace={},
    )
    assert "fp32 → int8 at the entrance" in str(
        said := lab06.converts.check(right)
    ) and f"takes {quantization.conversions(plan)[0].share:.1%} of" in str(said)


def changed(change):
    """The sick graph after ``change(model)``."""
    graph, _ = lab06.sick()
    model = graph.model()
    change(model)
    return export.save(model, export.fresh_folder() / "changed.onnx")


def divided(by, name="/4/MaxPool_output_0_scale"):
    def change(model):
        scale = next(weight for weight in model.graph.initializer if weight.name == name)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(by), name))

    return change


def paired(by=1000.0, scale=0.04):
    def change(model):
        divided(by)(model)
        place, layer = next((i, node) for i, node in enumerate(model.graph.node) if node.name == "/7/Conv")
        model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "new_scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "new_zero"))
        pair = ["QuantizeLinear", "DequantizeLinear"]
        names = [layer.input[0], "new_codes", "new_values"]
        for step, kind in enumerate(pair):
            node = helper.make_node(kind, [names[step], "new_scale", "new_zero"], [names[step + 1]])
            model.graph.node.insert(place + step, node)
        layer.input[0] = "new_values"

    return change


def test_mend(plain):
    base_graph = lab06_stand_ins.sound()[0]
    sick, images = lab06.sick()
    with runtimes.OnnxRuntime(base_graph) as run:
        assert run(images)["output"].shape == (64, 10)
    largest = quantization.collect(base_graph, [images], tensors=["/6/Relu_output_0"])
    scale = largest.histograms["/6/Relu_output_0"].range("max")[1] / 127
    assert_checker(
        lab06.mend,
        wrong=[
            (sick, "/7/Conv does not read codes.* look at the scales as well"),
            (changed(divided(1000)), "/7/Conv does not read codes: its data or its weights come without Q and DQ.$"),
            (changed(paired(by=1, scale=scale)), "all five layers read codes, .* Which scale"),
            (changed(paired(by=100, scale=scale)), "all five layers read codes, .* Which scale"),
            (changed(paired(scale=scale / 50)), "Which scale"),
            (base_graph, "/0/Conv does not read codes"),
            (quantization.to_qdq(base_graph, [images], exclude=["/7/Conv"]), "/7/Conv does not read codes"),
            (quantization.to_qdq(*plain), "this graph takes"),
            (sick.model(), "hand in a graph"),
            (str(sick.path), "hand in a graph"),
        ],
        right=[
            changed(paired(scale=scale)),
            quantization.to_qdq(base_graph, [images]),
            quantization.to_qdq(base_graph, [images], method="mse", per_channel=False),
        ],
        namespace={},
    )
