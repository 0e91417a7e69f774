"""Exercises of lab 05: a format for a range, rounding by hand, a long sum, a wide layer, a scale that moves."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import on_arrays
from labsupport.exercises.lab05_stand_ins import bf16_cases, feed_forward, feed_forward_module, format_of, judge_half

LAB, CHECK_S = "05_precision", 120.0

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
                format_of(choice[name]),
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
        "back as float32. Use the bits (`x.view(np.uint32)`); a library's cast gives the same and teaches nothing. "
        "Hand in the function."
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
            return np.where(np.isnan(x), x, (nearest & np.uint32(0xFFFF0000)).view(np.float32))

        lab05.to_bf16.check(to_bf16)
    """
    answer = (
        "Add 0x7FFF plus the last kept bit, then cut: ties go up only from an odd neighbor. A NaN stays one: the carry "
        "would make infinity or zero of it."
    )

    def judge(self, to_bf16: Callable) -> str:
        import numpy as np

        from labsupport.precision import number_formats

        plain = np.array([1.0, 0.1, -2.7, 3e5, 1e-30, 0.0, 1.003], np.float32)
        got = on_arrays(to_bf16, plain)
        if not isinstance(got, np.ndarray) or got.shape != plain.shape or got.dtype != np.float32:
            kind = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else described(got)
            raise Wrong(f"for float32 {plain.shape} the function gave {kind}; wanted is float32 of the same shape.")
        if np.array_equal(got, (plain.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)):
            raise Wrong("that cuts the lower half off, so 0.1 became smaller; the nearest number lies above it.")
        for name, values in bf16_cases(plain).items():
            want, have = number_formats.rounded(values, "bf16"), to_bf16(values.copy())
            if not isinstance(have, np.ndarray) or have.shape != values.shape:
                raise Wrong(f"{name}: for shape {values.shape} it gave {described(have)}.")
            same = (want == have) & (np.signbit(want) == np.signbit(have)) | (np.isnan(want) & np.isnan(have))
            if not same.all():
                first = tuple(np.argwhere(~same)[0])
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
        fresh = np.random.default_rng().standard_normal(feed.shape, dtype=np.float32)
        with runtimes.OnnxRuntime(reference) as exact, runtimes.OnnxRuntime(precision.rounded(graph)) as low:
            pairs = [(*exact(each).values(), *low(each).values()) for each in (feed, fresh)]
        error = max(layerwise.relative(*pair) for pair in pairs)
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


class Rescaled(Exercise):
    question = (
        "Write `rescaled(block)`: a copy of the feed-forward block, `lab05.feed_forward_module()`, that computes the "
        "same and does not overflow when all of it is FP16, `.half()`. No node may stay FP32: change weights and "
        "biases. Hand in the function."
    )
    hints = (
        "The block is x + down(relu(up(norm(x)))²). The square overflows; what is relu(y / s)² for s above 0?",
        "It is relu(y)² / s². Divide the weight and the bias of `up` by s, and take s² back where the square is read: "
        "in the weight of `down`, whose bias is added later.",
    )
    solution_source = """
        def rescaled(block):
            tame, s = copy.deepcopy(block), 32.0
            with torch.no_grad():
                tame.up.weight /= s
                tame.up.bias /= s
                tame.down.weight *= s**2
            return tame

        lab05.rescaled.check(rescaled)
    """
    answer = (
        "ReLU lets a factor pass, and the square squares it: what `up` loses, `down` gives back. No kernel has to be "
        "wide, so none is slower."
    )

    def judge(self, rescaled: Callable) -> str:
        import torch

        errors = []
        for loud in (12.0, random.uniform(20.0, 60.0)):
            given = feed_forward_module(loud, seed=random.randrange(10**6))
            before = copy.deepcopy(given.state_dict())
            tame = rescaled(given)
            if tame is None:
                raise Wrong("rescaled gave None. Did it forget its `return`?")
            if not isinstance(tame, torch.nn.Module):
                raise Wrong(f"rescaled gave {described(tame)}; wanted is the block with other weights.")
            if {parameter.dtype for parameter in tame.parameters()} != {torch.float32}:
                raise Wrong("the copy is no FP32 module any more. Change its numbers only; the check makes it FP16.")
            if tame is given:
                raise Wrong("that is the block that was handed in; work on copy.deepcopy(block) and return the copy.")
            if any(not torch.equal(value, before[name]) for name, value in given.state_dict().items()):
                raise Wrong("the block that was handed in is changed. Work on copy.deepcopy(block).")
            errors += [judge_half(given, tame, torch.randn(32, 64)) for _ in range(2)]
        return (
            f"Two blocks, two feeds each: the same in FP32, and within {max(errors):.2g} of it with nothing but FP16. "
            "Where a scale can move, it is cheaper than a wide node."
        )


wide_nodes = WideNodes()
formats = Formats()
to_bf16 = ToBf16()
long_sum = LongSum()
keep_wide = KeepWide()
rescaled = Rescaled()
