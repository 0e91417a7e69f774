"""Exercises of lab 06: a gain guessed, a scale by hand, a threshold, a graph with one layer wide, a plan read, a graph
mended.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import as_number, described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import needs_function
from labsupport.exercises.lab06_stand_ins import judge_mended, sick  # noqa: F401 - learners call lab06.sick()

LAB, CHECK_S = "06_quantization", 120.0

RANGES = ((-1.0, 2.5), (0.0, 6.0), (-3.0, 0.0), (-2.0, 2.0))  # what unsigned codes must cover
TAIL_DEGREES, TAIL_COUNT = 3, 20_000
NEAR = 1.1  # times the least error that still counts as found
PLAN = "resnet18_b32.int8"


def __getattr__(name: str):
    if name == "VALUES":  # made when asked for: `progress` lists the exercises without NumPy
        return _values()
    raise AttributeError(name)


class Speed(Prediction):
    question = "How many times faster than FP16 will ResNet-18 run in INT8, batch 32, on an H100?"
    quantity = "INT8 over FP16, ResNet-18, batch 32"
    unit = "×"
    within = 1.15


class Affine(Exercise):
    question = (
        "Write `unsigned(low, high)`: the scale and the zero point that map the range from low to high onto the "
        "codes 0 to 255. Zero must have a code of its own, and low is at most 0, high at least 0."
    )
    hints = (
        "255 steps lie between the codes 0 and 255, so the scale is (high - low) / 255.",
        (
            "low gets the code 0, so zero lies -low / scale codes above it. A zero point is a code: round it to a "
            "whole number."
        ),
    )
    solution_source = """
        def yours(low, high):
            scale = (high - low) / 255
            return scale, round(-low / scale)

        lab06.affine.check(yours)
    """
    answer = (
        "low = scale × (0 − zero point), solved for the zero point and rounded, so that padding and ReLU write "
        "exact zeros."
    )

    def judge(self, unsigned: Callable) -> str:
        needs_function(unsigned, "unsigned")
        drawn = [(-random.uniform(0.1, 9), random.uniform(0.1, 9)) for _ in range(3)]
        for low, high in (*RANGES, *drawn):
            given = unsigned(low, high)
            given = given.tolist() if callable(getattr(given, "tolist", None)) else given
            if not isinstance(given, (tuple, list)) or len(given) != 2:
                raise Wrong(
                    f"unsigned({low}, {high}) gave {described(given)}; wanted are two numbers, scale and zero point."
                )
            pair = [
                as_number(value, f"the {what} of unsigned({low}, {high})")
                for what, value in zip(("scale", "zero point"), given, strict=True)
            ]
            _judge_affine(low, high, *pair)
        return (
            "The ends fall on the codes 0 and 255, and zero on a code of its own. That is what U8S8 does to "
            "activations."
        )


def _judge_affine(low: float, high: float, scale: float, zero: float) -> None:
    case, right = f"For {low} to {high}", (high - low) / 255
    if abs(scale - (high - low) / 256) < 1e-9:
        raise Wrong(
            f"{case} you divide by 256: there are 256 codes, and how many steps between the first and the last?"
        )
    if abs(scale - max(-low, high) / 127) < 1e-9 and abs(scale - right) > 1e-6:
        raise Wrong(
            f"{case} the scale is that of a symmetric range. Unsigned codes cover low to high, and nothing else."
        )
    if abs(scale - right) > 1e-6 * right:
        raise Wrong(f"{case} the scale is {scale:.4g}; (high - low) is to be shared by the steps between 256 codes.")
    if zero != int(zero):
        raise Wrong(f"{case} the zero point is {zero:.4g}; it is a code, so a whole number.")
    if abs(zero + round(low / right)) > 1 and abs(zero - round(low / right)) <= 1:
        raise Wrong(
            f"{case} the zero point is {zero:g}, below all codes. Mind the sign: low has the code 0, and zero lies "
            "above it."
        )
    if not 0 <= zero <= 255 or abs(zero - (-low / right)) > 1:
        raise Wrong(f"{case} zero would get the code {zero:g}; count the steps from low up to 0.")


class ClipIt(Exercise):
    question = (
        "Which threshold gives `lab06.VALUES` a mean squared error in INT4 (symmetric, 15 codes) of at most 1.1 "
        "times the least possible?"
    )
    hints = (
        "Try some: `quantization.measured_noise(lab06.VALUES, quantization.scale_of(low=-limit, high=limit, "
        "format='int4'))` for limits from 1 to the largest value. Rounding falls with the limit, clipping rises.",
        "`quantization.histogram(lab06.VALUES).threshold('mse', format='int4')` searches for it.",
    )
    solution_source = """
        from labsupport import quantization

        lab06.clip_it.check(quantization.histogram(lab06.VALUES).threshold("mse", format="int4"))
    """
    answer = "The best limit clips the tail: a few large errors weigh less than a coarser grid for all other values."

    def judge(self, limit: float) -> str:
        from labsupport import quantization

        values = _values()
        most = float(abs(values).max())
        if limit <= 0:
            raise Wrong("a threshold is a magnitude, so above 0.")
        if limit < 1e-3 * most:
            raise Wrong(f"{limit:.3g} clips nearly every value; the largest is {most:.3g}.")
        noise = quantization.measured_noise(values, quantization.scale_of(low=-limit, high=limit, format="int4"))
        best = _least_error()
        if limit >= 0.95 * most:
            raise Wrong(
                f"{limit:.3g} clips nothing, and the error is {noise.total / best:.0f} times the least: one outlier "
                "sets the grid."
            )
        if noise.total > NEAR * best:
            more = "rounding" if noise.rounding > noise.clipping else "clipping"
            way = "a smaller limit makes the grid finer" if more == "rounding" else "a larger limit cuts off less"
            raise Wrong(f"the error is {noise.total / best:.2f} times the least, most of it {more}: {way}.")
        return (
            f"{noise}: within a tenth of the least possible. The largest value is {most:.3g}, and clipping it was "
            "worth it."
        )


class KeepWide(Exercise):
    question = (
        "Hand in the plain network's graph with explicit Q/DQ for TensorRT: the first convolution stays in FP32, and "
        "every other layer is quantized."
    )
    hints = (
        (
            "`quantization.to_qdq` takes `exclude`, the names of layers that stay wide. `quantization.layers(graph)` "
            "lists them in order."
        ),
        (
            "`quantization.to_qdq(graph, known, exclude=quantization.layers(graph)[:1])`; `quantization.placement` "
            "reads the result back."
        ),
    )
    solution_source = "lab06.keep_wide.check(quantization.to_qdq(graph, known, exclude=quantization.layers(graph)[:1]))"
    answer = "One name in `exclude`. The scan over the layers says which names are worth it."

    def judge(self, graph: Any) -> str:
        from labsupport import export, quantization

        if not isinstance(graph, export.OnnxGraph):
            raise Wrong(f"that is {described(graph)}; hand in the graph that `quantization.to_qdq` returns.")
        placed = quantization.placement(graph)
        if not placed.nodes:
            raise Wrong("this graph has no Q/DQ node. Is it the FP32 graph?")
        signed = _signed(graph)
        if not signed:
            raise Wrong(
                "its activations are unsigned, with a zero point: the file for ONNX Runtime. Leave target at "
                "'tensorrt'."
            )
        order = quantization.layers(graph)
        if not placed.wide:
            raise Wrong(f"all {len(order)} layers are quantized, the first as well. Which argument keeps layers out?")
        if order[0] not in placed.wide:
            raise Wrong(f"{placed.wide[0]} stayed wide, and it is not the first layer: that is {order[0]}.")
        if len(placed.wide) > 1:
            raise Wrong(f"{len(placed.wide)} layers stayed wide; only the first should.")
        if len(order) != 21:
            raise Wrong(f"a graph of {len(order)} layers; take the plain network's, ResNet-18 has 21.")
        return f"{placed}: the first layer reads the picture itself, the others read codes."


class Converts(Exercise):
    question = f"In the recorded plan {PLAN!r}, how many kernels compute nothing and only convert? Hand in the number."
    hints = (
        "Read the plan with `fusion.xray(recordings.load_plan(...))`, and let `fusion.table` list its kernels.",
        (
            "A kernel that only converts holds no ONNX node, or Q and DQ nodes alone: `quantization.conversions(plan)` "
            "finds them."
        ),
    )
    solution_source = f"""
        from labsupport import fusion, quantization, recordings

        plan = fusion.xray(recordings.load_plan("{PLAN}"))
        lab06.converts.check(len(quantization.conversions(plan)))
    """
    answer = "One: the picture comes in as FP32 and is made INT8 in the layout that the first convolution reads."

    def judge(self, count: int) -> str:
        from labsupport import quantization

        plan = _plan()
        found = quantization.conversions(plan)
        if count == len(plan.launched):
            raise Wrong(f"{count} kernels run in all; how many of them hold no layer?")
        if count == 0:
            raise Wrong("somebody has to turn the FP32 picture into codes. Which kernel stands for no ONNX node?")
        if count != len(found):
            raise Wrong(
                f"not {count}. Look at the column `swallowed` of fusion.table(plan): a kernel that only converts "
                "swallowed no layer."
            )
        share = f" It takes {found[0].share:.1%} of the plan's time." if found[0].share is not None else ""
        return (
            f"{found[0].precision_in} → {found[0].precision_out} at the entrance, and nothing else: from there to the "
            f"last layer the tensors stay in codes.{share}"
        )


class Mend(Exercise):
    question = (
        "`graph, images = lab06.sick()` is a Q/DQ graph of five layers with two faults: one scale is a thousand "
        "times too large, and one layer's data comes without its pair. Hand in a graph whose five layers read codes, "
        "and which answers as the FP32 network does on images that you have not seen."
    )
    hints = (
        "`quantization.placement(graph).wide` names the layer without a pair. For each scale, 127 times it should "
        "be about the largest value of its tensor: `graph.model().graph.initializer` has them.",
        "Divide that scale by 1000 and put a QuantizeLinear and a DequantizeLinear before the layer. Or take all "
        "pairs out, since the weights are still FP32 before theirs, and quantize anew: `quantization.to_qdq(plain, "
        "[images])`.",
    )
    solution_source = """
        from labsupport import export, quantization

        sick, images = lab06.sick()
        model, pairs, source = sick.model(), ("QuantizeLinear", "DequantizeLinear"), {}
        for node in model.graph.node:
            if node.op_type in pairs:  # what comes out of a pair → what went into it
                source[node.output[0]] = source.get(node.input[0], node.input[0])
        others = [node for node in model.graph.node if node.op_type not in pairs]
        for node in others:
            node.input[:] = [source.get(name, name) for name in node.input]
        del model.graph.node[:]
        model.graph.node.extend(others)
        plain = export.save(model, export.fresh_folder() / "plain.onnx")
        lab06.mend.check(quantization.to_qdq(plain, [images]))
    """
    answer = (
        "A pair changes values, never names alone: without all pairs the graph is the FP32 network again. No error "
        "told of either fault; only the placement and images that nobody calibrated with did."
    )

    def judge(self, graph: Any) -> str:
        return judge_mended(graph)


@functools.cache
def _values():
    import numpy as np

    return np.random.default_rng(6).standard_t(TAIL_DEGREES, TAIL_COUNT).astype(np.float32)


@functools.cache
def _least_error() -> float:
    import numpy as np

    from labsupport import quantization

    values = _values()
    limits = np.geomspace(0.2, float(abs(values).max()), 200)
    scales = (quantization.scale_of(low=-limit, high=limit, format="int4") for limit in limits)
    return min(quantization.measured_noise(values, scale).total for scale in scales)


@functools.cache
def _plan():
    from labsupport import fusion, recordings

    return fusion.xray(recordings.load_plan(PLAN))


def _signed(graph) -> bool:
    """Whether all codes of the graph are signed."""
    import onnx

    model = graph.model()
    kinds = {w.name: w.data_type for w in model.graph.initializer}
    points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    return all(kinds.get(name) != onnx.TensorProto.UINT8 for name in points)


speed = Speed()
affine = Affine()
clip_it = ClipIt()
keep_wide = KeepWide()
converts = Converts()
mend = Mend()
