"""What all changes to a graph need: names that are free, shapes that follow, inner tensors shown, another batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

from labsupport.errors import BadInput, at_least, first_line
from labsupport.export import onnx_graph
from labsupport.export.onnx_graph import OnnxGraph, bodies, everywhere
from labsupport.quiet import quietly

SMALL = 1024  # weights up to this many values may be shapes, which shape inference reads


class Names:
    """Names for new nodes and tensors that meet none of a model's own, those inside its branches and functions too."""

    def __init__(self, model) -> None:
        self.taken = {name for name in _names(model) if name}

    def free(self, wanted: str) -> str:
        """``wanted``, or where the model has that already, with a number behind it; taken from now on."""
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}_{number}", number + 1
        self.taken.add(name)
        return name


def _names(model) -> Iterator[str]:
    graphs = [model.graph, *(body for node in everywhere(model.graph.node) for body in bodies(node))]
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            yield value.name
    for function in model.functions:
        yield from (*function.input, *function.output)
    for node in everywhere([*model.graph.node, *(n for f in model.functions for n in f.node)]):
        yield from (node.name, *node.input, *node.output)


def renamed(model, name_of):
    """Give every tensor of a model, in its branches too, the name that ``name_of`` tells for it, in place."""
    nodes = list(everywhere(model.graph.node))
    for node in nodes:
        for field in (node.input, node.output):
            field[:] = [name and name_of(name) for name in field]
    for graph in (model.graph, *(body for node in nodes for body in bodies(node))):
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = name_of(value.name)
    return model


def numbered(model) -> tuple[dict[str, str], Callable[[str], str]]:
    """(tensor name → a number for a name, the way back) for libraries that invent names after those that they see.

    The way back also names what was invented: after its tensor, and like nothing else in the model.
    """
    names, told = Names(model), {}
    numbers = {name: f"<{i}>" for i, name in enumerate(sorted(names.taken))}
    plain_names = {number: name for name, number in numbers.items()}

    def back(name: str) -> str:
        if name not in told:
            number, rest = re.match(r"(<\d+>)?(.*)", name, re.DOTALL).groups()
            told[name] = plain_names[number] if number and not rest else names.free(plain_names.get(number, "") + rest)
        return told[name]

    return numbers, back


def named(model):
    """Give every node a name of its own: by it it is left out of a change, and found again in what came of it.

    Of several nodes with one name, which ONNX's checker lets pass and ONNX Runtime does not, the first keeps it.
    """
    names, seen = None, set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            names = names or Names(model)
            node.name = names.free(node.name or f"{node.op_type}_{place}")
        seen.add(node.name)
    return model


