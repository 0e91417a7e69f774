"""Lanes: one execution context each, with a stream and buffers of its own, several on one engine."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labsupport import files
from labsupport.comparing import timeline
from labsupport.errors import BadInput, EngineError, NotAvailable, at_least

GATE = "spin_kernel"  # what torch.cuda._sleep is called in a trace
GATE_CYCLES = 1_000_000  # about half a millisecond for the host to put one traced inference into a queue


class Lane:
    """One execution context of a runtimes.TensorRt with its own stream, device buffers and pinned host buffers.

    Weights are the engine's and shared; activations are the context's, so lanes may run at once. `upload`, `compute`
    and `download` are asynchronous and in order within the lane. With ``cuda_graph`` compute is a captured graph.
    Raises BadInput for an engine with free shapes: TensorRT 8.6 lends a profile to one context at a time.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html (multi-streaming)
    """

    def __init__(self, run, feed, *, cuda_graph: bool = False, stream=None):
        import torch

        if not hasattr(run, "trt_engine"):
            raise BadInput(
                f"a lane needs a runtimes.TensorRt, and {getattr(run, 'name', run)!r} is a {type(run).__name__}"
            )
        free = [name for name, spec in run.inputs.items() if None in spec.shape]
        if free:
            raise BadInput(
                f"{run.name}: the shape of {free} is free, and contexts cannot share an optimization profile in every "
                "TensorRT; build the engine from a graph exported with dynamic=False"
            )
        self.run, self.stream = run, stream or torch.cuda.Stream()
        self.context = run.trt_engine.create_execution_context()
        if self.context is None:
            raise EngineError(
                f"{run.name}: no further execution context: {run.log.last_error()}; free GPU memory or use fewer lanes"
            )
        feed = {name: torch.as_tensor(x) for name, x in run.checked(feed).items()}
        self.host = {name: x.cpu().clone().pin_memory() for name, x in feed.items()}
        self.inputs = run.static(feed)
        self.outputs = {
            name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="cuda")
            for name, spec in run.outputs.items()
        }
        self.landed = {name: torch.empty(y.shape, dtype=y.dtype, pin_memory=True) for name, y in self.outputs.items()}
        self.batch = int(next(iter(feed.values())).shape[0])
        self.done = torch.cuda.Event()
        for name, tensor in {**self.inputs, **self.outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        self.upload()
        self._launch()  # the first call allocates and may not be captured
        self._graph = self._captured() if cuda_graph else None
        self.stream.synchronize()

    def upload(self) -> None:
        """Copy the pinned host inputs to the device."""
        import torch

        with torch.cuda.stream(self.stream):
            self.run.fill(self.inputs, self.host)

    def compute(self) -> None:
        """One inference on what lies in the device buffers."""
        import torch

        if self._graph is None:
            self._launch()
        else:
            with torch.cuda.stream(self.stream):
                self._graph.replay()

    @property
    def launcher(self):
        """The bare call behind :meth:`compute`, for a caller on the lane's stream, where a graph's replay belongs."""
        return self._launch if self._graph is None else self._graph.replay

    def download(self) -> None:
        """Copy the outputs to pinned host memory and mark the lane's work as done."""
        import torch

        with torch.cuda.stream(self.stream):
            for name, y in self.outputs.items():
                self.landed[name].copy_(y, non_blocking=True)
            self.done.record(self.stream)

    def infer(self, *, upload: bool = True) -> None:
        """Upload, compute and download, all asynchronous; without ``upload`` on what the device buffers hold."""
        if upload:
            self.upload()
        self.compute()
        self.download()

    def result(self) -> dict:
        """The outputs on the host as new NumPy arrays, once the lane's stream is done."""
        self.stream.synchronize()
        return {name: y.numpy().copy() for name, y in self.landed.items()}

    def _launch(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise EngineError(
                f"{self.run.name}: TensorRT could not run the engine: {self.run.log.last_error()}; build it again"
            )

    def _captured(self):
        import torch

        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._launch()
        return graph


@dataclass(frozen=True, repr=False)
class LaneRate:
    """Batches per second of one or more lanes at once, over several stretches of wall time."""

    name: str
    lanes: int
    batch: int
    rates: tuple[float, ...]

    @property
    def items_per_s(self) -> float:
        return statistics.median(self.rates) * self.batch

    @property
    def spread(self) -> float:
        """Range over median of the stretches."""
        return (max(self.rates) - min(self.rates)) / statistics.median(self.rates)

    def as_metric(self) -> dict:
        return {"value": self.items_per_s, "unit": "items/s", "samples": len(self.rates), "spread": self.spread}

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.lanes} lane{'s' * (self.lanes != 1)}, batch {self.batch}: "
            f"{self.items_per_s:,.0f} items/s"
        )


def rate(lanes, *, depth: int = 4) -> LaneRate:
    """Throughput of lanes that are fed in turn, at most ``depth`` inferences ahead in each, inputs on the device.

    Five stretches of 0.1 s count; the one before them warms up.
    """
    import torch

    if not lanes:
        raise BadInput("no lanes: give at least one streams.Lane")
    at_least(depth=depth)
    rates = []
    for _ in range(6):
        torch.cuda.synchronize()
        rounds, start, marks = 0, time.perf_counter(), [[] for _ in lanes]
        while time.perf_counter() - start < 0.1:
            for lane, pending in zip(lanes, marks, strict=True):
                if len(pending) >= depth:
                    pending.pop(0).synchronize()
                lane.compute()
                mark = torch.cuda.Event()
                mark.record(lane.stream)
                pending.append(mark)
            rounds += 1
        torch.cuda.synchronize()
        rates.append(rounds * len(lanes) / (time.perf_counter() - start))
    return LaneRate(lanes[0].run.name, len(lanes), lanes[0].batch, tuple(rates[1:]))


