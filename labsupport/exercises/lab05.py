"""Exercises of lab 05: a format for a range, rounding by hand, a long sum, a wide layer, a silent FP32 engine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong

LAB = "05_precision"

# quantity → (smallest magnitude, largest, how exact); the narrowest format that holds it is asked for
QUANTITIES = {
    "activations": (1e-3, 3e4, 0.001),
    "gradients": (1e-20, 1e4, 0.01),
    "weights": (0.02, 400, 0.07),
    "scores": (1e-4, 5e4, 0.15),
    "energies": (1e-3, 1e7, 0.001),
}
ENOUGH = 3  # of the 6 nodes of `feed_forward`; two suffice
CLOSE = 0.01


class WideNodes(Prediction):
    question = "How many of the network's 29 computing nodes must stay FP32, so that the rest can be FP16?"
    quantity = "nodes that must stay FP32"
    least = 0
    within = 1.5


class Formats(Exercise):
    question = (
        "Which is the narrowest format that holds each of `lab05.QUANTITIES` (smallest magnitude, largest, relative "
        "error allowed)? Hand in a dict from quantity to format name."
    )
    hints = (
        (
            "Three numbers decide: the largest and the smallest normal number, and half of epsilon, by which rounding "
            "errs."
        ),
        (
            "`number_formats.FORMATS['fp16'].holds(1e-3, 3e4, within=0.001)` answers for one format; order them by "
            "`.bits`."
        ),
    )
    solution_source = """
        by_bits = sorted(number_formats.FORMATS.values(), key=lambda format: format.bits)
        lab05.formats.check({name: next(f.name for f in by_bits if f.holds(low, high, within=error))
                             for name, (low, high, error) in lab05.QUANTITIES.items()})
    """
    answer = (
        "Activations FP16, gradients BF16 (their range), weights FP8 E4M3, scores FP8 E5M2, energies TF32: FP16's "
        "resolution, beyond FP16's range."
    )

    def judge(self, choice: dict) -> str:
        from labsupport.precision import number_formats

        by_bits = sorted(number_formats.FORMATS.values(), key=lambda f: f.bits)
        lacking = [name for name in QUANTITIES if name not in choice]
        if lacking:
            raise Wrong(f"there is no format for {lacking[0]!r}; the quantities are {list(QUANTITIES)}.")
        for name, (low, high, within) in QUANTITIES.items():
            chosen, best = (
                number_formats.named(choice[name]),
                next(f for f in by_bits if f.holds(low, high, within=within)),
            )
            if high > chosen.max:
                raise Wrong(f"{name}: {chosen.name} ends at {chosen.max:.4g}, and {high:g} is beyond: overflow.")
            if low < chosen.smallest_normal:
                raise Wrong(
                    f"{name}: below {chosen.smallest_normal:.2g} {chosen.name} loses digits, and {low:g} is below: "
                    "underflow."
                )
            if chosen.epsilon / 2 > within:
                raise Wrong(
                    f"{name}: {chosen.name} errs by up to {chosen.epsilon / 2:.2g} relatively, and {within:g} is "
                    "allowed: too coarse."
                )
            if chosen.bits > best.bits:
                raise Wrong(f"{name}: {chosen.name} holds them, and a narrower format does, too.")
        return (
            "Range is bought with exponent bits, resolution with mantissa bits; FP16 and BF16 spend the same "
            "sixteen differently."
        )


class ToBf16(Exercise):
    question = (
        "Write `to_bf16(x)`: a float32 array rounded to BF16, to the nearest and in a tie to the even one, handed "
        "back as float32. Use the bits (`x.view(np.uint32)`), not a library's cast. Hand in the function."
    )
    hints = (
        (
            "BF16 is the upper half of FP32. Cutting the lower 16 bits off always rounds toward zero; add something "
            "before you cut."
        ),
        "Add 0x7FFF, and one more if the last bit that stays, `(bits >> 16) & 1`, is set; then mask with 0xFFFF0000.",
    )
    solution_source = """
        def to_bf16(x):
            bits = x.view(np.uint32)
            nearest = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
            return (nearest & np.uint32(0xFFFF0000)).view(np.float32)

        lab05.to_bf16.check(to_bf16)
    """
    answer = "Add 0x7FFF plus the last kept bit, then cut: ties go up only from an odd neighbor."

    def judge(self, function: Any) -> str:
        import numpy as np

        from labsupport.precision import number_formats

        if not callable(function) or isinstance(function, type):
            raise Wrong(f"that is {described(function)}; hand in the function itself: check(to_bf16).")
        plain = np.array([1.0, 0.1, -2.7, 3e5, 1e-30, 0.0, 1.003], np.float32)
        ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2 + 2**-7], np.float32)
        large = np.array([3.4e38, -3.4e38], np.float32)
        given = plain.copy()
        got = function(given)
        if not isinstance(got, np.ndarray) or got.shape != plain.shape or got.dtype != np.float32:
            kind = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else described(got)
            raise Wrong(f"for float32 {plain.shape} the function gave {kind}; wanted is float32 of the same shape.")
        if (given != plain).any():
            raise Wrong("the function changed the array that it was given; make a new one.")
        if np.array_equal(got, (plain.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)):
            raise Wrong("that cuts the lower half off, so 0.1 became smaller; the nearest number lies above it.")
        for name, values in (("the nearest number", plain), ("ties", ties), ("the largest numbers", large)):
            want, have = number_formats.rounded(values, "bf16"), function(values.copy())
            wrong = np.flatnonzero(want != have)
            if len(wrong):
                first = wrong[0]
                why = " In a tie the even neighbor wins, the one whose last bit is 0." if name == "ties" else ""
                raise Wrong(f"{name}: {values[first]!s} became {have[first]!s}, and {want[first]!s} is right.{why}")
        return (
            "The same bits as the library, beyond the largest number included: there the carry runs into the "
            "exponent and makes infinity."
        )


class LongSum(Exercise):
    question = (
        "FP16 adds 0.1 to a running sum 4,096 times, and rounds each time. The exact sum is 409.6. What does "
        "the sum end at?"
    )
    hints = (
        "When is 0.1 less than half a step of the sum? From there on nothing is added any more.",
        "Steps double at every power of two; `number_formats.FORMATS['fp16'].step(128)` is the step from 128 to 256.",
    )
    solution_source = """
        fp16 = number_formats.FORMATS["fp16"]
        lab05.long_sum.check(next(2.0**k for k in range(16) if fp16.step(2.0**k) / 2 > 0.1))
    """
    answer = "At 256 the step is 0.25, and 0.1 is less than half of it: the sum stands still."

    def judge(self, total: float) -> str:
        if 409 < total < 410.1:
            raise Wrong(
                f"{total:g} would be right if every addition were exact. What is the distance of two FP16 numbers at "
                "300?"
            )
        if total == 128:
            raise Wrong(
                "at 128 the step becomes 0.125, and 0.1 is more than half of it: it still rounds up, by too much even."
            )
        if total == 512:
            raise Wrong("at 512 the step is 0.5; find the first power of two at which 0.1 is less than half a step.")
        if total != 256:
            raise Wrong(f"it does not end at {total:g}. The sum stands still where 0.1 is less than half a step.")
        return (
            "From 256 on the step is 0.25, and every sum rounds back. A mean over a long axis needs an FP32 sum, or a "
            "tree of short ones, as GPU kernels make it."
        )


class KeepWide(Exercise):
    question = (
        "`graph, feed = lab05.feed_forward()` is a transformer's feed-forward block with squared ReLU. In FP16 it "
        "answers NaN. Cast it so that it does not, with at most three nodes in FP32. Hand in the graph."
    )
    hints = (
        "`layerwise.scan(graph, feed)` tells which nodes err by themselves, and why.",
        "A wide node is not enough where its reader narrows the tensor again: keep the reader, too.",
    )
    solution_source = """
        graph, feed = lab05.feed_forward()
        lab05.keep_wide.check(precision.cast(graph, keep_wide=layerwise.scan(graph, feed).keep_wide))
    """
    answer = (
        "The square leaves FP16's range, and the product after it reads the squares; both stay FP32, the rest is FP16."
    )

    def judge(self, graph: Any) -> str:
        import numpy as np

        from labsupport import export, precision, runtimes
        from labsupport.precision import layerwise

        reference, feed = feed_forward()
        if not isinstance(graph, export.OnnxGraph):
            raise Wrong(f"that is {described(graph)}; hand in the graph that precision.cast returns.")
        if graph.inputs != reference.inputs or graph.outputs.keys() != reference.outputs.keys():
            raise Wrong(
                f"this graph takes {dict(graph.inputs)}; cast the one of lab05.feed_forward(), and keep its inputs "
                "and outputs FP32."
            )
        kinds = precision.node_types(graph)
        wide = [name for name, kind in kinds.items() if kind == "fp32"]
        if len(wide) == len(kinds):
            raise Wrong("no node computes in FP16; cast the graph first.")
        if "bf16" in kinds.values():
            raise Wrong("BF16 has the range, and pays for it in digits; this exercise asks for FP16.")
        if len(wide) > ENOUGH:
            raise Wrong(
                f"{len(wide)} of {len(kinds)} nodes are FP32; the fault needs fewer. Which nodes err by themselves?"
            )
        with runtimes.OnnxRuntime(reference) as exact, runtimes.OnnxRuntime(precision.rounded(graph)) as low:
            (expected,), (got,) = exact(feed).values(), low(feed).values()
        error = layerwise.relative(expected, got)
        if not np.isfinite(error):
            if "/Mul" in wide:
                raise Wrong(
                    "the square is FP32 now, but the node that reads it narrows it to FP16 again, and there it "
                    "overflows."
                )
            raise Wrong("it still answers NaN or infinity. Which is the first node whose result is beyond 65504?")
        if error > CLOSE:
            raise Wrong(f"its answers are off by {error:.2g}; {CLOSE} is allowed.")
        return f"{len(wide)} of {len(kinds)} nodes are FP32, and the answer is within {CLOSE:.0%} of FP32."


class Silent(Exercise):
    question = (
        "Write `is_silent(engine)`: True for an engine that was asked to be FP16 (`engine.precision`) and of whose "
        "layers none computes in FP16 (`engine.precisions`). Hand in the function."
    )
    hints = (
        (
            "Two facts decide: what was asked, `engine.precision`, and what was read back, the Counter "
            "`engine.precisions`."
        ),
        (
            "An engine that was asked to be FP32 and is FP32 is honest. One FP16 layer among FP32 ones is not silent "
            "either."
        ),
    )
    solution_source = """
        def is_silent(engine):
            return engine.precision == "fp16" and not engine.precisions["fp16"]

        lab05.silent.check(is_silent)
    """
    answer = "Asked for FP16, and no layer that computes in it: no warning says so, only the engine does."

    def judge(self, function: Any) -> str:
        if not callable(function) or isinstance(function, type):
            raise Wrong(f"that is {described(function)}; hand in the function itself: check(is_silent).")
        for name, engine, silent in _engines():
            got = function(engine)
            if type(got).__name__ in ("bool_", "bool") and hasattr(got, "dtype"):  # NumPy's, under either of its names
                got = bool(got)
            if not isinstance(got, bool):
                raise Wrong(f"for {name} the function gave {described(got)}; wanted is True or False.")
            if got != silent:
                kinds = dict(engine.precisions)
                raise Wrong(
                    f"{name} was asked for {engine.precision} and has {kinds}: is it silent? {silent}, and your "
                    f"function says {got}."
                )
        return "`build.engine` asks the same question after each build and raises PrecisionMismatch."


def _engines():
    """(name, engine, whether it is a silent FP32 engine): what a read-back gave, in sidecars."""
    from labsupport.build.engines import Engine

    cases = [
        ("a small network on 8.6", "fp16", {"fp32": 6}, True),
        ("a cast network", "fp16", {"fp16": 21, "fp32": 8}, False),
        ("an honest FP32 engine", "fp32", {"fp32": 29}, False),
        ("an FP32 graph on 11", "fp16", {"fp32": 30, "int64": 15}, True),
        ("a whole FP16 engine", "fp16", {"fp16": 20}, False),
        ("a quantized engine", "int8", {"int8": 18, "fp32": 3}, False),
    ]
    for name, asked, read, silent in cases:
        yield name, Engine(Path("case.plan"), {"name": name, "precision": asked, "precisions": read}), silent


@functools.cache
def feed_forward():
    """(graph, feed): LayerNorm, a product, squared ReLU (Primer, arXiv:2109.08668), a product, and the sum with its
    input.
    """
    import torch
    from torch import nn

    from labsupport import export

    class FeedForward(nn.Module):
        input_name, output_name = "tokens", "hidden"

        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
            nn.init.normal_(self.up.weight, std=12.0)
            nn.init.normal_(self.down.weight, std=0.02)

        def forward(self, x):
            y = torch.relu(self.up(self.norm(x)))
            return x + self.down(y * y)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        block = FeedForward()
        tokens = torch.randn(32, 64)
    path = export.fresh_folder() / "feed_forward.onnx"
    return export.to_onnx(block, tokens, path=path, dynamic=False), tokens.numpy()


wide_nodes = WideNodes()
formats = Formats()
to_bf16 = ToBf16()
long_sum = LongSum()
keep_wide = KeepWide()
silent = Silent()
