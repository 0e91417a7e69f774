"""Measured spans of work on several rows, what of them overlapped, and the picture of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from labsupport.errors import BadInput


@dataclass(frozen=True)
class Span:
    """One piece of work: on which row (a stage, a copy engine, a worker), for which item, from when to when in ms."""

    row: str
    item: int
    start_ms: float
    stop_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_ms) and math.isfinite(self.stop_ms) and self.start_ms <= self.stop_ms):
            raise BadInput(
                f"span of {self.row!r}, item {self.item}, runs from {self.start_ms} to {self.stop_ms} ms; "
                "it must end after it starts"
            )

    @property
    def ms(self) -> float:
        return self.stop_ms - self.start_ms


def busy_ms(spans: Iterable[Span], row: str | None = None) -> float:
    """How long at least one span of ``row`` (None: of any row) was running; overlapping spans count once."""
    chosen = sorted((s.start_ms, s.stop_ms) for s in spans if row is None or s.row == row)
    total, reached = 0.0, -math.inf
    for start, stop in chosen:
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def rows_of(spans: Iterable[Span]) -> list[str]:
    """The rows, in the order in which they first appear."""
    return list(dict.fromkeys(s.row for s in spans))


def overlapped(spans: Iterable[Span]) -> float:
    """Share of the busy time that ran beside something else: 0 for work in a line, towards 1 - 1/rows for full
    overlap.
    """
    spans = list(spans)
    if not spans:
        raise BadInput("no spans; measure something first")
    apart = sum(busy_ms(spans, row) for row in rows_of(spans))
    return 1 - busy_ms(spans) / apart if apart else 0.0


def draw(spans: Iterable[Span], *, title: str = ""):
    """The spans as bars on one line a row, items numbered and told apart by colour and hatch (a Drawing)."""
    from labsupport.comparing.drawing import COLOURS, HATCHES, Drawing, canvas

    spans = list(spans)
    if not spans:
        raise BadInput("no spans; measure something first")
    rows, begin = rows_of(spans), min(s.start_ms for s in spans)
    length = max(s.stop_ms for s in spans) - begin
    figure, axes = canvas(height=1.0 + 0.42 * len(rows))
    for span in spans:
        style = span.item % len(COLOURS)
        axes.barh(
            rows.index(span.row),
            span.ms,
            left=span.start_ms - begin,
            height=0.7,
            color=COLOURS[style],
            hatch=HATCHES[style],
            edgecolor="white",
            linewidth=0.5,
        )
        if span.ms > 0.025 * length:
            axes.text(
                span.start_ms - begin + span.ms / 2,
                rows.index(span.row),
                str(span.item),
                ha="center",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, length * 1.02)
    axes.set_xlabel("ms since the first began; the number is the item")
    axes.set_title(title, fontsize=10, loc="left")
    shares = ", ".join(f"{row} busy {busy_ms(spans, row) / length:.0%}" for row in rows)
    return Drawing(
        figure,
        f"{title + ': ' if title else ''}{len(spans)} spans over {length:.3g} ms; {shares}; {overlapped(spans):.0%} "
        "of the work ran beside other work.",
    )
