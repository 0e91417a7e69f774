"""The judge: how far an answer moved, which way a speed-up points, and tables that refuse a speed without an error."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from labsupport.errors import BadInput


def max_error(reference, outputs) -> float:
    """Largest |outputs - reference| over all elements and outputs; inf where either has a NaN, so that none passes.

    Arrays, CPU or CUDA tensors, or mappings of them by output name (same names on both sides).
    """
    return max(_largest(_difference(*pair)) for pair in _pairs(reference, outputs))


def relative_error(reference, outputs) -> float:
    """‖outputs - reference‖ / ‖reference‖ (Euclidean), the worst output of several; inf where there is a NaN."""

    def one(expected, got) -> float:
        off, scale = float(np.linalg.norm(_difference(expected, got))), float(np.linalg.norm(expected))
        if off == 0:
            return 0.0
        # an infinite reference would shrink every error to 0
        return off / scale if 0 < scale < math.inf and not math.isnan(off) else math.inf

    return max(one(*pair) for pair in _pairs(reference, outputs))


def top1_agreement(reference, outputs) -> float:
    """Share of rows, 0 to 1, whose largest entry stands at the same place; classes lie on the last axis.

    A row with a NaN on either side disagrees. Of several outputs the lowest share counts.
    """

    def one(expected, got) -> float:
        if expected.ndim < 2:
            raise BadInput(
                f"top-1 agreement needs scores of shape (N, classes), got {expected.shape}; "
                "pass the network's outputs, not its argmax"
            )
        sound = ~(np.isnan(expected).any(-1) | np.isnan(got).any(-1))
        return float(np.mean(sound & (expected.argmax(-1) == got.argmax(-1))))

    return min(one(*pair) for pair in _pairs(reference, outputs))


def _pairs(reference, outputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matching arrays of both sides as float64; a bare array stands for the only output of the other side."""
    sides = [value if isinstance(value, Mapping) else None for value in (reference, outputs)]
    if sides[0] is None and sides[1] is None:
        reference, outputs = {"output": reference}, {"output": outputs}
    elif sides[0] is None or sides[1] is None:
        names = list(sides[0] or sides[1] or {})
        if len(names) != 1:
            raise BadInput(f"one side is a single array, the other has the outputs {names}; pick one of them by name")
        reference = sides[0] or {names[0]: reference}
        outputs = sides[1] or {names[0]: outputs}
    if set(reference) != set(outputs) or not reference:
        raise BadInput(
            f"the reference has the outputs {sorted(reference, key=str)}, the other {sorted(outputs, key=str)}; "
            "compare networks with the same output names"
        )
    return [_matching(name, reference[name], outputs[name]) for name in reference]


def _matching(name, reference, outputs) -> tuple[np.ndarray, np.ndarray]:
    expected, got = _array(name, reference), _array(name, outputs)
    if expected.shape != got.shape:
        raise BadInput(
            f"{name!r} has shape {expected.shape} in the reference and {got.shape} in the other; "
            "feed both the same batch"
        )
    if not expected.size:
        raise BadInput(
            f"{name!r} is empty, shape {expected.shape}; an empty answer shows no error, feed at least one item"
        )
    return expected, got


def _array(name, values) -> np.ndarray:
    if hasattr(values, "detach"):
        # float64 on the CPU: NumPy has no bfloat16, and float16 sums overflow
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal length make no array
        raise BadInput(
            f"{name!r} is a {type(values).__name__} that makes no array ({error}); "
            "pass an array or tensor, or lists of equal length"
        ) from None
    if array.dtype.kind not in "fiub":
        raise BadInput(
            f"{name!r} holds {array.dtype} of type {type(values).__name__}; expected numbers: an array or tensor"
        )
    return array.astype(np.float64)


def _difference(expected, got) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        # equal infinities, as in masked scores, differ by nothing; their subtraction would be NaN
        return np.where(expected == got, 0.0, got - expected)


def _largest(difference) -> float:
    largest = float(np.abs(difference).max())
    return math.inf if math.isnan(largest) else largest
