"""Finished stages on disk, so that an examination that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from labsupport import environment, files
from labsupport.errors import LabError
from labsupport.examining.rows import Row

FORMAT = 3  # 1: the samples that had calibrated a change judged it, too; 2: so did those that had chosen it
NAME = "stages.json"


def key_of(graph, samples_file: Path | None) -> dict:
    """What a finished stage belongs to: the model's bytes, those of its inputs, and the machine that measured."""
    given = hashlib.sha256(samples_file.read_bytes()).hexdigest() if samples_file else ""
    return {"format": FORMAT, "model": graph.sha256, "inputs": given, "machine": environment.machine_class()}


def read(folder: Path, key: dict) -> dict[str, Row]:
    """Stages that are finished for this very key; none where the file is missing, damaged or of another model."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if content["key"] != key:
            return {}
        return {name: Row.from_plain(row) for name, row in content["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(folder: Path, key: dict, rows: dict[str, Row]) -> None:
    """Keep the finished stages, whole or not at all. Raises LabError where the disk has no room."""
    finished = {name: row.plain() for name, row in rows.items() if not row.retry and not row.failed}
    put(folder / NAME, json.dumps({"key": key, "stages": finished}).encode())


def put(path: Path, data: bytes) -> None:
    """Write one file of an examination. Raises LabError that names the way out."""
    try:
        files.replace(path, data, mode=0o644)
    except OSError as error:
        raise LabError(
            f"{path.name} cannot be written to {path.parent} ({error.strerror}); free some space, or name another "
            "folder with --save. The model is unchanged, and finished stages are kept"
        ) from error


def folder_for(model: Path, save: Path | None) -> Path:
    """The folder of an examination, beside the model where no other was named. Raises LabError."""
    folder = Path(save) if save else model.parent / f"{model.stem}.examined"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise LabError(
            f"the folder {folder} cannot be written to ({error.strerror}); name another one with --save DIR"
        ) from error
    return folder
