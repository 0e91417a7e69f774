"""Record every lab on a GPU machine, in calls that can be resumed: `python3 tools/record_all.py [STEP …]`.

A step is a tool (`tools/record_lab*.py`) or a lab (`labsupport record`), each alone on the GPU and in a process of its
own. A call ends after --minutes and says what is left; the next one goes on there. What a step stored is kept in
--folder as well, and comes back into the tree at the next call: rented machines lay the tree anew. Without a step named
all run in the order below. `--plan` prints it, `--pack FILE` makes an archive to carry home, `--apply` puts the results
of a folder into this tree, `--verify` runs nbval over the recorded labs, and the last call writes
data/recordings/manifest-CLASS.json, which `tests/tools/test_record_all.py` holds against the tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport import files
from tools import recording_manifest as manifest

LATER = 30.0  # seconds that are left for the manifest and the archive at the end of a call


@dataclass(frozen=True)
class Step:
    """One thing to run alone: ``words`` after the interpreter, ``lab`` whose results it makes, ``limit_s`` its time."""

    name: str
    words: tuple[str, ...]
    lab: str
    limit_s: float
    why: str = ""


def _tool(name: str, lab: str, limit_s: float, why: str, *parts: str) -> Step:
    return Step("-".join((name, *parts)), (f"tools/{name}.py", *parts), lab, limit_s, why)


def _lab(lab: str, limit_s: float = 300, why: str = "") -> Step:
    return Step(lab, ("-m", "labsupport", "record", lab), lab, limit_s, why)


STEPS = (
    _tool(
        "record_lab14",
        "14_large_models",
        400,
        "TensorRT 8.6 had not built the decoder after 390 s at level 1",
        "decoder",
    ),
    _tool("record_lab14", "14_large_models", 300, "BERT-base's shape against PyTorch", "encoder"),
    _lab("14_large_models", 400, "decoder.* is in no recording yet"),
    _tool(
        "record_lab11",
        "11b_data_center",
        300,
        "four processes send to Ray Serve; one alone held it at 0.29 of the offline rate",
    ),
    _lab("11b_data_center"),
    _tool("record_lab13", "13_frameworks", 500, "torch.compile alone takes 320 s for ResNet-50", "resnet50"),
    _lab("15_outlook"),
    _lab("02_build_and_run", why="the race against PyTorch moved here"),
    _lab("01_measuring"),
    _lab("00_start_here"),
    _lab("03_fusion", why="the fused chain took 0.074 ms on an H100 and 0.104 ms on an H200: find out why"),
    _lab("04_memory"),
    _tool("record_lab05", "05_precision", 300, "the speed table of lab 05"),
    _lab("05_precision"),
    _tool("record_lab06", "06_quantization", 400, "INT8 against FP16 at batch 256, ResNet-50, the encoder"),
    _lab("06_quantization"),
    _tool("record_lab07", "07_pruning", 300, "2:4 against dense kernels"),
    _lab("07_pruning"),
    _tool("record_lab08", "08_distillation", 200, "20 seeds"),
    _lab("08_distillation"),
    _tool("record_lab09", "09_placement", 150, "every cut of a network"),
    _lab("09_placement"),
    _lab("09b_balancing"),
    _lab("09c_cuts"),
    _lab("10_plugins"),
    _tool("record_lab13", "13_frameworks", 300, "beside ResNet-50, with the same code", "encoder", "mobilenet"),
    _lab("13_frameworks"),
    _lab("14b_serving_large_models"),
    _lab("11_scenarios"),
    _lab("12_project"),
    _lab("A_mathematics"),
    _lab("B_article_map"),
    _tool("record_lab16", "16_your_network", 500, "three networks from packages, each with three engines"),
    _lab("16_your_network"),
)
GUESSES_S = {"record_lab14-decoder": 300, "14_large_models": 250, "15_outlook": 160, "record_lab11": 220}
GUESSES_S |= {"record_lab13-resnet50": 420, "record_lab16": 300, "11b_data_center": 120}  # seen, or likely


def main(arguments: list[str] | None = None, steps: tuple[Step, ...] = STEPS, root: Path = ROOT) -> int:
    """0 when all chosen steps are done, 1 when one failed, 3 when some are left for the next call."""
    options = _options(arguments)
    chosen = [step for step in steps if not options.steps or _is_named(step, options.steps)]
    if not chosen:
        raise SystemExit(f"no step is called {' or '.join(options.steps)}; --plan lists them")
    if options.verify:
        chosen = [verifying(step) for step in chosen if step.words[0] == "-m"]
    book = Book(options.folder, root, options.commit)
    if options.fresh:
        book.clear()
    said = book.restore()
    if said:
        _say(said)
    if options.apply:
        return 0
    left = [step for step in chosen if book.waits(step, again=options.again)]
    if options.plan:
        _say(planned(left, book, options.minutes))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step under way is stopped, too
    _go(left, book, options.minutes, options.pack)
    left = [step for step in chosen if book.waits(step)]
    failed = [step.name for step in chosen if book.failed(step)]
    _say(planned(left, book, options.minutes) if left else "nothing is left")
    if not left and not failed and not options.steps and not options.verify:
        _say(f"{manifest.write(book, [step.name for step in steps])} is written")
    if options.pack:
        book.pack(options.pack)
        _say(f"{options.pack}: {options.pack.stat().st_size / 2**20:.1f} MiB; unpack it, then --apply --folder on it")
    if failed:
        _say(f"failed, and tried again with --again: {', '.join(failed)}; their last lines are in {book.state_file}")
    return 1 if failed else 3 if left else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="a step, or a lab with its tools, such as 05")
    parser.add_argument("--minutes", type=float, default=9, help="length of one call (9)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".scratch" / "recording", help="keeps what is done")
    parser.add_argument("--commit", default="", help="where the tree came without its .git")
    parser.add_argument("--again", action="store_true", help="try failed steps again")
    parser.add_argument("--fresh", action="store_true", help="without what this kind of machine recorded before")
    for name in ("plan", "verify", "apply"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--pack", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def _is_named(step: Step, names: list[str]) -> bool:
    return any(step.name == name or step.lab.partition("_")[0] == name or step.lab == name for name in names)


def verifying(step: Step) -> Step:
    """The step that compares a lab, run once more, with what was stored, and holds its speeds against their bands."""
    words = ("-m", "labsupport", "test", "--alone", f"notebooks/{step.lab}.ipynb")
    return Step(f"verify-{step.lab}", words, step.lab, 1.5 * step.limit_s)


def planned(steps: list[Step], book: Book, minutes: float) -> str:
    """Which steps go into which call, with the seconds that each is expected to take."""
    lines = [[]]
    room_s = 60 * minutes - LATER
    for step in steps:
        expected_s = book.expected_s(step)
        if lines[-1] and expected_s > room_s:
            lines.append([])
            room_s = 60 * minutes - LATER
        lines[-1].append(f"  {step.name:28} {expected_s:5.0f} s  {step.why}".rstrip())
        room_s -= expected_s
    return "\n".join(f"call {number}:\n" + "\n".join(call) for number, call in enumerate(lines, 1) if call)


def _go(steps: list[Step], book: Book, minutes: float, archive: Path | None) -> None:
    ends = time.monotonic() + 60 * minutes - LATER
    for place, step in enumerate(steps):
        left_s = ends - time.monotonic()
        if place and book.expected_s(step) > left_s:
            break
        _say(f"{step.name} begins, {left_s:.0f} s are left in this call")
        book.run(step, min(step.limit_s, max(left_s, 1)))
        _say(f"{step.name}: {book.outcome(step)}")
        if archive:  # after each step: a call may be ended from outside
            book.pack(archive)


class Book:
    """What was done, in ``folder``: state.json, the files that each step stored below tree/, and logs."""

    def __init__(self, folder: Path, root: Path = ROOT, commit: str = "") -> None:
        self.folder, self.root = Path(folder), Path(root)
        self.state_file = self.folder / "state.json"
        (self.folder / "tree").mkdir(parents=True, exist_ok=True)
        self.commit = commit or self.git("rev-parse", "HEAD") or "unknown"
        self.state = json.loads(self.state_file.read_text("utf-8")) if self.state_file.exists() else {}
        if not files.whole(self.state):
            raise SystemExit(f"{self.state_file} is damaged; delete it, and what is in tree/ is applied all the same")
        self.state.pop(files.SEAL, None)

    def git(self, *words: str) -> str:
        asked = subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True)
        return asked.stdout.strip() if asked.returncode == 0 else ""

    def code(self, step: Step) -> str:
        """Checksum of what a step runs: the package, and the tool or the code of the notebook."""
        digest = hashlib.sha256()
        for path in sorted((self.root / "labsupport").rglob("*.py")):
            digest.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        notebook = self.root / "notebooks" / f"{step.lab}.ipynb"
        if step.words[0] != "-m":
            digest.update((self.root / step.words[0]).read_bytes())
        elif notebook.exists():
            digest.update(_code_of(notebook).encode())
        return digest.hexdigest()

    def outcome(self, step: Step) -> str:
        entry = self.state[step.name]
        return f"{entry['outcome']} after {entry['seconds']:.0f} s, {len(entry['files'])} files stored"

    def failed(self, step: Step) -> bool:
        return self.state.get(step.name, {}).get("outcome") == "failed"

    def waits(self, step: Step, *, again: bool = False) -> bool:
        """Whether a step is to be run: not done with this code, or failed and wanted again."""
        entry = self.state.get(step.name)
        if entry is None or entry["outcome"] == "cut off" or entry["code"] != self.code(step):
            return True
        return again and entry["outcome"] == "failed"

    def expected_s(self, step: Step) -> float:
        """Seconds: of its last run, half as much again if it was cut off; else of a recording, else half its limit."""
        if entry := self.state.get(step.name):
            return entry["seconds"] * (1.5 if entry["outcome"] == "cut off" else 1)
        if step.words[0] == "-m" and step.name not in GUESSES_S:
            for path in sorted(self.root.glob(f"data/recordings/h*/{step.lab}.json"), reverse=True):
                took = json.loads(path.read_text("utf-8"))["metrics"].get("lab.seconds")
                if took:
                    return took["value"]
        return GUESSES_S.get(step.name, step.limit_s / 2)

    def run(self, step: Step, limit_s: float) -> None:
        """Run a step alone, and keep at once how it ended and what it stored, also when it failed half way."""
        before, began = self._watched(), time.monotonic()
        log = self.folder / f"{step.name}.log"
        words = [*step.words]
        if words[:3] == ["-m", "labsupport", "record"]:
            words += ["--save", str(self.folder / "executed")]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.root,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "IPYKERNEL_CELL_NAME": "<cell>"},
            )
            try:
                outcome = "ok" if process.wait(limit_s) == 0 else "failed"
            except subprocess.TimeoutExpired:
                outcome = "failed" if limit_s >= step.limit_s else "cut off"
            finally:
                if process.poll() is None:  # its kernels and workers, too
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        stored = {name: mark for name, mark in self._watched().items() if before.get(name) != mark}
        for name in stored:
            target = self.folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, target)
        self.state[step.name] = {
            "outcome": outcome,
            "seconds": round(time.monotonic() - began, 1),
            "commit": self.commit,
            "code": self.code(step),
            "date": date.today().isoformat(),
            "files": stored,
            "last_lines": log.read_text("utf-8", errors="replace").splitlines()[-12:] if outcome != "ok" else [],
        }
        files.replace(self.state_file, json.dumps(files.sealed(self.state), indent=1).encode())

    def _watched(self) -> dict[str, str]:
        """File → checksum of all that a step may store."""
        paths = [*self.root.glob("data/recordings/*/*.json"), *self.root.glob("notebooks/*.ipynb")]
        return {path.relative_to(self.root).as_posix(): manifest.checksum(path) for path in sorted(paths)}

    def clear(self) -> None:
        """Take the older recordings of the machine that recorded away: a tool adds to what it finds."""
        from labsupport.recordings import provenance

        kept = [path.name for path in (self.folder / "tree" / "data" / "recordings").glob("*") if path.is_dir()]
        for machine_class in kept or [provenance.here("python3 tools/record_all.py")["machine_class"]]:
            for path in (self.root / "data" / "recordings" / machine_class).glob("*.json"):
                path.unlink()

    def restore(self) -> str:
        """Put what was stored back into the tree, but no notebook whose code is another by now; what was done."""
        back, other = [], []
        for kept in sorted(path for path in (self.folder / "tree").rglob("*") if path.is_file()):
            name = kept.relative_to(self.folder / "tree").as_posix()
            here = self.root / name
            if here.suffix == ".ipynb" and (not here.exists() or _code_of(here) != _code_of(kept)):
                other.append(name)
            elif not here.exists() or manifest.checksum(here) != manifest.checksum(kept):
                here.parent.mkdir(parents=True, exist_ok=True)
                files.replace(here, kept.read_bytes())
                back.append(name)
        said = [f"put back: {', '.join(back)}"] if back else []
        return "\n".join([*said, *(f"left, because the code of {name} is another by now" for name in other)])

    def pack(self, target: Path) -> None:
        """One archive of everything but the executed notebooks of labs that went well."""
        well = {f"{name}.ipynb" for name, entry in self.state.items() if entry["outcome"] == "ok"}
        with tarfile.open(target, "w:gz") as archive:
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and not (path.parent.name == "executed" and path.name in well):
                    archive.add(path, path.relative_to(self.folder).as_posix())


def _code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return json.dumps(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
