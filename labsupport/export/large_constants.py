"""Constants that a narrow type does not hold: which of them may be clamped, and which nodes must stay wide for them."""

from __future__ import annotations

from collections.abc import Iterator

from labsupport.export import onnx_graph

MOVES = frozenset(
    "Cast Concat Expand Flatten Gather GatherND Identity Reshape ScatterND Slice Squeeze Tile Transpose Trilu "
    "Unsqueeze".split()
)
# A softmax gives no weight to what lies far below the rest, however far: on this way to it a mask may be clamped.
PASSES = MOVES | {"Add", "Max", "Min", "Mul", "Neg", "Sub", "Where"}
ENDS = ("Softmax", "LogSoftmax")
LIMITS = ("Clip", "Max", "Min")  # a limit that no value reaches is as good as the largest one that exists
FLOORS = ("Add", *LIMITS)  # here a tiny number keeps a root or a quotient away from zero


class Readers:
    """Who reads which tensor of a model, its branches' nodes included."""

    def __init__(self, model) -> None:
        self.outputs = {value.name for value in model.graph.output}
        self.of: dict[str, list] = {}
        self.inner: set[str] = set()
        for node in model.graph.node:
            for name in {name for name in node.input if name}:
                self.of.setdefault(name, []).append(node)
            for body in onnx_graph.bodies(node):
                self.inner |= {name for each in onnx_graph.everywhere(body.node) for name in each.input}

    def to_softmax(self, tensor: str) -> list:
        """The nodes from a tensor to the softmaxes that it ends in; none where it also goes elsewhere."""
        nodes, todo = [], [tensor]
        while todo:
            name = todo.pop()
            if name in self.outputs or name in self.inner or not self.of.get(name):
                return []
            for node in self.of[name]:
                if node.op_type not in PASSES and node.op_type not in ENDS:
                    return []
                if node not in nodes:
                    nodes.append(node)
                    todo += list(node.output) if node.op_type in PASSES else []
        return nodes if any(node.op_type in ENDS for node in nodes) else []

    def through_moves(self, tensor: str) -> list:
        """The nodes that read a tensor's values, moved or as they are, and those that move them."""
        nodes, todo = [], [tensor]
        while todo:
            new = [node for node in self.of.get(todo.pop(), ()) if node not in nodes]
            nodes += new
            todo += [name for node in new if node.op_type in MOVES for name in node.output]
        return nodes

    def joins(self, tensor: str, weights) -> bool:
        """Whether a tensor is a mask that the caller gives: it only goes to softmaxes, and meets scores on its way."""
        nodes = self.to_softmax(tensor)
        own = {tensor, *weights, *(name for node in nodes for name in node.output)}
        return any({*node.input} - {*own, ""} for node in nodes)


def constants(model) -> Iterator[tuple]:
    """(tensor, its FP32 values as an array) of every weight, and of every tensor that is filled with one number."""
    from onnx import numpy_helper

    for weight in model.graph.initializer:
        if weight.data_type == weight.FLOAT:
            yield weight.name, numpy_helper.to_array(weight)
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "ConstantOfShape" else ():
            if attribute.name == "value" and attribute.t.data_type == attribute.t.FLOAT:
                yield node.output[0], numpy_helper.to_array(attribute.t)


def masks(model, above: float) -> dict[str, list]:
    """Constant → the nodes between it and its softmaxes, for finite constants larger than ``above``, as masks are."""
    import numpy as np

    readers = Readers(model)
    large = [
        name
        for name, values in constants(model)
        if (np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)) > above).any()
    ]
    return {name: nodes for name in large if (nodes := readers.to_softmax(name))}


def outside(model, dtype, skip=()) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """What a narrow type does not hold: (constant → the bounds to clamp it to, node that must stay wide → why).

    A mask in front of a softmax is clamped to half the range, so that the sum of two of them stays inside. ``skip``
    names constants to leave out.
    """
    import ml_dtypes
    import numpy as np

    readers, limit = Readers(model), most(dtype)
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    bounds: dict[str, tuple[float, float]] = {}
    wide: dict[str, str] = {}
    for name, values in constants(model):
        size = np.abs(values.astype(np.float64)) if name not in skip else np.empty(0)
        size = size[np.isfinite(size) & (size > 0)]
        if not size.size or size.max() <= limit and not (values.size == 1 and size.min() < least / 2):
            continue
        ops = {node.op_type for node in readers.of.get(name, ())}
        if size.max() > limit and readers.to_softmax(name):
            bounds[name] = (0.0, limit / 2)
        elif size.max() > limit and ops and ops <= set(LIMITS):
            bounds[name] = (0.0, limit)
        elif size.max() <= limit and ops and ops <= set(FLOORS):
            bounds[name] = (least, limit)
        else:
            said = f"{size.max() if size.max() > limit else size.min():.3g} in {name!r}"
            wide |= {node.name: said for node in readers.through_moves(name)}
            wide |= {node.name: said for node in model.graph.node if name in node.output}
    return bounds, wide


def clamped(values, bounds: tuple[float, float]):
    """The finite values with magnitudes between two bounds; zeros and infinities stay."""
    import numpy as np

    size = np.clip(np.abs(values), *np.float32(bounds))
    return np.where(np.isfinite(values) & (values != 0), np.copysign(size, values), values).astype(np.float32)


def most(dtype) -> float:
    """The largest number that a narrow type holds."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)
