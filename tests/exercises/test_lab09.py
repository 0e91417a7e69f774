"""Lab 09's checkers: untouched, each foreseen mistake, the solution and a differently written twin."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from labsupport.comparing import timeline
from labsupport.exercises import base, calling, lab09
from labsupport.placement import cuts


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(calling, "PATIENCE_S", 1.5)


def namespace() -> dict:
    return {"cuts": cuts, "timeline": timeline}


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


def test_cuts_of_the_box():
    model = lab09.box()
    assert model.choose("latency").name == "crop" and model.choose("interval").name == "stage2"
    base.assert_checker(
        lab09.cuts,
        wrong=[
            (("stage2", "crop"), "wrong way round"),
            (("frame", "stage2"), "whole frame crosses"),
            (("scores", "stage2"), "slow device does all"),
            (("stage1", "stage2"), "before and behind"),
            (("crop", "stage3"), "Which side waits"),
            (("crop", "crop"), "Which side waits"),
            (("lens", "crop"), "is no cut of the box"),
            ((1, "crop"), "text"),
        ],
        right=[("crop", "stage2"), (str(model.choose().name), model.choose("interval").name)],
        namespace=namespace(),
    )


def test_dispatcher():
    def by_loop(states, number):
        best, place = None, 0
        for here, state in enumerate(states):
            end = state.service_ms + state.free_in_ms
            if best is None or end < best:
                best, place = end, here
        return place

    base.assert_checker(
        lab09.dispatcher,
        wrong=[
            (lambda states, number: number % len(states), "same number of requests"),
            (
                lambda states, number: min(range(len(states)), key=lambda p: states[p].service_ms),
                "One worker got every request",
            ),
            (
                lambda states, number: min(range(len(states)), key=lambda p: states[p].free_in_ms),
                "not always done first",
            ),
            (
                lambda states, number: min(range(len(states)), key=lambda p: states[p].waiting + states[p].running),
                "not always done first",
            ),
            (lambda states, number: states[0], "chose worker WorkerState"),
            (lambda states, number: 7, "chose worker 7"),
            (lambda states, number: None, "chose worker None"),
            ("fast", "hand in the function"),
        ],
        right=[
            by_loop,
            lambda states, number: min(range(len(states)), key=lambda p: states[p].free_in_ms + states[p].service_ms),
        ],
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


def first_living(requests, workers):
    alive, out = list(workers), {}
    todo = list(enumerate(requests))
    while todo:
        number, request = todo.pop(0)
        if not alive:
            raise RuntimeError("nobody is left")
        try:
            out[number] = alive[0](request)
        except lab09.Died:
            alive.pop(0)
            todo.insert(0, (number, request))
    return [out[number] for number in range(len(requests))]


def test_survivor():
    def in_turns(requests, workers):
        return [workers[n % len(workers)](request) for n, request in enumerate(requests)]

    def skips(requests, workers):
        out = []
        for n, request in enumerate(requests):
            try:
                out.append(workers[n % len(workers)](request))
            except lab09.Died:
                pass
        return out

    def asks_again(requests, workers):
        out = []
        for request in requests:
            for worker in workers:
                try:
                    out.append(worker(request))
                    break
                except lab09.Died:
                    continue
            else:
                raise RuntimeError("nobody is left")
        return out

    def gives_up_quietly(requests, workers):
        try:
            return first_living(requests, workers)
        except RuntimeError:
            return []

    def waits_for_ever(requests, workers):
        try:
            return first_living(requests, workers)
        except RuntimeError:
            threading.Event().wait(2)

    def twice(requests, workers):
        return first_living(
            requests, [lambda request, worker=each: (worker(request), worker(request))[1] for each in workers]
        )

    def by_request(requests, workers):
        answers = dict(zip(map(tuple, requests), first_living(requests, workers)))
        return list(answers.values())

    def takes_any_error_for_a_death(requests, workers):
        alive, out = list(workers), []
        for request in requests:
            while True:
                worker = alive[0]
                try:
                    out.append(worker(request))
                    break
                except Exception:
                    alive.remove(worker)
                if not alive:
                    raise RuntimeError("nobody is left")
        return out

    def empties(what):
        def learners(requests, workers):
            answers = first_living(requests, workers)
            (requests if what == "requests" else workers).clear()
            return answers

        return learners

    def as_a_generator(requests, workers):
        yield from first_living(requests, workers)

    base.assert_checker(
        lab09.survivor,
        wrong=[
            (in_turns, "came out of serve_all"),
            (skips, "are lost"),
            (asks_again, "asked"),
            (gives_up_quietly, "no error"),
            (waits_for_ever, "has not come back"),
            (lambda r, w: first_living(r, w)[::-1], "not in their order"),
            (lambda r, w: sorted(first_living(r, w)), "not in their order"),
            (by_request, "of 40 requests were answered"),
            (takes_any_error_for_a_death, "taken for a death: RuntimeError"),
            (empties("requests"), "list of requests that was handed in has changed"),
            (empties("workers"), "list of workers that was handed in has changed"),
            (twice, "computed twice|of 40 requests"),
            (lambda r, w: None, "forget its `return`"),
            (5, "hand in the function"),
        ],
        right=[
            first_living,
            as_a_generator,
            lambda requests, workers: first_living(list(requests), list(workers)[::-1]),
        ],
        namespace=namespace(),
    )


@pytest.mark.parametrize("name", list(base.of(lab09)))
def test_each_exercise_names_its_lab(name):
    assert getattr(lab09, name).lab == "09_placement" and getattr(lab09, name).name == name
