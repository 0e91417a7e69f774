"""Exercises of lab 04: the factor that reuse saves, a peak by hand, the order of steps, an allocator, a budget, a
leak.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import comes_from
from labsupport.exercises.lab04_stand_ins import (
    BadRequest,
    Counter,
    largest_first,
    planned,
    random_schedule,
    resnet_schedule,
)

LAB, CHECK_S = "04_memory", 60.0

# (tensor, MiB, what it is computed from); "scores" is read by nobody, so it is the network's output
PUZZLE = (
    ("a", 4, ["images"]),
    ("b", 6, ["a"]),
    ("c", 6, ["b"]),
    ("d", 3, ["c"]),
    ("e", 5, ["a", "d"]),
    ("f", 2, ["e"]),
    ("scores", 1, ["f"]),
)
BRANCHES = (
    ("left_wide", 12, ["images"]),
    ("right_wide", 20, ["images"]),
    ("left_slim", 4, ["left_wide"]),
    ("right_slim", 1, ["right_wide"]),
    ("joined", 5, ["left_slim", "right_slim"]),
    ("scores", 1, ["joined"]),
)
LEAST_PEAK = 21  # of all orders of BRANCHES; the tests try every one

BUDGET_MIB, WEIGHTS_MIB, CONTEXTS = 1024, 50, 2
PEAK_PER_IMAGE, SUM_PER_IMAGE = 4.59375, 50.4375  # MiB of ResNet-50 in FP16; the tests read them from the graph
TUNED_FOR, STEP, IMAGE = 8, 4, (3, 224, 224)  # in steps of 8 the weights forgotten would give the same batch


class Reuse(Prediction):
    question = (
        "How many times more memory would ResNet-50's activations take if every tensor kept an address of its own, "
        "instead of memory being used again?"
    )
    quantity = "memory of all activations apart, divided by what the runtime needs"
    unit = "×"


class Peak(Exercise):
    question = "How many MiB does `lab04.PUZZLE` need at its fullest step?"
    hints = (
        (
            "While a step runs, three kinds of tensors are alive: what it reads, what it writes, and what a later step "
            "reads."
        ),
        "`a` is read again by `e`, so it stays through the steps of b, c and d. Add up each step and take the largest.",
    )
    solution_source = "lab04.peak.check(4 + 6 + 6)"
    answer = "Step 2 computes c from b, 6 + 6 MiB, while a waits with its 4 MiB for step e: 16 MiB."

    def judge(self, mib: float) -> str:
        total = sum(size for _, size, _ in PUZZLE)
        if mib in (total, total - 1):
            raise Wrong(
                f"{mib:g} MiB is all tensors together; by the time e is computed, nobody needs b and c any more."
            )
        if mib == 12:
            raise Wrong("b and c are 12 MiB, but who reads `a` for the last time, and when?")
        if mib == 6:
            raise Wrong(
                "6 MiB is the largest tensor; a step also needs what it reads at the same time as what it writes."
            )
        if mib == 10:
            raise Wrong(
                "10 MiB would do if c could overwrite b while it reads b; this graph's steps need both at once."
            )
        if mib != 16:
            raise Wrong(f"no step of the puzzle is fullest at {mib:g} MiB; list for each step what is alive, and add.")
        return (
            "Step 2 holds a, b and c: 16 MiB, where all tensors apart would take 26. The skip from a to e costs 4 "
            "of them."
        )


class Order(Exercise):
    question = (
        "In which order should the six steps of `lab04.BRANCHES` run, so that the peak is as low as it can be? Give "
        "the names as a list."
    )
    hints = (
        (
            "As written, both wide tensors are alive together. A branch that is finished leaves only its slim tensor "
            "behind."
        ),
        "Finish one branch before starting the other. Which one first? The tensor it leaves behind waits all through "
        "the other branch, and the wide tensor is needed while that waits.",
    )
    solution_source = """
        lab04.order.check(["right_wide", "right_slim", "left_wide", "left_slim", "joined", "scores"])
    """
    answer = (
        "The right branch is the larger one and leaves the smaller tensor, so it goes first: its 20 MiB are gone "
        "before anything waits, and only 1 MiB waits while the left branch runs."
    )

    def judge(self, names: list) -> str:
        from labsupport import footprint

        steps = {name: (name, mib, reads) for name, mib, reads in BRANCHES}
        lacking, unknown = set(steps) - set(map(str, names)), set(map(str, names)) - set(steps)
        if lacking or unknown or len(names) != len(steps):
            odd = (
                f"{sorted(lacking)[0]!r} is missing"
                if lacking
                else (f"{sorted(unknown)[0]!r} is no step" if unknown else "a step is named twice")
            )
            raise Wrong(f"{odd}; the order has each of the six names once.")
        peak = footprint.schedule([steps[name] for name in names]).peak_mib
        before = footprint.schedule(BRANCHES).peak_mib
        if peak >= before:
            raise Wrong(
                f"the peak is {peak:g} MiB, no lower than the {before:g} MiB of the order as written; both wide "
                "tensors are alive at once."
            )
        if peak > LEAST_PEAK:
            raise Wrong(
                f"the peak falls from {before:g} to {peak:g} MiB, and {LEAST_PEAK} is possible: what waits while the "
                "second branch runs?"
            )
        return (
            f"The same six steps, and the peak falls from {before:g} to {peak:g} MiB. An engine's builder may choose "
            "the order of independent branches; a framework that runs your code line by line may not."
        )


class Allocator(Exercise):
    question = (
        "Write `place_tensors(tensors)`, which returns an offset in MiB for each tensor's name, so that no two living "
        "tensors overlap and ResNet-50 needs no more than 5 % above its peak."
    )
    hints = (
        "`first_fit` above is right and not tight: where it leaves holes, a large tensor came too late to fit in.",
        "The order of placing is free, since all lifetimes are known beforehand. Place the largest tensors first, and "
        "of equally large ones the one that was born first.",
    )
    solution_source = """
        def place_tensors(tensors):
            offsets = {}
            for tensor in sorted(tensors, key=lambda each: (-each.mib, each.born)):
                taken = sorted((offsets[other.name], offsets[other.name] + other.mib)
                               for other in tensors if other.name in offsets and other.overlaps(tensor))
                start = 0
                for low, high in taken:
                    if low - start >= tensor.mib:
                        break
                    start = max(start, high)
                offsets[tensor.name] = start
            return offsets

        lab04.allocator.check(place_tensors)
    """
    answer = (
        "Largest first: the big tensors settle side by side while the block is empty, and the small ones fill what is "
        "left. Pisarchyk and Lee compare such plans, arXiv:2001.03288."
    )

    def judge(self, place_tensors: Callable) -> str:
        whole = resnet_schedule()
        plans = {"ResNet-50": planned(place_tensors, whole, "ResNet-50")}
        drawn = [random_schedule(random.randrange(10**6)) for _ in range(4)]
        for place, lives in enumerate(drawn):
            plans[f"drawn {place}"] = planned(place_tensors, lives, "a network drawn at random")
        plan = plans["ResNet-50"]
        if plan.size_mib > 100 * whole.total_mib:
            raise Wrong(f"the plan ends at {plan.size_mib:.3g} MiB. Are those bytes? Offsets are wanted in MiB.")
        if plan.size_mib > 0.9 * whole.total_mib:
            raise Wrong(
                f"nothing overlaps, and nothing is used again: {plan.size_mib:.0f} MiB, where {whole.peak_mib:.0f} "
                "are alive at the fullest step. A tensor may move in where another has died."
            )
        if plan.size_mib > 1.05 * whole.peak_mib:
            ties = all(plans[f"drawn {i}"].size_mib == largest_first(lives) for i, lives in enumerate(drawn))
            raise Wrong(
                f"nothing overlaps, but ResNet-50 takes {plan.size_mib:.1f} MiB, "
                f"{plan.size_mib / whole.peak_mib - 1:.0%} above its peak of {whole.peak_mib:.1f}: holes stay that no "
                "later tensor fits in. "
                + (
                    "The largest come first, and that is the way; ResNet-50 has many tensors of one size, though. "
                    "Which of two equally large ones should settle first?"
                    if ties
                    else "Must tensors be placed in the order they are born?"
                )
            )
        return (
            f"No two living tensors share a byte in five networks, and ResNet-50 fits in {plan.size_mib:.1f} MiB; its "
            f"peak is {whole.peak_mib:.1f}. Apart, its tensors would take {whole.total_mib:.0f} MiB."
        )


class Budget(Exercise):
    question = (
        f"Which profile takes 1 image and more, is tuned for {TUNED_FOR}, and has the largest multiple of {STEP} "
        f"for which {WEIGHTS_MIB} MiB of weights and {CONTEXTS} contexts fit into {BUDGET_MIB} MiB? Hand in a "
        "build.Profile for shape (batch, 3, 224, 224)."
    )
    hints = (
        (
            "The engine holds the weights once; every context has activations of its own, sized for the profile's "
            "largest batch."
        ),
        (
            "Memory = weights + contexts × batch × peak of one image. Solve that for the batch, then round down to a "
            f"multiple of {STEP}."
        ),
    )
    solution_source = """
        per_image = footprint.lifetimes(graph, batch=1, precision="fp16").peak_mib
        largest = int((1024 - 50) / 2 / per_image) // 4 * 4
        lab04.budget.check(build.Profile((1, 3, 224, 224), (8, 3, 224, 224), (largest, 3, 224, 224)))
    """
    answer = "A context is sized for the largest batch it may meet, also while it serves a single image."

    def judge(self, profile: Any) -> str:
        shapes = [getattr(profile, corner, None) for corner in ("min", "opt", "max")]
        if not all(isinstance(shape, (tuple, list)) and len(shape) == 4 for shape in shapes):
            raise Wrong(
                f"that is {described(profile)}; wanted is build.Profile(min, opt, max) with three shapes such as "
                "(8, 3, 224, 224)."
            )
        if any(tuple(shape[1:]) != IMAGE for shape in shapes):
            raise Wrong("only the batch is free; every shape ends in 3, 224, 224.")
        least, tuned, most = (shape[0] for shape in shapes)
        if least != 1:
            raise Wrong(f"the smallest batch is {least}; a single image would be refused.")
        if tuned != TUNED_FOR:
            raise Wrong(f"the middle shape is the one to tune for, batch {TUNED_FOR}; it came with {tuned}.")
        self._judge_largest(most)
        need = WEIGHTS_MIB + CONTEXTS * most * PEAK_PER_IMAGE
        return (
            f"{WEIGHTS_MIB} + {CONTEXTS} × {most} × {PEAK_PER_IMAGE:.2f} = {need:.0f} of {BUDGET_MIB} MiB, and the "
            f"next multiple of {STEP} does not fit. Real contexts add scratch memory and fusion takes tensors away, so "
            "the engine has the last word: read its device memory size."
        )

    def _judge_largest(self, most: int) -> None:
        def largest(per_image: float, contexts: int = CONTEXTS, weights: float = WEIGHTS_MIB) -> int:
            return int((BUDGET_MIB - weights) / contexts / per_image)

        best = largest(PEAK_PER_IMAGE)
        slips = {
            largest(
                SUM_PER_IMAGE
            ): "that counts every tensor apart; memory is used again, so only the fullest step counts.",
            largest(2 * PEAK_PER_IMAGE): "that counts four bytes a value; this engine computes in FP16.",
            largest(
                PEAK_PER_IMAGE, weights=CONTEXTS * WEIGHTS_MIB
            ): "more fits: the contexts share the engine's one copy of the weights.",
            largest(PEAK_PER_IMAGE, weights=0): "that leaves the weights out, and they are in the same memory.",
            largest(PEAK_PER_IMAGE, contexts=1): "that fills the budget with one context, and there are two.",
        }
        for batch, slip in slips.items():
            if most in (batch, batch // STEP * STEP) and most != best // STEP * STEP:
                raise Wrong(f"batch {most}: {slip}")
        if most > best:
            need = WEIGHTS_MIB + CONTEXTS * most * PEAK_PER_IMAGE
            raise Wrong(f"batch {most} needs {need:.0f} MiB, and there are {BUDGET_MIB}.")
        if most % STEP:
            raise Wrong(f"batch {most} fits, but is no multiple of {STEP}.")
        if most != best // STEP * STEP:
            raise Wrong(f"batch {most} fits, and so does a larger multiple of {STEP}.")


class Serving(Exercise):
    question = (
        "Write `serve(make, requests)`: `make()` loads a runtime, which holds memory until it is closed. Return the "
        "answers `run(images)` of all requests as a list, with one load and nothing left open, even when a request "
        "fails."
    )
    hints = (
        "A runtime is a context manager: `with make() as run:` closes it however the block ends.",
        "Load before the loop: the `with` line goes round the loop, and the list is returned from inside it.",
    )
    solution_source = """
        def serve(make, requests):
            with make() as run:
                return [run(images) for images in requests]

        lab04.serving.check(serve)
    """
    answer = "`with` round the loop loads once and closes once, also when a request raises on the way."

    def judge(self, serve: Callable) -> str:
        if hasattr(serve, "close"):
            raise Wrong(f"that is {described(serve)}; hand in the function itself, `serve`, without calling it.")
        requests, counter = random.sample(range(1, 100), 4), Counter()
        answers = serve(counter.make, list(requests))
        if answers is None:
            raise Wrong("serve gave None. Did it forget its `return`?")
        if not isinstance(answers, (list, tuple)) or list(answers) != [10 * images for images in requests]:
            raise Wrong(f"four requests gave {str(answers)[:60]}; wanted is a list with the answer of each, in order.")
        if counter.open:
            raise Wrong(
                f"{counter.open} of {counter.made} runtimes {'is' if counter.open == 1 else 'are'} still open when "
                "serve returns, and with it their memory."
            )
        if counter.made > 1:
            raise Wrong(
                f"nothing stays open, but {counter.made} runtimes were loaded for {len(requests)} requests; each load "
                "costs more than many answers."
            )
        self._judge_failure(serve)
        return "One load, four answers, nothing left open, and a failing request closes the runtime, too."

    def _judge_failure(self, serve: Callable) -> None:
        for place, error in ((1, BadRequest("no number")), (0, MemoryError("none left")), (2, ValueError("odd"))):
            requests: list = [1, 2, 3]
            requests[place], counter, failed = error, Counter(), False
            try:
                serve(counter.make, requests)
            except Exception as raised:
                failed = comes_from(raised, (type(error),))
                if not failed:
                    raise
            name = f"request {place + 1} fails with {type(error).__name__}"
            if counter.open:
                raise Wrong(
                    f"when {name}, the runtime stays open: close() is never reached. That is how a service leaks only "
                    "on bad days."
                )
            if not failed:
                raise Wrong(f"{name}, and that passed in silence; let its error reach the caller.")


reuse = Reuse()
peak = Peak()
order = Order()
allocator = Allocator()
budget = Budget()
serving = Serving()
