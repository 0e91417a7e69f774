"""Casting a graph: types where they should be, the border left alone, and every bad input told."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import saved, value
from torch import nn

from labsupport import build, comparing, environment, export, models, precision, quantization, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.runtimes import onnx_runtime


@pytest.mark.parametrize("to, kind", [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_cast_makes_weights_and_tensors_narrow_and_leaves_the_border(small, to, kind):
    graph, _ = small
    low = precision.cast(graph, to)
    assert low.inputs == graph.inputs and low.outputs == graph.outputs
    assert set(precision.types(low)) == {to} and precision.types(graph) == {"fp32": len(precision.node_types(graph))}
    assert {w.data_type for w in low.model().graph.initializer if len(w.dims) > 1} == {kind}
    assert low.ops["Cast"] == 2  # one in, one out


def test_the_border_becomes_narrow_on_demand(small):
    graph, feed = small
    low = precision.cast(graph, keep_io=False)
    assert low.inputs["x"][1] == low.outputs["logits"][1] == "fp16" and "Cast" not in low.ops
    with runtimes.OnnxRuntime(low) as run, runtimes.OnnxRuntime(graph) as exact:
        assert comparing.max_error(exact(feed), run(feed.astype(np.float16))) < 5e-3
    wide = precision.cast(graph, keep_io=False, keep_wide=list(precision.node_types(graph)))
    assert wide.outputs["logits"][1] == "fp16" and set(precision.node_types(wide).values()) == {"fp32"}


@pytest.mark.parametrize("to, off", [("fp16", 2e-3), ("bf16", 1e-2)])
def test_a_rounded_graph_errs_as_its_format_does(small, to, off):
    graph, feed = small
    with (
        runtimes.OnnxRuntime(graph) as exact,
        runtimes.OnnxRuntime(precision.rounded(precision.cast(graph, to))) as low,
    ):
        error = comparing.max_error(exact(feed), low(feed))
    assert 0 < error < off


def test_onnx_runtime_hides_what_rounding_shows():
    """The trap of the lab: if ONNX Runtime ever rounds FP16 graphs on the CPU, the lab must be told anew."""

    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt((x * x).sum(1))

    x = torch.full((2, 1000), 200.0)
    low = precision.cast(export.to_onnx(Root(), x, dynamic=False))
    with runtimes.OnnxRuntime(low) as run:
        assert np.isfinite(run(x.numpy())["output"]).all()
    with runtimes.OnnxRuntime(precision.rounded(low)) as run:
        assert np.isinf(run(x.numpy())["output"]).all()


def test_rounding_a_graph_is_rounding_its_tensors(small):
    from labsupport.precision import layerwise, number_formats

    graph, feed = small
    low = precision.rounded(precision.cast(graph))
    with runtimes.OnnxRuntime(layerwise.exposed(low, ["/Relu_output_0"]), optimization="off") as run:
        seen = run(feed)["/Relu_output_0"]
    np.testing.assert_array_equal(seen, number_formats.rounded(seen, "fp16"))


def test_wide_nodes_stay_wide_with_casts_around(small):
    graph, feed = small
    names = [n for n in precision.node_types(graph) if "Softmax" in n or "LayerNorm" in n]
    low = precision.cast(graph, keep_wide=names)
    assert {n for n, kind in precision.node_types(low).items() if kind == "fp32"} == set(names)
    with runtimes.OnnxRuntime(precision.rounded(low)) as run, runtimes.OnnxRuntime(graph) as exact:
        assert comparing.max_error(exact(feed), run(feed)) < 5e-3


def test_cast_agrees_with_onnxconverter_common(small, tmp_path):
    float16 = pytest.importorskip("onnxconverter_common.float16")
    graph, feed = small
    theirs = export.save(float16.convert_float_to_float16(graph.model(), keep_io_types=True), tmp_path / "theirs.onnx")
    ours, theirs = precision.rounded(precision.cast(graph)), precision.rounded(theirs)
    with runtimes.OnnxRuntime(ours) as a, runtimes.OnnxRuntime(theirs) as b:
        assert comparing.max_error(a(feed), b(feed)) < 1e-3


@pytest.fixture(scope="module")
def quantized():
    """(Q/DQ graph of a residual network, FP32 graph, images)."""
    model = models.resnet18(5, width=8, size=32)
    images = model.example_input(16)
    model = models.settle(model, images)
    graph = export.to_onnx(model, images[:2])
    return quantization.to_qdq(graph, [images.numpy()], method="max"), graph, images.numpy()


@pytest.mark.parametrize("to, dtype", [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_of_a_quantized_graph_everything_else_becomes_narrow(quantized, to, dtype):
    graph, _, _ = quantized
    low = precision.cast(graph, to)
    assert low.opset == 19 and set(precision.types(low)) == {to} and low.inputs == graph.inputs and low.ops["Cast"] == 2
    assert quantization.placement(low) == quantization.placement(graph)
    scales = {
        node.input[1] for node in low.model().graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert {w.data_type for w in low.model().graph.initializer if w.name in scales} == {dtype}
    assert not any("Cast" == node.op_type and "Linear" in node.input[0] for node in low.model().graph.node)


def test_a_quantized_graph_errs_no_more_when_the_rest_is_narrow(quantized):
    graph, exact, images = quantized
    if onnx_runtime._cuts_off_half():
        pytest.skip("this ONNX Runtime cuts off where it quantizes FP16; the next test wants the error that says so")
    answers = []
    for variant in (exact, graph, precision.cast(graph)):
        with runtimes.OnnxRuntime(variant, optimization="off") as run:
            answers.append(run(images))
    before, after = (comparing.relative_error(answers[0], answer) for answer in answers[1:])
    assert after < 1.3 * before


def test_an_onnx_runtime_that_does_not_round_fp16_is_not_believed(quantized, monkeypatch):
    graph, _, images = quantized
    low = precision.cast(graph)
    if not onnx_runtime._cuts_off_half():
        runtimes.OnnxRuntime(low).close()
        monkeypatch.setattr(onnx_runtime, "_cuts_off_half", lambda: True)
    with pytest.raises(BadInput, match=r"cuts off there instead of rounding .*precision.cast, or install Python 3.11"):
        runtimes.OnnxRuntime(low)
    with runtimes.OnnxRuntime(graph) as run:  # FP32 scales are no matter
        assert next(iter(run({"images": images}).values())).shape == (16, 5)


@pytest.mark.skipif(environment.generation() not in ("10", "11", "rtx"), reason="weakly typed builders read opset 17")
def test_a_strongly_typed_builder_reads_it_with_a_narrow_border(quantized):
    low = quantization.at_batch(precision.cast(quantized[0], keep_io=False), 4)
    engine = build.engine(
        low, precision="int8", optimization_level=0, io_formats={"images": ("HALF", "CHW4")}, progress=False
    )
    assert engine.precisions["int8"] == 42 and not engine.precisions["fp32"]


def test_a_scale_that_is_too_small_is_told(quantized, tmp_path):
    model = quantized[0].model()
    name = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(
        onnx.numpy_helper.from_array(np.float32(1e-9) * np.ones_like(onnx.numpy_helper.to_array(weight)), name)
    )
    graph = export.save(model, tmp_path / "tiny.onnx")
    with pytest.raises(
        BadInput,
        match=r"tiny.onnx: the scale .* runs from 1e-09 to 1e-09, which fp16 does not hold; quantize with that layer in exclude",
    ):
        precision.cast(graph)
    assert set(precision.types(precision.cast(graph, "bf16"))) == {"bf16"}


def test_an_opset_that_cannot_be_raised_is_told(quantized, monkeypatch):
    def fail(model, version):
        raise RuntimeError("no adapter for Splat")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    with pytest.raises(
        LabError,
        match="cannot be rewritten for opset 19, in which Q/DQ nodes take narrow scales: no adapter for Splat; export it at that opset",
    ):
        precision.cast(quantized[0])


def test_casts_and_filled_tensors_are_retyped(tmp_path):
    nodes = [
        helper.make_node("Cast", ["ids"], ["numbers"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Shape", ["ids"], ["shape"], name="shape"),
        helper.make_node(
            "ConstantOfShape",
            ["shape"],
            ["ones"],
            name="fill",
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
        ),
        helper.make_node("Add", ["numbers", "ones"], ["y"], name="add"),
    ]
    graph = saved(tmp_path, nodes, [value("ids", [3], TensorProto.INT64)], [value("y", [3])])
    low = precision.cast(graph)
    assert precision.types(low) == {"fp16": 2}
    for variant in (low, precision.rounded(low)):
        with runtimes.OnnxRuntime(variant) as run:
            assert run(np.array([1, 2, 3]))["y"].tolist() == [2, 3, 4]


def test_constants_of_every_spelling_are_retyped(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["two"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["shape"], value_ints=[2]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Mul", ["x", "half"], ["a"]),
        helper.make_node("Add", ["a", "two"], ["b"]),
        helper.make_node("Add", ["b", "zeros"], ["y"]),
    ]
    graph = saved(tmp_path, nodes, [value("x", [2])], [value("y", [2])])
    for to in ("fp16", "bf16"):
        low = precision.cast(graph, to)
        assert set(precision.types(low)) == {to}
        with runtimes.OnnxRuntime(precision.rounded(low)) as run:
            assert run(np.array([2, 4], np.float32))["y"].tolist() == [2, 4]


def test_a_builder_that_stopped_has_no_layers():
    assert precision.read_back(None, None) == ({}, "builder that stopped")


def test_cast_changes_no_graph_that_it_was_given(small, tmp_path):
    graph, _ = small
    before = graph.sha256
    low = precision.cast(graph, path=tmp_path / "low.onnx")
    precision.rounded(low)
    assert graph.sha256 == before and low.path == tmp_path / "low.onnx"


def model_of(tmp_path, *, opset=17, node=None, name="bad"):
    node = node or helper.make_node("Relu", ["x"], ["y"])
    return saved(tmp_path, [node], [value("x", [2])], [value("y", [2])], opset=opset, name=name)


def branch():
    def side(name):
        return helper.make_graph(
            [helper.make_node("Identity", ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])],
        )

    return helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=side("a"), else_branch=side("b"))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g, t: precision.cast(precision.cast(g)), "is fp16 already; hand in the FP32 graph"),
        (lambda g, t: precision.cast(precision.cast(g, "bf16")), "is bf16 already"),
        (
            lambda g, t: precision.cast(g, "fp8"),
            r"to='fp8' is not known; choose one of \['fp16', 'bf16'\]",
        ),
        (
            lambda g, t: precision.cast(g, keep_wide=["/conv/Cnv"]),
            r"keep_wide names '/conv/Cnv', and small.onnx has no such node; did you mean one of \['/conv/Conv'",
        ),
        (lambda g, t: precision.cast(g, keep_wide="/conv/Conv"), r"keep_wide='/conv/Conv'; wanted a list of names"),
        (
            lambda g, t: precision.cast(model_of(t, opset=11)),
            "bad.onnx is opset 11; operators take FP16 and BF16 side by side from opset 13 on",
        ),
        (lambda g, t: precision.rounded(g), "has no FP16 and no BF16 tensor, so there is nothing to round"),
        (
            lambda g, t: precision.rounded(precision.cast(g, keep_io=False)),
            r"is narrow at its border \(\['logits', 'x'\]\); cast it with keep_io=True",
        ),
        (lambda g, t: precision.cast(t / "gone.onnx"), "gone.onnx: no such file"),
        (lambda g, t: precision.cast(None), "a graph is wanted, or the name of its file, and a NoneType came"),
        (lambda g, t: precision.cast(g, keep_wide=None), "keep_wide=None; wanted a list of names"),
        (
            lambda g, t: precision.cast(g, path=g.path),
            "path='small.onnx' is the graph that came in; give the new one a name of its own",
        ),
        (
            lambda g, t: precision.rounded(low := precision.cast(g), path=low.path),
            "path='small.fp16.onnx' is the graph that came in",
        ),
        (
            lambda g, t: precision.autocast(g, np.zeros((1, 1), np.float32), data_max=None),
            "data_max=None; wanted a number",
        ),
    ],
)
def test_bad_graphs_and_names_are_told(small, tmp_path, call, message):
    with pytest.raises(BadInput, match=message):
        call(small[0], tmp_path)


def test_branches_are_refused(tmp_path):
    graph = saved(tmp_path, [branch()], [value("x", [2]), value("yes", [], TensorProto.BOOL)], [value("y", [2])])
    with pytest.raises(BadInput, match=r"choose \(If\) holds a branch or a loop, into which these tools do not look"):
        precision.cast(graph)


# --- accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not environment.has("rtx"), reason="needs TensorRT-RTX")
def test_the_types_of_the_graph_are_those_of_the_engine(small):
    graph, _ = small
    for typed in (precision.cast(graph), precision.cast(graph, "bf16"), precision.cast(graph, keep_wide=["/Softmax"])):
        engine = build.engine(typed, precision="as-is", optimization_level=0, progress=False)
        assert {"fp16", "bf16", "fp32"} & set(engine.precisions) == set(precision.types(typed))


@pytest.mark.skipif(environment.has("engine execution"), reason="there the engine inspector answers")
def test_read_back_asks_the_network_where_no_engine_opens(small):
    pytest.importorskip("tensorrt_rtx")
    _, network, _ = build.parse(precision.cast(small[0]))
    counts, evidence = precision.read_back(b"", network)
    assert evidence == "typed network" and counts["fp16"] > 0 and not counts["fp32"]
