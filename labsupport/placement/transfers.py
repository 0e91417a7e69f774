"""Bytes between host and device: what a crossing costs, and copies that overlap with computing."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labsupport import environment
from labsupport.comparing import timeline
from labsupport.errors import BadInput, at_least
from labsupport.placement import streams


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

    ``pace_ms`` is the time per batch when all lanes compute at once and nothing is copied: where the GPU has room it is
    less than ``compute_ms``, one inference alone. ``spans`` are the overlapped run by CUDA events.
    """

    slots: int
    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    pace_ms: float
    serial_ms: float
    overlapped_ms: float
    spans: tuple[timeline.Span, ...]
    same_answers: bool

    @property
    def gain(self) -> float:
        """Serial over overlapped time, both measured from the first copy to the last answer."""
        return self.serial_ms / self.overlapped_ms

    @property
    def bound_ms(self) -> float:
        """What no schedule of these lanes beats: the longest of copy in, pace and copy out."""
        return max(self.copy_in_ms, self.pace_ms, self.copy_out_ms)

    @property
    def share_of_bound(self) -> float:
        """The bound over the overlapped time: 1 where nothing waits."""
        return self.bound_ms / self.overlapped_ms

    def __repr__(self) -> str:
        return (
            f"copy in {self.copy_in_ms:.3f}, compute {self.compute_ms:.3f} (at once {self.pace_ms:.3f}), copy out "
            f"{self.copy_out_ms:.3f} ms; serial {self.serial_ms:.3f}, {self.slots} buffers {self.overlapped_ms:.3f} ms "
            f"a batch: {self.gain:.2f} times as fast, {self.share_of_bound:.0%} of the bound, answers "
            f"{'equal' if self.same_answers else 'DIFFER'}"
        )


def overlap(run, feed, *, slots: int = 2, batches: int = 40) -> Overlap:
    """Measure copies and inference of one feed alone, in a line, and overlapped in ``slots`` lanes of a
    runtimes.TensorRt.
    """
    at_least(slots=slots)
    at_least(2, batches=batches)
    lanes = [streams.Lane(run, feed, cuda_graph=True) for _ in range(slots)]
    lane = lanes[0]
    upload, compute, download = (_event_ms(lane, part) for part in (lane.upload, lane.compute, lane.download))
    pace = 1e3 * lane.batch / streams.rate(lanes).items_per_s
    serial = statistics.median(_timed(lambda: in_line(lanes[0], batches), 5)) / batches
    together = statistics.median(_timed(lambda: in_turns(lanes, batches), 5)) / batches
    answers = [lane.result() for lane in lanes]
    same = all(np.array_equal(answers[0][name], each[name]) for each in answers for name in each)
    spans = _recorded_spans(lanes, 2 * slots + 4)
    return Overlap(slots, upload, compute, download, pace, serial, together, spans, same)


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


def _recorded_spans(lanes, batches: int) -> tuple[timeline.Span, ...]:
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


def _event_ms(lane, part: Callable, *, runs: int = 10) -> float:
    """GPU time of one part alone; inferences go ahead of it, since short copies alone would not keep the GPU busy long
    enough.
    """

    def inferences():
        for _ in range(10):
            lane.compute()

    return streams.queued_ms(lane.stream, part, ahead=inferences, queued=10, runs=runs)


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
    if not 0 < mib < math.inf:
        raise BadInput(f"mib={mib!r}; give a size above 0 MiB")
    return max(1, int(mib * 2**20))
