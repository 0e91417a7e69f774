"""A network in two parts on two devices: where it can be cut, what each cut should cost, and what it does cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from labsupport import benchmarking, comparing
from labsupport.errors import BadInput, at_least
from labsupport.placement.cut_costs import OBJECTIVES, CostModel, cost_model
from labsupport.placement.cut_places import Cut, natural, short, split

__all__ = [
    "OBJECTIVES", "CostModel", "Cut", "Placed", "Stages", "cost_model", "measure", "natural", "placed", "short",
    "split", "stages",
]  # fmt: skip


class Placed:
    """A head on one device and a tail on another, called like one runtime; either may be None.

    ``cross`` is what happens to the array between the two, such as a copy; a TensorRT tail copies it by itself.
    """

    def __init__(self, head, tail, *, cross: Callable | None = None, name: str = "placed"):
        if head is None and tail is None:
            raise BadInput("both parts are None; give a runtime for the head, for the tail, or for both")
        self.head, self.tail, self.cross, self.name = head, tail, cross, name
        self.device = (tail or head).device

    def __call__(self, feed) -> dict:
        if self.tail is None:
            return self.head(feed)
        carried = feed if self.head is None else self.head(feed)
        if isinstance(carried, Mapping):
            carried = next(iter(carried.values()))
        return self.tail(self.cross(carried) if self.cross else carried)

    def close(self) -> None:
        """Close both parts."""
        for part in (self.head, self.tail):
            if part is not None:
                part.close()


def placed(graph, at, make_first: Callable, make_second: Callable, *, cross: Callable | None = None) -> Placed:
    """A graph cut in two, each part loaded on its device; where the second cannot be loaded the first is closed."""
    for name, make in {"make_first": make_first, "make_second": make_second}.items():
        if not callable(make):
            raise BadInput(f"{name} is a {type(make).__name__}; give what makes a runtime, such as OnnxRuntime")
    head, tail = split(graph, at)
    first = head and make_first(head)
    try:
        return Placed(first, tail and make_second(tail), cross=cross, name=short(getattr(at, "name", at)))
    except BaseException:
        if first is not None:
            first.close()
        raise


class Stages(dict):
    """Stages for pipeline.run by name, and what frees them: use it with ``with``, or call ``close``."""

    def close(self) -> None:
        """Close every stage; calling it again does nothing."""
        for stage in self.values():
            stage.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def stages(graph, at, make_first: Callable, make_second: Callable) -> Stages:
    """The parts of a cut as stages for pipeline.run, each on its own device; a cut at an end gives one stage."""
    both = placed(graph, at, make_first, make_second)
    parts = {"first": both.head and Placed(both.head, None), "second": both.tail and Placed(None, both.tail)}
    return Stages({name: part for name, part in parts.items() if part is not None})


def measure(
    graph,
    cuts: Sequence[Cut],
    make_first: Callable,
    make_second: Callable,
    feed,
    *,
    cross: Callable | None = None,
    beside=None,
    runs: int = 20,
    seconds: float = math.inf,
) -> Iterator[dict]:
    """Really cut at each place: a row with the cut, its Latency and how far its answer lies from the first cut's.

    With ``beside``, a runtime of the whole graph on the first device, it is timed in turn with each cut, A/B/B/A, and
    its Latency stands in the row: it tells how fast that device was meanwhile. No further cut is begun after
    ``seconds``: on a GPU each takes an engine of its own. A row comes as soon as it is measured.
    """
    at_least(runs=runs)
    reference, begin = None, time.perf_counter()
    for cut in cuts:
        if reference is not None and time.perf_counter() - begin > seconds:
            break
        run = placed(graph, cut, make_first, make_second, cross=cross)
        try:
            answer = run(feed)
            reference = answer if reference is None else reference
            yield {
                "cut": cut,
                **_timed_beside(run, beside, feed, runs),
                "relative error": comparing.relative_error(reference, answer),
            }
        finally:
            run.close()


def _timed_beside(run, beside, feed, runs: int) -> dict:
    if beside is None:
        return {"latency": benchmarking.latency(run, feed, runs=runs)}
    rounds = math.ceil(runs / 4)  # a round takes two times two samples of each
    pair = benchmarking.paired(beside, run, feed, rounds=rounds, runs_per_round=2, warmup=3)
    return {"latency": pair.after, "beside": pair.before}
