"""Weights that reach their layer through nodes which compute from constants alone, computed once and for all."""

from __future__ import annotations

from labsupport.export import onnx_graph, surgery

# Deterministic operators that move a weight, or change its type or its scale.
FOLDABLE = (
    "Add", "Cast", "Concat", "Constant", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg", "Pad", "Pow",
    "Reciprocal", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
)  # fmt: skip


def with_plain_weights(model, layers: tuple[str, ...]):
    """The model with every constant input of its ``layers`` as a weight of its own, under its name.

    onnx's reference evaluator computes them. A weight that needs the network's inputs stays as it is.
    """
    from onnx import numpy_helper

    model = surgery.plain(model)
    constant = {weight.name: weight for weight in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output if name}
    for node in list(model.graph.node):
        for name in node.input if node.op_type in layers else ():
            if (
                name in maker
                and name not in constant
                and (values := _value(name, maker, constant, model.opset_import)) is not None
            ):
                constant[name] = numpy_helper.from_array(values, name)
                model.graph.initializer.append(constant[name])
    _drop_unread(model, constant)
    return model


def _value(name: str, maker: dict, constant: dict, opsets):
    """The value of a tensor that constants make, or None."""
    from onnx import ValueInfoProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    if name in constant:
        return numpy_helper.to_array(constant[name])
    node = maker.get(name)
    if node is None or node.op_type not in FOLDABLE or node.domain not in ("", "ai.onnx"):
        return None
    feed = {read: _value(read, maker, constant, opsets) for read in node.input if read}
    if any(value is None for value in feed.values()):
        return None
    alone = helper.make_graph([node], "weight", [ValueInfoProto(name=n) for n in feed], [ValueInfoProto(name=name)])
    return ReferenceEvaluator(helper.make_model(alone, opset_imports=opsets)).run(None, feed)[0]


def _drop_unread(model, constant: dict) -> None:
    """Take out the nodes whose results are weights now, then those that nobody reads any more."""
    outputs = {value.name for value in model.graph.output}
    while True:
        inner = [n for n in onnx_graph.everywhere(model.graph.node)]
        read = outputs | {name for node in inner for name in node.input}
        idle = [n for n in model.graph.node if all(o in constant or o not in read for o in n.output)]
        if not idle:
            break
        for node in idle:
            model.graph.node.remove(node)
    used = [weight for weight in model.graph.initializer if weight.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
