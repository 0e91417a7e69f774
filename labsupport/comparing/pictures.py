"""Tables and bars that refuse a speed without an error."""

from __future__ import annotations

import math
from collections.abc import Mapping

from labsupport.benchmarking.measurements import Latency
from labsupport.comparing.drawing import Drawing, draw_bars
from labsupport.comparing.tables import expanded, frame_class, judgement, listed, numeric, refuse_unjudged
from labsupport.errors import BadInput


def table(rows):
    """A pandas DataFrame, one row per mapping or measurement; a Latency becomes `median ms`, `p99 ms`, ….

    Refuses a row that shows a speed without an error or accuracy in numbers, and rows of different machines. With a
    `runtime` in every row that column is the index. Numbers are rounded to the digits their spread leaves standing.
    """
    complete = expanded(rows)
    for position, (row, has_speed) in enumerate(complete):
        refuse_unjudged(position, row, has_speed)
    frame = frame_class()([row for row, _ in complete])
    return frame.set_index("runtime") if "runtime" in frame and frame["runtime"].notna().all() else frame


def bars(rows, *, column="median ms", title="", same_answer=False) -> Drawing:
    """One labelled bar per row of `column`, from 0, quartiles as the error bar where the row holds a Latency.

    Refuses rows without an error or accuracy as `table` does. `same_answer=True` allows them where every bar is the
    same network and only the clock or the batch differs.
    """
    rows = listed(rows)
    complete = expanded(rows)
    labels, values, ranges, notes = [], [], [], []
    for position, (source, (row, has_speed)) in enumerate(zip(rows, complete)):
        if not same_answer:
            refuse_unjudged(position, row, has_speed)
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadInput(
                f"row {position} has {value!r} in column {column!r}; "
                f"draw a column of finite numbers, such as one of {numeric(row)}"
            )
        labels.append(_label(position, row, complete))
        values.append(value)
        ranges.append(_quartiles(source, column))
        notes.append(judgement(row))
    return draw_bars(labels, values, ranges, notes, unit=column, title=title)


def _label(position, row, complete) -> str:
    """The runtime, and whatever else it takes to tell the bars apart."""
    parts = [str(row.get("runtime", row.get("name", f"row {position}")))]
    for key in ("clock", "batch"):
        if len({other.get(key) for other, _ in complete}) > 1:
            parts.append(f"batch {row.get(key)}" if key == "batch" else f"{row.get(key)} clock")
    return ", ".join(parts)


def _quartiles(source, column) -> tuple[float, float] | None:
    values = source.values() if isinstance(source, Mapping) else [source]
    latencies = [value for value in values if isinstance(value, Latency)]
    return latencies[0].quartiles_ms if column == "median ms" and len(latencies) == 1 else None
