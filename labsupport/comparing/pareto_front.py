"""Accuracy against latency: a gate declared before anything is measured, and the candidates that no other one beats
twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labsupport.benchmarking.measurements import Latency
from labsupport.comparing.drawing import COLOURS, Drawing, canvas
from labsupport.comparing.tables import expanded, listed, refuse_unjudged
from labsupport.errors import BadInput

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # told apart without colour


@dataclass(frozen=True)
class Gate:
    """What a candidate must keep of the reference's accuracy, and may take of its latency: shares, 0 to 1."""

    accuracy_share: float
    latency_share: float

    def __post_init__(self) -> None:
        for name in ("accuracy_share", "latency_share"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= 1:
                raise BadInput(
                    f"{name}={value!r}; wanted a share of the reference's, above 0 and at most 1, such as 0.9"
                )

    def __repr__(self) -> str:
        return (
            f"Gate(at least {self.accuracy_share:.0%} of the reference's accuracy "
            f"in at most {self.latency_share:.0%} of its latency)"
        )

    def beside(self, reference: Mapping) -> Limits:
        """The gate in numbers, beside one measured row with a `latency` and an `accuracy`."""
        point = _points([reference])[0]
        return Limits(self.accuracy_share * point.accuracy, self.latency_share * point.latency_ms, point.name)


@dataclass(frozen=True)
class Limits:
    """A gate beside its reference: the least accuracy and the most milliseconds."""

    accuracy: float
    latency_ms: float
    reference: str

    def passes(self, row: Mapping) -> bool:
        return not self.misses(row)

    def misses(self, row: Mapping) -> tuple[str, ...]:
        """Which of "accuracy" and "latency" the row misses; empty for one that passes."""
        return _missed(_points([row])[0], self)

    def __repr__(self) -> str:
        return f"Limits(accuracy ≥ {self.accuracy:.3f}, latency ≤ {self.latency_ms:.4g} ms; reference {self.reference})"


@dataclass(frozen=True)
class _Point:
    name: str
    latency_ms: float
    accuracy: float
    latency: Latency


def front(rows: Sequence[Mapping]) -> tuple[str, ...]:
    """Names of the rows that no other row beats in accuracy and latency both, fastest first.

    A row has a `latency` (a Latency, its name says which) and an `accuracy`, 0 to 1. Refuses rows of different
    machines, clocks or batches. A tie in one of the two is decided by the other.
    """
    points = _points(rows)

    def beaten(one: _Point) -> bool:
        return any(
            other.latency_ms <= one.latency_ms
            and other.accuracy >= one.accuracy
            and (other.latency_ms, -other.accuracy) != (one.latency_ms, -one.accuracy)
            for other in points
        )

    return tuple(point.name for point in sorted(points, key=lambda p: p.latency_ms) if not beaten(point))


def pareto(rows: Sequence[Mapping], *, limits: Limits | None = None, title: str = "") -> Drawing:
    """Every row as a point, latency (logarithmic) to the right, accuracy upward, the front as a line, the gate shaded.

    Rows as in `front`; `limits` come from `Gate.beside`.
    """
    points, best = _points(rows), front(rows)
    figure, axes = canvas(height=4.2)
    line = sorted((p for p in points if p.name in best), key=lambda p: p.latency_ms)
    axes.step(
        [p.latency_ms for p in line], [p.accuracy for p in line], where="post", color="0.55", linewidth=1, zorder=1
    )
    for index, point in enumerate(points):
        low, high = point.latency.quartiles_ms
        reach = [[max(point.latency_ms - low, 0)], [max(high - point.latency_ms, 0)]]
        axes.errorbar(point.latency_ms, point.accuracy, xerr=reach, color="black", capsize=2, linewidth=0.8, zorder=2)
        axes.scatter(
            point.latency_ms,
            point.accuracy,
            s=60,
            marker=MARKERS[index % len(MARKERS)],
            zorder=3,
            edgecolor="black",
            color=COLOURS[index % len(COLOURS)],
            label=point.name + (" (front)" if point.name in best else ""),
        )
    _logarithmic(axes)
    if limits is not None:
        _shade(axes, limits)
    axes.set_xlabel(f"median ms, {points[0].latency.clock} clock, batch {points[0].latency.batch} (logarithmic)")
    axes.set_ylabel("accuracy")
    axes.set_title(title, fontsize=10, loc="left")
    # beside the points, never over them
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing(figure, _words(points, best, limits, title))


def _logarithmic(axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0))
    )  # powers of ten alone would leave most axes without a number
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _shade(axes, limits: Limits) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    left, bottom, top = (
        min(left, limits.latency_ms / 2),
        min(bottom, limits.accuracy - 0.01),
        max(top, limits.accuracy + 0.01),
    )
    axes.fill_between(
        [left, limits.latency_ms],
        limits.accuracy,
        top,
        facecolor="none",
        edgecolor="0.8",
        hatch="//",
        linewidth=0,
        zorder=0,
    )
    axes.axhline(limits.accuracy, color="black", linestyle="--", linewidth=0.8)
    axes.axvline(limits.latency_ms, color="black", linestyle="--", linewidth=0.8)
    axes.annotate("the gate", (left, top), xytext=(4, -11), textcoords="offset points", fontsize=9)
    axes.set_xlim(left, max(right, limits.latency_ms * 1.2))
    axes.set_ylim(bottom, top)


