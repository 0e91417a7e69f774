"""The tracer's events, reduced to the kernels of one inference."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from labsupport import comparing, environment
from labsupport.errors import BadInput, EngineError, NotAvailable
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


# --- what a graph gains -----------------------------------------------------------------------------------------


class Clockwork:
    """A GPU and a host in microseconds: a launch keeps the host busy, kernels wait for their launch and for each other."""

    def __init__(self, monkeypatch, *, kernels, launch_us, kernel_us, replay_us):
        self.now, self.free, self.current, self.order = 0.0, 0.0, None, []
        costs = {"plain": (kernels, launch_us, kernel_us), "graph": (1, replay_us, kernels * kernel_us)}
        clock = self

        class Lane:
            def __init__(self, run, feed, *, cuda_graph=False, stream=None):
                self.stream, self.kind = stream or Stream(), "graph" if cuda_graph else "plain"

            def launcher(self):
                if self.kind == "graph":
                    assert clock.current is self.stream, "a graph is replayed on the current stream"
                count, host, gpu = costs[self.kind]
                for _ in range(count):
                    clock.now += host
                    clock.free = max(clock.free, clock.now) + gpu

            def infer(self):
                pass

            def result(self):
                return {"logits": np.full(3, 0.5 if self.kind == "graph" else 0.0)}

        class Stream:
            def synchronize(self):
                clock.now = max(clock.now, clock.free)

        class Event:
            def __init__(self, enable_timing):
                pass

            def record(self, stream):
                self.at = max(clock.now, clock.free)

            def synchronize(self):
                clock.now = max(clock.now, self.at)

            def elapsed_time(self, other):
                return (other.at - self.at) / 1e3

        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(launches.streams, "Lane", Lane)
        monkeypatch.setattr(launches.time, "perf_counter", lambda: self.now / 1e6)
        paired = launches.benchmarking.paired

        def timed(*sides, **options):
            self.order.append("time")
            return paired(*sides, **options, now=lambda: int(self.now * 1e3))

        monkeypatch.setattr(launches.benchmarking, "paired", timed)

        def count(run, feed):
            self.order.append("trace")
            return ("kernel",) * kernels

        monkeypatch.setattr(launches, "traced", count)

    @contextlib.contextmanager
    def on(self, stream):
        self.current = stream
        yield
        self.current = None


def test_short_kernels_wait_for_their_launches(monkeypatch):
    Clockwork(monkeypatch, kernels=20, launch_us=5, kernel_us=3, replay_us=10)
    (found,) = launches.weigh({"narrow": (Run(), np.zeros((1, 3)))}, rounds=3)
    assert found.call_ms == pytest.approx((0.1, 0.01)) and found.gpu_ms == pytest.approx(0.06) and found.launch_bound
    assert found.alone.median == pytest.approx(103 / 70) and found.alone.before.median_ms == pytest.approx(0.103)
    assert found.ahead.median == pytest.approx(1003 / 610) and found.ahead.after.median_ms == pytest.approx(0.061)
    assert found.expected_ahead == pytest.approx(100 / 60) and found.kernels == 20 and found.max_error == 0.5
    assert repr(found) == (
        "narrow: 20 kernels; the host is busy 100 µs a call, 10 with a graph, the GPU 60 µs: launch-bound. "
        "Graph over plain: alone 1.47×, ahead 1.64× (1.67× expected from the parts)"
    )
    assert found.as_row() == {
        "engine": "narrow",
        "kernels": 20,
        "host, µs a kernel": 5.0,
        "GPU, µs a kernel": 3.0,
        "alone, plain ms": 0.103,
        "alone, graph ms": 0.07,
        "ahead, plain ms": 0.1003,
        "ahead, graph ms": 0.061,
        "max error": 0.5,
    }
    assert comparing.table([found.as_row()]) is not None


def test_a_host_that_is_ahead_of_long_kernels_gains_nothing(monkeypatch):
    Clockwork(monkeypatch, kernels=20, launch_us=5, kernel_us=8, replay_us=10)
    (found,) = launches.weigh({"wide": (Run(), np.zeros((1, 3)))}, rounds=3)
    assert not found.launch_bound and found.expected_ahead == 1 and "not launch-bound" in repr(found)
    assert found.ahead.median == pytest.approx(1, abs=0.01) and found.alone.median == pytest.approx(
        165 / 170
    )  # replay takes longer than a launch


def test_all_engines_are_timed_before_one_is_traced(monkeypatch):
    clock = Clockwork(monkeypatch, kernels=2, launch_us=5, kernel_us=3, replay_us=10)
    found = launches.weigh({"a": (Run(), np.zeros((1, 3))), "b": (Run(), np.zeros((1, 3)))}, rounds=1)
    assert clock.order == ["time"] * 4 + ["trace"] * 2 and [each.name for each in found] == ["a", "b"]


def test_kernels_that_cannot_be_counted_are_said(monkeypatch):
    Clockwork(monkeypatch, kernels=2, launch_us=5, kernel_us=3, replay_us=10)
    monkeypatch.setattr(launches, "traced", lambda run, feed: ())
    (found,) = launches.weigh({"a": (Run(), np.zeros((1, 3)))}, rounds=1)
    assert found.kernels is None and "kernels not counted" in repr(found)
    assert [found.as_row()[column] for column in ("kernels", "host, µs a kernel", "GPU, µs a kernel")] == [
        "?",
        "?",
        "?",
    ]


@pytest.mark.parametrize(
    "engines, options, message",
    [
        ({}, {}, "engines is {}; give a mapping"),
        ([1], {}, "give a mapping"),
        ({"a": (Run(), None)}, {"queued": 0}, "queued=0"),
        ({"a": (Run(), None)}, {"rounds": 0}, "rounds=0"),
    ],
)
def test_what_cannot_be_weighed(engines, options, message):
    with pytest.raises(BadInput, match=message):
        launches.weigh(engines, **options)


def test_nothing_is_weighed_on_a_processor():
    run = Run()
    run.device = "cpu"
    with pytest.raises(NotAvailable, match="runs on the CPU"):
        launches.weigh({"a": (run, None)})
    assert run.calls == []


@pytest.mark.skipif(not environment.has("gpu"), reason="needs a GPU")
def test_a_chain_of_three_operations_is_three_launches():
    from labsupport import runtimes

    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.Sigmoid())
    module.example_input = lambda: torch.randn(2, 8)
    with runtimes.Torch(module, device="cuda") as run:
        assert len(launches.traced(run, module.example_input().cuda())) in (0, 3)  # 0 where tracing is not permitted
