"""What labs 09, 09b and 09c judge their exercises with: an edge box, a run in a line, batches, workers that die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import Wrong, described

# An edge box: a processor that holds the camera's frame, and an accelerator behind a slow link. MiB and ms per segment.
BOX_CUTS = (("frame", 6.0), ("crop", 0.6), ("stage1", 1.5), ("stage2", 0.8), ("stage3", 0.4), ("scores", 0.0))
BOX_FIRST_MS = (0.5, 4.0, 5.0, 6.0, 7.0)
BOX_SECOND_MS = (0.1, 3.0, 2.0, 2.5, 2.5)
BOX_MS_PER_MIB = 4.0
BOX_FIXED_MS = 0.4

# Rows of a run in a line: copy in, compute, copy out; ms of one item each.
STEPS = (("copy in", 2.0), ("compute", 3.0), ("copy out", 1.0))
PATIENCE_S = 5.0  # how long a learner's function may take before it counts as waiting for ever
AT_ONCE = 3  # batches that double buffering may hold: one at work, one ready, one on its way


def box():
    """The edge box's cost model."""
    from labsupport.placement import cuts

    places = tuple(cuts.Cut(name, (), mib, place) for place, (name, mib) in enumerate(BOX_CUTS))
    return cuts.CostModel(
        places, BOX_FIRST_MS, BOX_SECOND_MS, tuple(mib * BOX_MS_PER_MIB for _, mib in BOX_CUTS), BOX_FIXED_MS
    )


def in_a_line(steps=STEPS, items: int = 4) -> tuple:
    """Spans of a run without any overlap."""
    from labsupport.comparing.timeline import Span

    spans, now = [], 0.0
    for item in range(items):
        for row, ms in steps:
            spans.append(Span(row, item, now, now + ms))
            now += ms
    return tuple(spans)


class Died(Exception):
    """What a worker of the exercise raises once it is dead."""


class BadBatch(Exception):
    """What the exercise's loader raises for a broken batch."""


class Mortal:
    """A worker that answers a number with three times it, until it dies."""

    def __init__(self, after: int):
        self.left, self.calls, self.asked_dead = after, 0, 0

    def __call__(self, request):
        if self.left == 0:
            self.asked_dead += 1
            raise Died("this worker is dead")
        self.left, self.calls = self.left - 1, self.calls + 1
        return 3 * request


class Stage:
    """Loads and infers numbers, and notes whether a load began while infer was at work."""

    def __init__(self, batches: int, broken: int | None = None):
        self.batches, self.broken = batches, broken
        self.begun = [threading.Event() for _ in range(batches)]
        self.lock, self.held, self.most, self.overlapped = threading.Lock(), 0, 0, True

    def load(self, batch):
        self.begun[batch].set()
        if batch == self.broken:
            raise BadBatch(f"batch {batch} cannot be read")
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return batch

    def infer(self, loaded):
        following = loaded + 1
        if self.overlapped and following < self.batches and not self.begun[following].wait(0.5):
            self.overlapped = False
        time.sleep(0.003)  # long enough for a loader without a brake to run away
        with self.lock:
            self.held -= 1
        return 10 * loaded


def worlds() -> dict:
    """Workers by name with their service times in ms, in which a policy has to prove itself."""
    return {
        "two workers, one four times slower": {"old": [4.0, 4.2, 3.9], "new": [1.0, 1.1, 0.9]},
        "three workers, one of them slow": {"a": [1.0, 1.2], "b": [9.0, 8.5], "c": [1.1, 1.0]},
        "three speeds": {"a": [12.0, 12.3], "b": [4.0, 3.8], "c": [1.0, 1.1]},
    }


def needs_function(value: Any, name: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise Wrong(f"that is {described(value)}; hand in the function `{name}` itself, without calling it.")


def returned(work: Callable, what: str):
    """What ``work`` returns or raises; a learner's endless wait must not hang the notebook."""
    box_of: dict[str, Any] = {}

    def call():
        try:
            box_of["value"] = work()
        except BaseException as error:  # handed on below, in the thread of the checker
            box_of["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        raise Wrong(f"{what} has not come back after {PATIENCE_S:g} s; something waits for what will never come.")
    if "error" in box_of:
        raise box_of["error"]
    return box_of["value"]


def cut_graphs() -> list[list[tuple[list[str], list[str]]]]:
    """Graphs to be cut, as (inputs, outputs) of each node in its order; the last node makes the graph's output."""
    chain = [(["frame"], ["a"]), (["a"], ["b"]), (["b"], ["c"]), (["c"], ["scores"])]
    residual = [(["frame"], ["a"]), (["a"], ["b"]), (["a", "b"], ["c"]), (["c"], ["d"]), (["c", "d"], ["scores"])]
    branches = [(["frame"], ["a"]), (["a"], ["b"]), (["a"], ["c"]), (["b", "c"], ["d"]), (["d"], ["scores"])]
    again = [(["frame"], ["a"]), (["a"], ["b"]), (["frame", "b"], ["c"]), (["c"], ["scores"])]
    split = [(["frame"], ["a", "b"]), (["a", "b"], ["c"]), (["c"], ["scores"])]
    unread = [(["frame"], ["a"]), (["a"], ["spare"]), (["a"], ["b"]), (["b"], ["scores"])]
    return [chain, residual, branches, again, split, unread]


def clean_cuts(nodes) -> list[str]:
    """Where one tensor carries everything on, in order."""
    known, clean = {"frame"}, []
    for place, (_, outputs) in enumerate(nodes[:-1]):
        known |= set(outputs)
        needed = known & {name for inputs, _ in nodes[place + 1 :] for name in inputs}
        if len(outputs) == 1 and needed == set(outputs):
            clean += outputs
    return clean


def fair_shares(items: int, rates) -> list[int]:
    """Whole numbers of items with which the slowest is done as early as possible."""
    given = [0] * len(rates)
    for _ in range(items):
        done = [(count + 1) / rate for count, rate in zip(given, rates)]
        given[done.index(min(done))] += 1
    return given


def most_s(given, rates) -> float:
    """When the last one is done."""
    return max(count / rate for count, rate in zip(given, rates))