def _missed(point: _Point, limits: Limits) -> tuple[str, ...]:
    missed = {"accuracy": point.accuracy < limits.accuracy, "latency": point.latency_ms > limits.latency_ms}
    return tuple(name for name, is_missed in missed.items() if is_missed)


def _words(points: list[_Point], best: tuple[str, ...], limits: Limits | None, title: str) -> str:
    told = []
    for point in points:
        says = f"{point.name}: accuracy {point.accuracy:.3f} in {point.latency_ms:.4g} ms"
        says += ", on the front" if point.name in best else ""
        if limits is not None:
            fails = _missed(point, limits)
            says += f", misses the gate by {' and '.join(fails)}" if fails else ", passes the gate"
        told.append(says)
    gate = (
        f" The gate: accuracy at least {limits.accuracy:.3f} in at most {limits.latency_ms:.4g} ms." if limits else ""
    )
    return f"{title + ': ' if title else ''}accuracy against latency. {'; '.join(told)}.{gate}"


def _points(rows: Sequence[Mapping]) -> list[_Point]:
    rows = listed(rows)
    complete = expanded(rows)  # refuses rows of different machines
    points = []
    for position, (row, (columns, has_speed)) in enumerate(zip(rows, complete, strict=True)):
        latency, accuracy = (row.get(key) if isinstance(row, Mapping) else None for key in ("latency", "accuracy"))
        if not isinstance(latency, Latency):
            raise BadInput(
                f"row {position} has {type(latency).__name__} as its latency; wanted the result of "
                "benchmarking.latency() or of device_latency() under the key 'latency'"
            )
        refuse_unjudged(position, columns, has_speed)
        if not latency.median_ms:
            raise BadInput(f"row {position} ({latency.name}) took 0 ms by the clock; give it a larger batch")
        if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)) or not 0 <= accuracy <= 1:
            raise BadInput(
                f"row {position} ({latency.name}) has the accuracy {accuracy!r}; wanted a share from 0 to 1: "
                "training.accuracy(run, split)"
            )
        points.append(_Point(latency.name, latency.median_ms, float(accuracy), latency))
    kinds_of = {"clock": "clocks", "batch": "batch sizes"}
    for what in kinds_of:
        kinds = sorted({str(getattr(point.latency, what)) for point in points})
        if len(kinds) > 1:
            raise BadInput(
                f"the rows were measured at different {kinds_of[what]} ({', '.join(kinds)}); measure all of them alike"
            )
    names = [point.name for point in points]
    if len(set(names)) < len(names):
        raise BadInput(f"two rows are called {max(names, key=names.count)!r}; name each runtime: name='student, INT8'")
    return points
