"""The JSON text of an inspector or a profiler: read and parsed, and named where it is something else."""

from __future__ import annotations

import json
import math
from pathlib import Path

from labsupport.errors import BadInput


def read_text(path) -> str:
    """The text of a JSON file, or BadInput naming what lies there instead."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(
            f"{path.name}: no such file (looked in {path.parent}); "
            f"give the inspector's JSON, saved with recordings.save_plan"
        )
    data = path.read_bytes()
    kinds = {
        b"ftrt": "a serialized engine: open it with build.load(path) and pass the engine",
        b"\x08": "an ONNX file: pass it as graph=",
        b"PK\x03\x04": "a zip archive",
        b"\x89PNG": "a PNG picture",
        b"<": "an HTML or XML page (a failed download?)",
    }
    format = next((what for magic, what in kinds.items() if data.lstrip()[: len(magic)] == magic), "")
    if format:
        raise BadInput(f"{path.name} is not the inspector's JSON, it is {format}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(
            f"{path.name} is not text; expected the inspector's JSON (LayerInformationFormat.JSON) in UTF-8"
        ) from None


def parse(text: str, what: str = "the plan"):
    """Parse JSON text; an empty, cut off or foreign text gets a BadInput that says which of them it is."""
    if not text.strip():
        raise BadInput(
            f"{what} is empty: the inspector gave no text, or the copy was cut off; inspect the engine again"
        )
    try:
        # 8.6 writes raw control characters into its strings
        return json.loads(text, strict=False, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise BadInput(
            f"{what} is nested too deeply for an inspector's JSON; save the inspector's text again"
        ) from None
    except _NotFinite as error:
        raise BadInput(
            f"{what} holds the number {error}, and an inspector writes finite numbers only; save its text again"
        ) from None
    except ValueError as error:
        start = text.strip()[:40]
        if start[0] not in "{[":
            raise BadInput(
                f"{what} is not JSON: it begins {start!r}; ask the inspector for LayerInformationFormat.JSON"
            ) from None
        raise BadInput(
            f"{what} is cut off or damaged JSON ({len(text)} characters; {error}); save the inspector's text again"
        ) from None


class _NotFinite(Exception):
    """A number in a JSON text is NaN, infinite or too large."""


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotFinite(text[:40])
    return number
