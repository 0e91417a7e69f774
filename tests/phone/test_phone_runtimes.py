"""ExecuTorch and LiteRT: the same answers as PyTorch, small INT8 files, and what they refuse. Skipped where they lack."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import environment, phone
from labsupport.environment import needs
from labsupport.errors import BadInput, LabError, NotAvailable

executorch = pytest.mark.skipif(not environment.has("executorch"), reason="ExecuTorch is not installed")
litert = pytest.mark.skipif(not environment.has("litert"), reason="LiteRT is not installed")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def test_converters_are_heard_on_standard_output_alone(capfd):
    with phone.silently():
        os.write(1, b"heard")
        os.write(2, b"dropped")
    assert capfd.readouterr() == ("heard", "")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (32, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model, images):
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def pte(model):
    return phone.to_executorch(model, torch.zeros(1, 3, 12, 12))


@pytest.fixture(scope="module")
def tflite(model):
    return phone.to_litert(model, torch.zeros(1, 3, 12, 12))


@pytest.mark.parametrize(
    "need, call",
    [
        ("executorch", lambda: phone.to_executorch(None, None)), ("executorch", lambda: phone.ExecuTorch("x.pte")),
        ("executorch", lambda: phone.use_threads(1)), ("executorch", lambda: phone.executorch_latency("x.pte", None, threads=2)),
        ("litert", lambda: phone.to_litert(None, None)), ("litert", lambda: phone.LiteRt("x.tflite")),
        ("litert", lambda: phone.quantize_litert("x.tflite")), ("litert", lambda: phone.contents("x.tflite")),
        ("litert", lambda: phone.true_ranges("x.tflite", None)),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_install_line(need, call, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(
        NotAvailable, match=rf"{need} lacks .*; get it with: python3 -m pip install --editable '\.\[phone\]'"
    ):
        call()


@executorch
def test_executorch_answers_as_pytorch(pte, images, expected):
    with phone.ExecuTorch(pte) as run:
        assert np.abs(run(images)["logits"] - expected).max() < 1e-4 and run.load_ms > 0
        first, second = run(images[:1])["logits"], run(images[1:2])["logits"]
        assert np.abs(first - expected[:1]).max() < 1e-4 and np.abs(second - expected[1:2]).max() < 1e-4
        assert isinstance(run(torch.from_numpy(images[:2]))["logits"], torch.Tensor)
        with pytest.raises(BadInput, match="has shape"):
            run(images[:, :, :5])
    with pytest.raises(LabError, match="was closed"):
        run(images)


@executorch
def test_executorch_int8_is_small_and_close(model, pte, images, expected):
    path = phone.to_executorch(model, torch.zeros(1, 3, 12, 12), calibration=images)
    assert path.stat().st_size < pte.stat().st_size
    with phone.ExecuTorch(path) as run:
        assert np.abs(run(images)["logits"] - expected).max() < 0.1 * np.abs(expected).max() + 0.02


@executorch
def test_other_numbers_of_threads_have_a_process_of_their_own(pte, images, expected):
    phone.ExecuTorch(pte).close()
    with pytest.raises(LabError, match="ExecuTorch has 1 threads in this process"):
        phone.use_threads(2)
    timing, answers = phone.executorch_latency(pte, images[:1], threads=2, runs=5)
    assert len(timing.samples_ms) == 5 and np.abs(answers - expected[:1]).max() < 1e-4
    with pytest.raises(BadInput, match="threads=0"):
        phone.executorch_latency(pte, images[:1], threads=0)


@executorch
def test_what_executorch_refuses(model, tmp_path, images):
    (tmp_path / "broken.pte").write_bytes(b"no program" * 20)
    with pytest.raises(BadInput, match="ExecuTorch cannot load broken.pte"):
        phone.ExecuTorch(tmp_path / "broken.pte")
    with pytest.raises(BadInput, match="calibration has shape"):
        phone.to_executorch(model, torch.zeros(1, 3, 12, 12), calibration=images[:, :1])
    with pytest.raises(BadInput, match="wanted are finite images"):
        phone.to_executorch(model, torch.zeros(1, 3, 12, 12), calibration=np.full((2, 3, 12, 12), np.nan, np.float32))
    with pytest.raises(LabError, match="could not lower the network"):
        phone.to_executorch(model, torch.zeros(1, 4, 12, 12))


@litert
def test_litert_answers_as_pytorch_on_any_number_of_threads(tflite, images, expected):
    for threads in (1, 2):
        with phone.LiteRt(tflite, threads=threads) as run:
            assert np.abs(run(images)["logits"] - expected).max() < 1e-4 and run.scale_in is None
            with pytest.raises(BadInput, match="has shape"):
                run(images[:, :, :5])


@litert
def test_both_recipes_are_small_and_static_takes_true_ranges(tflite, images, expected):
    dynamic = phone.quantize_litert(tflite)
    ranges = phone.true_ranges(tflite, images)
    static = phone.quantize_litert(tflite, recipe="static_wi8_ai8", calibration=ranges)
    clipped = phone.quantize_litert(tflite, recipe="static_wi8_ai8", calibration=images)
    assert max(path.stat().st_size for path in (dynamic, static)) < tflite.stat().st_size
    with phone.LiteRt(dynamic) as run:
        assert np.abs(run(images)["logits"] - expected).max() < 0.05
    with phone.LiteRt(static) as run, phone.LiteRt(clipped) as other:
        scale, zero = run.scale_in
        assert scale * (-128 - zero) <= images.min() + scale and scale * (127 - zero) >= images.max() - scale
        assert scale >= other.scale_in[0]
        assert np.abs(run(images)["logits"] - expected).max() < 0.1


@litert
def test_what_litert_refuses(tflite, tmp_path, images):
    (tmp_path / "broken.tflite").write_bytes(b"\0" * 100)
    with pytest.raises(BadInput, match="LiteRT cannot load broken.tflite"):
        phone.LiteRt(tmp_path / "broken.tflite")
    with pytest.raises(BadInput, match="threads=0"):
        phone.LiteRt(tflite, threads=0)
    with pytest.raises(BadInput, match="recipe='int4' is not known; choose one of"):
        phone.quantize_litert(tflite, recipe="int4")
    with pytest.raises(BadInput, match="needs calibration"):
        phone.quantize_litert(tflite, recipe="static_wi8_ai8")
    for wrong in (images[:0], np.full_like(images, np.nan)):
        with pytest.raises(BadInput, match="calibration has shape .*; wanted are finite images"):
            phone.quantize_litert(tflite, recipe="static_wi8_ai8", calibration=wrong)
    with pytest.raises(BadInput, match="wanted are finite images"):
        phone.true_ranges(tflite, np.full_like(images, np.nan))
    with pytest.raises(BadInput, match="takes no calibration"):
        phone.quantize_litert(tflite, calibration=images)


@litert
def test_the_contents_of_a_file_are_read_without_running_it(tflite, tmp_path):
    inside = phone.contents(tflite)
    assert (
        inside.operators["CONV_2D"] == 2
        and inside.inputs == ((1, 3, 12, 12),)
        and inside.weight_bytes["FLOAT32"] > 20_000
    )
    assert "CONV_2D" in repr(inside) and inside.size_bytes == tflite.stat().st_size
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(BadInput, match="is no .tflite file"):
        phone.contents(tmp_path / "picture.png")
    with pytest.raises(BadInput, match="there is no file nothing.tflite"):
        phone.contents(tmp_path / "nothing.tflite")
