"""Which kernels a GPU really ran, and what handing them over costs: one by one, or as one captured CUDA graph.

CUDA's tracer sees inside a region, of which an engine's inspector tells the borders only.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from labsupport import benchmarking
from labsupport.benchmarking.measurements import Ratio, at_least
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.placement import streams


def traced(run, feed) -> tuple[str, ...]:
    """Names of the kernels that one inference of a GPU runtime launches, in order; the driver's own copies are left
    out.

    Empty where the tracer (CUPTI) is missing or not permitted, and so says nothing. Raises NotAvailable on a processor.
    Source: https://docs.pytorch.org/docs/stable/profiler.html
    """
    _on_gpu(run)
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run.bind(feed)
    run.enqueue()  # whatever is loaded at a first launch is not the inference
    run.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
            run.enqueue()
            run.synchronize()
    except LabError:
        raise  # the engine's own trouble
    except RuntimeError:  # PyTorch's, where it cannot start its tracer
        return ()
    ran = [event for event in trace.events() if event.device_type == DeviceType.CUDA]
    ran.sort(key=lambda event: event.time_range.start)
    return tuple(event.name for event in ran if not event.name.startswith(("Memcpy", "Memset")))


def _on_gpu(run) -> None:
    if not str(run.device).startswith("cuda"):
        raise NotAvailable(
            f"{run.name} runs on the CPU, and only a GPU's launches are traced; count its nodes with fusion.xray(run)"
        )


@dataclass(frozen=True, repr=False)
class Launching:
    """One engine launched kernel by kernel ("plain") and as a captured graph, by the host's clock, in turns, in one
    process.

    ``alone`` is one request, from the call until the GPU is done. ``ahead`` is the time per inference of ``queued``
    calls that are awaited together. ``call_ms`` is how long the host is busy with one call, plain and graph; ``gpu_ms``
    how long the GPU is with one inference when nothing keeps it waiting, by CUDA events round graphs in a queue.
    ``kernels`` is None where the tracer may not look.
    """

    name: str
    kernels: int | None
    call_ms: tuple[float, float]
    gpu_ms: float
    alone: Ratio
    ahead: Ratio
    queued: int
    max_error: float

    @property
    def launch_bound(self) -> bool:
        """Whether launching kernel by kernel keeps the host busy for longer than the GPU computes."""
        return self.call_ms[0] > self.gpu_ms

    @property
    def expected_ahead(self) -> float:
        """What a graph should gain with calls ahead: in a queue, the slower of host and GPU sets the pace."""
        plain, graph = (max(call, self.gpu_ms) for call in self.call_ms)
        return plain / graph

    def as_row(self) -> dict:
        """One row for comparing.table; "?" where the kernels could not be counted."""
        host, gpu = (
            "?" if self.kernels is None else round(1e3 * ms / self.kernels, 2) for ms in (self.call_ms[0], self.gpu_ms)
        )
        times = {
            f"{how}, {side} ms": round(latency.median_ms, 4)
            for how, ratio in (("alone", self.alone), ("ahead", self.ahead))
            for side, latency in (("plain", ratio.before), ("graph", ratio.after))
        }
        return {
            "engine": self.name,
            "kernels": self.kernels or "?",
            "host, µs a kernel": host,
            "GPU, µs a kernel": gpu,
            **times,
            "max error": self.max_error,
        }

    def __repr__(self) -> str:
        kernels = "kernels not counted" if self.kernels is None else f"{self.kernels} kernels"
        plain, graph = (f"{1e3 * ms:.0f}" for ms in self.call_ms)
        return (
            f"{self.name}: {kernels}; the host is busy {plain} µs a call, {graph} with a graph, the GPU "
            f"{1e3 * self.gpu_ms:.0f} µs: {'' if self.launch_bound else 'not '}launch-bound. Graph over plain: alone "
            f"{self.alone.median:.2f}×, ahead {self.ahead.median:.2f}× ({self.expected_ahead:.2f}× expected from the "
            "parts)"
        )


def weigh(engines: Mapping[str, tuple], *, rounds: int = 30, queued: int = 10) -> tuple[Launching, ...]:
    """Measure what a CUDA graph gains on engines: name → (runtimes.TensorRt of fixed shapes, feed).

    Of each, two contexts on one stream with the input on the device; what is timed is the bare ``execute_async_v3``
    against the bare replay, without further Python round either. All are timed before the first is traced, since a
    tracer may stay attached and slow the launches that follow. Raises BadInput, NotAvailable on a processor. Source:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html (CUDA graphs)
    """
    at_least("queued", queued, 1)
    at_least("rounds", rounds, 1)
    if not isinstance(engines, Mapping) or not engines:
        raise BadInput(f"engines is {engines!r:.60}; give a mapping from a name to (runtime, feed)")
    for run, _ in engines.values():
        _on_gpu(run)
    timed = [_timed(name, run, feed, rounds, queued) for name, (run, feed) in engines.items()]
    counts = [len(traced(run, feed)) or None for run, feed in engines.values()]
    return tuple(dataclasses.replace(each, kernels=count) for each, count in zip(timed, counts, strict=True))


def _timed(name: str, run, feed, rounds: int, queued: int) -> Launching:
    import torch

    plain = streams.Lane(run, feed)
    graph = streams.Lane(run, feed, cuda_graph=True, stream=plain.stream)
    with torch.cuda.stream(plain.stream):
        sides = [_Calls(f"{kind}, {run.name}", each) for kind, each in (("plain", plain), ("graph", graph))]
        call_ms = (_call_ms(sides[0], rounds), _call_ms(sides[1], rounds))
        alone = benchmarking.paired(sides[0], sides[1], feed, rounds=rounds, clock="host")
        many = [_Calls(side.name, side.lane, queued) for side in sides]
        paired = benchmarking.paired(many[0], many[1], feed, rounds=rounds, runs_per_round=2, clock="host")
        ahead = _per_call(paired, queued)
        gpu_ms = streams.queued_ms(graph.stream, graph.launcher, queued=queued, runs=rounds)
    answers = []
    for each in (plain, graph):
        each.infer()
        answers.append(each.result())
    error = max(float(abs(answers[0][output] - answers[1][output]).max()) for output in answers[0])
    return Launching(name, None, call_ms, gpu_ms, alone, ahead, queued, error)


class _Calls:
    """A lane's bare call, ``count`` times, as a runtime that benchmarking.paired can time; nothing is copied."""

    device = "cuda"

    def __init__(self, name: str, lane, count: int = 1):
        self.name, self.lane, self.count, self.call = name, lane, count, lane.launcher

    def __call__(self, feed) -> dict:
        for _ in range(self.count):
            self.call()
        return {}

    def synchronize(self) -> None:
        self.lane.stream.synchronize()


def _call_ms(calls: _Calls, runs: int) -> float:
    """How long the host is busy with one call to an idle GPU, median ms."""
    times = []
    for _ in range(runs + 3):
        calls.synchronize()
        start = time.perf_counter()
        calls.call()
        times.append((time.perf_counter() - start) * 1e3)
    calls.synchronize()
    return statistics.median(times[3:])


def _per_call(ratio: Ratio, count: int) -> Ratio:
    before, after = (
        dataclasses.replace(side, samples_ms=tuple(ms / count for ms in side.samples_ms))
        for side in (ratio.before, ratio.after)
    )
    return Ratio(ratio.samples, before, after)
