"""Damaged files, many processes on one file, and processes that are killed: nothing lost, nothing changed in silence."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from labsupport import recordings
from labsupport.build import engines
from labsupport.errors import LabError
from labsupport.exercises import progress, resetting

LAB, PLAN = "01_measuring", '{"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}]}'
FACTS = {
    "name": "net",
    "precision": "fp16",
    "precisions": {"fp16": 3},
    "evidence": "test",
    "build_s": 1.0,
    "layers": [],
}


def manifest(root: Path) -> dict:
    from labsupport.exercises import shipped

    return shipped.manifest(root)


class Shelf:
    """One file of each kind that the workbook writes, and how each is read."""

    def __init__(self, folder: Path):
        import torch

        from labsupport.recordings import provenance
        from labsupport.training import checkpoints

        self.folder = folder
        os.environ |= {"LABSUPPORT_METRICS": str(folder / "live"), "LABSUPPORT_KEYS": str(folder / "keys")}
        book = recordings.lab(LAB)
        book.record("net.latency", 1.25, "ms", samples=5, spread=0.1)
        book.record("net.agreement", 0.5, "fraction")
        made = recordings.store(LAB, folder / "live", command="python3 -m labsupport record 01", root=folder / "books")
        recordings.save_plan("block", PLAN, folder / "plans")
        del os.environ["LABSUPPORT_METRICS"]
        os.environ["LABSUPPORT_PROGRESS"] = str(folder / "progress.json")
        progress.record(LAB, "one", "right", prediction=3.5)
        progress.record(LAB, "two", "wrong")
        model = torch.nn.Linear(3, 2)
        checkpoints.save(folder / "c.pt", model=model, epoch=2, facts={"seed": 0}, state={"losses": [1.0]})
        engine = engines.save(b"plan bytes" * 50, folder / "net.plan", {**FACTS, "built_for": engines.built_for()})
        (folder / "notebooks").mkdir()
        shutil.copy(next(resetting.ROOT.glob("notebooks/00*.ipynb")), folder / "notebooks" / "00_start_here.ipynb")
        resetting.write_manifest(root=folder)

        def checkpoint():
            filled = torch.nn.Linear(3, 2)
            found = checkpoints.load(folder / "c.pt", model=filled, facts={"seed": 0})
            return found.epoch, dict(found.state), {k: v.tolist() for k, v in filled.state_dict().items()}

        # kind → (file, how it is read, what else the damage may do than raise a LabError)
        self.files: dict[str, tuple[Path, Callable, tuple]] = {
            "recording": (made, lambda: provenance.read(folder / "books", made.parent.name, LAB), ()),
            "plan of kernels": (folder / "plans" / "block.json", lambda: self._plan(), ()),
            "progress": (folder / "progress.json", lambda: progress.read(folder / "progress.json"), (ValueError,)),
            "checkpoint": (folder / "c.pt", checkpoint, ()),
            "engine": (engine.path, lambda: engines.load(engine.path).plan(), ()),
            "sidecar": (engines.sidecar_path(engine.path), lambda: dict(engines.load(engine.path).sidecar), ()),
            "manifest": (folder / "notebooks" / "shipped.json", lambda: manifest(folder) or None, ()),
            "live metrics": (folder / "live" / f"{LAB}.json", lambda: self._live(), ()),
        }

    def _plan(self):
        found = recordings.load_plan("block", self.folder / "plans")
        return found.plan, repr(found)

    def _live(self):
        with tempfile.TemporaryDirectory() as other:
            path = recordings.store(LAB, self.folder / "live", command="x", root=Path(other))
            return json.loads(path.read_text())["metrics"]


def judged(kind: str, read: Callable, before, allowed: tuple, what: str) -> str:
    try:
        after = read()
    except (LabError, *allowed):
        return ""
    except Exception as error:
        return f"{kind}, {what}: {type(error).__name__}: {str(error)[:90]}"
    return "" if after == before or after is None else f"{kind}, {what}: changed without a word"


def flips(shelf: Shelf, count: int, seed: int = 0) -> Iterator[str]:
    """One flipped bit at a time, in a file of a kind drawn at random."""
    dice = random.Random(seed)
    before = {kind: read() for kind, (_, read, _) in shelf.files.items()}
    for _ in range(count):
        kind = dice.choice(list(shelf.files))
        path, read, allowed = shelf.files[kind]
        whole = path.read_bytes()
        bit = dice.randrange(len(whole) * 8)
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield judged(kind, read, before[kind], allowed, f"bit {bit}")
        path.write_bytes(whole)


def damage(shelf: Shelf) -> Iterator[str]:
    """Cut off, empty, another kind of JSON, too deep, keys renamed, a folder in its place."""
    for kind, (path, read, allowed) in shelf.files.items():
        before, whole = read(), path.read_bytes()
        contents = {
            "cut off": whole[: len(whole) // 2],
            "empty": b"",
            "a list": b"[1]",
            "a number": b"7",
            "bytes": b"\xff\x00",
        }
        contents["too deep"] = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        for number, key in enumerate((b'"machine"', b'"value"', b'"cpu"', b'"outcome"', b'"precision"', b'"date"')):
            contents[f"key {number} renamed"] = whole.replace(key, key[:-2] + b'_"')
        for what, content in contents.items():
            if content != whole:
                path.write_bytes(content)
                yield judged(kind, read, before, allowed, what)
        path.unlink()
        path.mkdir()
        yield judged(
            kind, read, before, (*allowed, OSError) if kind == "progress" else allowed, "a folder in its place"
        )
        path.rmdir()
        path.write_bytes(whole)


def child(code: str, folder: Path, *words: str) -> subprocess.Popen:
    paths = {"LABSUPPORT_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1", "LABSUPPORT_QUIET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *words], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


TOGETHER = """
import os, pathlib, sys, time
def wait_for_the_others():
    (pathlib.Path(sys.argv[1]) / f"ready{os.getpid()}").touch()
    while not (pathlib.Path(sys.argv[1]) / "go").exists():
        time.sleep(0.001)
