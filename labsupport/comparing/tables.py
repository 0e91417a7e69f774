"""Rows of results as a table: measurements become columns, and a speed without an error is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labsupport.benchmarking.measurements import Latency, Ratio, Speedup, Throughput, earned
from labsupport.errors import BadInput

# error bars show how a time scatters and say nothing of the answer
JUDGES = re.compile(r"error(?!s?[ _-]?bars?)|accuracy|agreement|top-?[15]|\bf1\b|psnr", re.IGNORECASE)
UNITS = r"(?:[mµμun]?s|m?secs?|(?:milli|micro|nano)?seconds)"
# "second" alone is an ordinal, as in "second run, MiB"
SPEEDS = re.compile(
    rf"latency|throughput|speed|faster|slower|(?:/ ?|per[ _])s(?:ec(?:ond)?)?[)\]]?$|(?:^|[^a-z'’]){UNITS}[)\]]?$"
    r"|(?:^|[^a-z])(?:[fiqrt]ps|(?:milli|micro|nano)?seconds)(?![a-z])",
    re.IGNORECASE,
)
# paid once; no answer is given while they pass. The whole name counts: "load latency ms" is a speed under load.
ONCE = re.compile(
    rf"(?:build|load|first[ _]call|compile|export)(?:[ _]time)?(?:[ _,]+[(\[]?{UNITS}[)\]]?)?", re.IGNORECASE
)


def listed(rows) -> list:
    """The rows as a list; one mapping or one measurement is not a list of them."""
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise BadInput(
            f"rows is a {type(rows).__name__}; pass a list of mappings or measurements, one for each row, such as [row]"
        )
    rows = list(rows)
    if not rows:
        raise BadInput("no rows to show; pass at least one mapping or measurement")
    return rows


def expanded(rows) -> list[tuple[dict, bool]]:
    """Rows with their measurements spelled out as columns, each with whether it holds a speed."""
    rows = listed(rows)
    _one_machine(
        (position, value)
        for position, row in enumerate(rows)
        for value in (row.values() if isinstance(row, Mapping) else [row])
    )
    _one_machine(
        (position, _Said(value))
        for position, row in enumerate(rows)
        if isinstance(row, Mapping)
        for key, value in row.items()
        if str(key).strip().lower() == "machine"
    )
    return [_expand(position, row) for position, row in enumerate(rows)]


@dataclass(frozen=True)
class _Said:
    """A machine that a row names in words; it need not be spelled as the measurements spell theirs."""

    machine: object


def _one_machine(numbered) -> None:
    """Refuse with BadInput numbers that were taken on different machines."""
    first = None
    for position, value in numbered:
        machine = getattr(value, "machine", None)
        if not isinstance(machine, str):
            continue
        first = first or (position, machine)
        if machine != first[1]:
            raise BadInput(
                f"row {first[0]} ran on {first[1]}, row {position} on {machine}; "
                "re-run one of them, or show the recording by itself"
            )


def _expand(position, row) -> tuple[dict, bool]:
    """The row with measurements as plain columns, and whether it shows a speed."""
    if not isinstance(row, Mapping):
        if not hasattr(row, "as_row"):
            raise BadInput(f"row {position} is a {type(row).__name__}; a row is a mapping of columns or a measurement")
        row = {"latency": row}
    columns = {}
    for key, value in row.items():
        columns.update(_columns(str(key), value))
    named = [
        key
        for key in columns
        if SPEEDS.search(key.strip()) and not JUDGES.search(key) and not ONCE.fullmatch(key.strip())
    ]
    measured = any(isinstance(value, (Latency, Ratio, Speedup, Throughput)) for value in row.values())
    return columns, bool(named) or measured


def _columns(key, value) -> dict:
    if hasattr(value, "as_row"):
        columns = value.as_row()
        # two latencies in one row (host and device) need telling apart; the usual single one does not
        prefix = "" if key in ("latency", "memory", "energy", "throughput") else f"{key} "
        shared = ("runtime", "batch")
        return {name if name in shared else prefix + name: cell for name, cell in columns.items()}
    if hasattr(value, "as_metric"):
        metric = value.as_metric()
        return {key: float(earned(metric["value"], metric["value"] * (metric["spread"] or 0)))}
    return {key: value.item() if isinstance(value, np.generic) else value}


def refuse_unjudged(position, row, has_speed) -> None:
    """Refuse with BadInput a row that shows a speed without an error or accuracy in numbers."""
    if not has_speed:
        return
    judged = {key: value for key, value in row.items() if JUDGES.search(key)}
    if not any(_is_number(value) for value in judged.values()):
        has = "no error or accuracy"
        if judged:
            key, value = next(iter(judged.items()))
            empty = value is None or (isinstance(value, float) and value != value)
            has = f"only an empty {key!r}" if empty else f"only {value!r} in {key!r}, where a number is wanted"
        name = row.get("runtime", row.get("name", row.get("batch", "unnamed")))
        raise BadInput(
            f"row {position} ({name}) shows a speed but has {has}: add 'max error': "
            "comparing.max_error(reference(feed), run(feed)), or 'accuracy': training.accuracy(run, split)"
        )


def _is_number(value) -> bool:
    """A number or the text of one; infinity counts, because it says how far off an answer is, NaN and True do not."""
    if value is None or isinstance(value, bool):
        return False
    try:
        number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several elements
        return False
    return number == number


def numeric(row) -> list[str]:
    """Names of the columns that hold finite numbers."""
    return [key for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]


def judgement(row) -> str:
    """The row's error or accuracy as words for a picture, "" where it has none."""
    for key, value in row.items():
        if JUDGES.search(key) and _is_number(value):
            return f"{key} {_cell(key, value)}"
    return ""


def _cell(column, value) -> str:
    """Text of one table cell."""
    if value is None or value != value:
        return "n too small" if column.endswith(("p90 ms", "p99 ms")) else "–"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return str(value)
    if "error" in column.lower() and JUDGES.search(column):
        return f"{value:.1e}" if value else "0"
    if JUDGES.search(column):
        return f"{value:.3f}"
    return f"{value:g}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


@functools.lru_cache(maxsize=None)
def frame_class():
    """The pandas table that prints numbers with the digits they earned; imported once, when a table is made."""
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
