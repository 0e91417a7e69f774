"""A typed graph made executable on a CPU that has no FP16: FP32 kernels, and every narrow tensor really rounded."""

from __future__ import annotations

import numpy as np

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export import surgery


def pair(source: str, target: str, kind: int, names) -> list:
    """Two Cast nodes, to the narrow type and back to FP32: the value is rounded, the tensor stays FP32.

    ``names`` is the graph's `surgery.Names`, so that theirs meet none of its own.
    """
    import onnx

    narrow, forth, back = (names.free(f"{target}{end}") for end in (".narrow", "/there", "/back"))
    return [
        onnx.helper.make_node("Cast", [source], [narrow], name=forth, to=kind),
        onnx.helper.make_node("Cast", [narrow], [target], name=back, to=onnx.TensorProto.FLOAT),
    ]


def rounded(graph, *, path=None) -> export.OnnxGraph:
    """An FP32 graph that rounds each tensor which is FP16 or BF16 in ``graph``; names of tensors and nodes stay.

    It computes what a GPU does that multiplies narrow and sums wide. ONNX Runtime's x86 kernels know no FP16: of a
    typed graph it drops the Casts in pairs, computes all of it in FP32 and hides the faults a lab looks for; pairs of
    Casts that stand in the graph it leaves alone. Raises BadInput for a graph without a narrow tensor.
    """
    import onnx

    graph = export.load(graph)
    model = surgery.plain(graph.model())
    body, names, low = model.graph, surgery.Names(model), (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    kinds = {name: value.type.tensor_type.elem_type for name, value in surgery.values_of(model).items()}
    narrow = {name: kind for name, kind in kinds.items() if kind in low}
    border = {v.name for v in (*body.input, *body.output) if v.name in narrow}
    if border:
        raise BadInput(
            f"{graph.path.name} is narrow at its border ({sorted(border)}); cast it with keep_io=True, so that "
            "inputs and outputs stay FP32"
        )
    if not narrow:
        raise BadInput(
            f"{graph.path.name} has no FP16 and no BF16 tensor, so there is nothing to round; cast it first: "
            "precision.cast(graph)"
        )
    nodes = []
    for node in body.node:
        _widen_attributes(node, low)
        tensors = {place: tensor for place, tensor in enumerate(node.output) if tensor in narrow}
        for place, tensor in tensors.items():
            node.output[place] = names.free(f"{tensor}.exact")
        nodes.append(node)
        for place, tensor in tensors.items():
            nodes += pair(node.output[place], tensor, narrow[tensor], names)
    weights = [onnx.numpy_helper.from_array(_float32(w), w.name) if w.data_type in low else w for w in body.initializer]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    told = [value for value in body.value_info if value.name not in narrow]
    for field, content in ((body.node, nodes), (body.initializer, weights), (body.value_info, told)):
        del field[:]
        field.extend(content)
    folder = export.fresh_folder()
    return export.save(model, export.another_file(path or folder / f"{graph.path.stem}.rounded.onnx", graph))


def _widen_attributes(node, low) -> None:
    """Nodes that carry a type or a tensor of it in an attribute."""
    import onnx

    for attribute in node.attribute:
        if attribute.name in ("to", "output_dtype") and attribute.i in low:
            attribute.i = onnx.TensorProto.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in low:
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(_float32(attribute.t), attribute.t.name))


def _float32(tensor) -> np.ndarray:
    import onnx

    return onnx.numpy_helper.to_array(tensor).astype(np.float32)