"""
METRICS = """
os.environ["LABSUPPORT_METRICS"] = sys.argv[1] + "/live"
from labsupport import recordings
recordings.lab("01_measuring").record("first.value", 1, "items")
wait_for_the_others()
for number in range(int(sys.argv[3])):
    recordings.lab("01_measuring").record(f"process{sys.argv[2]}.value{number}", number, "items")
"""
BUILDS = """
from labsupport import build, environment
environment.machine()
from labsupport.build import builder_thread
original = builder_thread.build
def counted(*args, **options):
    with open(sys.argv[1] + "/builds", "a") as file:
        file.write("x\\n")
    return original(*args, **options)
builder_thread.build = counted
wait_for_the_others()
for batch in (1, 2):
    engine = build.engine(sys.argv[1] + "/net.onnx", batch=batch)
    assert engine.plan()
"""
LOADS = """
import sys, time
from pathlib import Path
from labsupport.build import engines
from labsupport.errors import LabError
path, end, tried, refused = Path(sys.argv[1]) / "net.plan", time.time() + float(sys.argv[2]), 0, 0
while time.time() < end:
    tried += 1
    try:
        engines.load(path)
    except LabError:
        refused += 1
print(tried, refused)
"""
INTERRUPTED = """
import sys
from labsupport import build, export
from labsupport.models import resnet50
model = resnet50(size=64)
graph = export.to_onnx(model, model.example_input(), path=sys.argv[1] + "/resnet.onnx")
print("begins", flush=True)
build.engine(graph, batch=(1, 8, 32), optimization_level=5)
print("ends", flush=True)
"""


def at_once(crew: list[subprocess.Popen], folder: Path) -> tuple[list[str], list[int]]:
    """Let processes that wait for each other begin; what each said, and its exit code."""
    end = time.monotonic() + 120
    while len(list(folder.glob("ready*"))) < len(crew) and time.monotonic() < end:
        time.sleep(0.01)
    (folder / "go").touch()
    said = [process.communicate(timeout=300)[0] for process in crew]
    for path in (folder / "go", *folder.glob("ready*")):
        path.unlink(missing_ok=True)
    return said, [process.returncode for process in crew]


def shared(folder: Path, scale: int) -> Iterator[str]:
    """Four processes on one file of live metrics; four on one cache of engines; loads while an engine is replaced."""
    count = 20 * scale
    said, _ = at_once([child(TOGETHER + METRICS, folder, str(number), str(count)) for number in range(4)], folder)
    kept = json.loads((folder / "live" / "01_measuring.json").read_text())["metrics"]
    yield from ("" if len(kept) >= 4 * count else f"live metrics: {4 * count - len(kept)} of {4 * count} lost {said}",)
    engines.save(b"0" * 200_000, folder / "net.plan", {**FACTS, "built_for": engines.built_for()})
    readers = [child(LOADS, folder, str(3 * scale)) for _ in range(2)]
    number = 0
    while any(reader.poll() is None for reader in readers):
        number += 1
        engines.save(
            str(number % 10).encode() * 200_000, folder / "net.plan", {**FACTS, "built_for": engines.built_for()}
        )
        time.sleep(0.002)
    for reader in readers:
        tried, refused = (int(word) for word in reader.communicate()[0].split()[-2:])
        yield "" if not refused else f"{refused} of {tried} loads refused while the engine was replaced"


def builds(folder: Path, scale: int) -> Iterator[str]:
    """Where there is a builder: one build a key, however many ask; Ctrl-C in the middle of one."""
    from labsupport import environment, export, models

    if not environment.has("engine building"):
        return
    model = models.article_cnn(size=28)
    export.to_onnx(model, model.example_input(), path=folder / "net.onnx")
    crew = [child(TOGETHER + BUILDS, folder) for _ in range(2 + 2 * (scale > 1))]
    said, _ = at_once(crew, folder)
    count = (folder / "builds").read_text().count("x")
    failed = [text[-200:] for process, text in zip(crew, said) if process.returncode]
    yield f"{len(crew)} processes: {failed[0]}" if failed else ""
    yield "" if count == 2 else f"{len(crew)} processes built {count} engines for 2 keys"
    for turn in range(scale):
        yield interrupted(folder, 0.4 + 0.3 * (turn % 3))


def interrupted(folder: Path, after_s: float) -> str:
    process = child(INTERRUPTED, folder)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "begins" not in line:
        pass
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return "Ctrl-C in a build: it hangs"
    if "ends" in said or process.returncode in (130, -signal.SIGINT):
        return ""
    return f"Ctrl-C in a build: exit code {process.returncode}, {said[-120:]!r}"


LEFTOVERS = """
import sys, os, signal
from pathlib import Path
from labsupport import export, models
from labsupport.export import onnx_graph
model = models.article_cnn()
original = onnx_graph.os.replace
onnx_graph.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
export.scratch_folder()
export.to_onnx(model, model.example_input(), path=Path(sys.argv[1]) / "here" / "net.onnx")
"""


def killed(folder: Path) -> str:
    """A process is killed while it exports; the next start finds its folders a day later, and removes them."""
    from labsupport import export, models

    child(LEFTOVERS, folder).communicate(timeout=120)
    left = [path for place in (folder, folder / "here") for path in place.iterdir() if "export-" in path.name or
            path.name.startswith("labsupport-")]  # fmt: skip
    for path in left:
        os.utime(path, (0, time.time() - 100_000))
    model = models.article_cnn()
    old, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        export.scratch_folder.cache_clear()
        export.to_onnx(model, model.example_input(), path=folder / "here" / "net.onnx")
        export.to_onnx(model, model.example_input())
    finally:
        tempfile.tempdir = old
    still = [path.name for path in left if path.exists()]
    return f"{len(still)} of {len(left)} leftovers of a killed process stay" if still or not left else ""


def trials(scale: int = 1) -> dict[str, Iterator[str]]:
    """Kind → one line a trial, "" where it held."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    shelf = Shelf(folder)
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=folder))
    return {
        "single flipped bits": flips(shelf, 360 * scale, seed=random.randrange(2**32)),
        "damaged files": damage(shelf),
        "files that processes share": shared(work, scale),
        "one build a key, Ctrl-C in a build": builds(work, scale),
        "leftovers of killed processes": (killed(work) for _ in range(1)),
    }


if __name__ == "__main__":
    for kind, lines in trials(int(sys.argv[1])).items():
        begin, ends = time.time(), list(lines)
        sys.stdout.write(f"{kind}: {len(ends)} tried, {sum(map(bool, ends))} failed, {time.time() - begin:.0f} s\n")
        for line in sorted({line for line in ends if line})[:12]:
            sys.stdout.write(f"    {line}\n")
        sys.stdout.flush()
