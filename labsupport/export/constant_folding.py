"""Weights that reach their layer through nodes which compute from constants alone, computed once and for all."""

from __future__ import annotations

from labsupport.export import onnx_graph, surgery
from labsupport.export.qdq_nodes import QDQ

# What draws is not the same twice, and codes are there to be seen; everything else of constants is a constant.
NEVER = ("Bernoulli", "Dropout", "DynamicQuantizeLinear", "Multinomial", *QDQ)


def with_plain_weights(model, layers: tuple[str, ...]):
    """The model with every constant input of its ``layers`` as a weight of its own, under its name.

    onnx's reference evaluator computes them. A weight that needs the network's inputs stays as it is.
    """
    import numpy as np
    from onnx import numpy_helper

    model = surgery.plain(model)
    constant = {weight.name: weight for weight in model.graph.initializer}
    known, maker = set(constant), {}
    for node in model.graph.node:
        if _is_foldable(node) and all(name in known for name in node.input if name):
            known |= set(node.output)
            maker |= {name: node for name in node.output if name}
    values: dict = {}
    wanted = [name for node in model.graph.node if node.op_type in layers for name in node.input if name in maker]
    for name in dict.fromkeys(wanted):
        value = _value(name, maker, constant, values, model.opset_import)
        if isinstance(value, np.ndarray):  # a sequence is a list
            constant[name] = numpy_helper.from_array(value, name)
            model.graph.initializer.append(constant[name])
    _drop_unread(model, constant)
    return model


def _value(name: str, maker: dict, constant: dict, values: dict, opsets):
    """The value of a tensor that constants make, kept in ``values``; None where the evaluator lacks an operator."""
    from onnx import ValueInfoProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    if name in constant:
        return numpy_helper.to_array(constant[name])
    if name not in values:
        node = maker[name]
        feed = {read: _value(read, maker, constant, values, opsets) for read in node.input if read}
        ends = [[ValueInfoProto(name=n) for n in side if n] for side in (dict.fromkeys(node.input), node.output)]
        alone = helper.make_model(helper.make_graph([node], "weight", *ends), opset_imports=opsets)
        try:
            made = ReferenceEvaluator(alone).run(None, feed)
        except Exception:  # the evaluator's own, of any type
            made = [None] * len(ends[1])
        values |= dict(zip([n for n in node.output if n], made))
    return values[name]


def _is_foldable(node) -> bool:
    known = node.domain in ("", "ai.onnx") and not onnx_graph.bodies(node)
    return known and node.op_type not in NEVER and not node.op_type.startswith("Random")


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
    free = surgery.Names(model).free
    for node in model.graph.node:  # a Split, say, of which one part is a weight and another is read by somebody else
        node.output[:] = [free(f"{name}_made") if name in constant else name for name in node.output]
    used = [weight for weight in model.graph.initializer if weight.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
