"""What labs 09, 09b and 09c judge their exercises with: an edge box, a run in a line, batches, workers that die."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable

from labsupport.exercises.answers import Wrong, described
from labsupport.exercises.calling import comes_from, items, returned

# An edge box: a processor that holds the camera's frame, and an accelerator behind a slow link. MiB and ms per segment.
BOX_CUTS = (("frame", 6.0), ("crop", 0.6), ("stage1", 1.5), ("stage2", 0.8), ("stage3", 0.4), ("scores", 0.0))
BOX_FIRST_MS = (0.5, 4.0, 5.0, 6.0, 7.0)
BOX_SECOND_MS = (0.1, 3.0, 2.0, 2.5, 2.5)
BOX_MS_PER_MIB = 4.0
BOX_FIXED_MS = 0.4

# Rows of a run in a line: copy in, compute, copy out; ms of one item each.
STEPS = (("copy in", 2.0), ("compute", 3.0), ("copy out", 1.0))
AT_ONCE = 3  # batches that double buffering may hold: one at work, one ready, one on its way


def box():
    """The edge box's cost model."""
    from labsupport.placement import cuts

    places = tuple(cuts.Cut(name, (), mib, place) for place, (name, mib) in enumerate(BOX_CUTS))
    return cuts.CostModel(
        places, BOX_FIRST_MS, BOX_SECOND_MS, tuple(mib * BOX_MS_PER_MIB for _, mib in BOX_CUTS), BOX_FIXED_MS
    )


def in_a_line(*kinds, items: int = 4) -> tuple:
    """Spans of a run without any overlap; items of several kinds come in turn."""
    from labsupport.comparing.timeline import Span

    spans, now = [], 0.0
    for item in range(items):
        for row, ms in kinds[item % len(kinds)] if kinds else STEPS:
            spans.append(Span(row, item, now, now + ms))
            now += ms
    return tuple(spans)


class Died(Exception):
    """What a worker of the exercise raises once it is dead."""


class BadBatch(Exception):
    """What the exercise's loader raises for a broken batch."""


class Mortal:
    """A worker that answers a request, a list with one number, from a table, until it dies."""

    def __init__(self, after: int, table: dict[int, int]):
        self.left, self.calls, self.asked_dead, self.table = after, 0, 0, table

    def __call__(self, request):
        if self.left == 0:
            self.asked_dead += 1
            raise Died("this worker is dead")
        if request[0] not in self.table:
            raise BadBatch(f"nobody can answer {request}")
        self.left, self.calls = self.left - 1, self.calls + 1
        return self.table[request[0]]


class Loaded:
    """A batch that was loaded; only `infer` can look inside."""

    def __init__(self, batch: int):
        self.batch = batch


class Stage:
    """Loads and infers batches drawn anew, and notes whether a load began while infer was at work."""

    def __init__(self, count: int, broken: int | None = None):
        self.batches = random.sample(range(1000), count)
        self.right = [random.randrange(1000) for _ in self.batches]
        self.broken = None if broken is None else self.batches[broken]
        self.begun = {batch: threading.Event() for batch in self.batches}
        self.lock, self.held, self.most, self.overlapped = threading.Lock(), 0, 0, True

    def load(self, batch):
        self.begun[batch].set()
        if batch == self.broken:
            raise BadBatch(f"batch {batch} cannot be read")
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return Loaded(batch)

    def infer(self, loaded):
        if not isinstance(loaded, Loaded):
            raise Wrong(f"infer was called with {described(loaded)}; it wants what load returned.")
        place = self.batches.index(loaded.batch)
        following = self.batches[place + 1 : place + 2]
        if self.overlapped and following and not self.begun[following[0]].wait(0.5):
            self.overlapped = False
        time.sleep(0.003)  # long enough for a loader without a brake to run away
        with self.lock:
            self.held -= 1
        return self.right[place]


def worlds() -> dict:
    """Workers by name with their service times in ms, in which a policy has to prove itself."""
    return {
        "two workers, one four times slower": {"old": [4.0, 4.2, 3.9], "new": [1.0, 1.1, 0.9]},
        "three workers, one of them slow": {"a": [1.0, 1.2], "b": [9.0, 8.5], "c": [1.1, 1.0]},
        "three speeds": {"a": [12.0, 12.3], "b": [4.0, 3.8], "c": [1.0, 1.1]},
    }


def judge_deaths(serve_all: Callable, table: dict[int, int], survivor: int) -> None:
    """Wrong unless 40 requests are answered once and in order while two of three workers die."""
    requests = [[random.randrange(len(table))] for _ in range(40)]
    crew = [Mortal(1000 if here == survivor else 7 + 5 * here, table) for here in range(3)]
    given, workers = copy.deepcopy(requests), list(crew)
    try:
        got = returned(lambda: items(serve_all(given, workers), "serve_all"), "serve_all")
    except Died:
        raise Wrong(
            "a worker died, and its error came out of serve_all; the requests behind it are lost. Catch `lab09b.Died`."
        ) from None
    if given != requests or workers != crew:
        whose = "requests" if given != requests else "workers"
        raise Wrong(f"the list of {whose} that was handed in has changed; work on a copy, the caller needs it.")
    if len(got) > len(requests):
        raise Wrong(f"serve_all gave {len(got)} answers to {len(requests)} requests.")
    if len(got) != len(requests) or any(each is None for each in got):
        raise Wrong(
            f"{sum(each is not None for each in got)} of {len(requests)} requests were answered; the ones "
            "that the dying workers had are lost."
        )
    if got != [table[number] for (number,) in requests]:
        raise Wrong("all requests were answered, but not in their order; an answer belongs at its request's place.")
    asked = sum(worker.asked_dead for worker in crew)
    if asked > 2:
        raise Wrong(
            f"dead workers were asked {asked} times; each death is noticed once, then that worker is left alone."
        )
    if sum(worker.calls for worker in crew) > len(requests):
        raise Wrong("some requests were computed twice, though they had been answered.")


def judge_all_dead(serve_all: Callable, table: dict) -> None:
    """Wrong unless the caller is told that nobody is left."""

    def work():
        return items(serve_all([[n] for n in range(10)], [Mortal(2, table), Mortal(3, table)]), "serve_all")

    try:
        got = returned(work, "serve_all, when every worker has died,")
    except Wrong as reason:
        if "gave None" not in str(reason):
            raise
        got = None
    except Exception:
        return
    raise Wrong(
        f"when every worker had died, serve_all gave {str(got)[:40]} and no error; the caller takes that for "
        "the whole answer."
    )


def judge_bad_request(serve_all: Callable, table: dict) -> None:
    """Wrong unless an error of a request, which is no death, reaches the caller."""
    crew = [Mortal(1000, table) for _ in range(3)]
    try:
        returned(
            lambda: items(serve_all([[1], [999], [2]], crew), "serve_all"),
            "serve_all, when no worker can answer a request,",
        )
    except BaseException as error:
        if comes_from(error, (BadBatch,)):
            return
        raise Wrong(
            "a worker raised another error than Died, for a request that nobody can answer, and it was taken for "
            f"a death: {type(error).__name__} came out, not that error."
        ) from None
    raise Wrong("a worker raised another error than Died, for a bad request, and the caller was not told.")


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