def plain(model):
    """The network with its local functions written out, weights not among the inputs, Constant nodes as weights.

    onnx-ir does all three. Nodes get names first, so that they keep them.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.from_proto(named(model))
    passes = [common.RemoveInitializersFromInputsPass(), common.LiftConstantsToInitializersPass(True, 0)]
    if model.functions:
        passes.insert(0, common.InlinePass())
    with quietly():  # each pass logs what it did
        for change in passes:
            model = change(model).model
    model.ir_version = max(model.ir_version, 4)  # the first in which a weight need not be an input
    return named(ir.to_proto(model))


def apart(model):
    """Give the tensors of branches and bodies names that no other graph around or before them has, in place.

    ONNX Runtime invents the same ones for a branch and for the graph around it, and does not load what it wrote.
    """
    free, seen = Names(model).free, set()

    def walk(graph, outer) -> None:
        made = [value.name for value in (*graph.input, *graph.initializer)]
        made += [name for node in graph.node for name in node.output if name]
        own = outer | {name: free(name) if name in seen else name for name in dict.fromkeys(made)}
        seen.update(own.values())
        for node in graph.node:
            for field in (node.input, node.output):
                field[:] = [own.get(name, name) for name in field]
            for body in bodies(node):
                walk(body, own)
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = own.get(value.name, value.name)

    walk(model.graph, {})
    return model


def sort_nodes(model):
    """Put each node behind those whose results it, or a branch of it, reads; in place, else in the order there is."""
    nodes = list(model.graph.node)
    maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    todo = list(reversed(range(len(nodes))))
    while todo:
        place = todo[-1]
        reads = {maker[n] for node in everywhere([nodes[place]]) for n in node.input if n in maker}
        before = [] if place in order else sorted((p for p in reads if p not in order and p != place), reverse=True)
        todo += before
        if not before:
            order.setdefault(todo.pop())
    del model.graph.node[:]
    model.graph.node.extend(nodes[place] for place in order)
    return model


def inferred(model, *, data_prop: bool = False):
    """A model with the types and shapes that follow from its inputs, and without its weights, so of any size.

    Raises BadInput where they contradict each other.
    """
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(_light(model), data_prop=data_prop)
    except Exception as error:  # the checker's own types
        raise BadInput(
            f"the shapes of this network do not follow from its inputs: {first_line(error)}; export it again, "
            "or pass sizes_of=<the graph before fusion>"
        ) from error


def _light(model):
    """The model with its small weights alone, and of the others their types and shapes."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for value in (*light.graph.input, *light.graph.output, *light.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_value < 0:  # as some exporters write a free axis
                axis.Clear()
    for weight in model.graph.initializer:
        small = math.prod(weight.dims) <= SMALL and weight.data_location != onnx.TensorProto.EXTERNAL
        hollow = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
        light.graph.initializer.append(weight if small else hollow)
    return light


def _contradictions(model) -> set[str]:
    """What ONNX finds wrong with a model's shapes: one line each, which names the operator and the node."""
    import onnx

    try:
        onnx.shape_inference.infer_shapes(_light(model), strict_mode=True, data_prop=True)
    except Exception as error:  # the checker's own types
        lines = (line for line in str(error).splitlines() if "op_type" in line)
        return {" ".join(re.sub(r"\[\w+\] (Inference error\(s\): )?", "", line).split()) for line in lines}
    return set()


def values_of(model) -> dict:
    """Tensor name → its ValueInfoProto with what shape inference found, for every tensor that it knows of."""
    graph = inferred(model).graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def expose(model, tensors: Iterable[str]):
    """Make inner tensors further outputs of a model, in place; the one way in which every room does it.

    A tensor of which ONNX tells neither type nor shape gets a bare name: ONNX Runtime runs that, `save` refuses it.
    """
    import onnx

    values = values_of(model)
    ends = {value.name for value in (*model.graph.output, *model.graph.input)}
    for name in dict.fromkeys(tensors):
        if name not in ends:
            model.graph.output.append(values.get(name) or onnx.ValueInfoProto(name=name))
    return model


def exposed(graph, tensors: Iterable[str], *, path=None) -> OnnxGraph:
    """The same network with the named tensors as further outputs, in a new file.

    For an engine, too: what must be written to memory cannot stay inside a fused kernel, so such an engine is slower
    and may round where the plain one does not. Raises BadInput for a tensor that is not there.
    """
    graph = onnx_graph.load(graph)
    model, tensors = graph.model(), list(dict.fromkeys(tensors))
    values = values_of(model)
    for tensor in tensors:
        if tensor not in values:
            raise BadInput(
                f"{graph.path.name} has no tensor {tensor!r} whose shape ONNX can tell, so it cannot become an output"
            )
    out = path or onnx_graph.fresh_folder() / f"{graph.path.stem}.exposed.onnx"
    return onnx_graph.save(expose(model, tensors), onnx_graph.another_file(out, graph))


