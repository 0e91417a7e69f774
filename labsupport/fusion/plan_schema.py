"""The engine inspector's JSON as TensorRT 8.6, 10 and 11 write it, detailed or names only, read into one form.

What confirms which shape of a tensor's record:
- 8.6: {"Format/Datatype": "Channel major FP16 format where …"}, from the H100 plans in data/recordings/plans.
- 10.1: the same on an RTX card (https://github.com/NVIDIA/TensorRT/issues/4020); 10.16 on Hopper writes it for
  convolutions and, for Myelin's kernels ("gemm", "kgen", "shape_call"), the bare type {"Format/Datatype": "Half"}
  (log of cookbook/04-Feature/EngineInspector in https://github.com/NVIDIA/trt-samples-for-hackathon-cn).
- 11: "Format" and "DataType" apart, "I/O Tensors" for "Bindings", from the migration guide alone; NVIDIA's own
  readers look for "Datatype" instead, so both are read. No dump of a real 11 engine was at hand.
  https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from labsupport.errors import BadInput
from labsupport.fusion.layer_names import kind_by_name, metadata_names, of_profile, without_profile

SIZES = {4: "fp32 int32", 2: "fp16 bf16", 1: "int8 uint8 fp8 bool", 8: "int64 fp64", 0.5: "int4 fp4"}
BYTES = {dtype: size for size, dtypes in SIZES.items() for dtype in dtypes.split()}
# The first that occurs in the text names the type; "uint8" and "bfloat16" hold the names of others.
TYPES = [
    tuple(pair.split(":"))
    for pair in (
        "bf16:bf16 bfloat:bf16 fp16:fp16 half:fp16 float16:fp16 uint8:uint8 int8:int8 fp8:fp8 fp4:fp4 int4:int4 "
        "int64:int64 int32:int32 bool:bool fp64:fp64 double:fp64 fp32:fp32 float:fp32"
    ).split()
]
# The inspector's layer type → what the layer is. The first that occurs in the type names the kind; 10 and 11 list
# Myelin's own kernels (kgen: generated code), 8.6 lists a Myelin region as one layer.
KINDS = [
    tuple(pair.split(":"))
    for pair in (
        "reformat:layout noop:no-op constant:constant myelin:region pointwise:pointwise elementwise:pointwise "
        "activation:pointwise unary:pointwise scale:pointwise gemm:matmul matrixmultiply:matmul fullyconnected:matmul "
        "matmul:matmul deconv:convolution conv:convolution pool:pooling softmax:softmax norm:normalization "
        "reduce:reduction mha:attention attention:attention quantize:pointwise cast:pointwise select:pointwise "
        "shape:host signal:wait wait:wait shuffle:layout slice:layout padding:layout concat:layout gather:gather "
        "resize:resize plugin:plugin topk:reduction"
    ).split()
]
# A layer's record has one of these beside its name; a list of devices or of bindings has names as well.
LAYER_KEYS = {"LayerType", "Inputs", "Outputs", "Metadata", "TacticName", "TacticValue", "ParameterType", "StreamId"}
MOST = 2**48  # elements of a tensor: 256 tera
NO_LAUNCH = ("no-op", "constant", "host", "wait")


@dataclass(frozen=True)
class Tensor:
    """A tensor at a kernel's border: shape (-1 is free), dtype ("" where the plan does not say) and memory layout."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    layout: str = ""

    @property
    def bytes(self) -> int | None:
        """Size in bytes, padding of vectorized layouts not counted; None where shape or dtype is open."""
        if self.dtype not in BYTES or any(not isinstance(d, int) or d < 0 for d in self.shape):
            return None
        return math.ceil(math.prod(self.shape) * BYTES[self.dtype])


@dataclass(frozen=True)
class Layer:
    """One layer record of the inspector, whatever release wrote it."""

    name: str
    layer_type: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    tactic: str = ""
    metadata: tuple[str, ...] = ()
    weight_bytes: int = 0
    weight_dtype: str = ""

    @property
    def kind(self) -> str:
        """What the layer is: "convolution", "matmul", "pointwise", "layout", "region", …; "other" where unknown."""
        if self.layer_type:
            text = self.layer_type.lower()
            if text in ("kgen", "fusion"):  # Myelin's own: only the name and the tactic tell more
                more = (self.name + self.tactic).lower()
                return "attention" if "mha" in more else "matmul" if "gemm" in more else "generated"
            return next((kind for mark, kind in KINDS if mark in text), "other")
        return kind_by_name(self.name)


@dataclass(frozen=True)
class Inspected:
    """A plan's layers and the schema they came in: "layer names", "8.6 to 10" or "11".

    An engine of several optimization profiles lists its layers once per profile; ``layers`` are those of one.
    """

    layers: tuple[Layer, ...]
    schema: str
    profiles: int = 1


def inspected(content, what: str = "the plan", profile: int = 0) -> Inspected:
    """Layers of parsed inspector JSON: {"Layers": [...]} or the list itself, of dicts or of names. Raises BadInput."""
    records = _records(content, what)
    layers = tuple(_layer(record, place, what) for place, record in enumerate(records))
    owners = of_profile([(layer.name, *(t.name for t in (*layer.inputs, *layer.outputs))) for layer in layers])
    profiles = max(owners) + 1
    if not isinstance(profile, int) or not 0 <= profile < profiles:
        raise BadInput(
            f"{what} has {profiles} optimization profile{'s' * (profiles > 1)}; "
            f"optimization_profile={profile!r} is none of 0 to {profiles - 1}"
        )
    mine = tuple(layer for layer, owner in zip(layers, owners, strict=True) if owner == profile)
    if profile:
        mine = tuple(_plain(layer) for layer in mine)
    return Inspected(mine, _schema(content, records), profiles)


