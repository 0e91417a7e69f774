"""Record lab 16's command on a GPU: `python3 tools/record_lab16.py [MODEL.onnx …]`, at most two minutes a model.

Each network is examined with its own engines: FP32 as given, FP16, INT8. Recorded are the gain and the error of every
change, of the decision also the error on samples that the examination did not see. Without a model named it takes the
lab's two, and the largest that an installed `magika` ships. With LABSUPPORT_METRICS set to a folder the metrics are
left there; without, they go into data/recordings/. On a machine without a GPU it says what it would record.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.elapsed import say

LAB = "16_your_network"
ROOT = Path(__file__).resolve().parents[1]
MINUTES = 2.0
KINDS = {"do nothing": "fp32", "FP16": "fp16", "INT8": "int8"}  # a change's name begins with it


def models(named: list[str]) -> dict[str, Path]:
    """Files by the name that their figures bear."""
    if named:
        return {Path(each).stem.replace("-", "_").replace(".", "_").lower(): Path(each) for each in named}
    found = {
        path.stem: path for path in (ROOT / "data/networks/notes.onnx", ROOT / "data/networks/text_direction.onnx")
    }
    from tools.examine_packages import models as packaged

    shipped = [Path(row["path"]) for row in packaged(["magika"])]
    return found | ({"magika": shipped[-1]} if shipped else {})


def kind_of(change: str) -> str | None:
    """The engine's precision that a change's name stands for; None where it is no engine."""
    return next((kind for begin, kind in KINDS.items() if change.startswith(begin)), None)


def unseen(path: Path, folder: Path, chosen) -> float:
    """The chosen change's error on samples that the examination did not use, made like its own."""
    from labsupport import examining, export
    from labsupport.examining import inputs

    with examining.case_of(path, save=folder) as case:
        many = inputs.made(case.graph, case.original, count=inputs.MADE + 4).feeds[inputs.MADE :]
        case.__dict__["samples"] = inputs.Samples(many, "new", False)
        graph = export.load(folder / chosen.file) if chosen.file else case.working
        with case.runtime(graph, kind_of(chosen.name) or "fp32", name=chosen.name) as run:
            return case.error_of(run)


def one(book, name: str, path: Path, folder: Path, minutes: float) -> None:
    """Examine one file and record what came out."""
    from labsupport import examining

    made = examining.examine(path, limits=examining.Limits(minutes=minutes), save=folder, progress=False)
    say(name, made)
    for change in made.candidates:
        kind = kind_of(change.name)
        if change.effort and kind and "wide" not in change.name:
            low, middle, high = change.gain
            book.record(
                f"examined_{name}.{kind}_over_given", middle, "ratio", len(change.ratios), (high - low) / middle
            )
            book.record(f"examined_{name}.{kind}_relative_error", change.error, "fraction")
        elif not change.effort:
            book.record(f"examined_{name}.given_ms", change.latency)
    chosen = made.verdict.chosen if made.verdict else None
    if chosen is not None:
        book.record(f"examined_{name}.chosen_over_given", chosen.gain[1], "ratio")
        book.record(f"examined_{name}.chosen_relative_error", chosen.error, "fraction")
        book.record(f"examined_{name}.chosen_new_relative_error", unseen(path, folder, chosen), "fraction")


class Rehearsal:
    """A lab book that says and keeps nothing."""

    def record(self, metric, value, unit=None, samples=None, spread=None):
        """Say it."""
        say("rehearsed:", metric, value, unit or "")


def main(arguments: list[str]) -> int:
    from labsupport import environment, recordings

    live = environment.has("engine execution")
    with tempfile.TemporaryDirectory(prefix="labsupport-") as folder:
        for name, path in models(arguments).items():
            home = Path(folder) / name
            home.mkdir()
            if not live:
                one(Rehearsal(), name, path, home, MINUTES)
                continue
            with recordings.session(LAB, command="python3 tools/record_lab16.py") as book:
                one(book, name, path, home, MINUTES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
