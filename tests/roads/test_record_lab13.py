"""The tool that records lab 13's larger networks: every row has its error, every ratio its direction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tool_scripts import tool_script

from labsupport import benchmarking, environment, models, runtimes
from labsupport.errors import BadInput, NotAvailable

ANSWER = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)


class Fake:
    device, inputs = "cuda", {}

    def __init__(self, name, error):
        self.name, self.error, self.closed = name, error, False

    def __call__(self, feed):
        return {"logits": ANSWER * (1 + self.error)}

    def close(self):
        self.closed = True


class Exact(Fake):
    def __init__(self, network, name):
        super().__init__(name, 0)

    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda self, *_: self.close()  # noqa: E731


@pytest.fixture
def tool(monkeypatch, tmp_path):
    module = tool_script("record_lab13")
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(module, "workpiece", lambda which: (None, FakeTensor()))
    monkeypatch.setattr(module, "engine_of", lambda network, example: Fake("trt_fp16", 0.01))
    monkeypatch.setattr(module, "on_device", lambda example: example)
    monkeypatch.setattr(runtimes, "Torch", Exact)
    monkeypatch.setattr(benchmarking, "device_latency", lambda run, feed, runs: 1.0)
    monkeypatch.setattr(
        module.sys, "stdout", type("Quiet", (), {"write": lambda self, text: None, "flush": lambda self: None})()
    )
    return module


class FakeTensor:
    cuda = half = lambda self: self  # noqa: E731


def test_each_runtime_gets_a_time_and_an_error_and_each_rival_a_ratio(tool, monkeypatch, tmp_path):
    rivals = {"torch_fp16_graph": Fake("torch_fp16_graph", 0.02), "torch_compile": Fake("torch_compile", 0.03)}
    pairs = []
    monkeypatch.setattr(tool, "torch_rivals", lambda network, example: rivals)
    monkeypatch.setattr(
        benchmarking,
        "paired",
        lambda before, after, feed, clock, rounds: pairs.append((before.name, after.name, clock)) or 1.5,
    )

    class Book:
        metrics = {}

        def record(self, metric, value, unit=None):
            self.metrics[metric] = value

    tool.measure(Book(), "encoder")
    assert Book.metrics["encoder_s128_b8.trt_fp16_error"] == pytest.approx(0.01, rel=1e-3)
    assert {f"encoder_s128_b8.{name}_ms" for name in (*rivals, "trt_fp16")} <= set(Book.metrics)
    assert pairs == [("torch_fp16_graph", "trt_fp16", "device"), ("torch_compile", "trt_fp16", "device")]
    assert {
        "encoder_s128_b8.trt_fp16_graph_over_torch_compile",
        "encoder_s128_b8.trt_fp16_graph_over_torch_fp16_graph",
    } <= set(Book.metrics)
    assert all(run.closed for run in rivals.values())


def test_the_metrics_have_the_names_that_the_lab_reads(tool):
    book = json.loads(
        (Path(__file__).resolve().parents[2] / "notebooks" / "13_frameworks.ipynb").read_text(encoding="utf-8")
    )
    text = "".join("".join(cell["source"]) for cell in book["cells"])
    for which, rival in (
        ("resnet50", "torch_compile"),
        ("encoder", "torch_compile"),
        ("mobilenet", "torch_fp16_graph"),
    ):
        assert f"{tool.NETWORKS[which]}.{tool.RIVALS[rival]}" in text


def test_an_unknown_network_is_refused(tool):
    assert tool.chosen([]) == ["encoder", "mobilenet", "resnet50"] and tool.chosen(["encoder"]) == ["encoder"]
    with pytest.raises(BadInput, match="'bert' is none of the networks"):
        tool.chosen(["bert"])


def test_without_a_gpu_it_says_so(tool, monkeypatch):
    if environment.has("engine execution"):
        pytest.skip("this machine can measure")
    monkeypatch.setattr(tool.sys, "argv", ["record_lab13.py"])
    with pytest.raises(NotAvailable, match="no GPU can be used here|TensorRT"):
        tool.main()


def test_the_workpieces_are_the_published_ones():
    module = tool_script("record_lab13")
    network, tokens = module.workpiece("encoder")
    assert tuple(tokens.shape) == (8, 128) and sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in models.encoder(12, 768, 12, 30522).parameters()
    )
