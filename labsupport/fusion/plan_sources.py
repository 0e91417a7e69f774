"""What an X-ray can be taken of: engines, recorded plans, inspector JSON in any wrapping, ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput, NotAvailable
from labsupport.fusion.plan_text import parse, read_text


def is_onnx_runtime(source) -> bool:
    """Whether a source is ONNX Runtime: a runtime with a session, or a graph that it executed."""
    if isinstance(source, export.OnnxGraph):
        return True
    return hasattr(source, "executed") and hasattr(source, "session")


def content_of(source) -> tuple[object, str]:
    """Parsed inspector JSON of any source, and a name for it."""
    if hasattr(source, "sidecar"):  # engines.Engine
        if not source.layers:
            raise NotAvailable(
                f"{source.name} has no layer records: it was built where no GPU could open it, "
                "so nothing is known but its typed network; build it on the GPU it is for, or read a recorded plan"
            )
        return {"Layers": source.layers}, source.name
    if hasattr(source, "plan") and hasattr(source, "machine"):  # plans.RecordedPlan
        return source.plan, source.name
    if isinstance(source, (Mapping, list, tuple)):
        content, name = source, "the plan"
    elif isinstance(source, str) and (source.lstrip()[:1] in ("{", "[", "") or "\n" in source):
        content, name = parse(source), "the plan"
    elif isinstance(source, (str, os.PathLike)):
        content, name = parse(read_text(source), Path(source).name), Path(source).stem
    else:
        raise BadInput(
            f"source is a {type(source).__name__}; expected an Engine, a recorded plan, the inspector's JSON (path, "
            "text or parsed), or a runtimes.OnnxRuntime"
        )
    if isinstance(content, Mapping) and "plan" in content and "machine" in content:
        content = content["plan"]
    return content, name
