"""Which precision an engine really has, read back from the engine: the cure for the silent FP32 engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from labsupport import network
from labsupport.errors import PrecisionMismatch


def read_precisions(layers: list) -> Counter:
    """Count layers by the type they compute in, from the engine inspector's layer records (8.6, 10 and 11 schemas).

    A layer's type is its weights' type where it has weights, else its first output's; reformatting copies and
    constants are left out. Myelin regions are counted by their outputs. Returns e.g. Counter({"fp16": 20}).
    """
    counts: Counter = Counter()
    for layer in layers:
        if not isinstance(layer, Mapping) or layer.get("LayerType") in ("Reformat", "NoOp", "Constant", "Shuffle"):
            continue
        weights = layer.get("Weights") or {}
        outputs = layer.get("Outputs") or []
        text = weights.get("Type") if isinstance(weights, Mapping) and weights.get("Count", 0) else None
        if not text and outputs:
            first = outputs[0]
            text = first.get("Datatype") or first.get("DataType") or first.get("Format/Datatype") or first.get("Format")
        counts[network.short_type(text or "")] += 1
    counts.pop("", None)
    return counts


def demand(precision: str, read: Counter, evidence: str, stem: str, generation: str | None):
    """Stop when the engine is not what was asked for: the check that makes a silent FP32 engine impossible."""
    floats = {k: n for k, n in read.items() if k in ("fp32", "fp16", "bf16", "int8", "fp8", "int4", "fp4")}
    wanted = {"tf32": "fp32"}.get(precision, precision)
    if precision == "as-is" or not floats:
        return
    narrow = {k for k in floats if k != "fp32"}
    if wanted == "fp32" and not narrow or wanted in floats and wanted != "fp32":
        return
    found = ", ".join(f"{k}×{n}" for k, n in read.most_common())
    why = (
        "the 8.6 builder may keep FP32 kernels where it measures them as faster, as it does for small networks; pass strict=True to make it obey"
        if generation == "8.6" and wanted != "fp32"
        else "the graph decides the types: cast it, or pass precision='as-is'"
    )
    raise PrecisionMismatch(f"{stem}: asked for {precision}, but the {evidence} shows {found}. {why}")


def inspect(trt, data: bytes, log) -> list:
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # built a moment ago, in this process
    trt_engine = runtime.deserialize_cuda_engine(data)
    if trt_engine is None:
        return []
    inspector = trt_engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    # 8.6 writes raw control characters into its JSON, which strict parsing refuses.
    return json.loads(text, strict=False).get("Layers", [])
