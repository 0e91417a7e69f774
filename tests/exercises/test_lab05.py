"""The checkers of lab 05: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from labsupport import export, precision
from labsupport.exercises import lab05
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.precision import layerwise, number_formats

NAMES = {"np": np, "number_formats": number_formats, "precision": precision, "layerwise": layerwise}
RIGHT = {"activations": "fp16", "gradients": "bf16", "weights": "fp8_e4m3", "scores": "fp8_e5m2", "energies": "tf32"}


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab05, ["wide_nodes", "formats", "to_bf16", "long_sum", "keep_wide", "silent"])


def test_formats():
    assert_checker(
        lab05.formats,
        wrong=[
            (
                {**RIGHT, "activations": "bf16"},
                "activations: bf16 errs by up to 0.0039 relatively, and 0.001 is allowed: too coarse",
            ),
            (
                {**RIGHT, "gradients": "fp16"},
                r"gradients: below 6.1e-05 fp16 loses digits, and 1e-20 is below: underflow",
            ),
            ({**RIGHT, "weights": "fp16"}, "weights: fp16 holds them, and a narrower format does, too"),
            ({**RIGHT, "scores": "fp8_e4m3"}, "scores: fp8_e4m3 ends at 448, and 50000 is beyond: overflow"),
            ({**RIGHT, "energies": "fp16"}, "energies: fp16 ends at 6.55e\\+04, and 1e\\+07 is beyond"),
            ({**RIGHT, "energies": "fp32"}, "energies: fp32 holds them, and a narrower"),
            ({**RIGHT, "energies": "fp64"}, "'fp64' is not a format; choose one of"),
            ({**RIGHT, "energies": ["tf32"]}, "is not a format; choose one of"),
            ({"weights": "fp8_e4m3"}, "there is no format for 'activations'; the quantities are"),
            (["fp16"], "a dict"),
        ],
        right=[RIGHT, dict(reversed(RIGHT.items()))],
        namespace=NAMES,
    )


def by_bits(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def by_library(x):
    """A twin: the question asks for bits, but the verdict is about the numbers."""
    with np.errstate(over="ignore"):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def cut(x):
    return (x.view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def half_up(x):
    return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def in_place(x):
    x[:] = by_bits(x.copy())
    return x


def clipped(x):
    return np.clip(by_bits(x), -3.3e38, 3.3e38)


def test_to_bf16():
    assert_checker(
        lab05.to_bf16,
        wrong=[
            (cut, "that cuts the lower half off, so 0.1 became smaller"),
            (half_up, r"ties: 1.0039\d+ became 1.0078125, and 1.0 is right. In a tie the even neighbor"),
            (in_place, "the function changed the array that it was given"),
            (lambda x: x.astype(np.float16).astype(np.float32), "the nearest number: "),
            (clipped, "the largest numbers: 3.4e\\+38 became"),
            (lambda x: x.astype(ml_dtypes.bfloat16), r"for float32 \(7,\) the function gave bfloat16"),
            (lambda x: None, "the function gave nothing|the function gave None"),
            (3, "hand in the function itself"),
            (lambda x: 1 / 0, "ZeroDivisionError"),
        ],
        right=[by_bits, by_library],
        namespace=NAMES,
    )


def test_long_sum():
    assert_checker(
        lab05.long_sum,
        wrong=[
            (409.6, "409.6 would be right if every addition were exact"),
            (410, "410 would be right"),
            (128, "more than half of it: it still rounds up"),
            (512, "find the first power of two at which"),
            (0.1, "it does not end at 0.1"),
            ("256", "a number is wanted"),
        ],
        right=[256, float(np.cumsum(np.full(4096, 0.1, np.float16), dtype=np.float16)[-1])],
        namespace=NAMES,
    )


@pytest.fixture(scope="module")
def block():
    return lab05.feed_forward()


def test_the_block_overflows_as_the_exercise_says(block):
    scan = layerwise.scan(*block)
    assert {row.cause for row in scan.faults} == {"overflow"} and scan.faults[0].node == "/Mul"
    assert len(scan.keep_wide) <= lab05.ENOUGH < len(scan)


def test_keep_wide(block):
    graph, _ = block
    names = list(precision.node_types(graph))
    other = export.to_onnx(*other_network())
    assert_checker(
        lab05.keep_wide,
        wrong=[
            (precision.cast(graph), "it still answers NaN or infinity. Which is the first node"),
            (
                precision.cast(graph, keep_wide=["/Mul"]),
                "the square is FP32 now, but the node that reads it narrows it",
            ),
            (graph, "no node computes in FP16; cast the graph first"),
            (
                precision.cast(graph, keep_wide=names[1:]),
                f"{len(names) - 1} of {len(names)} nodes are FP32; the fault needs fewer",
            ),
            (precision.cast(other), "this graph takes"),
            (["/Mul"], "hand in the graph that precision.cast returns"),
            (
                precision.cast(graph, keep_wide=["/Mul", "/down/Gemm"], keep_io=False),
                "keep its inputs and outputs FP32",
            ),
            (precision.cast(graph, "bf16"), "BF16 has the range, and pays for it in digits"),
            (precision.cast(spoiled(graph), keep_wide=["/Mul", "/down/Gemm"]), "its answers are off by"),
        ],
        right=[
            precision.cast(graph, keep_wide=["/Mul", "/down/Gemm"]),
            precision.cast(graph, keep_wide=["/Relu", "/Mul", "/down/Gemm"]),
        ],
        namespace=NAMES,
    )


def spoiled(graph):
    """The block with weights that somebody scaled."""
    from onnx import numpy_helper

    model = graph.model()
    weight = next(w for w in model.graph.initializer if w.name == "down.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    return export.save(model, graph.path.with_name("spoiled.onnx"))


def other_network():
    import torch
    from torch import nn

    return nn.Linear(4, 4).eval(), torch.zeros(1, 4)


def test_silent():
    def honest_question(engine):
        return engine.precision == "fp16" and "fp16" not in engine.precisions

    def by_loop(engine):
        return engine.precision in ("fp16",) and not any(kind == "fp16" and n for kind, n in engine.precisions.items())

    assert_checker(
        lab05.silent,
        wrong=[
            (
                lambda e: True,
                "a cast network was asked for fp16 and has .*: is it silent. False, and your function says True",
            ),
            (lambda e: False, "a small network on 8.6 was asked for fp16"),
            (lambda e: not e.precisions["fp16"], "an honest FP32 engine was asked for fp32"),
            (lambda e: "fp32" in e.precisions, "a cast network was asked"),
            (lambda e: e.precision != "fp32" and not e.precisions["fp16"], "a quantized engine was asked for int8"),
            (lambda e: 1, "for a small network on 8.6 the function gave"),
            (True, "hand in the function itself"),
            (lambda e: e.types, "AttributeError"),
            (dict, "that is <class 'dict'> .type.; hand in the function itself"),
        ],
        right=[honest_question, by_loop, lambda e: np.bool_(honest_question(e))],
        namespace=NAMES,
    )
