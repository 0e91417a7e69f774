"""Stages in threads with bounded queues between them: the slowest stage sets the pace, not the sum of all."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from labsupport.comparing import timeline
from labsupport.errors import BadInput, LabError

_END = object()


@dataclass(frozen=True, repr=False)
class PipelineRun:
    """What a pipeline did: its outputs in the order of the items, a span per stage and item, items inside at most."""

    name: str
    outputs: tuple
    spans: tuple[timeline.Span, ...]
    seconds: float
    most_inside: int

    @property
    def items_per_s(self) -> float:
        return len(self.outputs) / self.seconds

    @property
    def stage_ms(self) -> dict[str, float]:
        """Median ms of one item in each stage."""
        from statistics import median

        return {row: median(s.ms for s in self.spans if s.row == row) for row in timeline.rows_of(self.spans)}

    @property
    def bottleneck(self) -> str:
        """The stage that took longest an item."""
        return max(self.stage_ms, key=self.stage_ms.get)

    def as_metric(self) -> dict:
        return {"value": self.items_per_s, "unit": "items/s", "samples": len(self.outputs), "spread": None}

    def __repr__(self) -> str:
        rate = f"{self.items_per_s:,.0f}" if self.items_per_s >= 100 else f"{self.items_per_s:.3g}"
        return (
            f"{self.name}: {len(self.outputs)} items at {rate}/s, at most {self.most_inside} inside, "
            f"{timeline.overlapped(self.spans):.0%} of the work overlapped; slowest stage: {self.bottleneck}"
        )


def run(items: Iterable, stages: Mapping[str, Callable], *, bound: int | None = 2) -> PipelineRun:
    """Push items through ``stages`` (name → function of one item), each in a thread, with queues of ``bound`` between.

    A full queue makes the stage before it wait, so at most ``bound`` items lie between two stages. None means no bound:
    a fast first stage then piles up all items in memory. Functions that release Python's lock (NumPy, Pillow, ONNX
    Runtime, TensorRT, copies) run at once; others take turns. Raises BadInput; LabError naming stage and item that
    failed.
    """
    stages = _checked(stages)
    if bound is not None and bound < 1:
        raise BadInput(
            f"bound={bound!r}; give 1 or more places a queue (Python's queue.Queue takes 0 or less for "
            "endless), or None for no bound"
        )
    return _Flow(stages, bound).run(items)


def one_by_one(items: Iterable, stages: Mapping[str, Callable]) -> PipelineRun:
    """The same stages without threads: each item passes all of them before the next one starts."""
    stages = _checked(stages)
    spans, outputs, begin = [], [], time.perf_counter()
    for number, item in enumerate(items):
        for name, work in stages.items():
            start = time.perf_counter()
            item = work(item)
            spans.append(_span(name, number, start, begin))
        outputs.append(item)
    if not outputs:
        raise BadInput("no items; give one at least")
    return PipelineRun("one by one", tuple(outputs), tuple(spans), time.perf_counter() - begin, 1)


class _Flow:
    def __init__(self, stages: Mapping[str, Callable], bound: int | None):
        self.stages, self.bound = stages, bound
        self.queues = [queue.Queue(bound or 0) for _ in range(len(stages))]
        self.spans: list[timeline.Span] = []
        self.outputs: dict[int, Any] = {}
        self.failure: Any = None
        self.inside = self.most_inside = 0
        self.lock = threading.Lock()

    def run(self, items: Iterable) -> PipelineRun:
        self.begin = time.perf_counter()
        threads = [
            threading.Thread(target=self._work, args=(place, name, work), daemon=True)
            for place, (name, work) in enumerate(self.stages.items())
        ]
        for thread in threads:
            thread.start()
        try:
            for number, item in enumerate(items):
                if self.failure:
                    break
                self.queues[0].put((number, item))
                self._count(1)
        except BaseException as error:  # an interrupt, say: what waits in the queues need not be computed any more
            self.failure = self.failure or ("the source", len(self.outputs), error)
            raise
        finally:
            self.queues[0].put(_END)
            for thread in threads:
                thread.join()
        seconds = time.perf_counter() - self.begin
        if self.failure:
            name, number, cause = self.failure
            raise LabError(
                f"stage {name!r} failed on item {number}: {type(cause).__name__}: {cause}; call it on that item alone"
            ) from cause
        if not self.outputs:
            raise BadInput("no items; give one at least")
        label = "endless queues" if self.bound is None else f"queues of {self.bound}"
        ordered = tuple(self.outputs[number] for number in sorted(self.outputs))
        return PipelineRun(label, ordered, tuple(sorted(self.spans, key=self._place)), seconds, self.most_inside)

    def _work(self, place: int, name: str, work: Callable) -> None:
        last = place + 1 == len(self.queues)
        while (got := self.queues[place].get()) is not _END:
            number, item = got
            if self.failure:  # keep emptying the queue, or the stage before would wait for ever
                continue
            start = time.perf_counter()
            try:
                result = work(item)
            except BaseException as error:  # an exit() too: a thread that ends here would leave the others waiting
                self.failure = self.failure or (name, number, error)
                continue
            self.spans.append(_span(name, number, start, self.begin))
            if last:
                self.outputs[number] = result
                self._count(-1)
            else:
                self.queues[place + 1].put((number, result))
        if not last:
            self.queues[place + 1].put(_END)

    def _count(self, change: int) -> None:
        with self.lock:
            self.inside += change
            self.most_inside = max(self.most_inside, self.inside)

    def _place(self, span: timeline.Span) -> tuple:
        return list(self.stages).index(span.row), span.item


def _checked(stages) -> dict:
    if not isinstance(stages, Mapping) or not stages or not all(callable(work) for work in stages.values()):
        raise BadInput(
            f"stages={stages!r}; give a mapping from name to function, such as {{'decode': decode, 'infer': run}}"
        )
    return dict(stages)


def _span(name: str, number: int, start: float, begin: float) -> timeline.Span:
    return timeline.Span(name, number, (start - begin) * 1e3, (time.perf_counter() - begin) * 1e3)
