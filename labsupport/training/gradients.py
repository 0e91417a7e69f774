"""Gradients by differences, to hold a hand-written one against; a point without a derivative is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput

STEP = 6e-6  # cube root of float64's epsilon: the error of a central difference, step² + epsilon / step, is least there
SHRINK = 8
KINK = 1e-3  # two one-sided slopes of a smooth function differ by step × curvature, far less than this


@dataclass(frozen=True)
class Agreement:
    """The largest gap of two gradients, relative to the largest entry of the numeric one, and the index of it."""

    gap: float
    index: tuple[int, ...]
    by_hand: float
    numeric: float

    def __repr__(self) -> str:
        return f"gap {self.gap:.1e} at {self.index}: {self.by_hand:.6g} by hand, {self.numeric:.6g} by differences"


def numeric(function: Callable[[np.ndarray], float], x: np.ndarray, *, step: float = STEP) -> np.ndarray:
    """Gradient of a scalar function at x, float64 of the shape of x, by central differences.

    Raises BadInput where x holds no finite real numbers, the function gives no finite scalar, or x is on a kink: there
    the slopes from the left and from the right differ, however small the step, and no gradient exists.
    """
    x = _point(x)
    if not 0 < step < 1:
        raise BadInput(f"step={step!r}; wanted is a number between 0 and 1, such as {STEP:g}")
    gradient = np.empty_like(x)
    middle = _scalar(function, x)
    for index in np.ndindex(x.shape):
        gradient[index] = _slope(function, x, index, middle, step * max(1.0, abs(float(x[index]))))
    return gradient


def check(
    function: Callable[[np.ndarray], float], gradient: np.ndarray, x: np.ndarray, *, step: float = STEP
) -> Agreement:
    """Hold a gradient against differences; raises BadInput as `numeric` does, and for a gradient of another shape."""
    by_hand, wanted = np.asarray(gradient, dtype=np.float64), numeric(function, x, step=step)
    if by_hand.shape != wanted.shape:
        raise BadInput(
            f"the gradient has shape {by_hand.shape}, the point {wanted.shape}; a gradient has the shape of its point"
        )
    gaps = np.abs(by_hand - wanted) / max(float(np.abs(wanted).max(initial=0.0)), 1e-12)
    index = np.unravel_index(int(np.argmax(gaps)), gaps.shape) if gaps.size else ()
    return Agreement(float(gaps[index]), tuple(int(i) for i in index), float(by_hand[index]), float(wanted[index]))


def _point(x) -> np.ndarray:
    try:
        point = np.array(x, dtype=np.float64)  # a copy: it is moved to and fro
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the point is a {type(x).__name__} that holds no real numbers ({error}); hand in an array"
        ) from None
    if not np.isfinite(point).all():
        raise BadInput("the point holds NaN or infinity; a difference needs finite numbers")
    if not point.size:
        raise BadInput(f"the point has shape {point.shape} and so no entry; there is nothing to differ by")
    return point


def _scalar(function, x: np.ndarray) -> float:
    value = np.asarray(function(x.copy()))
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise BadInput(
            f"the function gave {value.dtype} of shape {value.shape}; a gradient needs one real number, so sum "
            "or average it"
        )
    if not np.isfinite(value).all():
        raise BadInput(
            f"the function gave {float(value.reshape(())):g} near this point; a difference needs finite values"
        )
    return float(value.reshape(()))


def _slope(function, x: np.ndarray, index: tuple[int, ...], middle: float, step: float) -> float:
    """Central difference; the slopes from both sides come closer by the factor of the step, unless there is a kink."""
    slopes, gaps = [], []
    for _ in range(4):  # a kink beside the point is left behind by smaller steps, one at the point is not
        left, right = x.copy(), x.copy()
        left[index] -= step
        right[index] += step
        below, above = _scalar(function, left), _scalar(function, right)
        from_left, from_right = (middle - below) / step, (above - middle) / step
        slopes.append((above - below) / (right[index] - left[index]))
        gaps.append(abs(from_left - from_right))
        rounding = 16 * np.finfo(np.float64).eps * max(abs(middle), abs(below), abs(above)) / step
        if gaps[-1] <= KINK * max(abs(from_left), abs(from_right)) + rounding:
            return slopes[-1]
        if len(gaps) > 2 and all(SHRINK * after < 1.25 * before for before, after in zip(gaps, gaps[1:])):
            return slopes[0]  # only curvature, as at the bottom of a parabola
        step /= SHRINK
    raise BadInput(
        f"the point sits on a kink at {index}: the slope is {from_left:.4g} from the left and {from_right:.4g} from "
        f"the right, so there is no derivative at {x[index]:g}; move the point off it (add a little noise)"
    )
