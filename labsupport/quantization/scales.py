"""Scale and zero point by hand: what a number becomes in eight bits, and the error that costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput, one_of

# Lowest and highest code. "int8" is symmetric: -128 is left unused, so that -x is as exact as x. A QuantizeLinear clips
# at -128.
FORMATS = {"int8": (-127, 127), "uint8": (0, 255), "int4": (-7, 7), "fp8": (-448.0, 448.0)}
WHOLE_RANGE = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7)}  # with a zero point every code is used


@dataclass(frozen=True, eq=False)
class Scale:
    """real ≈ scale × (code − zero_point); arrays of one entry a channel when ``axis`` is set."""

    scale: np.ndarray
    zero_point: np.ndarray
    format: str = "int8"
    axis: int | None = None
    symmetric: bool = True

    @property
    def codes(self) -> tuple[float, float]:
        """Lowest and highest code of the format, as this scale uses it."""
        return FORMATS[self.format] if self.symmetric else WHOLE_RANGE[self.format]

    @property
    def lowest(self) -> np.ndarray:
        """Smallest real value that is not clipped."""
        return (self.codes[0] - self.zero_point.astype(np.float64)) * self.scale

    @property
    def highest(self) -> np.ndarray:
        """Largest real value that is not clipped."""
        return (self.codes[1] - self.zero_point.astype(np.float64)) * self.scale

    def __repr__(self) -> str:
        if self.axis is not None:
            low, high = self.scale.min(), self.scale.max()
            return (
                f"Scale({self.format}, {self.scale.size} channels on axis {self.axis}, scales {low:.3g} to {high:.3g})"
            )
        zero = "" if self.symmetric else f", zero point {int(self.zero_point)}"
        return (
            f"Scale({self.format}, {float(self.scale):.3g} per code{zero}, holds {self.lowest:.3g} to "
            f"{self.highest:.3g})"
        )


@dataclass(frozen=True)
class Noise:
    """Mean squared error of a quantized array: what rounding adds and what clipping adds."""

    rounding: float
    clipping: float

    @property
    def total(self) -> float:
        """Mean squared error."""
        return self.rounding + self.clipping

    def __repr__(self) -> str:
        return f"Noise({self.total:.3g} mean square: {self.rounding:.3g} rounding + {self.clipping:.3g} clipping)"


def scale_of(
    values=None, *, low=None, high=None, format: str = "int8", symmetric: bool | None = None, axis: int | None = None
) -> Scale:
    """The scale (and zero point) that maps an array, or the range ``low`` to ``high``, onto a format's codes.

    ``format``: "int8", "uint8", "int4" or "fp8" (E4M3). ``symmetric`` fixes the zero point at 0; left out it is so for
    all but "uint8". ``axis`` gives every channel on that axis a scale of its own. A range that is all zero gets the
    scale 1. Raises BadInput. Source: Jacob et al. 2017, arXiv:1712.05877, section 2.
    """
    _check_format(format)
    symmetric = format != "uint8" if symmetric is None else symmetric
    if not symmetric and format == "fp8":
        raise BadInput("fp8 has a sign and an exponent but no zero point; leave symmetric=True")
    if symmetric and format == "uint8":
        raise BadInput("uint8 has no negative codes, so it needs a zero point; pass symmetric=False, or format='int8'")
    low, high = _range_of(values, low, high, axis)
    # Zero must have a code of its own: padding and ReLU write exact zeros.
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    bottom, top = FORMATS[format] if symmetric else WHOLE_RANGE[format]
    width = np.maximum(-low, high) / top if symmetric else (high - low) / (top - bottom)
    # Like the engine, keep the scale in FP32: a code computed with more bits may round to its neighbor.
    scale = np.where(width.astype(np.float32) > 0, width, 1.0).astype(np.float32)
    zero = np.zeros(scale.shape, np.int32)
    if not symmetric:
        zero = np.clip(np.rint(bottom - low / scale), bottom, top).astype(np.int32)
    return Scale(scale, zero, format, axis, symmetric)


def quantize(values, scale: Scale) -> np.ndarray:
    """Codes of an array: divide by the scale, round to even, shift by the zero point, clip to the format."""
    x = _array(values)
    step, zero = _aligned(scale, x.ndim)
    if scale.format == "fp8":
        from ml_dtypes import float8_e4m3fn

        return np.clip(x / step, *scale.codes).astype(float8_e4m3fn)  # the cast alone makes NaN of what is too large
    return np.clip(np.rint(x / step) + zero, *scale.codes).astype(np.uint8 if scale.format == "uint8" else np.int8)


def dequantize(codes, scale: Scale) -> np.ndarray:
    """Codes back to float32: (code − zero point) × scale."""
    codes = np.asarray(codes)
    step, zero = _aligned(scale, codes.ndim)
    return (codes.astype(np.float32) - zero.astype(np.float32)) * step


def fake_quantize(values, scale: Scale) -> np.ndarray:
    """What an array is worth after a trip through the format: dequantize(quantize(values))."""
    return dequantize(quantize(values, scale), scale)


def measured_noise(values, scale: Scale) -> Noise:
    """The error that quantizing an array makes, split into that of values that fit, and that of clipped
    ones.
    """
    x = _array(values).astype(np.float64)
    error = (fake_quantize(values, scale) - x) ** 2
    _, _, inside = _kept(x, scale)
    return Noise(float((error * inside).mean()), float((error * ~inside).mean()))


def _check_format(format: str) -> None:
    one_of(FORMATS, format=format)


def _range_of(values, low, high, axis) -> tuple[np.ndarray, np.ndarray]:
    if values is None:
        if low is None or high is None:
            raise BadInput("scale_of wants an array, or both low= and high=")
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise BadInput(f"the range {low} to {high} is not one: both ends must be finite, and low at most high")
        return low, high
    x = _array(values).astype(np.float64)
    if axis is None:
        return x.min(), x.max()
    if not -x.ndim <= axis < x.ndim:
        raise BadInput(
            f"axis={axis}, but the array has the shape {x.shape}; a convolution's output channels are on axis 0"
        )
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return x.min(others), x.max(others)


def _array(values) -> np.ndarray:
    x = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if x.dtype.kind not in "fiu":
        raise BadInput(f"the array holds {x.dtype}; quantization wants real numbers")
    x = x.astype(np.float32) if x.dtype != np.float64 else x
    if not x.size:
        raise BadInput(f"the array is empty, shape {x.shape}; it has no range to map onto codes")
    if not np.isfinite(x).all():
        raise BadInput("the array holds NaN or infinity, which have no code; look where they come from")
    return x


def _aligned(scale: Scale, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    return _per_axis(scale.scale, scale, ndim), _per_axis(scale.zero_point, scale, ndim)


def _per_axis(values, scale: Scale, ndim: int) -> np.ndarray:
    values = np.asarray(values)
    if scale.axis is None:
        return values
    shape = [1] * ndim
    shape[scale.axis % ndim] = values.size
    return values.reshape(shape)


def _kept(x: np.ndarray, scale: Scale) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The range, and which values lie in it; the FP32 scale may be a hair too small for the value it was made from."""
    low, high = _per_axis(scale.lowest, scale, x.ndim), _per_axis(scale.highest, scale, x.ndim)
    hair = 1e-6 * np.maximum(-low, high)
    return low, high, (x >= low - hair) & (x <= high + hair)
