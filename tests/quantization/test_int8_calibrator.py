"""The calibrator of TensorRT 8.6 and 10: its batches, its cache, and what it cannot take."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faces import stand_in

from labsupport import environment, quantization
from labsupport.errors import BadInput, NotAvailable
from labsupport.quantization import int8_calibrator


@pytest.fixture
def old_trt(monkeypatch):
    """A TensorRT 8.6 of which only the calibrators' base classes exist, and a GPU that is the CPU."""
    stand_in(monkeypatch, environment, "generation", lambda: "8.6")
    monkeypatch.setattr(int8_calibrator, "_on_device", lambda array: torch.from_numpy(array))
    return SimpleNamespace(
        IInt8EntropyCalibrator2=type("Entropy", (), {}), IInt8MinMaxCalibrator=type("MinMax", (), {})
    )


def equal_batches(cnn):
    return [cnn[2][:16], cnn[2][16:32]]


def test_the_calibrator_feeds_every_batch_and_keeps_its_cache(old_trt, cnn, tmp_path):
    graph, path = cnn[0], tmp_path / "caches" / "cnn.cache"
    first = quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph)
    assert isinstance(first, old_trt.IInt8EntropyCalibrator2) and first.get_batch_size() == 16
    assert first.read_calibration_cache() is None and not first.from_cache
    pointers = [first.get_batch(["images"]) for _ in range(3)]
    assert pointers[2] is None and all(len(p) == 1 and p[0] > 0 for p in pointers[:2]) and first.batches_given == 2
    first.write_calibration_cache(memoryview(b"TRT-8600-EntropyCalibration2\nimages: 3c010a14\n"))
    again = quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph)
    assert again.from_cache and again.read_calibration_cache().startswith(b"TRT-8600")
    other = quantization.entropy_calibrator(
        old_trt, equal_batches(cnn), tmp_path / "m.cache", graph=graph, algorithm="minmax"
    )
    assert isinstance(other, old_trt.IInt8MinMaxCalibrator)


def test_a_cache_that_cannot_be_written_ends_no_process(old_trt, cnn, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    calibrator = quantization.entropy_calibrator(
        old_trt, equal_batches(cnn), tmp_path / "taken" / "c.cache", graph=cnn[0].path
    )
    with pytest.warns(UserWarning, match="the calibration is used and not kept: .*could not be written"):
        calibrator.write_calibration_cache(b"TRT-8600-x\n")
    assert calibrator.read_calibration_cache() == b"TRT-8600-x\n" and not calibrator.from_cache
    with pytest.raises(BadInput, match="cache_path is a NoneType; give the name of the file"):
        quantization.entropy_calibrator(old_trt, equal_batches(cnn), None, graph=cnn[0])


def test_a_stale_foreign_or_damaged_cache_is_refused(old_trt, cnn, bench, tmp_path):
    graph, path = cnn[0], tmp_path / "cnn.cache"
    quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph).write_calibration_cache(
        b"TRT-8600-x\n"
    )
    other = bench["ResNet-18"]
    for batches, options, message in [
        ([other[2][:4]], {"graph": other[0]}, "stale calibration cache: it was made with another graph.*delete it"),
        (equal_batches(cnn)[:1], {"graph": graph}, "made with other calibration data"),
        (
            equal_batches(cnn),
            {"graph": graph, "algorithm": "minmax"},
            "made with another algorithm .entropy, now minmax",
        ),
    ]:
        with pytest.raises(BadInput, match=message):
            quantization.entropy_calibrator(old_trt, batches, path, **options)
    path.write_bytes(b"TRT-8600-y\n")
    with pytest.raises(BadInput, match="it was changed or cut off; delete it"):
        quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph)
    record = path.with_name("cnn.cache.json")
    kept = {
        **json.loads(record.read_text()),
        "tensorrt": "8.5.3",
        "cache": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    record.write_text(json.dumps(kept))
    with pytest.raises(BadInput, match="made with another TensorRT .8.5.3"):
        quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph)
    record.unlink()
    with pytest.raises(BadInput, match="foreign calibration cache: cnn.cache.json.*is missing"):
        quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=graph)


def test_token_ids_reach_tensorrt_8_6_as_the_int32_that_its_parser_made_of_them(monkeypatch):
    stand_in(monkeypatch, environment, "generation", lambda: "8.6")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    assert int8_calibrator._on_device(np.arange(3)).dtype == torch.int32
    assert int8_calibrator._on_device(np.zeros(3, np.float32)).dtype == torch.float32
    stand_in(monkeypatch, environment, "generation", lambda: "10")
    assert int8_calibrator._on_device(np.arange(3)).dtype == torch.int64


def test_what_a_calibrator_cannot_take(old_trt, cnn, tmp_path, monkeypatch):
    path = tmp_path / "c.cache"
    for batches, options, message in [
        ([cnn[2][:16], cnn[2][:8]], {}, r"batches have \[8, 16\] items"),
        ([], {}, "no calibration batches"),
        (equal_batches(cnn), {"algorithm": "legacy"}, "algorithm='legacy' is not known; choose"),
        (
            equal_batches(cnn),
            {"graph": quantization.to_qdq(*cnn[:2])},
            "has Q/DQ nodes, so its scales are in the graph",
        ),
    ]:
        with pytest.raises(BadInput, match=message):
            quantization.entropy_calibrator(old_trt, batches, path, **{"graph": cnn[0], **options})
    stand_in(monkeypatch, environment, "generation", lambda: "11")
    with pytest.raises(
        NotAvailable, match="TensorRT 11 removed them; put the scales into the graph: quantization.to_qdq"
    ):
        quantization.entropy_calibrator(old_trt, equal_batches(cnn), path, graph=cnn[0])
