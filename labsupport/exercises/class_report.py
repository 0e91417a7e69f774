"""The progress of a class: one line for each learner, and the exercises at which most of them are stuck."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labsupport.errors import BadInput
from labsupport.exercises import progress, progress_report

FILE = ".labprogress.json"
STUCK_SHOWN = 10


@dataclass(frozen=True)
class Learner:
    """One learner: counts of exercises, the lab worked in last and when; ``problem`` says why nothing was read."""

    name: str
    right: int = 0
    wrong: int = 0
    not_attempted: int = 0
    lab: str = ""
    when: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Group:
    """A class: its learners, and for each exercise tried how many have it right or wrong."""

    learners: tuple[Learner, ...]
    exercises: dict[str, dict[str, int]] = field(default_factory=dict)  # "05_precision bits" → outcome → learners

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {"learners": [asdict(learner) for learner in self.learners], "exercises": self.exercises}

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("learner", "right", "wrong", "open", "last lab", "when")]
        for one in self.learners:
            counts = [str(one.right), str(one.wrong), str(one.not_attempted)] if not one.problem else ["", "", ""]
            table.append((one.name, *counts, one.lab or one.problem, one.when))
        lines = progress_report.columns(table)
        stuck = sorted(
            ((counts["wrong"], counts["right"], name) for name, counts in self.exercises.items() if counts["wrong"]),
            key=lambda entry: (-entry[0], entry[2]),
        )
        if stuck:
            lines += ["", "Wrong at the last try, most learners first:"]
            lines += progress_report.columns(
                [("exercise", "wrong", "right")]
                + [(name, str(wrong), str(right)) for wrong, right, name in stuck[:STUCK_SHOWN]]
            )
        read = [one for one in self.learners if not one.problem]
        lines += [
            "",
            f"{len(read)} of {len(self.learners)} learners read, {sum(one.right for one in read)} right answers",
        ]
        return "\n".join(lines)


def read(places: Sequence[Path], notebooks: Path | None = None) -> Group:
    """The class in these folders (a checkout, or a folder that holds a progress file) or progress files.

    One that cannot be read becomes a line that says so. Raises BadInput for no place, or the same place twice.
    """
    if not places:
        raise BadInput("no folder was named; name one for each learner")
    real = Counter(os.path.realpath(place) for place in places)
    twice = [str(place) for place in places if real[os.path.realpath(place)] > 1]
    if twice:
        raise BadInput(f"{twice[0]} was named {real[os.path.realpath(twice[0])]} times; name each learner once")
    names = _names([Path(place) for place in places])
    every: dict[str, dict[str, int]] = {}
    learners = [_learner(name, Path(place), notebooks, every) for name, place in zip(names, places, strict=True)]
    return Group(tuple(learners), dict(sorted(every.items())))


def _names(places: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the learners apart: home/ana/labs and home/ben/labs become ana and
    ben.
    """
    parts = [(place.parent if place.suffix == ".json" else place).resolve().parts for place in places]
    tails = [path[::-1] for path in parts]
    for depth in range(max(map(len, tails))):
        column = [tail[depth] if depth < len(tail) else "" for tail in tails]
        if len(set(column)) == len(column):
            return column
    return [str(place) for place in places]


def _learner(name: str, place: Path, notebooks: Path | None, every: dict[str, dict[str, int]]) -> Learner:
    file = place / FILE if place.is_dir() else place
    try:
        kept = progress.read(file)
    except FileNotFoundError:
        missing = f"no {FILE}: nothing was tried yet" if place.is_dir() else "there is no such folder"
        return Learner(name, problem=missing)
    except OSError as error:
        return Learner(name, problem=f"{FILE} cannot be read ({error.strerror or error})")
    except ValueError:
        return Learner(name, problem=f"{FILE} is damaged")
    rows = progress_report.rows(kept, notebooks)
    for row in rows:
        if row.outcome != "not attempted":
            entry = every.setdefault(f"{row.lab} {row.exercise}", {"right": 0, "wrong": 0})
            entry[row.outcome] += 1
    counts = Counter(row.outcome for row in rows if row.exercise)
    last = max(rows, key=lambda row: row.when, default=None)
    seen = last is not None and last.when
    return Learner(
        name,
        counts["right"],
        counts["wrong"],
        counts["not attempted"],
        lab=last.lab if seen else "",
        when=last.when if seen else "",
    )
