"""Exercises of lab 09: what a graph gains, double buffering by hand, an ideal gain."""

from __future__ import annotations

import random
from collections.abc import Callable

from labsupport.exercises.answers import as_number
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import comes_from, items, needs_function, returned
from labsupport.exercises.lab09_stand_ins import AT_ONCE, STEPS, BadBatch, Stage, in_a_line

LAB, CHECK_S = "09_placement", 60.0


class Graph(Prediction):
    question = (
        "A narrow ResNet-18 answers one picture with 25 short kernels on a large GPU. How many times faster is the "
        "answer when the launches are one CUDA graph?"
    )
    quantity = "time of plain launches, divided by the time of the graph"
    unit = "×"


class GraphGain(Exercise):
    question = (
        "Write `graph_gain(host_us, replay_us, gpu_us)` for a long queue of requests: the host needs host_us for plain "
        "launches or replay_us for a graph, the GPU gpu_us for the kernels. How many times more requests a second does "
        "the graph give?"
    )
    hints = (
        "In a long queue, host and GPU work at the same time, on different requests. Which of the two sets the pace?",
        "The time per request is the larger of the host's and the GPU's. Take it without a graph and with one.",
    )
    solution_source = """
        def graph_gain(host_us, replay_us, gpu_us):
            return max(host_us, gpu_us) / max(replay_us, gpu_us)

        lab09.graph_gain.check(graph_gain)
    """
    answer = "The slower side sets the pace before and after: a graph gains nothing where the GPU is the slower one."

    def judge(self, graph_gain: Callable) -> str:
        needs_function(graph_gain, "graph_gain")
        draws = random.Random()
        for low, high in ((1, 20), (30, 90), (100, 400)):  # the GPU faster than both, between them, slower than both
            for _ in range(3):
                host, replay, gpu = draws.uniform(100, 200), draws.uniform(20, 30), draws.uniform(low, high)
                gpu = gpu + host if low == 100 else gpu
                right = max(host, gpu) / max(replay, gpu)
                got = as_number(graph_gain(host, replay, gpu), "what graph_gain gave")
                if abs(got - right) > 0.01 * right:
                    raise Wrong(self._slip(got, right, host, replay, gpu))
        return "Right for a GPU that waits, for one that never does, and for the cases between."

    @staticmethod
    def _slip(got: float, right: float, host: float, replay: float, gpu: float) -> str:
        start = f"host {host:.0f} µs, replay {replay:.0f} µs, GPU {gpu:.0f} µs: it gave {got:.3g}, not {right:.3g}. "
        if abs(got * right - 1) < 0.01:
            return start + "That is the other way round."
        if abs(got - host / replay) < 0.01 * got:
            return start + "A queue cannot be faster than the GPU."
        if abs(got - (host + gpu) / (replay + gpu)) < 0.01 * got:
            return start + "In a long queue the two do not wait for each other in turn; they work at the same time."
        return start + "Who sets the pace without the graph, and who with it?"


class Lookahead(Exercise):
    question = (
        "Write `answers(load, infer, batches)` for one batch or more: it returns [infer(load(b)) for b in batches] and "
        f"loads the next batch while this one is inferred, with at most {AT_ONCE} loaded batches at once."
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
        four = (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 6.0))
        small, large = (("decode", 2.0), ("infer", 1.0)), (("decode", 3.0), ("infer", 12.0))
        for kinds in ((STEPS,), (equal,), (lopsided,), (four,), (small, large)):
            steps, spans = tuple(step for kind in kinds for step in kind), in_a_line(*kinds)
            rows = [sum(ms for row, ms in steps if row == name) for name in dict(steps)]
            right, got = sum(rows) / max(rows), ideal_gain(list(spans))
            if got is None:
                raise Wrong("ideal_gain gave None. Did it forget its `return`?")
            got = as_number(got, "what ideal_gain gave")
            if abs(got - right) > 0.01 * right:
                raise Wrong(self._slip(got, right, steps, len(kinds)))
        return "Right for five runs. Two rows of 0.5 and 7.5 ms gain 7 %, however cleverly they are overlapped."

    @staticmethod
    def _slip(got: float, right: float, steps, kinds: int) -> str:
        seen = ", ".join(f"{row} {ms:g} ms" for row, ms in steps)
        start = f"for items of {seen} it gave {got:.3g}, not {right:.3g}: "
        if kinds > 1:
            return (
                start.replace("items of", "two kinds of items in turn,") + "do all spans of a row count, of every item?"
            )
        if abs(got * right - 1) < 0.01:
            return start + "that is the other way round, new time over old time."
        if abs(got - len(steps)) < 0.01:
            return start + "the number of rows is reached only if all rows are equally long."
        if abs(got - 4 * right) < 0.05 * right:
            return start + "the longest single span is not the busiest row; a row has one span for every item."
        return start + "which row cannot get shorter by overlapping?"


graph = Graph()
graph_gain = GraphGain()
lookahead = Lookahead()
ideal = Ideal()
