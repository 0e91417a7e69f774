"""Floating-point formats from their bits: range, smallest numbers, resolution, and rounding to them by hand."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput, one_of

# What the largest exponent is kept for: infinity and NaN (IEEE 754), one NaN only (OCP E4M3), or nothing (OCP E2M1).
ENDINGS = ("ieee", "nan only", "none")
NARROW_ARRAYS = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float4_e2m1fn",
)  # of ml_dtypes, which NumPy does not know as numbers


@dataclass(frozen=True)
class Format:
    """A sign, ``exponent`` bits and ``mantissa`` bits; everything else follows from them.

    Source: IEEE 754-2019, section 3; OCP 8-bit Floating Point (OFP8) 1.0; OCP Microscaling Formats (MX) 1.0.
    """

    name: str
    exponent: int
    mantissa: int
    ending: str = "ieee"

    def __post_init__(self) -> None:
        one_of(ENDINGS, ending=self.ending)
        if not (
            isinstance(self.exponent, int)
            and isinstance(self.mantissa, int)
            and 2 <= self.exponent <= 8
            and 1 <= self.mantissa <= 23
        ):
            raise BadInput(
                f"{self.name} was given {self.exponent!r} exponent and {self.mantissa!r} mantissa bits; 2 to 8 and 1 "
                "to 23 fit into FP32"
            )

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent's code."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def max(self) -> float:
        """Largest finite number."""
        top = 2**self.exponent - 1 - self.bias - (self.ending == "ieee")
        largest_mantissa = 2 - 2**-self.mantissa * (2 if self.ending == "nan only" else 1)
        return largest_mantissa * 2.0**top

    @property
    def smallest_normal(self) -> float:
        """Smallest number with all its mantissa bits; below it each halving costs one."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """Smallest number above zero; what lies below half of it becomes zero."""
        return self.smallest_normal * self.epsilon

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number; rounding is wrong by half of it at most, relatively."""
        return 2.0**-self.mantissa

    def step(self, value: float) -> float:
        """Distance between neighboring numbers at ``value``. Raises BadInput where the format has no numbers."""
        magnitude = np.abs(_numbers(value))
        if magnitude.ndim or not magnitude <= self.max:
            raise BadInput(f"{self.name} has no step at {value!r}; give one number of magnitude {self.max:.4g} at most")
        return float(_steps(self, magnitude))

    def holds(self, smallest: float, largest: float, *, within: float = 1.0) -> bool:
        """Whether magnitudes from ``smallest`` to ``largest`` are normal numbers here, each right to ``within`` of
        itself.
        """
        if not 0 < smallest <= largest or not within > 0:
            raise BadInput(
                f"magnitudes from {smallest!r} to {largest!r} within {within!r}; wanted 0 < smallest <= largest and "
                "within > 0"
            )
        return self.smallest_normal <= smallest and largest <= self.max and self.epsilon / 2 <= within

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.bits} bits (1 + {self.exponent} + {self.mantissa}), {self.smallest_normal:.3g} to "
            f"{self.max:.4g}, down to {self.smallest_subnormal:.2g} with fewer digits, epsilon {self.epsilon:.2g}"
        )


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 8, 23),
        Format("tf32", 8, 10),
        Format("bf16", 8, 7),
        Format("fp16", 5, 10),
        Format("fp8_e5m2", 5, 2),
        Format("fp8_e4m3", 4, 3, "nan only"),
        Format("fp4_e2m1", 2, 1, "none"),
    )
}


def named(name: str | Format) -> Format:
    """A format by its name. Raises BadInput with the names there are."""
    if isinstance(name, Format):
        return name
    if not isinstance(name, str) or name not in FORMATS:
        raise BadInput(f"{name!r} is not a format; choose one of {list(FORMATS)}")
    return FORMATS[name]


