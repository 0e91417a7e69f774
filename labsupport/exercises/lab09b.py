"""Exercises of lab 09b: a tail, a load, a policy, workers that die."""

from __future__ import annotations

import random
from collections.abc import Callable

from labsupport.exercises.answers import as_number
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import needs_function
from labsupport.exercises.lab09_stand_ins import (  # noqa: F401 - learners catch lab09b.Died
    Died,
    judge_all_dead,
    judge_bad_request,
    judge_deaths,
    worlds,
)

LAB, CHECK_S = "09b_balancing", 60.0


class Tail(Prediction):
    question = (
        "Two workers, one four times slower, requests in bursts at a third of what both can do: how many times "
        "longer is the 99th percentile when they take turns than when the dispatcher knows their speeds?"
    )
    quantity = "p99 in turns, divided by p99 of the least expected finish"
    unit = "×"


class Offered(Exercise):
    question = (
        "Write `requests_per_s(service_ms, load)`: workers need service_ms[name] milliseconds for a request. How many "
        "requests a second keep all of them together busy for the share `load` of their time?"
    )
    hints = (
        "One worker that needs 4 ms can answer 250 requests a second. What can all of them answer together?",
        "Rates add up, times do not: add 1000 / ms over the workers, then take the share.",
    )
    solution_source = """
        def requests_per_s(service_ms, load):
            return load * sum(1000 / ms for ms in service_ms.values())

        lab09b.offered.check(requests_per_s)
    """
    answer = "The capacity is the sum of the workers' rates. A load of 0.8 leaves a fifth of it for bursts."

    def judge(self, requests_per_s: Callable) -> str:
        needs_function(requests_per_s, "requests_per_s")
        draws = random.Random()
        for count in (1, 2, 5):
            service = {f"worker {number}": draws.uniform(1, 30) for number in range(count)}
            if count < 3:
                service["worker 0"] = 1000 / (draws.randint(2, 4) + draws.uniform(0.3, 0.7))  # no whole number a second
            load = draws.uniform(0.2, 0.9)
            right = load * sum(1000 / ms for ms in service.values())
            got = as_number(requests_per_s(dict(service), load), "what requests_per_s gave")
            if abs(got - right) > 0.01 * right:
                raise Wrong(self._slip(got, right, service, load))
        return "Right for one worker, for two and for five of different speeds."

    @staticmethod
    def _slip(got: float, right: float, service: dict, load: float) -> str:
        times = ", ".join(f"{ms:.3g} ms" for ms in service.values())
        start = f"workers of {times} at a load of {load:.2f}: it gave {got:.4g}, not {right:.4g}. "
        if abs(got - right / load) < 0.01 * got:
            return start + "That is all they can do: the load is missing."
        if abs(got * 1000 - right) < 0.01 * right:
            return start + "That is per millisecond."
        if abs(got - load * len(service) * 1000 / (sum(service.values()) / len(service))) < 0.01 * got:
            return start + "The mean of the times is not the mean of the rates: a fast worker answers more requests."
        return start + "What can each worker answer in a second?"


class Dispatcher(Exercise):
    question = (
        "Write `pick(states, number)`, which returns the place of the worker to get this request, so that p99 stays "
        "low with workers of any speeds. A state has `.waiting`, `.running`, `.service_ms` and `.free_in_ms`."
    )
    hints = (
        "A fast worker with three requests before it may answer sooner than a slow one that is idle.",
        "When would each worker be done with this request? With everything it has, and then with this one: compare "
        "that.",
    )
    solution_source = """
        def pick(states, number):
            done_in = [state.free_in_ms + state.service_ms for state in states]
            return done_in.index(min(done_in))

        lab09b.dispatcher.check(pick)
    """
    answer = "Least expected finish: what the worker has left, plus its own time for one more."

    def judge(self, pick: Callable) -> str:
        from labsupport.placement import dispatch

        needs_function(pick, "pick")
        told = []
        for name, service in worlds().items():
            arrivals = dispatch.bursts(800, mean_gap_ms=dispatch.mean_gap_ms(service, 0.6), burst=2, seed=3)
            try:
                mine = dispatch.simulate(arrivals, service, pick, seed=3)
            except dispatch.BadInput as fault:
                raise Wrong(f"with {name}, {fault}.") from None
            best = dispatch.simulate(arrivals, service, "least expected finish", seed=3).p99_ms
            if mine.p99_ms > 1.15 * best:
                raise Wrong(self._slip(pick, mine, best, name, len(service)))
            told.append(f"{mine.p99_ms:.0f} ms with {name}")
        return f"p99 stays low in every world: {', '.join(told)}."

    @staticmethod
    def _slip(pick, mine, best: float, name: str, workers: int) -> str:
        from labsupport.placement.dispatch import WorkerState

        start = f"with {name}, p99 is {mine.p99_ms:.0f} ms where {best:.0f} are possible. "
        counts = list(mine.served.values())
        if max(counts) == sum(counts):
            return start + "One worker got every request; what do the others do meanwhile?"
        if max(counts) - min(counts) <= 1:
            return start + "Every worker got the same number of requests, the slow ones as many as the fast."
        fast, slow = WorkerState("fast", 3, 1, 1.0, 4.0), WorkerState("slow", 0, 0, 9.0, 0.0)
        if pick((fast, slow), 0) == 1:
            return start + (
                "A worker that is free at once is not always done first: a slow idle one was preferred to a fast one "
                "with four short requests."
            )
        return start + "Does it look at what a worker has left, and at its own time for one more?"


class Survivor(Exercise):
    question = (
        "Write `serve_all(requests, workers)`: workers are functions, and one that has died raises `lab09b.Died`, "
        "from then on every time. Return all answers in order; give a request that met a death to another worker, and "
        "do not ask the dead again. Any other error reaches the caller."
    )
    hints = (
        "Keep a list of the workers that still live, and a request in your hands until it is answered.",
        "For each request: loop over the living; on `Died`, take that worker off the list and try the next; with "
        "nobody left, raise.",
    )
    solution_source = """
        def serve_all(requests, workers):
            living, answers = list(workers), []
            for number, request in enumerate(requests):
                while True:
                    if not living:
                        raise RuntimeError(f"all workers are dead, {len(answers)} of {len(requests)} answered")
                    worker = living[number % len(living)]
                    try:
                        answers.append(worker(request))
                        break
                    except lab09b.Died:
                        living.remove(worker)
            return answers

        lab09b.survivor.check(serve_all)
    """
    answer = "A request belongs to the dispatcher until its answer is there; a worker only borrows it."

    def judge(self, serve_all: Callable) -> str:
        needs_function(serve_all, "serve_all")
        table = {number: random.randrange(1000) for number in range(30)}
        for place in random.sample(range(3), 2):  # who lives on is not known
            judge_deaths(serve_all, table, place)
        judge_all_dead(serve_all, table)
        judge_bad_request(serve_all, table)
        return (
            "Two of three workers died, 40 of 40 requests were answered once, in order; and with all dead the "
            "caller is told."
        )


tail = Tail()
offered = Offered()
dispatcher = Dispatcher()
survivor = Survivor()
