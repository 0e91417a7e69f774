"""Recording files: read only with their machine, versions, date and command; written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import re
from pathlib import Path

from labsupport import files
from labsupport.errors import RecordingError

ROOT = Path(__file__).resolve().parents[2] / "data" / "recordings"
LAB_NAME = re.compile(r"[0-9A-Za-z_]{1,100}")
METRIC_NAME = re.compile(r"[a-z0-9_]{1,100}\.[a-z0-9_]{1,100}")
KEYS = {"machine_class", "machine", "date", "command", "metrics", "plan", files.SEAL}
RUNTIMES = {
    "trt": ("TensorRT", "tensorrt"),
    "rtx": ("TensorRT-RTX", "tensorrt"),
    "ort": ("ONNX Runtime", "onnxruntime"),
    "torch": ("PyTorch", "torch"),
}


def here(command: str) -> dict:
    """Machine, date and command of a result obtained now."""
    from labsupport import environment

    facts = {key: value for key, value in dataclasses.asdict(environment.machine()).items() if value is not None}
    return {
        "machine_class": environment.machine_class(),
        "machine": facts,
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def where(recording: dict, machine_class: str) -> tuple[str, str]:
    """The processor and the runtime with its version, as a label shows them."""
    machine = recording["machine"]
    part = machine["cpu"] if machine_class.startswith("cpu") or not machine.get("gpu") else machine["gpu"]
    title, key = RUNTIMES[_runtime(machine_class)]
    return part, f"{title} {machine[key]}"


def missing(recording, machine_class: str) -> list[str]:
    """What a recording lacks of its provenance, by name."""
    if not isinstance(recording, dict) or not isinstance(recording.get("machine"), dict):
        return [
            "machine",
            *(key for key in ("date", "command") if not (isinstance(recording, dict) and recording.get(key))),
        ]
    on_cpu = machine_class.startswith("cpu")
    needed = ["cpu"] if on_cpu else ["gpu", "driver"]
    needed += ["python", RUNTIMES[_runtime(machine_class)][1]]
    lacking = [f"machine.{key}" for key in needed if not recording["machine"].get(key)]
    if not _is_date(recording.get("date")):
        lacking.append("date (as 2026-11-22)")
    if not isinstance(recording.get("command"), str) or not recording["command"].strip():
        lacking.append("command")
    return lacking


def read(root: Path, machine_class: str, lab: str) -> dict:
    """The recording of one lab on one class of machine; refuses one without provenance or with broken metrics."""
    path = Path(root) / machine_class / f"{lab}.json"
    recording = read_json(path)
    lacking = missing(recording, machine_class)
    if not isinstance(recording, dict) or not isinstance(recording.get("metrics"), dict) or not recording["metrics"]:
        lacking.append("metrics")
    again = f"record it again with `python3 -m labsupport record {lab}`"
    if lacking:
        raise RecordingError(f"{_short(path)} lacks {', '.join(lacking)}; {again}")
    metrics = {}
    for name, entry in recording["metrics"].items():
        try:
            metrics[name] = check_metric(name, entry)
        except RecordingError as error:
            raise RecordingError(f"{_short(path)}: {error}; {again}") from None
    return {**recording, "metrics": metrics}


def check_metric(name: str, entry) -> dict:
    """{"value", "unit", "samples", "spread"} of one metric, or RecordingError saying what is wrong with it."""
    if not isinstance(name, str) or not METRIC_NAME.fullmatch(name):
        raise RecordingError(
            f"metric name {name!r} is not like 'resnet18_b32.top1_agreement': "
            "lower-case letters, digits and _, with one dot between subject and quantity"
        )
    entry = entry if isinstance(entry, dict) else {}
    value, unit, samples, spread = (entry.get(key) for key in ("value", "unit", "samples", "spread"))
    if not _is_number(value):
        raise RecordingError(f"{name} has the value {value!r}; expected a finite number")
    if not isinstance(unit, str) or not unit.strip():
        raise RecordingError(f"{name} has no unit; pass unit='ms', '×', 'MiB', 'fraction', …")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise RecordingError(f"{name} has samples={samples!r}; expected how many were taken, or None")
    if spread is not None and (not _is_number(spread) or spread < 0):
        raise RecordingError(f"{name} has spread={spread!r}; expected IQR over median, or None")
    return {**entry, "value": value, "unit": unit, "samples": samples, "spread": spread}


def check_lab(name: str) -> str:
    """A lab's name as it was given; RecordingError for one that no file could have."""
    if not isinstance(name, str) or not LAB_NAME.fullmatch(name):
        raise RecordingError(f"lab name {name!r} is not like '01_measuring': letters, digits and _ only")
    return name


def read_json(path: Path):
    """What a JSON file holds, without its checksum; RecordingError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordingError(
            f"there is no recording {_short(path)}; `python3 -m labsupport record` makes them on a GPU machine"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordingError(f"{_short(path)} cannot be read ({error}); restore it, for example with git") from error
    if not isinstance(content, dict):
        return content
    foreign = {"metrics", "plan"} & content.keys() and content.keys() - KEYS
    if foreign or not files.whole(content):
        raise RecordingError(
            f"{_short(path)} is damaged: its checksum is another, or a key has changed; restore it, as with git "
            "(where a merge has joined two recordings: python3 tools/seal_recordings.py)"
        )
    return {key: value for key, value in content.items() if key != files.SEAL}


@contextlib.contextmanager
def locked(path: Path):
    """One process at a time reads, changes and writes this file. RecordingError where its folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path):
            yield
    except OSError as error:
        raise RecordingError(f"{_short(path)} cannot be locked ({error}); what was there is unchanged") from error


def write_json(path: Path, content: dict) -> Path:
    """Write through a temporary file beside it, so that the old file stands until the new one is complete."""
    text = json.dumps(files.sealed(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode("utf-8"), mode=0o644)
    except OSError as error:
        raise RecordingError(
            f"{_short(path)} cannot be written ({error}); the old file, if any, is as it was"
        ) from error
    return path


def _runtime(machine_class: str) -> str:
    tail = machine_class.rpartition("-")[2]
    names = [name for name in RUNTIMES if tail.startswith(name)]
    if not names:
        raise RecordingError(
            f"machine class {machine_class!r} names no runtime; expected one like h100-trt8.6 or cpu-ort1.31"
        )
    return names[0]


def _short(path: Path) -> str:
    return "/".join(path.parts[-4:])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_date(text) -> bool:
    try:
        return bool(datetime.date.fromisoformat(text[:10]))
    except (TypeError, ValueError):
        return False
