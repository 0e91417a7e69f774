"""Which graphs can be quantized, and what to do about the others."""

from __future__ import annotations

from collections import Counter

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export import constant_folding, onnx_graph, surgery
from labsupport.export.qdq_nodes import LAYERS, QDQ


def checked(graph) -> export.OnnxGraph:
    """The graph, read where a path came, after a look at its types, opset and layers. Raises BadInput."""
    graph = export.load(graph)
    model = graph.model()
    ops = Counter(node.op_type for node in (surgery.plain(graph.model()) if model.functions else model).graph.node)
    inner = onnx_graph.everywhere([*model.graph.node, *(node for f in model.functions for node in f.node)])
    there = Counter(node.op_type for node in inner if _is_quantized(node.op_type))
    if there:
        said = ", ".join(f"{op}×{n}" for op, n in there.items())
        raise BadInput(
            f"{graph.path.name} is quantized already ({said}); quantize the FP32 graph it was made from, two "
            "roundings only add error"
        )
    if graph.opset < 13:
        raise BadInput(
            f"{graph.path.name} is opset {graph.opset}, and scales per channel came with 13; export it again, opset "
            "17 is read everywhere"
        )
    kind = export.float_type(graph)
    if kind != "fp32":  # weights kept narrow and widened by a Cast are FP32 for their layer
        kind = onnx_graph.weight_type(constant_folding.with_plain_weights(graph.model(), LAYERS), graph.inputs)
    if kind != "fp32":
        raise BadInput(
            f"{graph.path.name} has {kind} weights; quantize the FP32 graph, and let the builder choose the type of "
            "what stays wide"
        )
    if not any(ops.get(op) for op in LAYERS):
        inside = [node.name or node.op_type for node in model.graph.node if onnx_graph.bodies(node)]
        where = f", and into the bodies of {', '.join(inside[:3])} quantization does not look" if inside else ""
        raise BadInput(
            f"{graph.path.name} has no layer with an INT8 kernel: it is made of {', '.join(ops)}{where}; "
            f"{', '.join(LAYERS)} have one"
        )
    if ops.get("BatchNormalization") and (unfolded := _unfolded(model)):
        raise BadInput(
            f"{graph.path.name} has BatchNormalization×{len(unfolded)} behind convolutions, whose factors belong "
            "into the weights before they are rounded; export it with fold_batchnorm=True, or let ONNX Runtime fold "
            "them: export.load(runtimes.OnnxRuntime(graph, optimization='basic').executed.path)"
        )
    return graph


def _unfolded(model) -> list[str]:
    """Batch norms that a convolution before them could take in; others, as before a convolution, stay FP32."""
    model = surgery.plain(model)
    reads = Counter(name for node in onnx_graph.everywhere(model.graph.node) for name in node.input)
    reads.update(value.name for value in model.graph.output)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    return [n.name for n in norms if reads[n.input[0]] == 1 and makers.get(n.input[0]) in ("Conv", "ConvTranspose")]


def _is_quantized(op: str) -> bool:
    return op in (*QDQ, "DynamicQuantizeLinear") or op.startswith("QLinear") or op.endswith("Integer")