def together(runs, feed, *, seconds: float = 0.3) -> LaneRate:
    """Throughput of runtimes that each run ``feed`` again and again in a thread of their own, all at once.

    On the CPU these are ONNX Runtime sessions, which leave Python's lock while they compute. The batch is the first
    axis.
    """
    runs = list(runs)
    if not runs or not seconds > 0:
        raise BadInput(f"{len(runs)} runtimes for {seconds!r} s; give one runtime and some time at least")
    counts, ready, failures = [0] * len(runs), threading.Barrier(len(runs) + 1), []

    def work(place: int) -> None:
        try:
            runs[place](feed)
            ready.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                runs[place](feed)
                counts[place] += 1
        except threading.BrokenBarrierError:  # another one failed
            return
        except BaseException as error:  # raised below, in the caller's thread
            failures.append(error)
            ready.abort()  # or the others would wait for this one for ever

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(runs))]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    rates = (sum(counts) / (time.perf_counter() - start),)
    return LaneRate(runs[0].name, len(runs), int(np.shape(feed)[0]), rates)


def queued_ms(stream, part: Callable, *, ahead: Callable = lambda: None, queued: int = 10, runs: int = 10) -> float:
    """GPU time of one call of ``part`` among ``queued`` equal ones on ``stream``, median ms.

    ``ahead`` and one more part go before the start mark: while the GPU has them to do, the host puts the others into
    the queue, so that Python's share of a short part is not timed with it. Behind the mark there is nothing but the
    part.
    """
    import torch

    times = []
    for _ in range(runs + 1):  # the first warms up
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        ahead()
        part()
        start.record(stream)
        for _ in range(queued):
            part()
        stop.record(stream)
        stop.synchronize()
        times.append(start.elapsed_time(stop) / queued)
    return statistics.median(times[1:])


@dataclass(frozen=True, repr=False)
class KernelUse:
    """Kernels that ran, by the profiler: thread blocks per multiprocessor of the median kernel, and what overlapped."""

    name: str
    kernels: int
    blocks_per_multiprocessor: float
    smaller_than_gpu: float
    overlapped: float

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.kernels} kernels, the median one brings {self.blocks_per_multiprocessor:.2g} blocks "
            f"per multiprocessor; {self.smaller_than_gpu:.0%} leave multiprocessors without a block; "
            f"{self.overlapped:.0%} of the kernel time ran beside other kernels"
        )


def kernel_use(lanes, *, rounds: int = 30) -> KernelUse:
    """How far the lanes' kernels fill the GPU, by PyTorch's profiler (CUPTI), which sees TensorRT's kernels too.

    A tracer slows every launch, so the lanes wait at a gate, a kernel that only counts cycles, until the host has put
    most rounds into their queues, in turns; what then runs is what full queues make the GPU do. A kernel of fewer
    blocks than multiprocessors leaves some idle, whatever else is waiting in its stream. Raises NotAvailable where the
    profiler saw no kernels (CUPTI may need permission, or another program profiles).
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    lanes = list(lanes)
    at_least(rounds=rounds)
    if not lanes:
        raise BadInput("no lanes: give at least one streams.Lane")
    gate, opened = torch.cuda.Stream(), torch.cuda.Event()
    _compute(lanes, rounds)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as seen:
        _compute(lanes, 1)  # under the tracer the first launch takes longest
        torch.cuda.synchronize()
        with torch.cuda.stream(gate):
            torch.cuda._sleep(GATE_CYCLES * rounds * len(lanes))
            opened.record(gate)
        for lane in lanes:
            lane.stream.wait_event(opened)
        _compute(lanes, rounds)
        torch.cuda.synchronize()
    with files.scratch() as folder:
        path = folder / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"), strict=False)["traceEvents"]
    return _use_of(f"{lanes[0].run.name}, {len(lanes)} lanes, batch {lanes[0].batch}", events)


def _compute(lanes, rounds: int) -> None:
    for _ in range(rounds):
        for lane in lanes:
            lane.compute()


def _use_of(name: str, events) -> KernelUse:
    """What the kernels of a trace say; where there is a gate among them, those that began when it had opened."""
    kernels = [event for event in events if event.get("cat") == "kernel" and "blocks per SM" in event.get("args", {})]
    opened = max((event["ts"] + event["dur"] for event in kernels if GATE in event.get("name", "")), default=-math.inf)
    kernels = [event for event in kernels if event["ts"] >= opened]
    if not kernels:
        raise NotAvailable(
            "the profiler saw no kernels: CUPTI is not usable here; the rates of one lane and of "
            "several say the same indirectly"
        )
    blocks = [float(event["args"]["blocks per SM"]) for event in kernels]
    spans = [
        timeline.Span(str(event["args"].get("stream")), 0, event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3)
        for event in kernels
    ]
    small = sum(each < 1 for each in blocks) / len(blocks)
    return KernelUse(name, len(kernels), statistics.median(blocks), small, timeline.overlapped(spans))
