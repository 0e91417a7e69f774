"""Lab 09b's checkers: untouched, each foreseen mistake, the solution and a differently written twin."""

from __future__ import annotations

import threading

import pytest

from labsupport.exercises import base, calling, lab09b


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(calling, "PATIENCE_S", 1.5)


def test_offered():
    def by_times(service_ms, load):
        return sum(load / ms for ms in service_ms.values()) * 1e3

    base.assert_checker(
        lab09b.offered,
        wrong=[
            (lambda service_ms, load: sum(1000 / ms for ms in service_ms.values()), "load is missing"),
            (lambda service_ms, load: by_times(service_ms, load) / 1000, "per millisecond"),
            (
                lambda service_ms, load: load * len(service_ms) ** 2 * 1000 / sum(service_ms.values()),
                "mean of the times",
            ),
            (lambda service_ms, load: 1000 * load / max(service_ms.values()), "each worker answer"),
            (lambda service_ms, load: None, "a number is wanted"),
            (lambda service_ms, load: "fast", "a number is wanted"),
            (250.0, "hand in the function"),
        ],
        right=[by_times, lambda service, load: load * sum(map(lambda ms: 1000 / ms, list(service.values())))],
        namespace={},
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
        lab09b.dispatcher,
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
        namespace={},
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
        except lab09b.Died:
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
            except lab09b.Died:
                pass
        return out

    def asks_again(requests, workers):
        out = []
        for request in requests:
            for worker in workers:
                try:
                    out.append(worker(request))
                    break
                except lab09b.Died:
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
        lab09b.survivor,
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
        namespace={},
    )


@pytest.mark.parametrize("name", list(base.of(lab09b)))
def test_each_exercise_names_its_lab(name):
    assert getattr(lab09b, name).lab == "09b_balancing" and getattr(lab09b, name).name == name
