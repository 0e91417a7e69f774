"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import numpy as np

MS = 1_000_000  # ns


class Clock:
    """Stands still until somebody works."""

    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns

    def work(self, ms):
        self.ns += round(ms * MS)


class Cpu:
    """A synchronous runtime whose n-th call takes times_ms[n], the last for ever after."""

    device = "cpu"

    def __init__(self, clock, times_ms, name="ort/all"):
        self.clock, self.times_ms, self.name, self.calls, self.closed = clock, list(times_ms), name, 0, False

    def __call__(self, feed):
        self.clock.work(self.times_ms[min(self.calls, len(self.times_ms) - 1)])
        self.calls += 1
        return {"logits": feed}

    def close(self):
        self.closed = True


class Gpu:
    """A runtime that queues work: a call returns after 0.02 ms, synchronize() waits for the rest."""

    device = "cuda"
    stream = "stream 1"

    def __init__(self, clock, kernel_ms, name="TensorRT fp16"):
        self.clock, self.kernel_ms, self.name = clock, kernel_ms, name
        self.done_ns, self.waits, self.bound, self.enqueued = 0, 0, None, 0

    def __call__(self, feed):
        self.enqueue()
        return {"logits": feed}

    def bind(self, feed):
        self.bound = feed

    def enqueue(self):
        self.enqueued += 1
        self.clock.work(0.02)
        self.done_ns = max(self.done_ns, self.clock.ns) + round(self.kernel_ms * MS)

    def synchronize(self):
        self.waits += 1
        self.clock.ns = max(self.clock.ns, self.done_ns)

    def event(self):
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu, self.at_ns = gpu, None

    def record(self, stream):
        assert stream == "stream 1"
        self.at_ns = max(self.gpu.done_ns, self.gpu.clock.ns)

    def synchronize(self):
        self.gpu.clock.ns = max(self.gpu.clock.ns, self.at_ns)

    def elapsed_time(self, stop):
        return (stop.at_ns - self.at_ns) / MS


FEED = {"images": np.ones((8, 3, 4, 4), np.float32)}
