"""FP4 in blocks, as lab 15's exercise wants it, and the mistakes that its checker tells apart."""

from __future__ import annotations

import numpy as np


def nearest(x, mantissa_bits: int, smallest_power: int, largest: float):
    """Round to a float format of so many mantissa bits, to the nearest, ties to even; too large becomes the largest."""
    _, exponent = np.frexp(np.where(x == 0, 1, x))
    step = 2.0 ** (np.maximum(exponent - 1, smallest_power) - mantissa_bits)
    return np.clip(np.round(x / step) * step, -largest, largest)


def scaled(x, scale, block: int):
    """Blocks divided by their scale, rounded to FP4, and multiplied again; the shape of x."""
    parts = x.reshape(-1, block)
    return (nearest(parts / np.where(scale == 0, 1, scale), 1, 0, 6.0) * scale).reshape(x.shape)


def tops(x, block: int):
    """The largest magnitude of each block, (blocks, 1)."""
    return np.abs(x.reshape(-1, block)).max(1, keepdims=True)


def blocked(x, block: int):
    """NVFP4 with blocks of another size."""
    tensor = float(np.abs(x).max()) / (6 * 448) or 1.0
    return scaled(x, nearest(tops(x, block) / 6 / tensor, 3, -6, 448.0) * tensor, block)


def as_nvfp4(x):
    """NVFP4: blocks of 16, E4M3 block scales, one scale for the tensor."""
    return blocked(x, 16)


def exact_scales(x):
    """A mistake: block scales that nobody rounded."""
    return scaled(x, tops(x, 16) / 6, 16)


def no_tensor_scale(x):
    """A mistake: E4M3 block scales without the tensor's scale."""
    return scaled(x, nearest(tops(x, 16) / 6, 3, -6, 448.0), 16)


def powers(x):
    """A mistake: scales that are powers of two, as in MXFP4."""
    return scaled(x, 2.0 ** (np.floor(np.log2(np.maximum(tops(x, 16), 1e-30))) - 2), 16)
