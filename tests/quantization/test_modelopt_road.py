"""NVIDIA's Model Optimizer as a road to Q/DQ: what it places, that it stays quiet, and what happens when it places nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from labsupport import build, comparing, environment, export, models, quantization, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.quantization import modelopt_road

pytest.importorskip("modelopt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A residual network of 64 channels and more, which also FP8 is willing to quantize, with a batch of images."""
    torch.set_num_threads(1)
    model = models.resnet18(5, width=16, size=32)
    images = model.example_input(16)
    model = models.settle(model, images)
    return model, export.to_onnx(model, images[:2], path=tmp_path_factory.mktemp("onnx") / "plain.onnx"), images.numpy()


def as_written(graph, feed):
    with runtimes.OnnxRuntime(graph, optimization="off") as run:
        return run(feed)


@pytest.fixture(scope="module")
def on_onnx(plain):
    return quantized(plain[1], [plain[2]])


def test_on_onnx_it_quantizes_and_leaves_the_graph_and_this_process_alone(plain, on_onnx):
    _, graph, images = plain
    before = graph.sha256
    placed = quantization.placement(on_onnx)
    assert (
        placed.nodes == on_onnx.ops["QuantizeLinear"] + on_onnx.ops["DequantizeLinear"] > 40
        and len(placed.quantized) >= 20
    )
    assert placed.residual_adds == 8 and on_onnx.opset == graph.opset == 17 and graph.sha256 == before
    assert 1e-4 < comparing.relative_error(as_written(graph, images), as_written(on_onnx, images)) < 0.5
    # it replaces parts of onnxruntime.quantization; in this process that would break the workbook's own road
    assert quantization.placement(quantization.to_qdq(graph, [images])).residual_adds == 8


def test_nothing_is_printed_or_logged(plain, capfd, caplog):
    disabled = logging.root.manager.disable
    with caplog.at_level(logging.INFO):
        quantized(plain[1], [plain[2]])
    assert capfd.readouterr() == ("", "") and not caplog.records and logging.root.manager.disable == disabled


@pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT that builds here")
def test_tensorrt_builds_it(on_onnx):
    engine = build.engine(quantization.at_batch(on_onnx, 4), precision="int8", optimization_level=0, progress=False)
    assert engine.precisions["int8"] >= 20


@pytest.mark.skipif(environment.generation() not in ("10", "11", "rtx"), reason="FP8 in ONNX needs opset 19")
def test_fp8_is_built_in_fp8(plain):
    made = quantized(plain[1], [plain[2]], format="fp8")
    engine = build.engine(made, precision="as-is", batch=4, optimization_level=0, progress=False)
    assert made.opset >= 19 and engine.precisions["fp8"] == made.ops["QuantizeLinear"] > 10


def quantized(graph, batches, format="int8"):
    return modelopt_road.quantize_graphs(graph, batches, formats=[format])[format]


def test_two_formats_of_one_start_are_those_of_two_starts(plain, on_onnx):
    both = modelopt_road.quantize_graphs(plain[1], [plain[2]])
    alone = {"int8": on_onnx, "fp8": quantized(plain[1], [plain[2]], format="fp8")}
    assert list(both) == ["int8", "fp8"] and both["int8"].path != both["fp8"].path
    for format, graph in alone.items():
        mine, theirs = both[format].model().graph, graph.model().graph
        assert [n.SerializeToString() for n in mine.node] == [n.SerializeToString() for n in theirs.node]
        assert {w.name: w.raw_data for w in mine.initializer} == {w.name: w.raw_data for w in theirs.initializer}


def test_success_without_a_node_is_caught(plain, monkeypatch):
    def nothing(folder, feeds, jobs, name):
        for job in jobs:
            export.save(plain[1].model(), job["output_path"])

    monkeypatch.setattr(modelopt_road, "_in_a_child", nothing)
    with pytest.raises(LabError, match="reported success and quantized no layer of .* to fp8 .0 Q/DQ nodes"):
        quantized(plain[1], [plain[2]], format="fp8")


def test_bad_input_is_named(plain, on_onnx, monkeypatch):
    model, graph, images = plain
    for given, message in [
        ((graph, [images], {"format": "int3"}), "format='int3' is not known; choose"),
        ((graph, [], {}), "no calibration batches"),
        ((graph, [images[:, :1]], {}), r"shape \(16, 1, 32, 32\); the network wants"),
        ((graph, [np.full_like(images, np.nan)], {}), "NaN or infinity"),
        ((graph, [np.ones_like(images)], {}), "calibration data are constant"),
        ((on_onnx, [images], {}), "is quantized already"),
    ]:
        with pytest.raises(BadInput, match=message):
            quantized(given[0], given[1], **given[2])
    for formats, message in [
        ((), "formats is empty; choose from"),
        (["int8", "int3"], "format='int3' is not known; choose"),
    ]:
        with pytest.raises(BadInput, match=message):
            modelopt_road.quantize_graphs(graph, [images], formats=formats)
    monkeypatch.setattr(modelopt_road, "CHILD", "raise SystemExit('out of luck')")
    with pytest.raises(
        LabError, match="modelopt could not quantize plain.onnx: out of luck; quantization.to_qdq does it without"
    ):
        quantized(graph, [images])
    monkeypatch.setattr(modelopt_road, "find_spec", lambda name: None if name == "requests" else object())
    with pytest.raises(
        NotAvailable, match="needs nvidia-modelopt, and the package requests is not installed; install it with"
    ):
        quantized(graph, [images])


def test_an_opset_is_lowered_only_where_nothing_changes_its_meaning(plain, on_onnx):
    model = on_onnx.model()
    model.opset_import[0].version = 19
    assert modelopt_road._at_opset(model, 17).opset_import[0].version == 17
    from onnx import helper

    model.opset_import[0].version = 19
    model.graph.node.append(helper.make_node("ReduceMean", ["logits", "axes"], ["mean"]))
    with pytest.raises(LabError, match="raised the opset from 17 to 19, and ReduceMean has another meaning"):
        modelopt_road._at_opset(model, 17)
