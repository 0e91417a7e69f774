"""ONNX networks that a test makes by hand, and their answers without any optimization."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from labsupport import export, runtimes


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def node(op, reads, writes, name, **attributes):
    return helper.make_node(op, reads, [writes], name, **attributes)


def model_of(nodes, inputs, outputs, weights=(), *, opset=17, ir=8, domains=(), functions=()):
    """A model whose weights are tensors or {name: values}; ``domains`` are (name, version) beside ONNX's own."""
    weights = [weight(*each) for each in weights.items()] if isinstance(weights, dict) else list(weights)
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*each) for each in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def saved(folder, *parts, name="net", **options):
    """The model of these parts, checked and saved as an OnnxGraph."""
    return export.save(model_of(*parts, **options), folder / f"{name}.onnx")


def run(graph, feed):
    with runtimes.OnnxRuntime(graph, optimization="off") as session:
        return session(feed)


def off(exact, other) -> float:
    return float(np.linalg.norm(other - exact) / np.linalg.norm(exact))
