"""What a stopwatch brings back: frozen results that know their spread, their machine and their doubts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput, one_of

NOISY_SPREAD = 0.10  # IQR over median; torch.utils.benchmark begins to warn at the same 10 %
FEWEST_FOR_SPREAD = 4  # with fewer samples the quartiles are the samples themselves
CLOCKS = ("host", "device")


def earned(value: float, uncertainty: float, *, least: int = 2) -> str:
    """Text of `value` cut at the first digit that `uncertainty` makes doubtful, `least` to 4 significant."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    digits = magnitude - math.floor(math.log10(uncertainty)) + 1 if uncertainty > 0 else 4
    decimals = min(max(digits, least), 4) - 1 - magnitude
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


class Percentiles:
    """Of requests whose ``latencies_ms`` are NaN where no answer came; NaN itself when none was answered."""

    latencies_ms: tuple[float, ...]

    def percentile_ms(self, q: float) -> float:
        """The latency that q percent of the answered requests stay under."""
        answered = [ms for ms in self.latencies_ms if not math.isnan(ms)]
        return float(np.percentile(answered, q)) if answered else math.nan

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)


@dataclass(frozen=True, repr=False)
class Latency:
    """Times of single calls in milliseconds, read from one clock on one machine.

    `clock` is "host" (end to end, copies included) or "device" (CUDA events round the enqueue).
    """

    name: str
    clock: str
    samples_ms: tuple[float, ...]
    batch: int
    machine: str

    def __post_init__(self) -> None:
        one_of(CLOCKS, clock=self.clock)
        samples = tuple(float(sample) for sample in self.samples_ms)
        if not samples or not all(math.isfinite(sample) and sample >= 0 for sample in samples):
            raise BadInput(f"a latency needs finite samples of 0 ms or more, got {samples[:5]}; measure with runs >= 1")
        object.__setattr__(self, "samples_ms", samples)

    @property
    def median_ms(self) -> float:
        # median, not mean: one driver hiccup doubles a mean
        return float(np.median(self.samples_ms))

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.samples_ms))

    @property
    def p90_ms(self) -> float | None:
        """None below 10 samples, which cannot support it."""
        return self.percentile(90) if len(self.samples_ms) >= _fewest_for(90) else None

    @property
    def p99_ms(self) -> float | None:
        """None below 100 samples, which cannot support it."""
        return self.percentile(99) if len(self.samples_ms) >= _fewest_for(99) else None

    def percentile(self, q: float) -> float:
        """The latency in ms that `q` percent of the calls stay under; needs 100 / (100 - q) samples at least."""
        if not 0 < q < 100:
            raise BadInput(f"percentile {q} is not between 0 and 100; ask for 50, 90 or 99")
        needed = _fewest_for(q)
        if len(self.samples_ms) < needed:
            raise BadInput(
                f"p{q:g} needs at least {needed} samples and {self.name!r} has {len(self.samples_ms)}: "
                f"measure again with runs={needed} or more"
            )
        return float(np.percentile(self.samples_ms, q))

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        low, high = np.percentile(self.samples_ms, (25, 75))
        return float(low), float(high)

    @property
    def iqr_ms(self) -> float:
        return self.quartiles_ms[1] - self.quartiles_ms[0]

    @property
    def spread(self) -> float:
        """IQR over median."""
        return self.iqr_ms / self.median_ms if self.median_ms else math.inf

    @property
    def noisy(self) -> bool:
        return len(self.samples_ms) < FEWEST_FOR_SPREAD or self.spread > NOISY_SPREAD

    @property
    def items_per_s(self) -> float:
        """Items (batch × calls) per second when calls follow one another without a gap."""
        return self.batch * 1e3 / self.median_ms if self.median_ms else math.inf

    def as_metric(self) -> dict:
        return {"value": self.median_ms, "unit": "ms", "samples": len(self.samples_ms), "spread": self.spread}

    def as_row(self) -> dict:
        """Columns for `comparing.table`, rounded to the digits the spread leaves standing."""

        def rounded(value, uncertainty):
            return None if value is None else float(earned(value, uncertainty))

        rate = self.items_per_s
        return {
            "runtime": self.name,
            "clock": self.clock,
            "batch": self.batch,
            "median ms": rounded(self.median_ms, self.iqr_ms),
            "p90 ms": rounded(self.p90_ms, self.iqr_ms),
            "p99 ms": rounded(self.p99_ms, self.iqr_ms),
            "spread": float(f"{self.spread:.2g}"),
            "n": len(self.samples_ms),
            "items/s": rounded(rate, rate * self.spread),
        }

    def __repr__(self) -> str:
        count = len(self.samples_ms)
        text = (
            f"{self.name} {earned(self.median_ms, self.iqr_ms)} ms "
            f"±{earned(self.iqr_ms, self.iqr_ms, least=1)} IQR, n={count}"
        )
        if self.clock == "device":
            text += ", device clock"
        if count < FEWEST_FOR_SPREAD:
            return text + f", TOO FEW: fewer than {FEWEST_FOR_SPREAD} samples show no spread"
        return text + (f", NOISY: IQR is {self.spread:.0%} of the median" if self.noisy else "")


