"""Engine plans (the inspector's JSON) recorded with their provenance, to be read where there is no GPU."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from labsupport.errors import RecordingError
from labsupport.recordings import provenance

FOLDER = "plans"
PLAN_NAME = re.compile(r"[a-z0-9_][a-z0-9_.]{0,99}")


@dataclass(frozen=True, repr=False)
class RecordedPlan:
    """What the inspector said of one engine, parsed, and where it was built."""

    name: str
    plan: dict | list
    machine: str
    runtime: str
    date: str
    command: str

    def __repr__(self) -> str:
        return f"plan {self.name} recorded on {self.machine}, {self.runtime}, {self.date}"


def save_plan(
    name, json_text, folder: Path | None = None, *, command: str = "python3 -m labsupport record"
) -> RecordedPlan:
    """Keep the inspector's JSON with its provenance, in `folder`, or where a recording run collects its results.

    Outside a recording run (LABSUPPORT_METRICS not set) and without a folder it is only checked and returned, so that
    trying out a lab does not replace the recordings of the workbook.
    """
    content = {**provenance.here(command), "plan": _parse(name, json_text)}
    collected = os.environ.get("LABSUPPORT_METRICS")
    if folder is None and collected:
        folder = Path(collected) / FOLDER
    if folder is not None:
        provenance.write_json(Path(folder) / f"{name}.json", content)
    return _labelled(name, content)


def load_plan(name, folder: Path | None = None) -> RecordedPlan:
    """The recorded plan `name`; refuses one without provenance."""
    _check_name(name)
    folder = Path(folder or provenance.ROOT / FOLDER)
    if not (folder / f"{name}.json").exists():
        names = sorted(path.stem for path in folder.glob("*.json"))
        raise RecordingError(f"there is no recorded plan {name!r}; recorded are {names}")
    content = provenance.read_json(folder / f"{name}.json")
    machine_class = content.get("machine_class") if isinstance(content, dict) else None
    lacking = provenance.missing(content, machine_class) if machine_class else ["machine_class"]
    if not isinstance(content, dict) or not content.get("plan"):
        lacking.append("plan")
    if lacking:
        raise RecordingError(
            f"plan {name!r} lacks {', '.join(lacking)}; record it again with `python3 -m labsupport record`"
        )
    return _labelled(name, content)


def store_plans(collected: Path, root: Path) -> list[Path]:
    """Move the plans of a recording run among the recordings; all are read before the first is replaced."""
    names = sorted(path.stem for path in (collected / FOLDER).glob("*.json"))
    for name in names:
        load_plan(name, collected / FOLDER)
    return [
        provenance.write_json(root / FOLDER / f"{name}.json", provenance.read_json(collected / FOLDER / f"{name}.json"))
        for name in names
    ]


def _parse(name, json_text):
    _check_name(name)
    if not isinstance(json_text, str) or not json_text.strip():
        raise RecordingError(
            f"plan {name!r} is empty: the engine inspector gave no text; "
            "build the engine with detailed profiling verbosity and inspect it again"
        )
    try:
        # strict=False: TensorRT 8.6 leaves raw control characters in its strings
        plan = json.loads(json_text, strict=False)
    except ValueError as error:
        raise RecordingError(
            f"plan {name!r} is not JSON ({error}); ask the inspector for LayerInformationFormat.JSON"
        ) from None
    if not isinstance(plan, (dict, list)) or not plan:
        raise RecordingError(f"plan {name!r} lists nothing: it is {json_text.strip()[:40]!r}; expected layers")
    return plan


def _check_name(name) -> None:
    if not isinstance(name, str) or not PLAN_NAME.fullmatch(name):
        raise RecordingError(
            f"plan name {name!r} is not like 'resnet18_b32.fp16': lower-case letters, digits, _ and dots"
        )


def _labelled(name, content) -> RecordedPlan:
    machine, runtime = provenance.where(content, content["machine_class"])
    facts = content["machine"]
    if facts.get("tensorrt"):
        # TensorRT-RTX builds engines on machines whose runtime is another one
        runtime = f"{'TensorRT-RTX' if facts.get('generation') == 'rtx' else 'TensorRT'} {facts['tensorrt']}"
    return RecordedPlan(name, content["plan"], machine, runtime, content["date"], content["command"])
