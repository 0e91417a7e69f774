"""Bytes between host and device: four kinds of host memory, copies that overlap with computing, and what they gain."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labsupport import environment
from labsupport.benchmarking.measurements import at_least, one_of
from labsupport.comparing import timeline
from labsupport.errors import BadInput
from labsupport.placement import streams

# pageable: what malloc gives; pinned: the driver knows where it lies; write-combined: pinned, not cached by the CPU;
# mapped: pinned, and the GPU may read it where it is.
KINDS = ("pageable", "pinned", "write-combined", "mapped")
DIRECTIONS = ("up", "down")


@dataclass(frozen=True, repr=False)
class Transfer:
    """Copies of one size by one way: milliseconds each, wall clock, until the bytes are there; and how many arrived
    wrong.
    """

    way: str
    direction: str
    mib: float
    samples_ms: tuple[float, ...]
    wrong_bytes: int = 0

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def gb_per_s(self) -> float:
        return self.mib * 2**20 / 1e6 / self.median_ms

    @property
    def spread(self) -> float:
        """IQR over median."""
        low, high = np.percentile(self.samples_ms, (25, 75))
        return float((high - low) / self.median_ms)

    def as_metric(self) -> dict:
        return {"value": self.gb_per_s, "unit": "GB/s", "samples": len(self.samples_ms), "spread": self.spread}

    def __repr__(self) -> str:
        return f"{self.way} {self.direction}, {self.mib:g} MiB: {self.gb_per_s:.3g} GB/s"


@contextlib.contextmanager
def pycuda_context():
    """PyCUDA's driver module inside the context that PyTorch and TensorRT use: the device's primary one.

    ``pycuda.autoinit`` would make a context of its own, in which their pointers and streams mean nothing.
    Raises NotAvailable. Source: https://documen.tician.de/pycuda/driver.html
    """
    environment.require("gpu", "pycuda")
    import pycuda.driver as driver
    import torch

    torch.zeros(1, device="cuda")  # makes the primary context, if nobody has
    driver.init()
    driver.Device(torch.cuda.current_device()).retain_primary_context().push()
    try:
        yield driver
    finally:
        driver.Context.pop()


def host_buffer(kind: str, mib: float) -> np.ndarray:
    """Bytes of host memory of one of :data:`KINDS`, written once. Write-combined and mapped memory come from PyCUDA."""
    one_of("kind", kind, KINDS)
    size = size_bytes(mib)
    if kind == "pageable":
        return np.ones(size, np.uint8)
    if kind == "pinned":
        import torch

        environment.require("gpu")
        return torch.ones(size, dtype=torch.uint8).pin_memory().numpy()
    with pycuda_context() as driver:
        flags = driver.host_alloc_flags
        flag = flags.WRITECOMBINED if kind == "write-combined" else flags.DEVICEMAP
        buffer = driver.pagelocked_empty(size, np.uint8, mem_flags=flag)
    buffer[:] = 1
    return buffer


def copy(buffer: np.ndarray, *, direction: str = "up", runs: int = 10, kind: str = "host memory") -> Transfer:
    """Time copies of a host buffer to the device ("up") or back ("down"), each awaited."""
    import torch

    one_of("direction", direction, DIRECTIONS)
    at_least("runs", runs, 1)
    environment.require("gpu")
    host, device = torch.from_numpy(buffer), torch.empty(buffer.shape, dtype=torch.uint8, device="cuda")
    target, source = (device, host) if direction == "up" else (host, device)

    def once():
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    samples = _timed(once, runs)
    ends = [
        slice(0, 2**20),
        slice(-(2**20), None),
    ]  # all of it would be slow to read back where the processor has no cache
    wrong = sum(int((device[end].cpu() != host[end]).sum()) for end in ends)
    return Transfer(kind, direction, buffer.nbytes / 2**20, samples, wrong)


def cpu_pass(buffer: np.ndarray, *, write: bool, runs: int = 3) -> float:
    """GB/s at which one core writes a buffer, or reads it (of a read, the first sixteenth: uncached memory is slow)."""
    part = buffer if write else buffer[: max(8, buffer.size // 16)]
    landing = np.empty_like(part)
    work = (lambda: part.fill(1)) if write else (lambda: np.copyto(landing, part))
    return part.nbytes / 1e6 / statistics.median(_timed(work, runs))


def link(run, sizes_mib, *, runs: int = 10) -> Callable[[float], float]:
    """Measured ms to bring ``MiB`` of NumPy to the device as ``run`` does it, as a function, linear between the sizes.

    Below the least size it costs what that one costs; beyond the largest, bytes travel at the bandwidth measured there.
    ``run`` a runtimes.TensorRt: through a pinned buffer to the device. On a CPU runtime: one copy in memory.
    """
    points = sorted({float(mib) for mib in sizes_mib})
    if not points or points[0] <= 0:
        raise BadInput(f"sizes_mib={list(sizes_mib)}; give sizes above 0 MiB")
    times = [statistics.median(_timed(_crossing(run.device, mib), runs)) for mib in points]
    return lambda mib: float(np.interp(mib, points, times)) * max(1.0, mib / points[-1])


def _crossing(device: str, mib: float) -> Callable[[], object]:
    source = np.ones(size_bytes(mib), np.uint8)
    if device != "cuda":
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)
    import torch

    pinned = torch.empty(len(source), dtype=torch.uint8, pin_memory=True)
    there = torch.empty(len(source), dtype=torch.uint8, device="cuda")

    def cross():
        pinned.numpy()[...] = source
        there.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize()

    return cross


@dataclass(frozen=True, repr=False)
class Overlap:
    """A batch's copy in, inference and copy out alone, one after the other, and overlapped; ms per batch.

    ``spans`` are the overlapped run by CUDA events. The ideal gain follows from the three parts alone, each as the GPU
    does it in a full queue, without the host's time for launching it.
    """

    slots: int
    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    serial_ms: float
    overlapped_ms: float
    spans: tuple[timeline.Span, ...]
    same_answers: bool

    @property
    def gain(self) -> float:
        """Serial over overlapped time, both measured from the first copy to the last answer."""
        return self.serial_ms / self.overlapped_ms

    @property
    def ideal_gain(self) -> float:
        """All parts after one another, over the longest of them: what overlap gains when nothing waits."""
        parts = (self.copy_in_ms, self.compute_ms, self.copy_out_ms)
        return sum(parts) / max(parts)

    @property
    def share_of_ideal(self) -> float:
        return self.gain / self.ideal_gain

    def __repr__(self) -> str:
        return (
            f"copy in {self.copy_in_ms:.3f}, compute {self.compute_ms:.3f}, copy out {self.copy_out_ms:.3f} ms; "
            f"serial {self.serial_ms:.3f}, {self.slots} slots {self.overlapped_ms:.3f} ms a batch: gain "
            f"{self.gain:.2f}× of ideal {self.ideal_gain:.2f}× ({self.share_of_ideal:.0%} of it), answers "
            f"{'equal' if self.same_answers else 'DIFFER'}"
        )


def overlap(run, feed, *, slots: int = 2, batches: int = 40, rounds: int = 5, cuda_graph: bool = True) -> Overlap:
    """Measure copies and inference of one feed alone, in a line, and overlapped in ``slots`` lanes of a
    runtimes.TensorRt.
    """
    at_least("slots", slots, 1)
    at_least("batches", batches, 2)
    lanes = [streams.Lane(run, feed, cuda_graph=cuda_graph) for _ in range(slots)]
    lane = lanes[0]
    upload, compute, download = (_event_ms(lane, part) for part in (lane.upload, lane.compute, lane.download))
    serial = statistics.median(_timed(lambda: in_line(lanes[0], batches), rounds)) / batches
    together = statistics.median(_timed(lambda: in_turns(lanes, batches), rounds)) / batches
    answers = [lane.result() for lane in lanes]
    same = all(np.array_equal(answers[0][name], each[name]) for each in answers for name in each)
    spans = recorded_spans(lanes, 2 * slots + 4)
    return Overlap(slots, upload, compute, download, serial, together, spans, same)


def in_line(lane, batches: int) -> None:
    """Copy in, compute, copy out, and wait, again and again."""
    for _ in range(batches):
        lane.infer()
        lane.stream.synchronize()


def in_turns(lanes, batches: int) -> None:
    """Double buffering: while one lane computes, the next one's copy is under way."""
    for number in range(batches):
        lane = lanes[number % len(lanes)]
        lane.done.synchronize()  # its pinned buffers may be written again
        lane.infer()
    for lane in lanes:
        lane.stream.synchronize()


