"""Write the tables of docs/instructor.md and all of docs/typical_mistakes.md, from recordings, notebooks and checkers.

    python3 tools/instructor.py

Nothing in them is typed by hand: minutes come from words, lines and `lab.seconds`, needs from data/needs.json, bands
from data/recordings, mistakes from the messages of the checkers. A test holds both files against this script.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import lab_minutes

from labsupport.exercises import base
from labsupport.recordings import bands, names

GUIDE, MISTAKES = ROOT / "docs" / "instructor.md", ROOT / "docs" / "typical_mistakes.md"
RECORDINGS = ROOT / "data" / "recordings"
BREAKS = 0.10  # of the time in the room: breaks, questions, and starting the machines
# hours → (labs that everybody does, labs for whoever is done, in this order)
SYLLABI = {
    2: (("00", "05"), ("01",)),
    4: (("00", "01", "05", "06"), ("03", "02")),
    8: (("00", "01", "02", "03", "05", "06", "11"), ("14b", "07", "12")),
}
PER_LAB = 2  # metrics of each lab in the table of bands
MESSAGES = 6  # of each exercise in the list of mistakes


def labs() -> list[Path]:
    """The notebooks in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def needs() -> dict[str, dict]:
    """Class of machines → what tools/measure_needs.py measured there."""
    file = ROOT / "data" / "needs.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def minutes(path: Path) -> dict[str, float]:
    """{"read", "exercises", "cpu", "gpu", "all"} of one lab's core; "cpu" or "gpu" is missing where none ran it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    asked = sum(".check(" in "".join(cell["source"]) for cell in notebook["cells"])
    took = {"read": lab_minutes.to_read(notebook), "exercises": asked * lab_minutes.EXERCISE_MINUTES}
    run = lab_minutes.to_run(path.stem)
    for machine, entry in needs().items():
        if machine not in run and path.stem in entry["labs"]:
            run[machine] = entry["labs"][path.stem]["seconds"] / 60
    for kind in ("cpu", "gpu"):
        ran = [value for machine, value in run.items() if machine.startswith("cpu") == (kind == "cpu")]
        if ran:
            took[kind] = max(ran)
    return {**took, "all": took["read"] + took["exercises"] + max(took.get("cpu", 0), took.get("gpu", 0))}


def minutes_table() -> str:
    """One row a lab."""
    rows = ["| lab | reading | exercises | running, processor | running, GPU | together |", "| --- |" + " ---: |" * 5]
    for path in labs():
        took = minutes(path)
        run = [f"{took[kind]:.1f}" if kind in took else "not measured" for kind in ("cpu", "gpu")]
        cells = [f"{took['read']:.0f}", f"{took['exercises']:.0f}", *run, f"**{took['all']:.0f}**"]
        rows.append(f"| {path.stem} | {' | '.join(cells)} |")
    return "\n".join(rows)


def plan(hours: int) -> tuple[list[Path], list[Path], float, float]:
    """(labs for everybody, labs for whoever is done, minutes of the first, minutes in the room without breaks)."""
    by_number = {path.stem.partition("_")[0]: path for path in labs()}
    must, more = ([by_number[number] for number in numbers] for numbers in SYLLABI[hours])
    return must, more, sum(minutes(path)["all"] for path in must), hours * 60 * (1 - BREAKS)


def syllabi() -> str:
    """A table for each length of a course, with the minute at which each lab begins."""
    parts = []
    for hours in SYLLABI:
        must, more, needed, there = plan(hours)
        rows, start = ["| begins | lab | minutes |", "| ---: | --- | ---: |"], 0
        for path in must:
            took = minutes(path)["all"]
            rows.append(f"| {start // 60}:{start % 60:02} | {path.stem} | {took:.0f} |")
            start += round(took)
        spare = ", ".join(f"{path.stem} ({minutes(path)['all']:.0f})" for path in more)
        said = f"{needed:.0f} of {there:.0f} minutes; {there - needed:.0f} are left. For whoever is done: {spare}."
        parts.append(f"### {hours} hours\n\n" + "\n".join(rows) + f"\n\n{said}")
    return "\n\n".join(parts)


def needs_table() -> str:
    """Memory and disk of each lab's kernel, and what thirty of the largest take."""
    parts = []
    for machine, entry in sorted(needs().items()):
        on_gpu = any("gpu_memory_mib" in lab for lab in entry["labs"].values())
        head = ["lab", "memory, MiB", "cache on disk, MiB", *(["GPU memory, MiB"] if on_gpu else [])]
        rows = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        for lab, need in entry["labs"].items():
            cells = [need["memory_mib"], need["disk_mib"], *([need.get("gpu_memory_mib", "")] if on_gpu else [])]
            rows.append(f"| {lab} | {' | '.join(map(str, cells))} |")
        most = max(entry["labs"], key=lambda lab: entry["labs"][lab]["memory_mib"])
        gib = entry["labs"][most]["memory_mib"] / 1024
        said = (
            f"Measured on {machine} with {entry['cores']} cores on {entry['date']} by `{entry['command']}`. The "
            f"largest is {most} with {gib:.1f} GiB; thirty of its kernels at once take {math.ceil(30 * gib)} GiB."
        )
        parts.append("\n".join(rows) + f"\n\n{said}")
    contexts = [f"{mib:.0f} MiB on {machine}" for machine, mib in _contexts().items()]
    parts.append(f"On a GPU each kernel also holds a CUDA context: {', '.join(contexts)}, beside its engines.")
    return "\n\n".join(parts)


