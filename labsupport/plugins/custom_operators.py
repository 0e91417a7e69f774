"""Operators that no runtime knows, in the graph: taking them apart, cutting round them, their shapes.

Every function takes an export.OnnxGraph (or a path) and returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export.foreign_nodes import bodies, everywhere
from labsupport.plugins.gated_norm import DOMAIN, DTYPES, EPSILON, OP_TYPE, output_shape


def rewritten(graph, op_type: str, make: Callable):
    """The graph with each node of one type replaced by what ``make(surgeon, node)`` puts there, by onnx-graphsurgeon.

    ``make`` gets the ``onnx_graphsurgeon.Graph`` and the node, adds nodes to it (``surgeon.layer(...)`` returns the
    outputs), and returns the tensors that take the places of the node's outputs. Raises BadInput.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/onnx-graphsurgeon/index.html
    """
    import onnx_graphsurgeon

    graph = export.load(graph)
    model = graph.model()
    nodes_called(model, op_type, graph)
    surgeon = onnx_graphsurgeon.import_onnx(model)
    for node in [node for node in surgeon.nodes if node.op == op_type]:
        outputs = list(node.outputs)
        parts = make(surgeon, node)
        parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
        if len(parts) != len(outputs) or not all(isinstance(tensor, onnx_graphsurgeon.Tensor) for tensor in parts):
            raise BadInput(
                f"make() gave {len(parts)} value(s) of {sorted({type(value).__name__ for value in parts})} for a node "
                f"with {len(outputs)} output(s); return one onnx_graphsurgeon tensor an output, in order"
            )
        node.outputs.clear()
        for old, new in zip(outputs, parts):
            _take_over(surgeon, old, new)
    return export.save(onnx_graphsurgeon.export_onnx(surgeon.cleanup().toposort()), _beside(graph, "rewritten"))


def operator_graph(columns: int | str, *, dtype: str = "float32", epsilon: float = EPSILON):
    """The operator alone: x and gate (rows, columns) with free rows, weight (columns,), one node, y.

    ``columns`` is a whole number, or a name, which leaves that axis free as well.
    """
    from onnx import TensorProto, helper

    named = isinstance(columns, str) and columns.isidentifier() and columns != "rows"
    if not (named or type(columns) is int and columns >= 1) or dtype not in DTYPES:
        raise BadInput(
            f"columns={columns!r}, dtype={dtype!r}; columns is a whole number of 1 or more, or a name for a free axis "
            f"(not 'rows'), dtype one of {list(DTYPES)}"
        )
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    x, gate, y = (helper.make_tensor_value_info(name, kind, ["rows", columns]) for name in ("x", "gate", "y"))
    weight = helper.make_tensor_value_info("weight", kind, [columns])
    node = helper.make_node(OP_TYPE, ["x", "gate", "weight"], ["y"], name="norm", domain=DOMAIN, epsilon=epsilon)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([node], "operator", [x, gate, weight], [y]), opset_imports=opsets, ir_version=8
    )
    return export.save(model, export.fresh_folder() / f"operator_{columns}_{dtype}.onnx")


def around(graph, op_type: str, *, read: str = "read", written: str = "written"):
    """(before, after): the graph up to one node, and from behind it, for a kernel of our own to run between.

    ``before`` ends in the tensor ``read``: what the node reads, or, where a Split makes its inputs, what that splits,
    so that no copy is made for the kernel. ``after`` begins with the graph's own inputs that it still needs and
    ``written``.
    """
    graph = export.load(graph)
    model = graph.model()
    nodes = nodes_called(model, op_type, graph)
    weights = {weight.name for weight in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    reads = list(dict.fromkeys(name for name in nodes[0].input if name not in weights))
    sources = {maker[name].input[0] if name in maker and maker[name].op_type == "Split" else name for name in reads}
    if len(nodes) > 1 or len(sources) > 1:
        raise BadInput(
            f"{graph.path.name} has {len(nodes)} nodes {op_type}, reading {sorted(sources)}; this cuts round one node "
            "that reads one tensor, whole or split: cut with plugins.part(graph, inputs=..., outputs=...)"
        )
    source, target = sources.pop(), nodes[0].output[0]
    shaped = with_shapes(graph, op_type, output_shape)
    inputs = [name for name in graph.inputs if name in _needed(model, graph.outputs, stop=target)]
    before = part(shaped, inputs=list(graph.inputs), outputs=[source], name="before")
    after = part(shaped, inputs=[*inputs, target], outputs=list(graph.outputs), name="after")
    return _renamed(before, source, read), _renamed(after, target, written)


def _needed(model, outputs, *, stop: str) -> set:
    """Tensors that the outputs are computed from, not looking behind ``stop``."""
    maker = {output: node for node in model.graph.node for output in node.output}
    needed, open_ends = set(), list(outputs)
    while open_ends:
        name = open_ends.pop()
        if name in needed:
            continue
        needed.add(name)
        if name != stop and name in maker:
            open_ends += maker[name].input
    return needed


def _renamed(graph, old: str, new: str):
    model = graph.model()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = new if value.name == old else value.name
    return export.save(model, graph.path)


def _take_over(surgeon, old, new) -> None:
    """Let the maker of ``new`` write ``old``, so that readers and graph outputs keep their tensor and its name."""
    if not new.inputs:
        raise BadInput(
            f"make() gave {new.name!r}, which no node computes (an input or a weight); pass it through an Identity "
            "node, "
            'surgeon.layer(op="Identity", ...)'
        )
    maker = new.inputs[0]
    maker.outputs[maker.outputs.index(new)] = old
    for reader in list(new.outputs):  # inside the replacement itself
        reader.inputs[reader.inputs.index(new)] = old


def with_shapes(graph, op_type: str, rule: Callable):
    """The graph with shape and type of an unknown operator's output written down, and inferred from there on.

    ``rule(*input shapes) -> output shape`` deals in tuples of whole numbers and names of free axes. The output has the
    type of the first input. Without it ONNX's inference ends at the node, and the graph cannot be cut behind it.
    """
    import onnx
    from onnx import helper, shape_inference

    graph = export.load(graph)
    model = shape_inference.infer_shapes(graph.model(), data_prop=True)
    nodes_called(model, op_type, graph)
    for node in model.graph.node:
        if node.op_type != op_type:
            continue
        specs = _known(model)
        unclear = [name for name in node.input if name not in specs]
        if unclear:
            raise BadInput(
                f"shape and type of {unclear} are not known, so those of {node.output[0]!r} cannot be told; export "
                "with an example input"
            )
        shape = rule(*(specs[name][1] for name in node.input))
        model.graph.value_info.append(
            helper.make_tensor_value_info(node.output[0], specs[node.input[0]][0], list(shape))
        )
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return export.save(model, _beside(graph, "shapes"))


def part(graph, *, inputs: Iterable[str], outputs: Iterable[str], name: str = "part"):
    """The piece of a graph between named tensors, as a graph of its own. Raises BadInput for an unknown tensor."""
    from onnx.utils import Extractor

    graph = export.load(graph)
    model = graph.model()
    specs = _known(model)
    for tensor in (*inputs, *outputs):
        if tensor not in specs:
            raise BadInput(f"{graph.path.name} has no tensor {tensor!r} of known shape; it has {sorted(specs)}")
    piece = Extractor(model).extract_model(list(inputs), list(outputs))
    return export.save(piece, _beside(graph, name))


def _known(model) -> dict:
    """tensor → (element type, shape), of everything the graph says about its tensors."""
    specs = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            specs[value.name] = (tensor.elem_type, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim))
    return {**specs, **{weight.name: (weight.data_type, tuple(weight.dims)) for weight in model.graph.initializer}}


def nodes_called(model, op_type: str, graph) -> list:
    """The nodes of one operator type; BadInput where the graph has none."""

    nodes = [node for node in model.graph.node if node.op_type == op_type]
    inside = [
        node
        for outer in model.graph.node
        for body in bodies(outer)
        for node in everywhere(body.node)
        if node.op_type == op_type
    ]
    if inside:
        raise BadInput(
            f"{graph.path.name} has {op_type!r} in the body of an If, Loop or Scan, where this does not reach; "
            "onnx.inliner does, once it has a body"
        )
    if not nodes:
        raise BadInput(f"{graph.path.name} has no node {op_type!r}; it has {sorted(graph.ops)}")
    return nodes


def _beside(graph, what: str) -> Path:
    return export.fresh_folder() / f"{graph.path.stem}.{what}.onnx"