def recorded_spans(lanes, batches: int) -> tuple[timeline.Span, ...]:
    """The same with a CUDA event before and after every part: when each began and ended on the GPU."""
    import torch

    begin, marks = torch.cuda.Event(enable_timing=True), []
    torch.cuda.synchronize()
    begin.record(lanes[0].stream)
    for number in range(batches):
        lane = lanes[number % len(lanes)]
        lane.done.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        for event, part in zip(events, (lane.upload, lane.compute, lane.download, None), strict=True):
            event.record(lane.stream)
            if part:
                part()
        marks.append(events)
    torch.cuda.synchronize()
    return tuple(
        timeline.Span(row, number, begin.elapsed_time(events[k]), begin.elapsed_time(events[k + 1]))
        for number, events in enumerate(marks)
        for k, row in enumerate(("copy in", "compute", "copy out"))
    )


def wait_ms(lane, work: Callable, *, runs: int = 20) -> float:
    """Median ms by the host's clock from calling ``work`` until the lane's stream is done."""

    def once():
        work()
        lane.stream.synchronize()

    return statistics.median(_timed(once, runs))


def _event_ms(lane, part: Callable, *, queued: int = 10, runs: int = 10) -> float:
    """GPU time of one part alone; inferences go ahead of it, since short copies alone would not keep the GPU busy long
    enough.
    """

    def inferences():
        for _ in range(queued):
            lane.compute()

    return streams.queued_ms(lane.stream, part, ahead=inferences, queued=queued, runs=runs)


def _timed(work: Callable, runs: int) -> tuple[float, ...]:
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return tuple(times)


def size_bytes(mib: float) -> int:
    """MiB as whole bytes; BadInput for what is no size."""

    if isinstance(mib, bool) or not isinstance(mib, (int, float)) or not 0 < mib < math.inf:
        raise BadInput(f"mib={mib!r}; give a size above 0 MiB")
    return max(1, int(mib * 2**20))
