"""What no eight-bit scale fits: tensors that hold a mask, tables of uneven rows, weights with two kinds of readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from labsupport.errors import BadInput
from labsupport.export import large_constants, surgery
from labsupport.export.qdq_nodes import LAYERS
from labsupport.quantization.calibration import Histogram

LARGE = 9e3  # a mask of −1e4 on scores; beyond it, values far from all others are a mask wherever they go
FAR, FAR_BEFORE_SOFTMAX = 64, 4  # how many times as large as all other values
LARGE_BEFORE_SOFTMAX = 50  # Swin masks with −100
UNEVEN = 16  # a row that much smaller than the largest has 8 codes on each side of zero


def masked(model, histograms: Mapping[str, Histogram], infinite: Iterable[str]) -> set[str]:
    """Nodes that read or write a mask of attention: −inf, or finite values so far from all others that a scale for
    them leaves the others none.
    """
    import numpy as np
    from onnx import numpy_helper

    floats = (weight for weight in model.graph.initializer if weight.data_type == weight.FLOAT)
    apart = {w.name for w in floats if not np.isfinite(numpy_helper.to_array(w)).all()} | set(infinite)
    readers = large_constants.Readers(model)
    for name, histogram in histograms.items():
        size = max(-histogram.lowest, histogram.highest)
        if size < LARGE_BEFORE_SOFTMAX:
            continue
        far = histogram.gap()
        before_softmax = histogram.lowest == -size and far >= FAR_BEFORE_SOFTMAX and bool(readers.to_softmax(name))
        if before_softmax or size >= LARGE and far >= FAR:
            apart.add(name)
    names = {node.name for node in model.graph.node if apart & {*node.input, *node.output}}
    # A mask that no calibration item used is one all the same.
    return names | {node.name for nodes in large_constants.masks(model, LARGE).values() for node in nodes}


def check_weights(model, name: str) -> None:
    """Refuse a layer whose weight holds NaN. Raises BadInput."""
    import numpy as np
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        for read in (r for r in node.input[:2] if node.op_type in LAYERS and r in weights):
            if np.isnan(numpy_helper.to_array(weights[read])).any():
                raise BadInput(
                    f"{name}: the weight {read!r} of {node.name} ({node.op_type}) holds NaN; train it again, or export "
                    "a checkpoint that is sound"
                )


def lookups(model) -> set[str]:
    """Nodes other than layers that read a layer's weight, and Gathers from a table whose rows differ much in size: one
    scale a table would leave the small rows no codes.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer if weight.data_type == weight.FLOAT}
    shared = {name for node in model.graph.node if node.op_type in LAYERS for name in node.input[:2]} & set(weights)
    names = {node.name for node in model.graph.node if node.op_type not in LAYERS and shared & {*node.input}}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in weights and node.name not in names:
            table = numpy_helper.to_array(weights[node.input[0]])
            axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
            rows = np.abs(np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)).max(1, initial=0)
            names |= {node.name} if rows.any() and rows[rows > 0].min() * UNEVEN < rows.max() else set()
    return names


def untaken(model) -> set[str]:
    """Nodes whose scales per channel ONNX Runtime's quantizer or its kernels get wrong: batch norms, normalizations
    over several axes, transposed convolutions in groups with a bias, products with a stack of weights.
    """
    ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}
    found = {node.name for node in model.graph.node if node.op_type == "BatchNormalization"}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and any(ranks.get(name, 0) > 1 for name in node.input[1:]):
            found.add(node.name)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2:
            found.add(node.name)
        if node.op_type == "MatMul" and any(ranks.get(name, 0) > 2 for name in node.input):
            found.add(node.name)
    return found


def part_weights(model) -> None:
    """Give a weight that layers read along different axes a copy for each axis, in place: a scale has one axis."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    free, copies = surgery.Names(model).free, {}
    for node in model.graph.node:
        for place, name in enumerate(node.input[:2] if node.op_type in LAYERS else ()):
            if name not in weights:
                continue
            axis = axis_of(node, place, len(weights[name].dims))
            mine = copies.setdefault(name, {})
            if axis not in mine:
                mine[axis] = name if not mine else free(f"{name}_axis{axis}")
                if mine[axis] != name:
                    copy = model.graph.initializer.add()
                    copy.CopyFrom(weights[name])
                    copy.name = mine[axis]
            node.input[place] = mine[axis]


def axis_of(node, place: int, rank: int) -> int:
    """The axis of a layer's weight that counts its output channels; of a vector, which has none, its only one."""
    turned = any(a.name == ("transB" if place else "transA") and a.i for a in node.attribute)
    if node.op_type == "Gemm":
        return int(place != turned)
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1 if place else max(rank - 2, 0))
