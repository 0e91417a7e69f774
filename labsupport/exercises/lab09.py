"""Exercises of lab 09: a tail, double buffering by hand, two cuts, a policy, an ideal gain, workers that die."""

from __future__ import annotations

import random
from collections.abc import Callable

from labsupport.exercises.answers import as_number
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import comes_from, items, needs_function, returned
from labsupport.exercises.lab09_stand_ins import (  # noqa: F401 - learners catch lab09.Died
    AT_ONCE,
    BOX_CUTS,
    STEPS,
    BadBatch,
    Died,
    Stage,
    box,
    in_a_line,
    judge_all_dead,
    judge_bad_request,
    judge_deaths,
    worlds,
)

LAB, CHECK_S = "09_placement", 60.0


class Tail(Prediction):
    question = (
        "Two workers, one four times slower, requests in bursts at a third of what both can do: how many times "
        "longer is the 99th percentile when they take turns than when the dispatcher knows their speeds?"
    )
    quantity = "p99 in turns, divided by p99 of the least expected finish"
    unit = "×"


class Lookahead(Exercise):
    question = (
        "Write `answers(load, infer, batches)`, which returns [infer(load(b)) for b in batches] and loads the next "
        f"batch while this one is inferred, with at most {AT_ONCE} loaded batches at once."
    )
    hints = (
        "One thread that loads is enough. The first batch is waited for; every later one is asked for before infer is "
        "called.",
        "With `concurrent.futures.ThreadPoolExecutor(1)`: submit load(batches[0]); then in a loop take its result(), "
        "submit the next load, and only then call infer.",
    )
    solution_source = """
        from concurrent.futures import ThreadPoolExecutor

        def answers(load, infer, batches):
            results = []
            with ThreadPoolExecutor(1) as reader:
                ready = reader.submit(load, batches[0])
                for place in range(len(batches)):
                    loaded = ready.result()
                    if place + 1 < len(batches):
                        ready = reader.submit(load, batches[place + 1])
                    results.append(infer(loaded))
            return results

        lab09.lookahead.check(answers)
    """
    answer = (
        "Two buffers suffice: while one is used, the other is filled. More of them smooth out uneven times and "
        "cost memory."
    )

    def judge(self, answers: Callable) -> str:
        needs_function(answers, "answers")
        stage = Stage(12)
        got = returned(lambda: items(answers(stage.load, stage.infer, list(stage.batches)), "answers"), "answers")
        if got != stage.right:
            kind = (
                "the answers in another order"
                if sorted(map(str, got)) == sorted(map(str, stage.right))
                else str(got)[:60]
            )
            raise Wrong(f"twelve batches gave {kind}; wanted is the answer of each batch, in their order.")
        if not stage.overlapped:
            raise Wrong("while a batch was inferred, nobody began to load the next one: load and infer took turns.")
        if stage.most > AT_ONCE:
            raise Wrong(
                f"{stage.most} batches were loaded at once, {AT_ONCE} are allowed: the loader runs away from infer, "
                "and with a long list it fills the memory. Who makes it wait?"
            )
        self._judge_failure(answers)
        return (
            f"The next load ran beside infer, never more than {stage.most} batches were held, and an error in "
            "load reached the caller."
        )

    def _judge_failure(self, answers: Callable) -> None:
        stage = Stage(6, broken=3)
        try:
            returned(
                lambda: items(answers(stage.load, stage.infer, list(stage.batches)), "answers"),
                "answers, when load fails on the fourth batch,",
            )
        except BaseException as error:
            if comes_from(error, (BadBatch,)):
                return
            raise
        raise Wrong("load failed on the fourth batch and nobody was told; let its error reach the caller.")


