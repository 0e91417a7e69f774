"""Where Q/DQ nodes stand for TensorRT: which tensors get them, and who reads the codes and who the tensor itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from labsupport.export import onnx_graph, surgery

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what is worth eight bits
PRODUCTS = ("Gemm", "MatMul")
QDQ = ("QuantizeLinear", "DequantizeLinear")


def activations(model) -> list[str]:
    """Tensors that get Q/DQ for TensorRT: what layers read, and the shortcut side of residual adds."""
    weights = {w.name for w in model.graph.initializer}
    read = [
        name for node in model.graph.node if node.op_type in LAYERS for name in node.input[:2] if name not in weights
    ]
    constant = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    # Both sides of a residual add: which of them is the shortcut depends on the layers that will be excluded.
    added = [name for _, makers in _residual_adds(model) for name, _ in makers]
    return [name for name in dict.fromkeys([*read, *added]) if name not in constant]


def shortcuts(model, kept: set[str], residual: str = "convolutions") -> list[tuple[str, str]]:
    """(residual add, tensor to put behind Q/DQ) for the adds of a quantized layer's output and something else.

    An add is computed in the convolution that feeds it only when its other side is INT8 and this one is not; of two
    convolutions the deeper one takes it. After a matrix product ``residual`` decides: "shortcut" takes the other side
    alone, "both" the product's side as well, so that the product writes one byte instead of four.
    """
    pairs = []
    for node, makers in _residual_adds(model):
        main = next(((name, layer) for name, layer in makers if layer is not None and layer.name not in kept), None)
        if main is None or node.name in kept or (main[1].op_type in PRODUCTS and residual == "convolutions"):
            continue
        others = [name for name, _ in makers if name != main[0]]
        if len(others) == 1:
            pairs.append((node.name, others[0]))
            if main[1].op_type in PRODUCTS and residual == "both":
                pairs.append((node.name, main[0]))
    return pairs


def _residual_adds(model):
    """(add, [(input, the layer that makes it or None), the deeper first]) for every add of two computed tensors, one a
    layer's.
    """
    weights = {w.name for w in model.graph.initializer}
    depth: dict[str, int] = {}
    maker = {}
    for node in model.graph.node:
        for name in node.output:
            depth[name], maker[name] = 1 + max((depth.get(i, 0) for i in node.input), default=0), node
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in weights or name not in depth for name in node.input):
            continue
        makers = [
            (name, _layer_behind(name, maker, weights)) for name in sorted(node.input, key=lambda name: -depth[name])
        ]
        if any(layer is not None for _, layer in makers):
            yield node, makers


def _layer_behind(tensor: str, maker: Mapping, weights: set[str]):
    """The layer that writes a tensor, where need be through the add of its bias; None when another node makes it."""
    node = maker[tensor]
    if node.op_type == "Add" and any(name in weights for name in node.input):
        node = next((maker[name] for name in node.input if name in maker), node)
        return node if node.op_type in PRODUCTS else None
    return node if node.op_type in LAYERS else None


def clip_early(model, ranges: dict) -> None:
    """What only a ReLU or a Clip reads is worth no more codes than what the ReLU or Clip lets pass."""
    readers = Counter(name for node in onnx_graph.everywhere(model.graph.node) for name in node.input)
    readers.update(value.name for value in model.graph.output)  # the caller reads the tensor as it is
    for node in model.graph.node:
        if (
            node.op_type in ("Relu", "Clip")
            and readers[node.input[0]] == 1
            and {node.input[0], node.output[0]} <= set(ranges)
        ):
            ranges[node.input[0]] = ranges[node.output[0]]


def stays_wide(model) -> set[str]:
    """Nodes that ONNX Runtime's quantizer would get wrong: ReLUs and Clips that it would take out though a branch reads
    their input, or their borders are computed or leave zero outside; products whose bias differs from row to row.
    """
    from onnx import numpy_helper

    inner = onnx_graph.everywhere(node for each in model.graph.node for g in onnx_graph.bodies(each) for node in g.node)
    read = {name for node in inner for name in node.input}
    weights = {weight.name: weight for weight in model.graph.initializer}
    wide = {node.name for node in model.graph.node if node.op_type in ("Relu", "Clip") and node.input[0] in read}
    for node in model.graph.node:
        if node.op_type == "Clip":
            for name, side in zip(node.input[1:], (-1, 1)):
                if name and (name not in weights or side * numpy_helper.to_array(weights[name]).item() < 0):
                    wide.add(node.name)
        elif node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in weights:
            rows = list(weights[node.input[2]].dims)[:-1]
            wide |= {node.name} if math.prod(rows) > 1 else set()
    return wide


def plain_biases(model) -> None:
    """Make the constant bias of each Gemm one number a column, its factor in it: ONNX Runtime's quantizer sets the
    factor to 1 and drops it, and stumbles over a bias of one number.
    """
    import numpy as np
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    free = surgery.Names(model).free
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {*node.input[1:3]} <= set(weights):
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        beta = attributes["beta"].f if "beta" in attributes else 1.0
        columns = weights[node.input[1]].dims[0 if "transB" in attributes and attributes["transB"].i else 1]
        bias = numpy_helper.to_array(weights[node.input[2]])
        if bias.size not in (1, columns) or beta == 1 and bias.shape == (columns,):
            continue
        plain = np.ascontiguousarray(np.broadcast_to((bias * beta).ravel(), columns).astype(bias.dtype))
        node.input[2] = free(f"{node.input[2]}_plain")
        model.graph.initializer.append(numpy_helper.from_array(plain, node.input[2]))
        if "beta" in attributes:
            attributes["beta"].f = 1.0


def only_layers_read_codes(model) -> None:
    """Give everything but the layers the tensor as it was before Q/DQ: quantize_static hands the codes to every reader.

    A transformer's residual stream would otherwise be rounded at every block, and a LayerNorm would read the codes.
    """
    nodes = list(model.graph.node)
    source = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    before = {
        node.output[0]: source[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in source
    }
    outputs = {o.name for o in model.graph.output}
    for node in nodes:
        for i, name in enumerate(node.input):
            if node.op_type not in (*LAYERS, *QDQ) and name in before and before[name] not in outputs:
                node.input[i] = before[name]


def quantize_shortcuts(model, shortcuts: list[tuple[str, str]], ranges: Mapping) -> None:
    """Put the shortcut side of residual adds behind Q/DQ, sharing the pair that a neighboring layer already has."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes, free = {node.name: node for node in model.graph.node}, surgery.Names(model).free
    coded = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    decoded = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for add, tensor in shortcuts:
        if tensor not in coded:
            limit = max(-ranges[tensor][0], ranges[tensor][1]) / 127
            names = [free(f"{tensor}_shortcut_{part}") for part in ("scale", "zero_point", "quantized", "dequantized")]
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.array(limit or 1.0, np.float32), names[0]),
                    numpy_helper.from_array(np.array(0, np.int8), names[1]),
                ]
            )
            pair = [
                helper.make_node(op, [source, *names[:2]], [target], name=free(f"{tensor}_shortcut_{op}"))
                for op, source, target in zip(QDQ, (tensor, names[2]), names[2:])
            ]
            place = next((i for i, node in enumerate(model.graph.node) if tensor in node.output), -1) + 1
            for node in reversed(pair):
                model.graph.node.insert(place, node)
            coded[tensor], decoded[names[2]] = names[2], names[3]
        for i, name in enumerate(nodes[add].input):
            if name == tensor:
                nodes[add].input[i] = decoded[coded[tensor]]
