"""Lab 09's checkers: untouched, each foreseen mistake, the solution and a differently written twin."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from labsupport.comparing import timeline
from labsupport.exercises import base, calling, lab09


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(calling, "PATIENCE_S", 1.5)


def namespace() -> dict:
    return {"timeline": timeline}


def test_graph_gain():
    def by_rates(host_us, replay_us, gpu_us):
        before, after = (min(1 / side, 1 / gpu_us) for side in (host_us, replay_us))
        return np.float64(after / before)

    base.assert_checker(
        lab09.graph_gain,
        wrong=[
            (lambda host, replay, gpu: host / replay, "faster than the GPU"),
            (lambda host, replay, gpu: (host + gpu) / (replay + gpu), "at the same time"),
            (lambda host, replay, gpu: max(replay, gpu) / max(host, gpu), "other way round"),
            (lambda host, replay, gpu: 1.5, "Who sets the pace"),
            (lambda host, replay, gpu: None, "a number is wanted"),
            (lambda host, replay, gpu: float("nan"), "finite number"),
            (2.0, "hand in the function"),
        ],
        right=[by_rates, lambda h, r, g: (h if h > g else g) / (r if r > g else g)],
        namespace=namespace(),
    )


def test_lookahead():
    def solution(load, infer, batches):
        with ThreadPoolExecutor(1) as reader:
            ready, out = reader.submit(load, batches[0]), []
            for following in [*batches[1:], None]:
                loaded = ready.result()
                ready = reader.submit(load, following) if following is not None else None
                out.append(infer(loaded))
        return out

    def with_a_queue(load, infer, batches):
        line, failed = queue.Queue(maxsize=1), []

        def fill():
            try:
                for batch in batches:
                    line.put(load(batch))
            except lab09.BadBatch as error:
                failed.append(error)
            line.put(None)

        threading.Thread(target=fill, daemon=True).start()
        out = []
        while (loaded := line.get()) is not None:
            out.append(infer(loaded))
        if failed:
            raise failed[0]
        return out

    def eager(load, infer, batches):
        with ThreadPoolExecutor(1) as reader:
            return [infer(loaded) for loaded in reader.map(load, batches)]

    def silent(load, infer, batches):
        try:
            return solution(load, infer, batches)
        except lab09.BadBatch:
            return []

    def hangs(load, infer, batches):
        threading.Event().wait(2)

    def told_with_its_cause(load, infer, batches):
        try:
            return with_a_queue(load, infer, batches)
        except lab09.BadBatch as error:
            raise RuntimeError("a batch cannot be read") from error

    def one_by_one(load, infer, batches):
        """A twin that is a generator: who asks for an answer has the next batch loaded meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            ready = reader.submit(load, batches[0])
            for following in [*batches[1:], None]:
                loaded = ready.result()
                ready = reader.submit(load, following) if following is not None else None
                yield infer(loaded)

    def endless(load, infer, batches):
        yield from solution(load, infer, batches)
        while True:
            yield 0

    base.assert_checker(
        lab09.lookahead,
        wrong=[
            (endless, "goes on"),
            (lambda load, infer, batches: sorted(solution(load, infer, batches)), "in their order"),
            (lambda load, infer, batches: [infer(batch) for batch in batches], "wants what load returned"),
            (lambda load, infer, batches: [infer(load(b)) for b in batches], "took turns"),
            (eager, "loaded at once"),
            (silent, "nobody was told"),
            (hangs, "has not come back"),
            (lambda load, infer, batches: solution(load, infer, batches)[::-1], "in their order"),
            (lambda load, infer, batches: None, "forget its `return`"),
            (3, "hand in the function"),
        ],
        right=[solution, with_a_queue, told_with_its_cause, one_by_one],
        namespace=namespace(),
    )


def test_ideal_gain():
    def by_busy(spans):
        rows = timeline.rows_of(spans)
        busy = [timeline.busy_ms(spans, row) for row in rows]
        return sum(busy) / max(busy)

    base.assert_checker(
        lab09.ideal,
        wrong=[
            (lambda spans: len({s.row for s in spans}), "number of rows"),
            (lambda spans: 1 / by_busy(spans), "other way round"),
            (lambda spans: sum(s.ms for s in spans) / max(s.ms for s in spans), "longest single span"),
            (lambda spans: 2.2, "which row cannot"),
            (lambda spans: None, "forget its `return`"),
            (lambda spans: "2", "a number is wanted"),
            (1.5, "hand in the function"),
            (lambda spans: float("nan"), "finite number"),
        ],
        right=[
            by_busy,
            lambda spans: np.float32(by_busy(spans)),
            lambda spans: sum(s.ms for s in spans) / max(sum(s.ms for s in spans if s.row == r.row) for r in spans),
        ],
        namespace=namespace(),
    )


@pytest.mark.parametrize("name", list(base.of(lab09)))
def test_each_exercise_names_its_lab(name):
    assert getattr(lab09, name).lab == "09_placement" and getattr(lab09, name).name == name
