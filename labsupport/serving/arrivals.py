"""Requests that arrive when they like, and how they fared: latency from the moment each was due."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np

from labsupport.benchmarking.measurements import Percentiles
from labsupport.errors import BadInput, LabError, at_least
from labsupport.serving.batching import Refused


def poisson(rate_per_s: float, requests: int, *, seed: int = 0) -> np.ndarray:
    """Arrival times in s of a Poisson process: the gaps are exponential and know nothing of each other.

    Raises BadInput for a rate or a number that is not above 0.
    """
    if not 0 < rate_per_s < math.inf:
        raise BadInput(f"rate_per_s={rate_per_s!r}; give requests per second, above 0")
    at_least(requests=requests)
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, size=requests))


@dataclass(frozen=True, repr=False)
class Load(Percentiles):
    """How a load fared. ``latencies_ms`` counts from the moment a request was due; NaN where it got no answer.

    ``answers`` holds what came back, None where nothing did; ``faults`` counts the errors by their name.
    """

    name: str
    latencies_ms: tuple[float, ...]
    answers: tuple = field(repr=False)
    refused: int
    faults: Counter
    seconds: float
    offered_per_s: float

    @property
    def lost(self) -> int:
        """Requests that were accepted and never answered."""
        return sum(self.faults.values())

    @property
    def answered(self) -> int:
        return len(self.latencies_ms) - self.refused - self.lost

    @property
    def answered_per_s(self) -> float:
        return self.answered / self.seconds

    def within(self, limit_ms: float) -> float:
        """Share of all requests, refused and lost ones included, that were answered within the limit."""
        return sum(ms <= limit_ms for ms in self.latencies_ms) / len(self.latencies_ms)

    def as_row(self) -> dict:
        """Columns of a comparison."""
        return {
            "server": self.name,
            "offered, 1/s": round(self.offered_per_s) if math.isfinite(self.offered_per_s) else None,
            "answered, 1/s": round(self.answered_per_s),
            "p50, ms": float(f"{self.p50_ms:.3g}"),
            "p99, ms": float(f"{self.p99_ms:.3g}"),
            "refused": self.refused,
            "lost": self.lost,
        }

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.answered} of {len(self.latencies_ms)} answered, {self.refused} refused, "
            f"{self.lost} lost; p50 {self.p50_ms:.3g} ms, p99 {self.p99_ms:.3g} ms"
        )


def offer(
    submit: Callable,
    feeds: Sequence,
    arrivals_s,
    *,
    name: str = "server",
    patience_s: float = 30.0,
    events: dict[int, Callable[[], object]] | None = None,
) -> Load:
    """Send each feed when it is due, whether or not the earlier ones were answered (an open loop), and wait for all.

    ``submit(feed)`` returns a Future; Refused counts as refused, any other error as lost. ``events`` maps the number
    of a request to what is called just before it is sent, in a thread of its own. A latency starts when the request
    was *due*: one that waits behind a slow sender has waited. Raises BadInput, LabError after ``patience_s`` without an
    answer and where an event fails.
    """
    due = np.asarray(arrivals_s, dtype=float)
    if due.shape != (len(feeds),) or not len(due) or not np.isfinite(due).all() or (np.diff(due, prepend=0) < 0).any():
        raise BadInput(
            f"{len(feeds)} feeds and arrivals of shape {due.shape}; give one rising time in s a feed: serving.poisson"
        )
    events = events or {}
    if late := [number for number in events if not 0 <= number < len(due)]:
        raise BadInput(
            f"an event at request {late[0]}, and the requests are 0 to {len(due) - 1}: it would never happen"
        )
    calls = _Calls(len(due))
    begin = time.perf_counter()
    happened = {number: Future() for number in events}
    for number, (feed, moment) in enumerate(zip(feeds, due)):
        time.sleep(max(0.0, begin + moment - time.perf_counter()))
        if number in events:
            work = events[number], happened[number]
            threading.Thread(target=_happen, args=work, daemon=True).start()
        calls.send(number, submit, feed, begin + moment)
    calls.wait(patience_s)
    seconds = time.perf_counter() - begin
    for number, event in happened.items():  # a kill that killed nothing would prove nothing
        wait([event], patience_s)
        error = event.exception() if event.done() else TimeoutError(f"it has not ended after {patience_s:g} s")
        if error is not None:
            raise LabError(f"the event at request {number} failed: {type(error).__name__}: {error}") from error
    return calls.load(name, seconds, len(due) / float(due[-1]) if due[-1] else math.inf)  # all at once


def _happen(event: Callable[[], object], done: Future) -> None:
    try:
        done.set_result(event())
    except BaseException as error:  # handed on by offer, in the caller's thread
        done.set_exception(error)


class _Calls:
    """The answers of one load, noted by whichever thread brings them."""

    def __init__(self, count: int):
        self.latencies_ms, self.answers, self.refused, self.faults = [math.nan] * count, [None] * count, 0, Counter()
        self.open, self.changed = count, threading.Condition()

    def send(self, number: int, submit: Callable, feed, due: float) -> None:
        try:
            future = submit(feed)
        except Exception as error:  # refused or broken: counted below, never passed over
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self.note(number, done, due))

    def note(self, number: int, done: Future, due: float) -> None:
        now = time.perf_counter()
        error = done.exception() if not done.cancelled() else LabError("cancelled")
        with self.changed:
            self.open -= 1
            if error is None:
                self.latencies_ms[number], self.answers[number] = (now - due) * 1e3, done.result()
            elif isinstance(error, Refused):
                self.refused += 1
            else:
                self.faults[f"{type(error).__name__}: {error}"[:120]] += 1
            self.changed.notify_all()

    def wait(self, patience_s: float) -> None:
        with self.changed:
            while self.open:
                before = self.open
                if not self.changed.wait(patience_s) and self.open == before:
                    raise LabError(
                        f"{self.open} requests got no answer within {patience_s:g} s; is the server still there?"
                    )

    def load(self, name: str, seconds: float, offered_per_s: float) -> Load:
        return Load(
            name, tuple(self.latencies_ms), tuple(self.answers), self.refused, self.faults, seconds, offered_per_s
        )
