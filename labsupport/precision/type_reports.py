"""Which types a graph or an engine really has."""

from __future__ import annotations

from collections import Counter

from labsupport import build, environment, export
from labsupport.build import network as network_of
from labsupport.build import readback
from labsupport.export import surgery

# Nodes that carry values elsewhere; they compute nothing, so nothing is rounded in them.
MOVERS = (
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Identity",
    "Expand",
    "Cast",
    "Shape",
    "Pad",
    "Constant",
)


def node_types(graph) -> dict[str, str]:
    """Which type each computing node of a graph writes: node name → "fp32", "fp16" or "bf16"."""
    import onnx

    graph = export.load(graph)
    model = graph.model()
    short = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    kinds = {name: short.get(v.type.tensor_type.elem_type) for name, v in surgery.values_of(model).items()}
    written = {node.name: kinds.get(node.output[0]) for node in model.graph.node if node.op_type not in MOVERS}
    return {name: kind for name, kind in written.items() if kind}


def types(graph) -> Counter:
    """How many computing nodes of a graph write which type, e.g. Counter({"fp16": 21, "fp32": 8})."""
    return Counter(node_types(graph).values())


def read_back(plan, network) -> tuple[Counter, str]:
    """(layers by type, where that was read) of an engine that the raw TensorRT API built: ``plan`` and its network.

    The engine inspector answers where the engine can be opened; without a GPU the network does, whose types a strongly
    typed builder keeps. Build with ``profiling_verbosity`` DETAILED, or the inspector has nothing to say. Of a builder
    that stopped, whose ``plan`` is None, there are no layers to count.
    """
    if plan is None:
        return Counter(), "builder that stopped"
    if environment.has("engine execution"):
        return readback.read_precisions(
            readback.inspect(environment.tensorrt(), bytes(plan), build.logger())
        ), "engine inspector"
    return network_of.layer_types(network), "typed network"