class Cuts(Exercise):
    question = (
        "Where should the edge box `lab09.box()` cut its network for the least latency, and where for the least time "
        "between answers when both devices work at once? Give two names."
    )
    hints = (
        "Latency adds up: first device, crossing, second device. The interval is the slower of the first device and "
        "of crossing plus second device.",
        "`lab09.box().parts_ms(name)` gives the three parts of a cut. A later cut moves work to the first device: "
        "for the interval look for the place where the two sides come closest.",
    )
    solution_source = """
        model = lab09.box()
        names = [cut.name for cut in model.cuts]
        quickest = min(names, key=lambda name: sum(model.parts_ms(name)))
        steadiest = min(names, key=lambda name: max(model.parts_ms(name)[0], sum(model.parts_ms(name)[1:])))
        lab09.cuts.check(quickest, steadiest)
    """
    answer = (
        "For one request the accelerator does everything behind the crop, since the crop shrinks what has to cross. "
        "For a stream, the processor takes a stage as well: it would be idle otherwise."
    )

    def judge(self, for_latency: str, for_interval: str) -> str:
        model = box()
        names = [name for name, _ in BOX_CUTS]
        for name in (for_latency, for_interval):
            if name not in names:
                raise Wrong(f"{name!r} is no cut of the box; choose from {names}.")
        latency, interval = model.choose("latency").name, model.choose("interval").name
        if (for_latency, for_interval) == (interval, latency) and latency != interval:
            raise Wrong("the two are the wrong way round: which sum does a single request pay?")
        if for_latency != latency:
            raise Wrong(
                (
                    f"cutting at {for_latency!r} gives a latency of {model.latency_ms(for_latency):.1f} ms, and less "
                    "is possible. "
                )
                + self._why(for_latency)
            )
        if for_interval != interval:
            raise Wrong(
                f"the latency is right; cutting at {for_interval!r} gives an answer every "
                f"{model.interval_ms(for_interval):.1f} ms, and more often is "
                "possible. Which side waits for the other there?"
            )
        return (
            f"{latency!r}: {model.latency_ms(latency):.1f} ms a request. {interval!r}: an answer every "
            f"{model.interval_ms(interval):.1f} ms, though each "
            f"takes {model.latency_ms(interval):.1f} ms. Latency and throughput want different cuts."
        )

    @staticmethod
    def _why(name: str) -> str:
        if name == BOX_CUTS[0][0]:
            return "The whole frame crosses the link before anything else happens."
        if name == BOX_CUTS[-1][0]:
            return "Nothing crosses, but the slow device does all the work."
        return "Add the three parts for the cuts before and behind it."


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

        lab09.dispatcher.check(pick)
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


class Ideal(Exercise):
    question = (
        "Write `ideal_gain(spans)`: from the spans of a run in a line, how many times faster could it be if every "
        "row worked without waiting? A span knows its row and its length."
    )
    hints = (
        "In a line, the time is the sum of all `span.ms`. With perfect overlap, only one row still sets the pace.",
        "Add up the spans of each row. The row with the largest sum cannot be made to overlap with itself.",
    )
    solution_source = """
        def ideal_gain(spans):
            per_row = {}
            for span in spans:
                per_row[span.row] = per_row.get(span.row, 0) + span.ms
            return sum(per_row.values()) / max(per_row.values())

        lab09.ideal.check(ideal_gain)
    """
    answer = (
        "All rows together, over the busiest one. Equal rows gain as many times as there are rows; one long row "
        "gains little."
    )

    def judge(self, ideal_gain: Callable) -> str:
        needs_function(ideal_gain, "ideal_gain")
        equal, lopsided = (("copy in", 1.0), ("compute", 1.0), ("copy out", 1.0)), (("decode", 0.5), ("infer", 7.5))
        for steps in (STEPS, equal, lopsided, (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 6.0))):
            spans = in_a_line(steps)
            right, got = sum(ms for _, ms in steps) / max(ms for _, ms in steps), ideal_gain(list(spans))
            if got is None:
                raise Wrong("ideal_gain gave None. Did it forget its `return`?")
            got = as_number(got, "what ideal_gain gave")
            if abs(got - right) > 0.01 * right:
                raise Wrong(self._slip(got, right, steps))
        return "Right for four runs. Two rows of 0.5 and 7.5 ms gain 7 %, however cleverly they are overlapped."

    @staticmethod
    def _slip(got: float, right: float, steps) -> str:
        seen = ", ".join(f"{row} {ms:g} ms" for row, ms in steps)
        start = f"for items of {seen} it gave {got:.3g}, not {right:.3g}: "
        if abs(got * right - 1) < 0.01:
            return start + "that is the other way round, new time over old time."
        if abs(got - len(steps)) < 0.01:
            return start + "the number of rows is reached only if all rows are equally long."
        if abs(got - 4 * right) < 0.05 * right:
            return start + "the longest single span is not the busiest row; a row has one span for every item."
        return start + "which row cannot get shorter by overlapping?"


class Survivor(Exercise):
    question = (
        "Write `serve_all(requests, workers)`: workers are functions, and one that has died raises `lab09.Died`, "
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
                    except lab09.Died:
                        living.remove(worker)
            return answers

        lab09.survivor.check(serve_all)
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
lookahead = Lookahead()
cuts = Cuts()
dispatcher = Dispatcher()
ideal = Ideal()
survivor = Survivor()
