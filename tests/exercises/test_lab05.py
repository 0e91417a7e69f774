"""The checkers of lab 05: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest
import torch

from labsupport import export, precision
from labsupport.exercises import lab05
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.precision import layerwise, number_formats

NAMES = {"np": np, "number_formats": number_formats, "precision": precision, "layerwise": layerwise}
RIGHT = {"activations": "fp16", "gradients": "bf16", "weights": "fp8_e4m3", "scores": "fp8_e5m2", "energies": "tf32"}


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab05, ["wide_nodes", "formats", "to_bf16", "long_sum", "keep_wide", "rescaled"])


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
        right=[
            RIGHT,
            dict(reversed(RIGHT.items())),
            {**RIGHT, "activations": " FP16", "gradients": "bfloat16", "weights": "E4M3", "energies": "TF32"},
            {**RIGHT, "activations": torch.float16, "gradients": torch.bfloat16, "weights": torch.float8_e4m3fn},
            {**RIGHT, "activations": np.float16, "scores": number_formats.FORMATS["fp8_e5m2"]},
            {**RIGHT, "activations": np.dtype("float16"), "gradients": ml_dtypes.bfloat16},
        ],
        namespace=NAMES,
    )


def by_bits(x):
    return np.where(np.isnan(x), x, without_a_thought_for_nan(x))


def without_a_thought_for_nan(x):
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
            (in_place, "the function changed an array that it was given"),
            (lambda x: x.astype(np.float16).astype(np.float32), "the nearest number: "),
            (clipped, "the largest numbers: 3.4e\\+38 became"),
            (lambda x: x.astype(ml_dtypes.bfloat16), r"for float32 \(7,\) the function gave bfloat16"),
            (without_a_thought_for_nan, "NaN: nan became"),
            (lambda x: np.nan_to_num(by_bits(x), posinf=np.inf, neginf=-np.inf), "NaN: nan became 0.0"),
            (lambda x: np.where(abs(x) < 1.2e-38, np.float32(0), by_bits(x)), "numbers below the normal ones"),
            (lambda x: np.array([by_bits(each[None])[0] for each in x.ravel()]), "three axes"),
            (lambda x: abs(by_bits(x)) * np.sign(x), "raised|became"),
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


def scaled(s, bias=True, down_bias=False):
    def learners(block):
        tame = copy.deepcopy(block)
        with torch.no_grad():
            tame.up.weight /= s
            tame.up.bias /= s if bias else 1
            tame.down.weight *= s**2
            tame.down.bias *= s**2 if down_bias else 1
        return tame

    return learners


def in_place_of_the_block(block):
    block.up.weight.data /= 32
    block.down.weight.data *= 32**2
    return copy.deepcopy(block)


class WideInside(torch.nn.Module):
    """Leaves the weights alone and computes the square in FP32."""

    def __init__(self, block):
        super().__init__()
        self.block = copy.deepcopy(block)

    def forward(self, x):
        y = torch.relu(self.block.up(self.block.norm(x))).float()
        down = self.block.down
        return (x + torch.nn.functional.linear(y * y, down.weight.float(), down.bias.float())).to(x.dtype)


class Clamped(WideInside):
    def forward(self, x):
        return x + self.block.down(torch.relu(self.block.up(self.block.norm(x))).clamp(max=255) ** 2)


def by_state_dict(block):
    """A twin: a factor of its own for each of the 256 units, by the dict of weights."""
    tame, weights = copy.deepcopy(block), {name: value.clone() for name, value in block.state_dict().items()}
    s = block.up.weight.norm(dim=1) / 8
    weights["up.weight"] /= s[:, None]
    weights["up.bias"] /= s
    weights["down.weight"] *= s**2
    tame.load_state_dict(weights)
    return tame


def test_rescaled():
    assert_checker(
        lab05.rescaled,
        wrong=[
            (scaled(1), "in FP16 it still overflows"),
            (scaled(2), "in FP16 it still overflows"),
            (scaled(3000), "down.weight is beyond FP16's 65504"),
            (scaled(32, bias=False), "computes something else. What was divided in `up`"),
            (scaled(32, down_bias=True), "The bias of `down` is added after the square"),
            (in_place_of_the_block, "is changed"),
            (lambda block: block, "work on copy.deepcopy"),
            (copy.deepcopy, "in FP16 it still overflows"),
            (lambda block: copy.deepcopy(block).half(), "no FP32 module any more"),
            (lambda block: WideInside(block), "still computes in a wider type"),
            (lambda block: Clamped(block), "computes something else"),
            (lambda block: None, "`return`"),
            (lambda block: block.state_dict(), "wanted is the block with other weights"),
            (lab05.feed_forward_module(), "raised"),
        ],
        right=[scaled(16), scaled(200), by_state_dict],
        namespace={"copy": copy, "torch": torch},
    )
