"""ONNX Runtime's optimized graph as a plan: one kernel per node that runs."""

from __future__ import annotations

from labsupport import export
from labsupport.errors import BadInput
from labsupport.fusion import executed_nodes
from labsupport.fusion.kernels import Kernel, Plan, with_times
from labsupport.fusion.layer_times import times_of
from labsupport.fusion.onnx_nodes import nodes_of
from labsupport.fusion.plan_schema import Tensor

KIND_OF_OP = {
    "convolution": ("Conv", "FusedConv", "ConvTranspose", "QLinearConv", "ConvInteger"),
    "matmul": (
        "Gemm",
        "MatMul",
        "FusedGemm",
        "FusedMatMul",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "TransposeMatMul",
    ),
    "pooling": (
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
    ),
    "normalization": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "BatchNormalization",
        "InstanceNormalization",
        "EmbedLayerNormalization",
        "GroupNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "LpNormalization",
    ),
    "attention": ("Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"),
    "softmax": ("Softmax", "LogSoftmax", "QLinearSoftmax"),
    "layout": (
        "ReorderInput",
        "ReorderOutput",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Split",
        "Slice",
        "Expand",
        "Tile",
        "Pad",
    ),
    "reduction": (
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL2",
        "ArgMax",
        "ArgMin",
        "TopK",
        "CumSum",
    ),
    "gather": ("Gather", "GatherElements", "GatherND", "Scatter", "ScatterND"),
    "shape": ("Shape", "Size", "Range", "ConstantOfShape"),
    "resize": ("Resize", "Upsample"),
    "constant": ("Constant",),
}
KINDS_OF_OPS = {op: kind for kind, ops in KIND_OF_OP.items() for op in ops}


def kind_of_ops(ops) -> str:
    """Kind of the heaviest operator among several; "pointwise" is what is left when none moves or multiplies."""
    kinds = [KINDS_OF_OPS.get(op, "pointwise") for op in ops]
    order = (
        "convolution",
        "attention",
        "matmul",
        "normalization",
        "softmax",
        "pooling",
        "reduction",
        "gather",
        "resize",
        "pointwise",
        "layout",
        "shape",
        "constant",
    )
    return min(kinds, key=order.index) if kinds else "unknown"


def plan_of_onnx_runtime(source, graph, profile, name) -> Plan:
    run, executed = (None, source) if isinstance(source, export.OnnxGraph) else (source, source.executed)
    graph = graph if graph is not None else getattr(run, "graph", None)
    if graph is None:
        raise BadInput(
            f"{executed.path.name} is a graph; to see what ONNX Runtime made of which nodes, "
            "pass the original too: graph="
        )
    original, optimized = nodes_of(graph), nodes_of(executed)
    groups, types = executed_nodes.swallowed(original, optimized), executed_nodes.dtypes(original, optimized)
    if not any(groups.values()):
        raise BadInput(
            f"{executed.path.name} was not made from this graph: no tensor name of the one is in the other "
            f"(the graph begins with {original.nodes[0].name!r}); "
            "pass the graph that the runtime loaded"
        )
    kernels = []
    for node in optimized.nodes:
        kernels.append(
            Kernel(
                name=node.name,
                kind=KINDS_OF_OPS.get(node.op, "pointwise"),
                nodes=groups[node.name],
                layer_type=node.op,
                tactic=f"{node.domain}::{node.op}" if node.domain not in ("", "ai.onnx") else node.op,
                inputs=tuple(_tensor(i, types) for i in node.inputs if i and i not in optimized.constants),
                outputs=tuple(_tensor(o, types) for o in node.outputs if o),
                weight_bytes=sum(_tensor(i, types).bytes or 0 for i in node.inputs if i in optimized.constants),
            )
        )
    plan = Plan(
        name or getattr(run, "name", executed.path.stem), tuple(kernels), "onnxruntime", "ONNX Runtime", original
    )
    return with_times(plan, times_of(profile)) if profile else plan


def _tensor(name, types) -> Tensor:
    dtype, shape = types.get(name, ("", ("?",)))
    return Tensor(name, tuple(d if isinstance(d, int) else -1 for d in shape), dtype)
