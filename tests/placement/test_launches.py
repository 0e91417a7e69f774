"""The tracer's events, reduced to the kernels of one inference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from labsupport import environment
from labsupport.errors import EngineError, NotAvailable
from labsupport.placement import launches


class Run:
    name, device = "trt fp32", "cuda"

    def __init__(self):
        self.calls = []

    def bind(self, feed):
        self.calls.append(("bind", feed))

    def enqueue(self):
        self.calls.append("enqueue")

    def synchronize(self):
        self.calls.append("synchronize")


def event(name, start, device=DeviceType.CUDA):
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start))


def fake_tracer(monkeypatch, run, events):
    class Trace:
        def __init__(self, activities, acc_events=False):
            assert acc_events, "PyTorch warns where events are read afterwards and not kept"

        def __enter__(self):
            run.calls.append("trace")
            return self

        def __exit__(self, *_):
            run.calls.append("end")

        def events(self):
            return events

    monkeypatch.setattr(torch.profiler, "profile", Trace)


def test_kernels_come_in_order_and_without_the_drivers_copies(monkeypatch):
    run = Run()
    fake_tracer(
        monkeypatch,
        run,
        [
            event("second", 20),
            event("cudaLaunchKernel", 1, DeviceType.CPU),
            event("Memcpy DtoD (Device -> Device)", 5),
            event("first", 10),
            event("Memset (Device)", 30),
        ],
    )
    assert launches.traced(run, "feed") == ("first", "second")
    assert run.calls == [
        ("bind", "feed"),
        "enqueue",
        "synchronize",
        "trace",
        "enqueue",
        "synchronize",
        "end",
    ]  # one inference is traced, warm


def test_a_tracer_that_sees_nothing_says_nothing(monkeypatch):
    run = Run()
    fake_tracer(monkeypatch, run, [])
    assert launches.traced(run, "feed") == ()


def test_a_tracer_that_cannot_start_says_nothing_and_an_engine_that_fails_does(monkeypatch):
    def refuse(activities, acc_events=False):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    run = Run()
    monkeypatch.setattr(torch.profiler, "profile", refuse)
    assert launches.traced(run, "feed") == ()
    fake_tracer(monkeypatch, run, [])
    failures = iter([None, EngineError("TensorRT could not run the engine")])

    def enqueue():
        failure = next(failures)
        if failure:
            raise failure

    run.enqueue = enqueue
    with pytest.raises(EngineError, match="TensorRT could not run the engine"):
        launches.traced(run, "feed")


def test_a_processor_has_no_launches():
    run = Run()
    run.device = "cpu"
    with pytest.raises(
        NotAvailable,
        match="trt fp32 runs on the CPU, and only a GPU's launches are traced; count its nodes with fusion.xray",
    ):
        launches.traced(run, "feed")
    assert run.calls == []


@pytest.mark.skipif(not environment.has("gpu"), reason="needs a GPU")
def test_a_chain_of_three_operations_is_three_launches():
    from labsupport import runtimes

    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.Sigmoid())
    module.example_input = lambda: torch.randn(2, 8)
    with runtimes.Torch(module, device="cuda") as run:
        assert len(launches.traced(run, module.example_input().cuda())) in (0, 3)  # 0 where tracing is not permitted