def _contexts() -> dict[str, float]:
    """Class of machines → MiB of GPU memory that a CUDA context took where lab 04 was recorded."""
    found = {}
    for path in sorted(RECORDINGS.glob("h*/04_memory.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        if "served_resnet50.cuda_context" in metrics:
            found[path.parent.name] = metrics["served_resnet50.cuda_context"]["value"]
    return found


def bands_table() -> str:
    """The first ratios and accuracies of each lab, on each class of machines: as recorded, and within which limits."""
    known = bands.load(RECORDINGS)
    rows = ["| lab | machine | what | recorded | band |", "| --- | --- | --- | ---: | ---: |"]
    for path in labs():
        for folder in sorted(one for one in RECORDINGS.iterdir() if (one / f"{path.stem}.json").exists()):
            metrics = json.loads((folder / f"{path.stem}.json").read_text(encoding="utf-8"))["metrics"]
            limits, shown = bands.of_class(known, folder.name), 0
            for name, entry in metrics.items():
                band, _ = bands.find(limits, path.stem, name)
                if band and entry["unit"] in ("×", "fraction") and shown < PER_LAB:
                    shown += 1
                    value = f"{entry['value']:.3g}{' ×' if entry['unit'] == '×' else ''}"
                    what = names.readable(name).replace("|", "/")
                    rows.append(f"| {path.stem} | {folder.name} | {what} | {value} | {band[0]:g} to {band[1]:g} |")
    return "\n".join(rows)


def messages(module) -> dict[str, list[str]]:
    """Exercise → what its checker says of wrong answers, in the order of the source; values as an ellipsis."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {}
    for name, one in base.of(module).items():
        seen: list[ast.AST] = []
        _reach(classes.get(type(one).__name__), functions, seen)
        said = [_said(node.exc.args[0]) for part in seen for node in ast.walk(part) if _raises_wrong(node)]
        found[name] = list(dict.fromkeys(text for text in said if len(text.replace("…", "").split()) > 3))
    return found


def _reach(node: ast.AST | None, functions: dict[str, ast.AST], seen: list[ast.AST]) -> None:
    if node is None or node in seen:
        return
    seen.append(node)
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            _reach(functions.get(part.id), functions, seen)


def _raises_wrong(node: ast.AST) -> bool:
    call = getattr(node, "exc", None)
    return (
        isinstance(node, ast.Raise) and isinstance(call, ast.Call) and ast.unparse(call.func) == "Wrong" and call.args
    )


def _said(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub(r"…(?:\s*…)+", "…", "".join(_said(part) for part in node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _said(node.left) + _said(node.right)
    return "…"


def mistakes() -> str:
    """All of docs/typical_mistakes.md."""
    parts = [
        "# Typical mistakes",
        "What the checkers say to the wrong answers that they foresee, exercise by exercise; an ellipsis stands for a "
        "value of the learner's answer. Written by `python3 tools/instructor.py`; to change a line, change the "
        "checker. For solutions, type `python3 -m labsupport handout --solutions`.",
    ]
    for path in labs():
        module = importlib.import_module(f"labsupport.exercises.lab{path.stem.partition('_')[0]}")
        parts.append(f"## {path.stem}")
        for name, said in messages(module).items():
            if said:
                question = " ".join(base.of(module)[name].question.split())
                parts.append(f"**{name}**: {question}\n\n" + "\n".join(f"- {text}" for text in said[:MESSAGES]))
    return "\n\n".join(parts) + "\n"


def filled(guide: str) -> str:
    """The guide with fresh tables between its marks."""
    for name, table in (
        ("minutes", minutes_table),
        ("syllabi", syllabi),
        ("needs", needs_table),
        ("bands", bands_table),
    ):
        mark = rf"(<!-- {name}: written by tools/instructor.py -->\n).*?(<!-- end of {name} -->)"
        guide, count = re.subn(
            mark, lambda match, table=table: f"{match[1]}\n{table()}\n\n{match[2]}", guide, flags=re.S
        )
        if count != 1:
            raise LookupError(f"docs/instructor.md has {count} places for the table of {name}; one is wanted")
    return guide


def main() -> None:
    """Write both files."""
    GUIDE.write_text(filled(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    MISTAKES.write_text(mistakes(), encoding="utf-8")
    print("docs/instructor.md and docs/typical_mistakes.md are written")


if __name__ == "__main__":
    main()
