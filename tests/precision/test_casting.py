"""Casting a graph: types where they should be, the border left alone, and every bad input told."""

from __future__ import annotations

import importlib
import logging
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from faces import stand_in
from onnx import TensorProto, helper
from torch import nn

from labsupport import build, comparing, data, environment, export, models, precision, quantization, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.precision import raw_pixels
from labsupport.runtimes import onnx_runtime


class Small(nn.Module):
    input_name, output_name = "x", "logits"

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return torch.softmax(self.out(self.norm(y) + 0.5), 1)


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Small()
        example = torch.randn(2, 1, 8, 8)
    return export.to_onnx(model.eval(), example, dynamic=False), example.numpy()


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


def test_cast_agrees_with_onnxconverter_common(small):
    pytest.importorskip("onnxconverter_common")
    graph, feed = small
    ours, theirs = precision.rounded(precision.cast(graph)), precision.rounded(export.to_half(graph))
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
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    graph = export.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx"
    )
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
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    graph = export.save(model, tmp_path / "constants.onnx")
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


def model_of(tmp_path, *, opset=17, node=None, name="bad.onnx"):
    node = node or helper.make_node("Relu", ["x"], ["y"])
    body = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return export.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), tmp_path / name
    )


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
            r"to='fp8' is not a precision a graph can be cast to; choose one of \['fp16', 'bf16'\]",
        ),
        (
            lambda g, t: precision.cast(g, keep_wide=["/conv/Cnv"]),
            r"keep_wide names '/conv/Cnv', and small.onnx has no such node; did you mean one of \['/conv/Conv'",
        ),
        (lambda g, t: precision.cast(g, keep_wide="/conv/Conv"), r"keep_wide='/conv/Conv' is one text; give a list"),
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
        (lambda g, t: precision.cast(g, keep_wide=None), "keep_wide=None is no list"),
        (lambda g, t: precision.weakly("/Mul"), "keep_wide='/Mul' is no list"),
        (lambda g, t: precision.weakly(None), "keep_wide=None is no list"),
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
            "data_max=None; give the largest magnitude",
        ),
    ],
)
def test_bad_graphs_and_names_are_told(small, tmp_path, call, message):
    with pytest.raises(BadInput, match=message):
        call(small[0], tmp_path)


def test_branches_are_refused(tmp_path):
    body = helper.make_graph(
        [branch()],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    graph = export.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "if.onnx"
    )
    with pytest.raises(BadInput, match=r"choose \(If\) holds a branch or a loop, into which these tools do not look"):
        precision.cast(graph)


# --- accuracy ---------------------------------------------------------------------------------------------------


class Constant:
    """A runtime that answers what it is told, whatever it is fed."""

    device, outputs = "cpu", {"logits": runtimes.TensorSpec((None, 3), "float32")}

    def __init__(self, logits, batch=None, dtype="float32"):
        self.logits, self.inputs = np.asarray(logits, np.float32), {"x": runtimes.TensorSpec((batch, 1, 8, 8), dtype)}
        self.fed = []

    def __call__(self, feed):
        self.fed.append(feed["x"])
        return {"logits": np.repeat(self.logits[None], len(feed["x"]), axis=0)}


def split(count):
    return data.Split(np.zeros((count, 8, 8, 1), np.uint8), np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"))


def test_accuracy_counts_nan_as_wrong_and_says_so():
    assert precision.accuracy(Constant([1, 0, 0]), split(9)) == precision.Score(3 / 9, 0.0, 9)
    assert precision.accuracy(Constant([np.nan, 0, 0]), split(9)) == precision.Score(0.0, 1.0, 9)
    assert repr(precision.Score(0.5, 0.25, 8)) == "50.0% right, 25.0% answered with NaN or infinity, of 8 images"


def test_accuracy_fills_up_a_fixed_batch_and_feeds_bf16():
    run = Constant([1, 0, 0], batch=4, dtype="bfloat16")
    assert precision.accuracy(run, split(9)).accuracy == 3 / 9
    assert [tuple(x.shape) for x in run.fed] == [(4, 1, 8, 8)] * 3 and run.fed[0].dtype == torch.bfloat16


def test_accuracy_refuses_what_means_nothing():
    with pytest.raises(BadInput, match="the split is empty"):
        precision.accuracy(Constant([1, 0, 0]), split(0))
    with pytest.raises(BadInput, match="the preprocessed images hold NaN or infinity; look at preprocess"):
        precision.accuracy(
            Constant([1, 0, 0]), split(3), preprocess=lambda images: np.full((len(images), 1, 8, 8), np.nan, np.float32)
        )


# --- AutoCast ---------------------------------------------------------------------------------------------------


def test_autocast_keeps_what_overflows_and_what_it_is_told(small, capfd):
    pytest.importorskip("modelopt")
    importlib.import_module("modelopt.onnx.autocast")  # importing it sets the levels

    graph, feed = small
    before = {name: logging.getLogger(name).level for name in ("modelopt.onnx", "modelopt.onnx.autocast")}
    plain = precision.autocast(graph, feed)
    assert (
        set(precision.types(plain)) == {"fp16"}
        and plain.inputs == graph.inputs
        and plain.outputs.keys() == graph.outputs.keys()
    )
    large = precision.autocast(graph, feed * 1000)
    assert "fp32" in precision.types(large)
    told = precision.autocast(graph, feed, keep_wide=["/Softmax"])
    assert [n for n, kind in precision.node_types(told).items() if kind == "fp32"] == ["/Softmax"]
    out, err = capfd.readouterr()
    assert "INFO" not in out + err and "[I]" not in out + err
    assert {name: logging.getLogger(name).level for name in before} == before


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g, x: precision.autocast(precision.cast(g), x), "is fp16 already"),
        (lambda g, x: precision.autocast(g, x, to="fp8"), "to='fp8' is not a precision"),
        (
            lambda g, x: precision.autocast(g, x, data_max=0),
            "data_max=0; give the largest magnitude that may become narrow, such as 512",
        ),
        (lambda g, x: precision.autocast(g, x, keep_wide=["/nothing"]), "keep_wide names '/nothing'"),
        (
            lambda g, x: precision.autocast(g, x * np.nan),
            "the feed's 'x' holds NaN or infinity; calibrate with the data",
        ),
        (
            lambda g, x: precision.autocast(g, x[:1]),
            r"the feed's 'x' has shape \(1, 1, 8, 8\); small.onnx takes \(2, 1, 8, 8\)",
        ),
        (lambda g, x: precision.autocast(g, {"y": x}), r"the feed has \['y'\], small.onnx takes \['x'\]"),
    ],
)
def test_autocast_tells_bad_input(small, call, message):
    with pytest.raises(BadInput, match=message):
        call(*small)


