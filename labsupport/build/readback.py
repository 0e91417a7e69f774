"""Which precision an engine really has, read back from the engine: the cure for the silent FP32 engine."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from labsupport.build import network
from labsupport.errors import PrecisionMismatch

NARROW = ("fp4", "int4", "fp8", "int8", "bf16", "fp16")


def read_precisions(layers: list) -> Counter:
    """Count layers by the type they compute in, from the engine inspector's layer records (8.6, 10 and 11 schemas).

    A layer's type is its weights' type where it has weights, else its first output's; copies between layouts and
    constants are left out. A Myelin region hides its kernels: it counts as the narrowest type at its border, or as
    "region" where that border is FP32 and proves nothing. "unread" stands for a type that the inspector withholds.
    Returns e.g. Counter({"fp16": 20}).
    """
    counts: Counter = Counter()
    for layer in _one_profile(layers):
        if not isinstance(layer, Mapping) or layer.get("LayerType") in ("Reformat", "NoOp", "Constant", "Shuffle"):
            continue
        border = [_type(tensor) for side in ("Outputs", "Inputs") for tensor in layer.get(side) or []]
        weights = layer.get("Weights") or layer.get("ConvWeights")  # the latter in a convolution fused with its pooling
        if isinstance(weights, Mapping) and weights.get("Count", 0):
            counts[network.short_type(weights.get("Type", ""))] += 1
        elif str(layer.get("LayerType")).lower() == "myelin":
            counts[next((kind for kind in NARROW if kind in border), "region")] += 1
        elif layer.get("Outputs"):
            counts[border[0]] += 1
    counts.pop("", None)
    return counts


def demand(
    precision: str, read: Counter, evidence: str, stem: str, generation: str | None, *, strict: bool = False
) -> None:
    """Stop when the engine is not what was asked for: the check that makes a silent FP32 engine impossible."""
    wanted = {"tf32": "fp32"}.get(precision, precision)
    prescribed = strict or generation != "8.6"  # then even layers that cannot be read were told their types
    if precision == "as-is":
        return
    if wanted == "fp32" and read and not any(kind in read for kind in NARROW):
        return
    if wanted != "fp32" and (wanted in read or prescribed and (read.get("region") or read.get("unread"))):
        return
    types = ", ".join(f"{k}×{n}" for k, n in read.most_common()) or "no layer whose type it tells"
    if wanted != "fp32" and read.get("region"):
        why = "what runs inside a Myelin region cannot be read; pass strict=True, which prescribes it layer by layer"
    elif generation == "8.6" and wanted != "fp32":
        why = (
            "the 8.6 builder may keep FP32 kernels where it measures them as faster, as it does for small "
            "networks; pass strict=True to make it obey"
        )
    else:
        why = "the graph decides the types: cast it, or pass precision='as-is'"
    raise PrecisionMismatch(f"{stem}: asked for {precision}, but the {evidence} shows {types}. {why}")


def inspect(trt, data: bytes, log) -> list:
    """The inspector's layer records of a serialized engine; free shapes as they are at the profile's best shapes."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # built a moment ago, in this process
    trt_engine = runtime.deserialize_cuda_engine(data)
    if trt_engine is None:
        return []
    inspector = trt_engine.create_engine_inspector()
    context = _at_best_shapes(trt, trt_engine)
    if context is not None:  # without one the inspector withholds the types of free shapes
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not text and context is not None:  # some engines with Myelin regions answer only without a context
        text = trt_engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    # 8.6 writes raw control characters into its JSON, which strict parsing refuses.
    return json.loads(text, strict=False).get("Layers", [])


def _at_best_shapes(trt, trt_engine):
    names = [trt_engine.get_tensor_name(i) for i in range(trt_engine.num_io_tensors)]
    inputs = [name for name in names if trt_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    if not any(-1 in tuple(trt_engine.get_tensor_shape(name)) for name in inputs):
        return None
    context = trt_engine.create_execution_context()
    for name in inputs if context is not None else ():
        context.set_input_shape(name, tuple(trt_engine.get_tensor_profile_shape(name, 0)[1]))
    return context


def _one_profile(layers: list) -> list:
    """The layers of the first optimization profile; the inspector lists all of them once a profile."""
    return [
        layer
        for layer in layers
        if not re.search(r" \[profile [1-9]\d*\]$", str(layer.get("Name", "") if isinstance(layer, Mapping) else layer))
    ]


def _type(tensor: Mapping) -> str:
    text = str(
        tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or ""
    )
    return "unread" if text.startswith("N/A") else network.short_type(text)
