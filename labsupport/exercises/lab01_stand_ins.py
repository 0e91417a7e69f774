"""What lab 01's exercises are judged with: a pretended device, sweeps and two networks, all drawn anew."""

from __future__ import annotations

import random
from typing import Any


class Device:
    """A pretended processor with a queue, on a clock of its own: what a GPU does to a stopwatch, the same every time.

    `launch` takes `launch_ms` of the caller's time and queues `work_ms` of work (`first_ms` more the first time);
    `synchronize` waits until the queue is empty; `now` reads the clock in seconds. `queued_ms` is what somebody else
    left in the queue.
    """

    def __init__(self, *, launch_ms: float = 1.0, work_ms: float = 4.0, first_ms: float = 80.0, queued_ms: float = 0.0):
        self.launch_ms, self.work_ms, self.first_ms = launch_ms, work_ms, first_ms
        self.launches, self.pending_at_readings_ms = 0, []
        self._clock_ms, self._idle_from_ms = 0.0, queued_ms

    def launch(self) -> None:
        """Queue one inference and return at once."""
        self._clock_ms += self.launch_ms
        work_ms = self.work_ms + (0.0 if self.launches else self.first_ms)
        self._idle_from_ms = max(self._idle_from_ms, self._clock_ms) + work_ms
        self.launches += 1

    def synchronize(self) -> None:
        """Wait until everything queued so far is done."""
        self._clock_ms = max(self._clock_ms, self._idle_from_ms)

    def now(self) -> float:
        """The time on this device's clock, in seconds."""
        self._clock_ms += 1e-6  # reading takes a moment, so that a loop that waits for the clock ends
        self.pending_at_readings_ms.append(max(0.0, self._idle_from_ms - self._clock_ms))
        return self._clock_ms / 1e3


class Handle:
    """A device as a caller has it: to launch, to wait, to read the clock. What it costs is not written on it."""

    def __init__(self, device: Device):
        self.launch, self.synchronize, self.now = device.launch, device.synchronize, device.now


def drawn_sweeps() -> list[tuple[list[dict[str, Any]], float]]:
    """(rows, budget) drawn anew: the median of one fits and its p99 does not; the largest that fits is not the best."""
    from labsupport.benchmarking.measurements import Latency

    def row(batch: int, median: float, tail: float) -> dict[str, Any]:
        samples = (median,) * 97 + (median * tail,) * 3
        return {"latency": Latency("drawn", "host", samples, batch, "a drawn machine"), "max error": 0.0}

    draw, cases = random.Random(), []
    for _ in range(3):
        ms, slow = draw.uniform(0.5, 4.0), draw.uniform(1.3, 1.6)
        # within 4.2 ms: batch 4 is best, batch 8 the largest; batch 16 gives the most, and its tail is late
        medians = [(1, ms, 1.1), (2, 1.25 * ms, slow), (4, 1.43 * ms, 1.2), (8, 3.6 * ms, 1.1), (16, 3.9 * ms, slow)]
        rows = [row(*each) for each in [*medians, (32, 9.0 * ms, 1.1)]]
        if cases:  # the first in order of size: the last that fits is not the best one
            draw.shuffle(rows)
        cases.append((rows, 4.2 * ms))
        cases.append((rows, 1.3 * ms))  # only batch 1 keeps it
    return cases


def fast_and_eager():
    """(fast, eager, images, errors): the answers of the two differ by errors that are drawn."""
    import numpy as np

    from labsupport import comparing

    rng = np.random.default_rng()
    images = rng.standard_normal((32, 1, 28, 28), dtype=np.float32)
    images[:, 0, 0, 0] = np.linspace(0.1, 1, 32)
    weight = rng.standard_normal((784, 10), dtype=np.float32)
    off = rng.uniform(1e-3, 1e-2)

    def eager(feed):
        """The exact answer, by output name."""
        return {"logits": np.asarray(feed).reshape(len(feed), -1) @ weight}

    def fast(feed):
        """Nearly the same, as a narrower format answers."""
        exact = eager(feed)["logits"]
        growing = np.asarray(feed).reshape(len(feed), -1)[:, :1]  # no few images tell the largest error
        return {"logits": (exact + off * growing * np.sin(37 * exact)).astype(np.float32)}

    exact, near = eager(images), fast(images)
    errors = {"max error": comparing.max_error(exact, near), "relative error": comparing.relative_error(exact, near)}
    return fast, eager, images, errors
