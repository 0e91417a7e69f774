"""Where a network can be cut in two: the tensors that alone carry all that is needed behind them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export import onnx_graph, surgery
from labsupport.fusion.onnx_nodes import nodes_of

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "double": 8, "bool": 1, "complex64": 8, "complex128": 16}
BYTES |= {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}
# A cut just before one of these would tear apart what every runtime computes in one kernel, or rename the same bytes.
STICKS = (
    "Relu LeakyRelu Clip Sigmoid HardSwish BatchNormalization Flatten Reshape Squeeze Unsqueeze Identity Cast"
).split()


@dataclass(frozen=True)
class Cut:
    """A tensor that alone carries everything the rest of the network needs; ``after`` nodes lie before it."""

    name: str
    shape: tuple
    mib: float
    after: int

    def __repr__(self) -> str:
        return f"{self.name} {'×'.join(map(str, self.shape))}, {self.mib:.3g} MiB"


def natural(graph) -> tuple[Cut, ...]:
    """The cuts of a chain-like network: its input, every tensor that is alive alone between two steps, its output.

    Shapes must be fixed (export with dynamic=False). Raises BadInput.
    """
    graph = export.load(graph)
    nodes, constants = steps(graph)
    if len(nodes.inputs) != 1 or len(nodes.outputs) != 1:
        raise BadInput(
            f"{graph.path.name} has {len(nodes.inputs)} inputs and {len(nodes.outputs)} outputs; cuts are "
            "found in networks with one of each"
        )
    readers = {
        name: [node for node in nodes.nodes if name in node.inputs] for maker in nodes.nodes for name in maker.outputs
    }
    cuts = [_cut(graph, nodes, nodes.inputs[0], 0)]
    for place, node in enumerate(nodes.nodes[:-1], 1):
        alive = _alive(nodes, constants, place)
        if len(alive) == 1 and alive[0] in node.outputs:
            following = readers[alive[0]]
            if len(following) > 1 or following[0].op not in STICKS:
                cuts.append(_cut(graph, nodes, alive[0], place))
    return (*cuts, _cut(graph, nodes, nodes.outputs[0], len(nodes.nodes)))


def split(graph, at) -> tuple:
    """(head, tail) as two graphs; at the network's input there is no head, at its output no tail (None).

    ``at`` is a Cut or a tensor's name. Raises BadInput for a name that is not in the graph, and for a tensor beside
    which another one is needed, which is a cut through two wires.
    """
    graph, name = export.load(graph), getattr(at, "name", at)
    nodes, constants = steps(graph)
    if name in nodes.inputs:
        return None, graph
    if name in nodes.outputs:
        return graph, None
    place = next((place for place, node in enumerate(nodes.nodes, 1) if name in node.outputs), None)
    if place is None or name in constants:
        raise BadInput(
            f"there is no tensor {name!r} to cut at in {graph.path.name}; choose one of "
            f"{[cut.name for cut in natural(graph)]}"
        )
    others = [other for other in _alive(nodes, constants, place) if other != name]
    if others:
        raise BadInput(
            f"{name!r} is no clean cut: {', '.join(others)} is needed behind it as well; choose one of "
            f"{[cut.name for cut in natural(graph)]}"
        )
    folder, parts = export.fresh_folder(), []
    for part, ends in (("head", (list(nodes.inputs), [name])), ("tail", ([name], list(nodes.outputs)))):
        parts.append(export.save(_part(graph, *ends), folder / f"{graph.path.stem}.{part}.onnx"))
    return tuple(parts)


def _part(graph, inputs: list[str], outputs: list[str]):
    """The model between these tensors, with all that its nodes and their branches read.

    onnx.utils.extract_model overlooks what only a branch reads, and weights that IR 3 lists among the inputs.
    """
    import onnx

    model = graph.model()
    values = surgery.values_of(model)
    unknown = [name for name in (*inputs, *outputs) if name not in values]
    if unknown:
        raise BadInput(f"{graph.path.name}: ONNX cannot tell the type of {unknown[0]!r}, so no part can end in it")
    maker = {name: place for place, node in enumerate(model.graph.node) for name in node.output if name}
    todo, kept = list(outputs), set()
    while todo:
        name = todo.pop()
        if name not in inputs and (place := maker.get(name)) is not None and place not in kept:
            kept.add(place)
            todo += [read for node in onnx_graph.everywhere([model.graph.node[place]]) for read in node.input]
    nodes = [model.graph.node[place] for place in sorted(kept)]
    read = {name for node in onnx_graph.everywhere(nodes) for name in node.input} | set(outputs)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.ir_version = max(model.ir_version, 4)  # the first in which a weight need not be an input
    for field in ("node", "input", "output", "value_info", "initializer", "sparse_initializer"):
        part.graph.ClearField(field)
    part.graph.node.extend(nodes)
    part.graph.input.extend(values[name] for name in inputs)
    part.graph.output.extend(values[name] for name in outputs)
    part.graph.initializer.extend(weight for weight in model.graph.initializer if weight.name in read)
    part.graph.sparse_initializer.extend(w for w in model.graph.sparse_initializer if w.values.name in read)
    return part


def short(name: str) -> str:
    """A tensor's name without what the exporter repeats in it: "layer1.0/Relu_1"."""
    parts = name.removesuffix("_output_0").strip("/").split("/")
    return "/".join(parts[-2:])


def steps(graph):
    """The nodes of a graph without its constants, and the names that are constant."""
    nodes = nodes_of(graph)
    constants = set(nodes.constants)
    for node in nodes.nodes:
        if all(not name or name in constants for name in node.inputs):
            constants.update(node.outputs)
    steps = tuple(node for node in nodes.nodes if not set(node.outputs) <= constants)
    return dataclasses.replace(nodes, nodes=steps), constants


def _alive(nodes, constants, place: int) -> list[str]:
    """Tensors that exist after ``place`` steps and are still needed."""
    tensors = [*nodes.inputs, *(name for node in nodes.nodes[:place] for name in node.outputs)]
    needed = {name for node in nodes.nodes[place:] for name in node.inputs} | set(nodes.outputs)
    return [name for name in tensors if name in needed and name not in constants]


def _is_scalar(graph, name: str) -> bool:
    """Whether a tensor is one number; a tensor of unknown rank has no shape either."""
    value = surgery.values_of(graph.model()).get(name)
    return value is not None and value.type.tensor_type.HasField("shape")


def _cut(graph, nodes, name: str, after: int) -> Cut:
    specs = {**dict(graph.inputs), **dict(graph.outputs)}.get(name)
    dtype, shape = (specs[1], specs[0]) if specs else nodes.types.get(name, ("", ()))
    if dtype not in BYTES:
        raise BadInput(
            f"{name!r} holds {dtype or 'values whose type ONNX cannot tell'}, so its bytes are unknown; cuts are found "
            "in networks of number tensors"
        )
    if any(not isinstance(axis, int) for axis in shape) or not shape and not _is_scalar(graph, name):
        raise BadInput(
            f"the shape of {name!r} is {tuple(shape)}, not fixed, so its bytes are unknown; export the "
            "graph with dynamic=False"
        )
    return Cut(name, tuple(shape), math.prod(shape) * BYTES[dtype] / 2**20, after)
