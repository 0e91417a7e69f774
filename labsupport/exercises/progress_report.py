"""Which exercises are solved, as a table: all labs, also before anything was tried."""

from __future__ import annotations

import importlib
from pathlib import Path

from labsupport.exercises import base, own_copies, progress


def report(notebooks: Path | None = None) -> str:
    """A table of every lab's exercises with outcome and day, and the totals; also before anything was tried."""
    kept = progress.load()
    folder = progress.ROOT / "notebooks" if notebooks is None else notebooks
    labs = sorted({file.stem for file in folder.glob("*.ipynb")} | set(kept), key=_lab_order)
    rows, counts = [("lab", "exercise", "outcome", "when")], {"right": 0, "wrong": 0, "not attempted": 0}
    for lab in labs:
        done = kept.get(lab, {})
        names = list(dict.fromkeys([*_exercise_names(lab), *done]))
        for name in names:
            entry = done.get(name, {})
            outcome = entry.get("outcome")
            if not isinstance(outcome, str) or outcome not in counts:  # the file may have been edited by hand
                outcome = "not attempted"
            counts[outcome] += 1
            noted = outcome == "not attempted" and isinstance(entry.get("prediction"), (int, float))
            when = str(entry.get("when", ""))[:16].replace("T", " ") if outcome != "not attempted" or noted else ""
            rows.append((lab if name == names[0] else "", name, "predicted" if noted else outcome, when))
        if not names:
            rows.append((lab, "no exercises", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table.insert(1, "  ".join("-" * width for width in widths))
    newer = [] if notebooks else [own_copies.offer(own_copies.newer(root=progress.ROOT))]
    return "\n".join([*table, "", _totals(counts), *_state_of_file(), *filter(None, newer)])


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
