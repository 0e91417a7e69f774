"""The tool that records lab 14: the faster rival counts, no time of a wrong answer, and a twin with the same answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tool_scripts import tool_script

from labsupport import benchmarking, build, models, runtimes
from labsupport.benchmarking.measurements import Latency, Ratio
from labsupport.language import cached, networks

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"layers": 1, "hidden": 32, "heads": 4, "vocabulary": 100}


@pytest.fixture
def tool():
    return tool_script("record_lab14")


def ratio(median: float) -> Ratio:
    slow, fast = (Latency(name, "device", (ms, ms), 8, "a GPU") for name, ms in (("torch", median), ("trt", 1.0)))
    return Ratio((median, median), slow, fast)


@pytest.fixture
def bench(monkeypatch, tool):
    """The engine answers as PyTorch does, or off by ``error``; a rival's ratio is by its name."""
    state = {"error": 0.0, "ratios": {"written out": 1.6, "fused": 1.45}}
    here = runtimes.Torch

    class Engine:
        inputs = {"token_ids": type("Spec", (), {"dtype": "int32"})}

        def __init__(self, engine, cuda_graph):
            self.model = engine

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, tokens):
            assert tokens.dtype == np.int32, "in the type that the engine reads"
            with torch.no_grad():
                return {"hidden_states": self.model(torch.from_numpy(tokens).long()).numpy() * (1 + state["error"])}

    monkeypatch.setattr(build, "engine", lambda graph, **options: models.encoder(1, 32, 4, 100))
    monkeypatch.setattr(runtimes, "TensorRt", Engine)
    monkeypatch.setattr(runtimes, "Torch", lambda model, dtype, cuda_graph, name: here(model, device="cpu", name=name))
    monkeypatch.setattr(
        benchmarking, "paired", lambda slow, *_, **options: ratio(state["ratios"][slow.name.partition("attention ")[2]])
    )
    monkeypatch.setattr(tool, "half_gflop_per_s", lambda: 700_000.0)
    return state


def test_the_faster_rival_counts(tool, bench, tmp_path):
    noted = {}
    book = type("Book", (), {"record": lambda self, name, value, *unit, samples=None: noted.update({name: value})})()
    assert tool.encoder(book, tmp_path, **SMALL)
    assert noted["encoder.trt_fp16_over_torch_graph"].median == 1.45
    assert noted["encoder.trt_relative_error"] < 1e-3 and noted["encoder.floor_ms"] > 0


def test_no_time_of_a_wrong_answer(tool, bench, tmp_path):
    bench["error"] = 0.1
    noted = {}
    book = type("Book", (), {"record": lambda self, name, value, *unit, samples=None: noted.update({name: value})})()
    assert not tool.encoder(book, tmp_path, **SMALL) and not noted


def test_the_fused_twin_answers_as_the_written_one(tool):
    model = models.encoder(2, 32, 4, 100)
    twin, tokens = tool.with_fused_attention(model), model.example_input(2, length=9)
    with torch.no_grad():
        assert torch.allclose(model(tokens), twin(tokens), atol=1e-5)
    assert type(model.layers[0].attention) is not type(twin.layers[0].attention)


def test_mending_changes_no_fp32_answer(tool):
    network = networks.seeded(networks.Decoder(networks.Shape(2, 64, 4, 2, 128, 300, 64)))
    network.layers[0].down.weight *= 5000
    before = cached.TorchCached(network, capacity=16).step([[5, 6, 7]])
    tool.mended(network, [5, 6, 7])
    assert any(module.scale < 1 for module in network.modules() if isinstance(module, networks.RmsNorm))
    assert np.array_equal(cached.TorchCached(network, capacity=16).step([[5, 6, 7]]), before)


def test_the_floor_counts_products_alone(tool):
    model = models.encoder(2, 32, 4, 100)
    assert tool.floor_ms(model, 10, 1.0) == pytest.approx(1e3 * 2 * 2 * (4 * 32 * 32 + 2 * 32 * 128) * 10 / 1e9)
