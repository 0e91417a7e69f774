"""Exercises of lab 09c: clean cuts, two cuts of an edge box, shares for several GPUs."""

from __future__ import annotations

import random
from collections.abc import Callable

from labsupport.exercises.answers import as_number
from labsupport.exercises.base import Exercise, Wrong
from labsupport.exercises.calling import items, needs_function
from labsupport.exercises.lab09_stand_ins import (
    BOX_CUTS,
    box,
    clean_cuts,
    cut_graphs,
    fair_shares,
    most_s,
)

LAB = "09c_cuts"


class Clean(Exercise):
    question = (
        "Write `clean(nodes)` for a graph in the order in which it runs: each node is (inputs, outputs), two lists of "
        "names. Return the names at which it can be cut so that one tensor carries everything on: all nodes up to its "
        "maker stand before the cut, and no other tensor made before is read behind it. The graph's input, `frame`, "
        "is not among them, and neither is a tensor that no later node reads."
    )
    hints = (
        "Go through the nodes in their order. Behind each one, ask: which tensors are known so far and still needed?",
        "A tensor is needed if a later node reads it. `frame` counts as well: a node far behind may read it again.",
    )
    solution_source = """
        def clean(nodes):
            known, found = {"frame"}, []
            for place, (_, outputs) in enumerate(nodes[:-1]):
                known |= set(outputs)
                needed = {name for inputs, _ in nodes[place + 1:] for name in inputs}
                if known & needed == set(outputs) and len(outputs) == 1:
                    found += outputs
            return found

        lab09c.clean.check(clean)
    """
    answer = "A residual network can be cut between its blocks and not inside them: the shortcut is a second tensor."

    def judge(self, clean: Callable) -> str:
        needs_function(clean, "clean")
        for nodes in cut_graphs():
            right, got = clean_cuts(nodes), clean([(list(inputs), list(outputs)) for inputs, outputs in nodes])
            got = items(got, "clean")
            if sorted(map(str, got)) != sorted(right):
                raise Wrong(self._slip(got, right, nodes))
        return "Right for a chain, for residual blocks, for branches, and where the input is read again."

    @staticmethod
    def _slip(got: list, right: list, nodes: list) -> str:
        written = "; ".join(f"{' '.join(inputs)} → {' '.join(outputs)}" for inputs, outputs in nodes)
        start = f"for {written}: "
        for name in got:
            if name == "frame":
                return start + "'frame' is the input: no node stands before that cut, so it is not asked for."
            if name not in right:
                return start + f"{name!r} is no clean cut. Which other tensor is read behind it, or is nothing left?"
            if got.count(name) > 1:
                return start + f"{name!r} came {got.count(name)} times; each name belongs in the list once."
        lacking = next(name for name in right if name not in got)
        return start + f"{lacking!r} is one, too: everything behind it needs that tensor only."


class Cuts(Exercise):
    question = (
        "Where should the edge box `lab09c.box()` cut its network for the least latency, and where for the least time "
        "between answers when both devices work at once? Give two names."
    )
    hints = (
        "Latency adds up: first device, crossing, second device. The interval is the slower of the first device and "
        "of crossing plus second device.",
        "`lab09c.box().parts_ms(name)` gives the three parts of a cut. A later cut moves work to the first device: "
        "for the interval look for the place where the two sides come closest.",
    )
    solution_source = """
        model = lab09c.box()
        names = [cut.name for cut in model.cuts]
        quickest = min(names, key=lambda name: sum(model.parts_ms(name)))
        steadiest = min(names, key=lambda name: max(model.parts_ms(name)[0], sum(model.parts_ms(name)[1:])))
        lab09c.cuts.check(quickest, steadiest)
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


class Shares(Exercise):
    question = (
        "Write `shares(items, rates)`: how many of `items` pictures each GPU gets, as whole numbers in the order of "
        "`rates` (pictures a second), so that the last GPU is done as early as possible."
    )
    hints = (
        "In proportion to the rates is nearly right. What do you do with the pictures that rounding leaves?",
        "Give the pictures out one at a time, each to the GPU that would be done first with it.",
    )
    solution_source = """
        def shares(items, rates):
            given = [0] * len(rates)
            for _ in range(items):
                done = [(count + 1) / rate for count, rate in zip(given, rates)]
                given[done.index(min(done))] += 1
            return given

        lab09c.shares.check(shares)
    """
    answer = "Data parallel: the slowest part decides, so parts follow the rates and not the number of GPUs."

    def judge(self, shares: Callable) -> str:
        needs_function(shares, "shares")
        draws = random.Random()
        sizes = ((100, 2), (7, 3), (64, 4), (3, 5))
        drawn = [(n, [round(draws.uniform(1, 9), 2) for _ in range(gpus)]) for n, gpus in sizes]
        # by rounding the first has 4 pictures; in the second the largest remainder is not the first one to be done
        for pictures, rates in ((3, [2.0, 2.0]), (7, [8.95, 3.2, 6.41]), *drawn):
            count = len(rates)
            got = [as_number(each, "a share") for each in items(shares(pictures, list(rates)), "shares")]
            if len(got) != count or any(each < 0 or each != int(each) for each in got) or sum(got) != pictures:
                given = ", ".join(f"{each:g}" for each in got)
                raise Wrong(
                    f"{pictures} pictures on {count} GPUs: {given}; wanted are {count} whole numbers of sum {pictures}."
                )
            took, best = most_s(got, rates), most_s(fair_shares(pictures, rates), rates)
            if took > best * (1 + 1e-9):
                raise Wrong(
                    f"{pictures} pictures at rates {rates}: {[int(each) for each in got]} takes {took:.3g} s, and "
                    f"{best:.3g} s are possible. Which GPU is done last, and who could take a picture from it?"
                )
        return "No GPU waits longer than it must, also with fewer pictures than GPUs."


clean = Clean()
cuts = Cuts()
shares = Shares()