@dataclass(frozen=True, repr=False)
class Ratio:
    """Paired ratios of one process: before time / after time of each A/B/B/A round; above 1, after is faster."""

    samples: tuple[float, ...]
    before: Latency
    after: Latency

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def iqr(self) -> float:
        low, high = np.percentile(self.samples, (25, 75))
        return float(high - low)

    def as_metric(self) -> dict:
        return {"value": self.median, "unit": "×", "samples": len(self.samples), "spread": self.iqr / self.median}

    def __float__(self) -> float:
        return self.median

    def __repr__(self) -> str:
        slower = self.median < 1
        shown, iqr = (1 / self.median, self.iqr / self.median**2) if slower else (self.median, self.iqr)
        value = f"{earned(shown, iqr, least=3)}×"
        low, high = np.log(np.percentile(self.samples, (25, 75)))
        if abs(np.log(self.median)) <= high - low:
            # "1.01× faster" from rounds that vary by 3 % would be read as a gain; a ratio and its inverse say the same
            value = f"no difference beyond the noise: {earned(self.median, self.iqr, least=3)}×"
        else:
            value += " slower" if slower else " faster"
        return (
            f"{value} ({self.before.name} → {self.after.name}), "
            f"IQR {earned(iqr, iqr, least=1)}, {len(self.samples)} rounds"
        )


@dataclass(frozen=True, repr=False)
class Speedup:
    """before time / after time of two latencies of one machine; above 1, after is faster."""

    before: Latency
    after: Latency

    @property
    def ratio(self) -> float:
        return self.before.median_ms / self.after.median_ms

    @property
    def spread(self) -> float:
        """The two relative spreads, added as independent."""
        return math.hypot(self.before.spread, self.after.spread)

    def __float__(self) -> float:
        return self.ratio

    def as_metric(self) -> dict:
        count = min(len(self.before.samples_ms), len(self.after.samples_ms))
        return {"value": self.ratio, "unit": "×", "samples": count, "spread": self.spread}

    def __repr__(self) -> str:
        slower = self.ratio < 1
        shown = 1 / self.ratio if slower else self.ratio
        value = f"{earned(shown, shown * self.spread)}×"
        if abs(self.ratio - 1) <= self.spread:
            value = f"no difference beyond the noise: {earned(self.ratio, self.spread)}×"
        else:
            value += " slower" if slower else " faster"
        noisy = ", NOISY" if self.before.noisy or self.after.noisy else ""
        return f"{value} ({self.before.name} → {self.after.name}){noisy}"


@dataclass(frozen=True, repr=False)
class Throughput:
    """Items per second over a stretch of wall time; `rates` are the items per second of up to ten parts of it."""

    name: str
    calls: int
    seconds: float
    batch: int
    in_flight: int
    rates: tuple[float, ...]
    machine: str

    @property
    def items_per_s(self) -> float:
        return self.calls * self.batch / self.seconds

    @property
    def spread(self) -> float:
        low, high = np.percentile(self.rates, (25, 75))
        return float((high - low) / self.items_per_s)

    def as_metric(self) -> dict:
        return {"value": self.items_per_s, "unit": "items/s", "samples": self.calls, "spread": self.spread}

    def as_row(self) -> dict:
        rate = float(earned(self.items_per_s, self.items_per_s * self.spread))
        return {"runtime": self.name, "batch": self.batch, "in flight": self.in_flight, "items/s": rate}

    def __repr__(self) -> str:
        rate = earned(self.items_per_s, self.items_per_s * self.spread)
        noisy = f", NOISY: IQR is {self.spread:.0%} of the rate" if self.spread > NOISY_SPREAD else ""
        return f"{self.name} {rate} items/s, batch {self.batch}, {self.in_flight} in flight, {self.calls} calls{noisy}"


def _fewest_for(q: float) -> int:
    """Samples without which not one lies beyond the percentile; round() first, since 100 - 99.9 is 0.0999…"""
    return math.ceil(round(100 / (100 - q), 6))
