"""Exercises of lab 00: how an exercise works, what happens once, an FP16 engine, a full batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labsupport.exercises import shared_machine
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.watched import Watched

LAB, CHECK_S = "00_start_here", 60.0
ONCE = ("export", "build", "load")
EACH = ("preprocess", "run")
TEST_DIGITS = 500
FEWEST_RUNS = 30


class FasterThanPyTorch(Prediction):
    question = "How many times faster than PyTorch will the optimized network answer one digit on this machine?"
    quantity = "PyTorch's time divided by the optimized time, one digit a call"
    unit = "×"


class Pixels(Exercise):
    question = "How many numbers does the network read for one digit?"
    hints = (
        "The dataset's line above says height×width×channels.",
        "Every pixel of a gray picture is one number: multiply height by width.",
    )
    solution_source = "lab00.pixels.check(28 * 28 * 1)"
    answer = "28 rows of 28 pixels with one gray value each: 784 numbers."

    def judge(self, count: int) -> str:
        if count in (28, 56):
            raise Wrong(f"{count} counts along the edges; the picture is an area of 28 rows with 28 pixels each.")
        if count == 3 * 784:
            raise Wrong("2352 would be three colors; these digits have one channel, gray.")
        if count in (255, 256):
            raise Wrong(f"{count} is about how bright a pixel can be, not how many pixels there are.")
        if count in (10, 7840):
            raise Wrong("ten is what comes out, one score for each class; the question is what goes in for one digit.")
        if count != 784:
            raise Wrong(f"{count} is not the product of the three sizes in the dataset's line.")
        return "28 × 28 × 1 = 784 numbers go in, and ten scores come out."


class Once(Exercise):
    question = (
        "Which of the steps 'preprocess', 'export', 'run', 'build', 'load' happen once, before the first "
        "digit arrives? Give them as a list."
    )
    hints = (
        "A step that reads the incoming picture cannot happen before the picture is there.",
        "Three steps only look at the trained weights, or at a file made from them.",
    )
    solution_source = 'lab00.once.check(["export", "build", "load"])'
    answer = "Export, build and load need the weights only. Preprocess and run need a picture, so they repeat."

    def judge(self, steps: list) -> str:
        named = {str(step).strip().lower() for step in steps}
        unknown = sorted(named - set(ONCE + EACH))
        if unknown:
            raise Wrong(
                f"{', '.join(unknown)} is none of the five steps; choose from {', '.join(sorted(ONCE + EACH))}."
            )
        if "preprocess" in named:
            raise Wrong("every picture has to be scaled and laid out for the network, so 'preprocess' repeats.")
        if "run" in named:
            raise Wrong("'run' is the inference itself: it happens for every batch of pictures.")
        if "load" not in named:
            raise Wrong(
                "what happens to the engine file before its first use? Reading it again for every picture "
                "would cost far more than the inference."
            )
        lacking = [step for step in ONCE if step not in named]
        if lacking:
            raise Wrong(
                f"does {' or '.join(repr(step) for step in lacking)} need a picture to work on? It only "
                "needs the weights."
            )
        return "Whatever depends on the weights alone is paid for once; only the rest counts as latency."


class HalfPrecision(Exercise):
    question = "Build a second engine of `graph` that computes in FP16, and hand in both, the new one first."
    hints = (
        "build.engine takes precision='fp16'; everything else can stay as it was.",
        "TensorRT 8.6 may find FP32 kernels faster in so small a network, and then the build stops with a "
        "PrecisionMismatch. strict=True makes it obey; the newer generations always do.",
    )
    solution_source = """
        half = build.engine(graph, precision="fp16", strict=True, batch=(1, 1, 512))
        lab00.half_precision.check(half, engine)
    """
    answer = "The precision is a property of the engine, so a second engine is built; the graph file stays in FP32."

    def judge(self, half: Any, engine: Any) -> str:
        from labsupport.build.engines import Engine

        for given, what in ((half, "first"), (engine, "second")):
            if not isinstance(given, Engine):
                raise Wrong(
                    f"the {what} answer is of type {type(given).__name__}; wanted is what build.engine returns."
                )
        if half.sidecar["built_from"] != engine.sidecar["built_from"]:
            raise Wrong("the two engines were built from different graphs; build both from `graph`.")
        if "fp16" in engine.precisions and "fp16" not in half.precisions:
            raise Wrong("the FP16 engine comes first: check(half, engine).")
        if "fp16" not in half.precisions:
            raise Wrong(
                f"that engine was asked for {half.precision} and computes in {_listed(half.precisions)}; "
                "there is no FP16 layer in it."
            )
        if "fp16" in engine.precisions:
            raise Wrong("both engines compute in FP16; the second one should be the FP32 engine from above.")
        return (
            f"Layers by type: {_listed(half.precisions)}. The file went from {engine.size_mib:.1f} to "
            f"{half.size_mib:.1f} MiB, because an FP16 weight takes two bytes and an FP32 weight four. "
            "What that does to the answer is the subject of lab 05."
        )


class FullBatch(Exercise):
    question = (
        "Write `latency_of(run)`: it measures the network `run` on all 500 test digits in one call, at least 30 calls, "
        "and returns what benchmarking.latency returns. Hand in the function, and `optimized`."
    )
    hints = (
        "The array `images` holds all 500 preprocessed digits; images[:1] was a single one.",
        "benchmarking.latency(run, images, runs=...) returns the whole result; return that, not its median.",
    )
    solution_source = """
        def latency_of(run):
            return benchmarking.latency(run, images, runs=40)

        lab00.full_batch.check(latency_of, optimized)
    """
    answer = "The call takes longer, but five hundred digits share its fixed cost, so each of them is cheaper."

    def judge(self, latency_of: Callable, optimized: Any) -> str:
        from labsupport.benchmarking.measurements import earned

        if not callable(optimized) or str(getattr(optimized, "name", "")).startswith("torch"):
            raise Wrong("the second answer is the network to be measured: check(latency_of, optimized).")
        run = Watched(optimized)
        measured = latency_of(run)
        if measured is None:
            raise Wrong("latency_of gave None. Did it forget its `return`?")
        run.judge(measured, items=TEST_DIGITS, least=FEWEST_RUNS)
        shared_machine.judge_quiet(measured)
        rate = earned(measured.items_per_s, measured.items_per_s * measured.spread)
        return (
            f"{rate} digits per second. Compare that with the items/s of one digit a call in the table above: "
            "latency and throughput are two questions, and lab 01 keeps them apart."
        )


def _listed(precisions: Any) -> str:
    return ", ".join(f"{kind}×{count}" for kind, count in precisions.most_common())


faster_than_pytorch = FasterThanPyTorch()
pixels = Pixels()
once = Once()
half_precision = HalfPrecision()
full_batch = FullBatch()
