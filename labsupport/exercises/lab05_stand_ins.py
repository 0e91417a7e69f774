"""What lab 05's exercises are about and judged with: a block that overflows, numbers to round, names of formats."""

from __future__ import annotations

import functools
from typing import Any

from labsupport.exercises.answers import Wrong

CLOSE = 0.01
NAMES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32", "single": "fp32"}
NAMES |= {"tensorfloat32": "tf32", "tensorfloat_32": "tf32", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2", "e2m1": "fp4_e2m1"}
NAMES |= {"float8_e4m3fn": "fp8_e4m3", "float8_e4m3": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}
NAMES |= {"fp8_e4m3fn": "fp8_e4m3", "e4m3fn": "fp8_e4m3", "float4_e2m1fn": "fp4_e2m1"}


def format_of(value: Any):
    """A format from its name as the lab, NumPy or torch writes it, or from their types."""
    from labsupport.precision import number_formats

    if isinstance(value, number_formats.Format):
        return value
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    name = name.strip().lower().removeprefix("torch.").replace("-", "_").replace(" ", "_")
    return number_formats.named(NAMES.get(name, name))


def bf16_cases(plain) -> dict:
    """name → float32 numbers to be rounded: ties, ends, what is not normal, and bits drawn anew."""
    import numpy as np

    rng = np.random.default_rng()
    drawn = rng.integers(0, 2**32, (5, 6, 7), dtype=np.uint32).view(np.float32)
    halves = (rng.integers(0x80, 0x7F00, 40, dtype=np.uint32) << 16) + np.uint32(0x8000)
    # small payloads of a NaN are what the carry turns into infinity, the largest into zero
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
    return {
        "the nearest number": plain,
        "ties": np.concatenate(
            [np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2 + 2**-7], np.float32), halves.view(np.float32)]
        ),
        "the largest numbers": np.array([3.4e38, -3.4e38, np.inf, -np.inf], np.float32),
        "numbers below the normal ones": np.array([1e-40, -1e-40, 6e-39, 1e-45, -0.0], np.float32),
        "NaN": nans.view(np.float32),
        "an array of three axes": drawn[np.newaxis, 0],
        "numbers drawn at random": drawn,
    }


def feed_forward_module(loud: float = 12.0, seed: int = 0):
    """The feed-forward block as a torch module: LayerNorm, a product `up`, squared ReLU (Primer, arXiv:2109.08668), a
    product `down`, and the sum with its input; ``loud`` is the spread of the weights of `up`.
    """
    import torch
    from torch import nn

    class FeedForward(nn.Module):
        input_name, output_name = "tokens", "hidden"

        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
            nn.init.normal_(self.up.weight, std=loud)
            nn.init.normal_(self.down.weight, std=0.02 * (12 / loud) ** 2)

        def forward(self, x):
            y = torch.relu(self.up(self.norm(x)))
            return x + self.down(y * y)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = FeedForward()
        with torch.no_grad():  # biases that matter, each as loud as what it is added to
            if seed:
                nn.init.normal_(module.up.bias, std=4 * loud)
                nn.init.normal_(module.down.bias, std=2000)
        return module.eval()


@functools.cache
def feed_forward():
    """(graph, feed): the block above as ONNX, and 32 tokens of 64 numbers."""
    import torch

    from labsupport import export

    tokens = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    path = export.fresh_folder() / "feed_forward.onnx"
    return export.to_onnx(feed_forward_module(), tokens, path=path, dynamic=False), tokens.numpy()


def judge_half(given, tame, tokens) -> float:
    """How far the FP16 answer of the tamed block is from the FP32 answer of the given one; Wrong if too far."""
    import copy

    import torch
    from torch.overrides import TorchFunctionMode

    from labsupport.precision import layerwise

    wide: set[str] = set()

    class Types(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype in (torch.float32, torch.float64, torch.bfloat16):
                wide.add(getattr(function, "__name__", "a function"))
            return result

    with torch.inference_mode():
        expected, same = given(tokens).numpy(), tame.eval()(tokens).numpy()
        if same.shape != expected.shape or not layerwise.relative(expected, same) < 1e-3:
            shift = same - expected if same.shape == expected.shape else expected
            constant = bool((shift.std(axis=0) < 1e-3 * abs(shift).max()).all())
            slip = "The bias of `down` is added after the square; leave it as it was." if constant else ""
            raise Wrong(
                "in FP32 the block now computes something else. What was divided in `up`, weight and bias, has to come "
                f"back squared in `down`, and nowhere else. {slip}".strip()
            )
        low = copy.deepcopy(tame).half()
        weights = {name: value for name, value in low.state_dict().items() if not value.isfinite().all()}
        if weights:
            raise Wrong(f"{next(iter(weights))} is beyond FP16's 65504 now. A smaller factor suffices.")
        with Types():
            got = low(tokens.half())
    if wide:
        raise Wrong(f"something in it still computes in a wider type ({sorted(wide)[0]}); all of it has to be FP16.")
    if not got.isfinite().all():
        raise Wrong("in FP16 it still overflows. How large does the square get, and how much room is there?")
    error = layerwise.relative(expected, got.float().numpy())
    if error > CLOSE:
        raise Wrong(f"in FP16 its answers are off by {error:.2g}; {CLOSE} is allowed. Is something too small now?")
    return error
