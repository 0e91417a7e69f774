"""Which exercises were tried and solved, kept in one local file that nothing but this module writes."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from labsupport import files

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 10.0  # for another notebook that writes; one that is stopped must not stop this one
_told: set[str] = set()  # each trouble with the file is told once, not at every check


def path() -> Path | None:
    """The progress file: ``LABSUPPORT_PROGRESS``, else ``.labprogress.json`` in the repository.

    None in a headless run (pytest, ``run``, ``record``) that names no file: those runs are not the learner's.
    """
    named = os.environ.get("LABSUPPORT_PROGRESS")
    if named:
        return Path(named)
    headless = os.environ.get("PYTEST_CURRENT_TEST") or os.environ.get("LABSUPPORT_METRICS")
    return None if headless else ROOT / ".labprogress.json"


def record(lab: str, exercise: str, outcome: str, **facts: Any) -> str:
    """Keep one outcome and facts such as a ``prediction``; returns "" or, once, what is wrong with the progress file.

    "right" stays, and its day: running the notebook again from the top does not take it back. Raises nothing.
    """
    file = path()
    if file is None:
        return ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(file, patience_s=PATIENCE_S):  # two notebooks may check at once
            labs, note = _read_or_move_aside(file)
            entry = labs.setdefault(lab, {}).setdefault(exercise, {})
            before = entry.get("outcome", "not attempted")
            rank = ["not attempted", "wrong", "right"]
            if before not in rank or rank.index(outcome) >= rank.index(before):
                entry["outcome"] = outcome
            if before != "right" or "when" not in entry:
                entry["when"] = datetime.now().astimezone().isoformat(timespec="seconds")
            entry.update(facts)
            _write(file, labs)
        return note
    except OSError as error:
        return _once(
            f"your progress is not being saved: {file} cannot be written ({error.strerror or error}); "
            "set LABSUPPORT_PROGRESS to a file that can"
        )


def load() -> dict[str, dict[str, dict[str, Any]]]:
    """lab → exercise → {"outcome", "when", "prediction", …}; empty when there is no file or it cannot be read."""
    file = path()
    if file is None:
        return {}
    try:
        return read(file)
    except (OSError, ValueError):
        return {}


def noted(lab: str, exercise: str) -> dict[str, Any]:
    """What is kept of a prediction, also from an earlier session: ``prediction`` (float), ``shown``, ``late``."""
    entry = load().get(lab, {}).get(exercise, {})
    guess = entry.get("prediction")
    number = isinstance(guess, (int, float)) and not isinstance(guess, bool)
    flags = {name: entry.get(name) is True for name in ("shown", "late")}
    return {**flags, **({"prediction": float(guess)} if number else {})}


def read(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What a progress file holds. Raises OSError, and ValueError for one that is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict) or not isinstance(content.get("labs"), dict):
        raise ValueError("not a progress file")
    if not files.whole(content) or (files.SEAL not in content and content.get("version", 1) != 1):
        raise ValueError("another checksum than its own")
    return _entries(content)


def _entries(content: dict) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        lab: {name: entry for name, entry in exercises.items() if isinstance(entry, dict)}
        for lab, exercises in content["labs"].items()
        if isinstance(exercises, dict)
    }


def _read_or_move_aside(file: Path) -> tuple[dict, str]:
    """What the file holds, and a word to the learner if a damaged one had to be moved aside."""
    try:
        return read(file), ""
    except FileNotFoundError:
        return {}, ""
    except ValueError:  # JSON and UTF-8 errors are both ValueErrors
        aside = file.with_name(f"{file.stem}.damaged-{datetime.now():%Y%m%d-%H%M%S}{file.suffix}")
        labs = _rescued(file)
        os.replace(file, aside)
        count = sum(map(len, labs.values()))
        return labs, _once(
            f"the progress file was damaged; it is kept as {aside.name} and a new one was started with the {count} "
            "exercises that could be read"
        )


def _rescued(file: Path) -> dict:
    """What still reads as progress in a damaged file; {} where nothing does."""
    try:
        return _entries(json.loads(file.read_bytes().decode("utf-8", errors="replace")))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def _write(file: Path, labs: dict) -> None:
    text = json.dumps(files.sealed({"version": 2, "labs": labs}), indent=1, ensure_ascii=False)
    files.replace(file, (text + "\n").encode("utf-8"))


def _once(trouble: str) -> str:
    kind = re.sub(r"\d{8}-\d{6}", "", trouble)
    if kind in _told:
        return ""
    _told.add(kind)
    return trouble