def _plain(layer: Layer) -> Layer:
    """A layer of a later profile with its tensors called as the network calls them."""
    inputs, outputs = (
        tuple(replace(t, name=without_profile(t.name)) for t in side) for side in (layer.inputs, layer.outputs)
    )
    return replace(layer, inputs=inputs, outputs=outputs)


def _records(content, what: str) -> list:
    records = content
    if isinstance(content, Mapping):
        records = content.get("Layers", content.get("layers"))
        if records is None and "Name" in content and LAYER_KEYS & set(content):
            records = [content]  # get_layer_information of one layer
        if records is None:
            raise BadInput(
                f'{what} has no "Layers": its keys are {sorted(map(str, content))[:8]}; '
                "expected engine inspector JSON of TensorRT 8.6, 10 or 11"
            )
    if not isinstance(records, (list, tuple)):
        raise BadInput(f'{what}: "Layers" is a {type(records).__name__}; expected a list of layers')
    records = [record for record in records if not (isinstance(record, Mapping) and set(record) == {"count"})]
    if not records:
        raise BadInput(
            f"{what} lists no layers: the engine was built with ProfilingVerbosity.NONE, "
            "or could not be opened; build it with build.engine()"
        )
    if all(
        isinstance(record, Mapping) and "Name" not in record and {"timeMs", "averageMs", "medianMs"} & set(record)
        for record in records
    ):
        raise BadInput(
            f"{what} is a profile (names and times), not a plan; "
            "pass it as profile=, and the inspector's JSON as the plan"
        )
    return records


def dtype_of(text: str) -> str:
    """Short name of the type that a format or datatype text names ("Channel major FP16 format …" → "fp16"), or ""."""
    return next((short for mark, short in TYPES if mark in text.lower()), "")


def _layer(record, place: int, what: str) -> Layer:
    if isinstance(record, str):
        # later releases write the metadata behind the name
        return Layer(record.split("[ONNX Layer: ")[0].strip() or record, metadata=metadata_names(record))
    if not isinstance(record, Mapping) or not isinstance(record.get("Name"), str):
        content = sorted(map(str, record))[:6] if isinstance(record, Mapping) else repr(record)[:60]
        raise BadInput(
            f"{what}: layer {place} is {content}; "
            'expected a layer\'s name, or its record with "Name", as TensorRT 8.6, 10 and 11 write it'
        )
    if len(record) > 1 and not LAYER_KEYS & set(record):
        raise BadInput(
            f"{what}: record {place}, {record['Name']!r}, has {sorted(map(str, record))[:6]} and nothing of a layer; "
            "expected the inspector's records with LayerType, Inputs and Outputs"
        )
    # a convolution that took its pooling in calls them ConvWeights and ConvBias
    weights = [record.get(key) for key in ("Weights", "Bias", "ConvWeights", "ConvBias")]
    weights = [w for w in weights if isinstance(w, Mapping) and _count(w.get("Count", 0), record["Name"], what)]
    types = [dtype_of(str(w.get("Type", w.get("DataType", "")))) for w in weights]
    return Layer(
        record["Name"].strip(),
        str(record.get("LayerType", "")),
        tuple(_tensor(t, place, what) for t in _tensors(record, "Inputs", place, what)),
        tuple(_tensor(t, place, what) for t in _tensors(record, "Outputs", place, what)),
        str(record.get("TacticName") or record.get("TacticValue") or ""),
        metadata_names(str(record.get("Metadata", ""))),
        math.ceil(sum(w["Count"] * BYTES.get(dtype, 0) for w, dtype in zip(weights, types, strict=True))),
        types[0] if types else "",
    )


def _count(count, layer: str, what: str) -> int:
    if type(count) is not int or not 0 <= count <= MOST:
        raise BadInput(f"{what}: layer {layer!r} has {str(count)[:40]} weights; expected a whole number, 0 or more")
    return count


def _tensors(record, key, place, what) -> list:
    entries = record.get(key, [])
    if not isinstance(entries, (list, tuple)):
        raise BadInput(
            f'{what}: "{key}" of layer {place} ({record["Name"]!r}) is a {type(entries).__name__}; '
            "expected a list of tensors"
        )
    return list(entries)


def _tensor(record, place, what) -> Tensor:
    if isinstance(record, str):
        return Tensor(record)
    if not isinstance(record, Mapping):
        raise BadInput(
            f'{what}: a tensor of layer {place} is {record!r}; expected a record with "Name" and "Dimensions"'
        )
    layout = str(record.get("Format/Datatype") or record.get("Format/DataType") or record.get("Format") or "")
    # 11 gives the type a field of its own; until 10 it stands in the format's text
    own = str(record.get("DataType") or record.get("Datatype") or "")
    shape = record.get("Dimensions")
    shape = tuple(shape) if isinstance(shape, (list, tuple)) else (-1,)
    if any(type(axis) is not int or axis < -1 for axis in shape) or math.prod(map(abs, shape)) > MOST:
        raise BadInput(
            f"{what}: tensor {record.get('Name')!r} of layer {place} has the dimensions {str(shape)[:80]}; expected "
            "whole numbers, -1 for a free one"
        )
    return Tensor(str(record.get("Name", "")), shape, dtype_of(own) or dtype_of(layout), layout)


def _schema(content, records) -> str:
    if all(isinstance(record, str) for record in records):
        return "layer names"
    tensors = [
        t
        for r in records
        if isinstance(r, Mapping)
        for k in ("Inputs", "Outputs")
        for t in r.get(k, [])
        if isinstance(t, Mapping)
    ]
    split = any("Format" in t and {"DataType", "Datatype"} & set(t) for t in tensors)
    return "11" if split or isinstance(content, Mapping) and "I/O Tensors" in content else "8.6 to 10"
