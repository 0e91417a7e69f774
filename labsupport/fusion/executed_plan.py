"""ONNX Runtime's optimized graph as a plan: one kernel per node that runs."""

from __future__ import annotations

import os

from labsupport import export, runtimes
from labsupport.errors import BadInput
from labsupport.fusion import executed_nodes, executed_values
from labsupport.fusion.executed_nodes import Placement
from labsupport.fusion.kernels import Kernel, Plan, with_times
from labsupport.fusion.layer_times import times_of
from labsupport.fusion.onnx_nodes import Node, NodeGraph, nodes_of
from labsupport.fusion.plan_schema import Tensor

KIND_OF_OP = {
    "convolution": "Conv FusedConv ConvTranspose QLinearConv ConvInteger",
    "matmul": (
        "Gemm MatMul FusedGemm FusedMatMul QGemm QLinearMatMul MatMulInteger DynamicQuantizeMatMul "
        "MatMulIntegerToFloat TransposeMatMul"
    ),
    "pooling": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool QLinearGlobalAveragePool QLinearAveragePool",
    "normalization": (
        "LayerNormalization SkipLayerNormalization BatchNormalization InstanceNormalization EmbedLayerNormalization "
        "GroupNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization LpNormalization"
    ),
    "attention": "Attention MultiHeadAttention QAttention GroupQueryAttention",
    "softmax": "Softmax LogSoftmax QLinearSoftmax",
    "layout": (
        "ReorderInput ReorderOutput Transpose Reshape Flatten Squeeze Unsqueeze Concat Split Slice Expand Tile Pad"
    ),
    "reduction": "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ArgMax ArgMin TopK CumSum",
    "gather": "Gather GatherElements GatherND Scatter ScatterND",
    "shape": "Shape Size Range ConstantOfShape",
    "resize": "Resize Upsample",
    "constant": "Constant",
}
KINDS_OF_OPS = {op: kind for kind, ops in KIND_OF_OP.items() for op in ops.split()}


def kind_of_ops(ops) -> str:
    """Kind of the heaviest operator among several; "pointwise" is what is left when none moves or multiplies."""
    kinds = [KINDS_OF_OPS.get(op, "pointwise") for op in ops]
    order = (
        "convolution attention matmul normalization softmax pooling reduction gather "
        "resize pointwise layout shape constant"
    ).split()
    return min(kinds, key=order.index) if kinds else "unknown"


def plan_of_onnx_runtime(source, graph, profile, name) -> Plan:
    """The plan of a runtimes.OnnxRuntime, or of the graph that it executed beside its original. Raises BadInput."""
    run, executed = (None, source) if isinstance(source, export.OnnxGraph) else (source, source.executed)
    graph = graph if graph is not None else getattr(run, "graph", None)
    if graph is None:
        raise BadInput(
            f"{executed.path.name} is a graph; to see what ONNX Runtime made of which nodes, "
            "pass the original too: graph="
        )
    original, optimized = nodes_of(graph), nodes_of(executed)
    loaded = nodes_of(run.graph) if run is not None and isinstance(run.graph, export.OnnxGraph) else original
    if not loaded.by_name.keys() & original.by_name.keys():
        raise BadInput(
            f"{run.name} runs {run.graph.path.name}, in which no node is named like {original.nodes[0].name!r} of "
            "graph=; pass the graph that the runtime loaded"
        )
    placed = executed_nodes.placement(original, optimized)
    ours, theirs = set(original.producer) & set(placed.ends.values()), set(optimized.inputs) - set(original.inputs)
    if optimized.nodes and (not ours or theirs - original.constants):
        raise BadInput(
            f"{executed.path.name} was not made from this graph: no tensor name of the one is in the other "
            f"(the graph begins with {original.nodes[0].name!r}); pass the graph that the runtime loaded"
        )
    if placed.doubtful and isinstance(graph, (export.OnnxGraph, str, os.PathLike)):
        placed = _by_way_of_plain(graph, original, executed, optimized, placed)
    renamed = {tensor: original.types[end] for tensor, end in placed.ends.items() if end in original.types}
    types = {**optimized.types, **renamed}
    kernels = tuple(_kernel(node, optimized, placed, types) for node in optimized.nodes)
    plan = Plan(name or getattr(run, "name", executed.path.stem), kernels, "onnxruntime", "ONNX Runtime", original)
    return with_times(plan, times_of(profile)) if profile else plan


def _kernel(node: Node, optimized: NodeGraph, placed: Placement, types) -> Kernel:
    return Kernel(
        name=node.name,
        kind=KINDS_OF_OPS.get(node.op, "pointwise"),
        nodes=placed.nodes[node.name],
        doubtful=node.name in placed.doubtful,
        ends={tensor: placed.ends[tensor] for tensor in node.outputs if tensor in placed.ends},
        layer_type=node.op,
        tactic=f"{node.domain}::{node.op}" if node.domain not in ("", "ai.onnx") else node.op,
        inputs=tuple(_tensor(i, types) for i in node.inputs if i and i not in optimized.constants),
        outputs=tuple(_tensor(o, types) for o in node.outputs if o),
        weight_bytes=sum(_tensor(i, types).bytes or 0 for i in node.inputs if i in optimized.constants),
    )


def _by_way_of_plain(graph, original: NodeGraph, executed, optimized: NodeGraph, direct: Placement) -> Placement:
    """The kernels placed by way of the graph as it runs unoptimized, for those that names and structure leave in doubt.

    In that one functions are opened and types cast as in the optimized graph, and both run, so values can be compared.
    """
    loadable = export.load(graph)
    plain = runtimes.OnnxRuntime(loadable, optimization="off").executed
    between = nodes_of(plain)
    upper = executed_nodes.placement(original, between)
    unknown = [o for n in optimized.nodes for o in n.outputs if o and o not in between.producer]
    files = (plain.path, between), (executed.path, optimized)
    values = executed_values.values_of(*files, unknown, loadable.path.parent)
    lower = executed_nodes.placement(between, optimized, values)
    return executed_nodes.through(upper, lower, direct, original)


def _tensor(name, types) -> Tensor:
    dtype, shape = types.get(name, ("", ("?",)))
    return Tensor(name, tuple(d if isinstance(d, int) else -1 for d in shape), dtype)