def test_autocast_that_fails_or_is_missing_says_what_to_do(small, monkeypatch):
    pytest.importorskip("modelopt")
    import modelopt.onnx.autocast as theirs

    def fails(*_, **__):
        raise RuntimeError("Sanity Check Failed\nmore")

    monkeypatch.setattr(theirs, "convert_to_mixed_precision", fails)
    with pytest.raises(
        LabError,
        match=r"AutoCast could not cast small.onnx to fp16: Sanity Check Failed; cast it by hand with precision.cast",
    ):
        precision.autocast(*small)
    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", None)
    with pytest.raises(NotAvailable, match="AutoCast comes with nvidia-modelopt, which does not load"):
        precision.autocast(*small)


# --- TensorRT ---------------------------------------------------------------------------------------------------


class Layer:
    def __init__(self, name, kind):
        self.name, self.type, self.precision, self.output = name, SimpleNamespace(name=kind), None, None

    def set_output_type(self, index, kind):
        self.output = (index, kind)


class Config:
    def __init__(self):
        self.flags = set()

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)


def weak_network(monkeypatch):
    stand_in(
        monkeypatch,
        environment,
        "machine",
        lambda: environment.Machine(tensorrt="8.6.0", tensorrt_product="tensorrt", generation="8.6"),
    )
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(PREFER_PRECISION_CONSTRAINTS="prefer", OBEY_PRECISION_CONSTRAINTS="obey"),
        DataType=SimpleNamespace(HALF="half", FLOAT="float"),
    )
    layers = [Layer("/Mul", "ELEMENTWISE"), Layer("/Sum", "REDUCE"), Layer("/Reshape", "SHUFFLE")]
    return trt, SimpleNamespace(num_layers=3, get_layer=layers.__getitem__), layers


@pytest.mark.parametrize("prefer, flags", [(False, {"obey"}), (True, {"prefer"})])
def test_weakly_prescribes_each_computing_layer(monkeypatch, prefer, flags):
    trt, network, (mul, total, reshape) = weak_network(monkeypatch)
    config = Config()
    config.flags = {"obey"}  # build.engine(strict=True) was here before
    precision.weakly(["/Sum"], prefer=prefer)(trt, None, network, config)
    assert config.flags == flags
    assert (mul.precision, mul.output) == ("half", None)
    assert (total.precision, total.output) == ("float", (0, "float"))
    assert (reshape.precision, reshape.output) == (None, None)


def test_weakly_tells_unknown_layers_and_other_generations(monkeypatch):
    trt, network, _ = weak_network(monkeypatch)
    with pytest.raises(BadInput, match=r"keep_wide names \['/Div'\], and the network has no such layer"):
        precision.weakly(["/Div"])(trt, None, network, Config())
    stand_in(
        monkeypatch,
        environment,
        "machine",
        lambda: environment.Machine(tensorrt="11.0", tensorrt_product="tensorrt", generation="11"),
    )
    with pytest.raises(NotAvailable, match="this needs TensorRT 8.6"):
        precision.weakly([])(trt, None, network, Config())


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


# --- the network that goes wrong --------------------------------------------------------------------------------


def test_raw_pixels_reads_pixels_and_is_reproducible():
    model = raw_pixels.RawPixels()
    example = model.example_input(3)
    assert example.shape == (3, 1, 28, 28) and 0 <= example.min() and example.max() <= 255
    with torch.inference_mode():
        assert model(example).shape == (3, 10)
    images = np.array([[[[0], [255]]]], np.uint8)
    assert raw_pixels.raw(images).ravel().tolist() == pytest.approx([0, 255])
    assert raw_pixels.RawPixels(classes=4).out.out_features == 4
    with pytest.raises(BadInput, match="classes=0"):
        raw_pixels.RawPixels(classes=0)


def test_raw_pixels_goes_wrong_in_fp16_and_is_mended(tmp_path):
    from labsupport.precision import layerwise

    model = raw_pixels.trained(epochs=1, progress=False)
    feed = raw_pixels.raw(data.mnist().validation.take(50).images)
    graph = export.to_onnx(model, torch.from_numpy(feed), dynamic=False, path=tmp_path / "raw.onnx")
    scan = layerwise.scan(graph, feed)
    assert {row.cause for row in scan.faults} == {"overflow", "underflow"}
    assert scan.first_bad.node == "/ReduceSum"
    assert {"/ReduceSum", "/Div", "/Mul_2", "/ReduceSum_2"} <= set(scan.keep_wide)
    assert not layerwise.scan(graph, feed, keep_wide=scan.keep_wide).faults
    assert onnx.load(str(graph.path)).graph.node  # the file is still whole
