"""Rows of results as a table: measurements become columns, and a speed without an error is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np

from labsupport.errors import BadInput
from labsupport.measurements import Latency, Ratio, Speedup, Throughput, earned

JUDGES = re.compile(r"error|accuracy|agreement|top-?[15]|\bf1\b|psnr", re.IGNORECASE)
SPEEDS = re.compile(r"latency|throughput|speed|faster|slower|/s$|[ _](ms|µs|us|ns)$", re.IGNORECASE)
ONCE = ("build", "load", "first call", "compile", "export")  # paid once; no answer is given while they pass


def expanded(rows) -> list[tuple[dict, bool]]:
    rows = list(rows)
    if not rows:
        raise BadInput("no rows to show; pass at least one mapping or measurement")
    one_machine((position, value) for position, row in enumerate(rows)
                 for value in (row.values() if isinstance(row, Mapping) else [row]))
    return [_expand(position, row) for position, row in enumerate(rows)]


def one_machine(numbered) -> None:
    first = None
    for position, value in numbered:
        machine = getattr(value, "machine", None)
        if not isinstance(machine, str):
            continue
        first = first or (position, machine)
        if machine != first[1]:
            raise BadInput(f"row {first[0]} ran on {first[1]}, row {position} on {machine}; "
                           "re-run one of them, or show the recording by itself")


def _expand(position, row) -> tuple[dict, bool]:
    """The row with measurements as plain columns, and whether it shows a speed."""
    if not isinstance(row, Mapping):
        if not hasattr(row, "as_row"):
            raise BadInput(f"row {position} is a {type(row).__name__}; a row is a mapping of columns or a measurement")
        row = {"latency": row}
    columns = {}
    for key, value in row.items():
        columns.update(_columns(str(key), value))
    named = [key for key in columns if SPEEDS.search(key) and not JUDGES.search(key) and not key.startswith(ONCE)]
    measured = any(isinstance(value, (Latency, Ratio, Speedup, Throughput)) for value in row.values())
    return columns, bool(named) or measured


def _columns(key, value) -> dict:
    if hasattr(value, "as_row"):
        columns = value.as_row()
        # two latencies in one row (host and device) need telling apart; the usual single one does not
        prefix = "" if key in ("latency", "memory", "energy", "stages", "throughput") else f"{key} "
        shared = ("runtime", "batch")
        return {name if name in shared else prefix + name: cell for name, cell in columns.items()}
    if hasattr(value, "as_metric"):
        metric = value.as_metric()
        return {key: float(earned(metric["value"], metric["value"] * (metric["spread"] or 0)))}
    return {key: value.item() if isinstance(value, np.generic) else value}


def refuse_unjudged(position, row, has_speed) -> None:
    if not has_speed:
        return
    judged = {key: value for key, value in row.items() if JUDGES.search(key)}
    known = [value for value in judged.values() if value is not None and value == value]
    if not known:
        has = f"only an empty {next(iter(judged))!r}" if judged else "no error or accuracy"
        name = row.get("runtime", row.get("name", row.get("batch", "unnamed")))
        raise BadInput(
            f"row {position} ({name}) shows a speed but has {has}: add 'max error': "
            "comparing.max_error(reference(feed), run(feed)), or 'accuracy': training.accuracy(run, split)")


def numeric(row) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]


def judgement(row) -> str:
    for key, value in row.items():
        if JUDGES.search(key) and value is not None:
            return f"{key} {_cell(key, value)}"
    return ""


def _cell(column, value) -> str:
    """Text of one table cell."""
    if value is None or value != value:
        return "n too small" if column.endswith(("p90 ms", "p99 ms")) else "–"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return str(value)
    if "error" in column.lower():
        return f"{value:.1e}" if value else "0"
    if JUDGES.search(column):
        return f"{value:.3f}"
    return f"{value:g}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


@functools.lru_cache(maxsize=None)
def frame_class():
    import pandas

    class Table(pandas.DataFrame):
        """A DataFrame that prints numbers with the digits they earned; computes like any other."""

        @property
        def _constructor(self):
            return Table

        def _as_text(self):
            cells = {column: [_cell(str(column), value) for value in self[column]] for column in self.columns}
            return pandas.DataFrame(cells, index=self.index)

        def __repr__(self) -> str:
            return self._as_text().to_string()

        def _repr_html_(self) -> str:
            return self._as_text().to_html(border=0)

    return Table
