"""Which exercises are solved, as a table: all labs, also before anything was tried."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labsupport.exercises import base, own_copies, progress

OUTCOMES = ("right", "wrong", "not attempted")


@dataclass(frozen=True)
class Row:
    """One exercise: ``outcome`` is "right", "wrong" or "not attempted", ``when`` "2026-11-30 14:05" or "";
    ``predicted`` where a prediction waits for its measurement.
    """

    lab: str
    exercise: str
    outcome: str
    when: str
    predicted: bool = False


def rows(kept: dict, notebooks: Path | None = None) -> list[Row]:
    """Every lab's exercises, with what a progress file has of them; a lab without exercises has one row without."""
    folder = progress.ROOT / "notebooks" if notebooks is None else notebooks
    labs = sorted({file.stem for file in folder.glob("*.ipynb")} | set(kept), key=_lab_order)
    table = []
    for lab in labs:
        done = kept.get(lab, {})
        names = list(dict.fromkeys([*_exercise_names(lab), *done]))
        for name in names:
            entry = done.get(name, {})
            outcome = entry.get("outcome")
            if outcome not in OUTCOMES:  # the file may have been edited by hand
                outcome = "not attempted"
            noted = outcome == "not attempted" and isinstance(entry.get("prediction"), (int, float))
            when = str(entry.get("when", ""))[:16].replace("T", " ") if outcome != "not attempted" or noted else ""
            table.append(Row(lab, name, outcome, when, noted))
        if not names:
            table.append(Row(lab, "", "", ""))
    return table


def report(notebooks: Path | None = None) -> str:
    """A table of every lab's exercises with outcome and day, and the totals; also before anything was tried."""
    table, lab = [("lab", "exercise", "outcome", "when")], ""
    every = rows(progress.load(), notebooks)
    for row in every:
        outcome = "predicted" if row.predicted else row.outcome
        table.append((row.lab if row.lab != lab else "", row.exercise or "no exercises", outcome, row.when))
        lab = row.lab
    newer = [] if notebooks else [own_copies.offer(own_copies.newer(root=progress.ROOT))]
    return "\n".join([*columns(table), "", _totals(_counts(every)), *_state_of_file(), *filter(None, newer)])


def as_dict(notebooks: Path | None = None) -> dict:
    """The same for programs: {"labs": lab → exercise → {"outcome", "when"}, "totals": outcome → number}."""
    labs: dict[str, dict] = {}
    every = rows(progress.load(), notebooks)
    for row in every:
        exercises = labs.setdefault(row.lab, {})
        if row.exercise:
            exercises[row.exercise] = {"outcome": row.outcome, "when": row.when}
    return {"labs": labs, "totals": _counts(every), "problems": _state_of_file()}


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _counts(every: list[Row]) -> dict[str, int]:
    return {outcome: sum(row.outcome == outcome for row in every) for outcome in OUTCOMES}


def _totals(counts: dict[str, int]) -> str:
    return (
        f"{counts['right']} of {sum(counts.values())} exercises right, {counts['wrong']} wrong, "
        f"{counts['not attempted']} not attempted"
    )


def _state_of_file() -> list[str]:
    file = progress.path()
    try:
        if file is not None and file.exists():
            progress.read(file)
    except OSError as error:
        return [f"{file} cannot be read ({error.strerror or error}); the table shows nothing from it."]
    except ValueError:
        return [f"{file} is damaged; the table shows nothing from it. The next check moves it aside and starts afresh."]
    return []


def _exercise_names(lab: str) -> list[str]:
    """The exercises a lab's module holds; none where the module is missing or its packages are not installed."""
    try:
        module = importlib.import_module(f"labsupport.exercises.lab{lab.partition('_')[0]}")
    except Exception:  # the table is also asked for in a half-installed environment
        return []
    return list(base.of(module))


def _lab_order(lab: str) -> tuple[bool, str]:
    return not lab[:1].isdigit(), lab  # 00 … 15 before the appendices A, B