def at_batch(graph, batch: int, *, path=None) -> OnnxGraph:
    """The same network with its free batch axis fixed, so that every shape in it is known; a new file.

    TensorRT 8.6 tells the types of an engine's layers for fixed shapes only. Raises BadInput for a batch that is fixed
    at another number.
    """
    graph = onnx_graph.load(graph)
    model = graph.model()
    free, fixed = fix_batch(model, batch)
    if not free and fixed and batch not in fixed:
        others = [name for name, (shape, _) in graph.inputs.items() if any(not isinstance(d, int) for d in shape[1:])]
        where = f" ({', '.join(others)} has another axis free; the batch is the first)" if others else ""
        raise BadInput(
            f"{graph.path.name} has its batch fixed at {fixed[0]}{where}; export it with dynamic=True, then choose "
            f"{batch}"
        )
    out = path or onnx_graph.fresh_folder() / f"{graph.path.stem}.b{batch}.onnx"
    return onnx_graph.save(model, onnx_graph.another_file(out, graph))


def fix_batch(model, batch: int) -> tuple[list[str], list[int]]:
    """Write a batch size into the free first axis of the inputs and into every shape that follows, in place.

    Returns the inputs whose first axis was free, and the numbers at which the others' are fixed.
    """
    at_least(batch=batch)
    weights = {weight.name for weight in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    first = {v.name: v.type.tensor_type.shape.dim[0] for v in values if v.type.tensor_type.shape.dim}
    free = {name: axis.dim_param for name, axis in first.items() if axis.dim_value < 1}  # some exporters write -1
    fixed = [axis.dim_value for axis in first.values() if axis.dim_value > 0]
    before = _contradictions(model) if free else set()
    for name in free:
        first[name].dim_value = batch
    symbols = {symbol for symbol in free.values() if symbol}
    for value in (*values, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in symbols and axis.dim_param:
                axis.dim_value = batch
    if free:
        _redeclare(model)
        _check_reshapes(model, batch)
        if new := sorted(_contradictions(model) - before):
            raise BadInput(
                f"the network does not run with a batch of {batch}: {new[0][:240]}; another number stands fixed in "
                "that node or before it: export it with dynamic=True"
            )
    return list(free), fixed


def _check_reshapes(model, batch: int) -> None:
    """Refuse a network in which a constant froze another batch, where ONNX itself overlooks it. Raises BadInput naming
    the Reshape or Gemm.
    """
    inference = inferred(model, data_prop=True).graph
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    for value in (*inference.value_info, *inference.input, *inference.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes.setdefault(value.name, [axis.dim_value for axis in axes])
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) > 2:
            rows, wanted = shapes.get(node.input[2]), shapes.get(node.output[0])
            if rows and wanted and any(n not in (1, m) for n, m in zip(rows[::-1], wanted[::-1])):
                raise BadInput(
                    f"the network does not run with a batch of {batch}: {node.name or 'the Gemm'} that writes "
                    f"{node.output[0]!r} adds {rows} to {wanted}; export it with dynamic=True"
                )
        if node.op_type != "Reshape":
            continue
        came, wanted = shapes.get(node.input[0]), shapes.get(node.output[0])
        if came and wanted and math.prod(came) != math.prod(wanted):
            raise BadInput(
                f"the network does not run with a batch of {batch}: {node.name or 'the Reshape'} that writes "
                f"{node.output[0]!r} makes {wanted} of {came}, so its batch is a constant; export it with "
                "x.flatten(1) or x.shape[0] as it is"
            )


def _redeclare(model) -> None:
    """Declare the outputs' shapes as they follow from the inputs; what does not follow stays as it was declared."""
    import onnx

    del model.graph.value_info[:]  # shapes written down for a free batch
    bare = onnx.ModelProto()
    bare.CopyFrom(inferred(model))
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape") if value.type.HasField("tensor_type") else None
    del bare.graph.value_info[:]
    follows = {value.name: value.type.tensor_type for value in inferred(bare, data_prop=True).graph.output}
    for value in model.graph.output:
        declared, now = value.type.tensor_type.shape.dim, follows[value.name].shape.dim
        for axis, size in zip(declared, now if len(now) == len(declared) else ()):
            if size.HasField("dim_value"):
                axis.dim_value = size.dim_value
