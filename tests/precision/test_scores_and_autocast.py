"""Scores of narrow networks, NVIDIA's AutoCast, weak typing, and the network that goes wrong in FP16."""

from __future__ import annotations

import importlib
import logging
import sys

import numpy as np
import onnx
import pytest
import torch

from labsupport import data, export, precision, runtimes, training
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.precision import raw_pixels


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
    assert precision.accuracy(Constant([np.nan, 0, 0]), split(9), batch_size=4) == precision.Score(0.0, 1.0, 9)
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
        (lambda g, x: precision.autocast(g, x, to="fp8"), "to='fp8' is not known"),
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

    how = {"epochs": 1, "learning_rate": 5e-3, "preprocess": raw_pixels.raw, "progress": False}
    model = training.fit(raw_pixels.RawPixels(), data.mnist().train, **how).model
    feed = raw_pixels.raw(data.mnist().validation.take(50).images)
    graph = export.to_onnx(model, torch.from_numpy(feed), dynamic=False, path=tmp_path / "raw.onnx")
    scan = layerwise.scan(graph, feed)
    assert {row.cause for row in scan.faults} == {"overflow", "underflow"}
    assert scan.first_bad.node == "/ReduceSum"
    assert {"/ReduceSum", "/Div", "/Mul_2", "/ReduceSum_2"} <= set(scan.keep_wide)
    assert not layerwise.scan(graph, feed, keep_wide=scan.keep_wide).faults
    assert onnx.load(str(graph.path)).graph.node  # the file is still whole