def rounded(values, format: str | Format) -> np.ndarray:
    """Values as a format keeps them, in float32: to the nearest number, of two equally near ones to the even.

    Beyond the largest number lies infinity, in "fp8_e4m3" NaN; "fp4_e2m1" has neither and stays at its largest. NaN
    stays NaN.
    """
    format = named(format)
    exact = _numbers(values)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = _steps(format, np.abs(exact))
        near = np.where(np.isfinite(exact), np.rint(exact / steps) * steps, exact)
        beyond = np.abs(near) > format.max
        outside = {"ieee": np.copysign(np.inf, exact), "nan only": np.nan, "none": np.copysign(format.max, exact)}[
            format.ending
        ]
        return np.where(beyond, outside, near).astype(np.float32)


def draw(formats: Iterable[str] = tuple(FORMATS), *, marks: Mapping[str, float] | None = None):
    """The formats as bars on a logarithmic number line (a Drawing); ``marks`` names magnitudes to hold against them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from labsupport.comparing.drawing import COLOURS, Drawing

    chosen, marks = [named(f) for f in formats], dict(marks or {})
    if not chosen or not all(isinstance(value, numbers.Real) and value > 0 for value in marks.values()):
        raise BadInput(
            f"formats {[f.name for f in chosen]} and marks {marks} came; name one of {list(FORMATS)} at least, and "
            "mark magnitudes above 0"
        )
    figure = Figure(figsize=(7.5, 1.4 + 0.42 * len(chosen) + 0.18 * len(marks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for place, f in enumerate(chosen):
        low, normal, high = (np.log10(v) for v in (f.smallest_subnormal, f.smallest_normal, f.max))
        axes.barh(place, high - normal, left=normal, height=0.55, color=COLOURS[0])
        axes.barh(
            place, normal - low, left=low, height=0.55, color="white", hatch="////", edgecolor=COLOURS[0], linewidth=0.8
        )
        axes.text(
            high + 0.4,
            place,
            f"ε = {f.epsilon:.2g}",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    for place, (label, value) in enumerate(marks.items()):
        axes.axvline(np.log10(value), color="black", linestyle="--", linewidth=1)
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # another mark's line may run behind the words
        spot = (np.log10(value), len(chosen) - 0.45 + 0.45 * place)
        axes.annotate(label, spot, (3, 0), textcoords="offset points", fontsize=8, va="center", bbox=clear)
    axes.set_yticks(range(len(chosen)), [f"{f.name} ({f.bits} bits)" for f in chosen])
    axes.set_ylim(len(chosen) - 0.5 + 0.45 * len(marks), -0.6)
    axes.set_xlim(min(np.log10(f.smallest_subnormal) for f in chosen) - 1, max(np.log10(f.max) for f in chosen) + 8)
    axes.set_xlabel("magnitude, powers of ten (hatched: subnormal numbers, with fewer digits)")
    title = "What each format can hold"
    axes.set_title(title, fontsize=10, loc="left")
    told = "; ".join(f"{f.name} {f.smallest_normal:.1e} to {f.max:.1e}, epsilon {f.epsilon:.2g}" for f in chosen)
    held = "".join(f" {label}: {value:.2g}." for label, value in marks.items())
    return Drawing(figure, f"{title}, bars on a line of powers of ten: {told}.{held}")


def _steps(format: Format, magnitudes: np.ndarray) -> np.ndarray:
    exponents = (
        np.frexp(np.where(np.isfinite(magnitudes) & (magnitudes > 0), magnitudes, 2.0 ** (1 - format.bias)))[1] - 1
    )
    return np.ldexp(1.0, np.maximum(exponents, 1 - format.bias) - format.mantissa)


def _numbers(values) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise BadInput("rounded wants numbers in a regular shape; rows of different lengths came") from None
    if array.dtype.kind not in "fiub" and array.dtype.name not in NARROW_ARRAYS:
        raise BadInput(f"rounded wants numbers; {array.dtype} came ({type(values).__name__})")
    return array.astype(np.float64)
