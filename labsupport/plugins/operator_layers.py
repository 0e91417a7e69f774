"""An unknown operator built from TensorRT's own layers: the parser reads the rest, and one node is ours."""

from __future__ import annotations

from collections.abc import Callable

from labsupport import export
from labsupport.build.builder_thread import logger
from labsupport.errors import BadInput, BuildError
from labsupport.plugins.custom_operators import nodes_called

PLACEHOLDER = "Relu"  # any operator of one input that every parser knows and none optimizes away


def with_layers(graph, op_type: str, make: Callable) -> Callable:
    """A function ``define(trt, network)`` for ``build.engine(define, name=...)``: layers where the parser has no
    operator.

    ``make(trt, network, inputs, attributes)`` adds layers and returns the tensor that stands for the node's output;
    ``inputs`` are TensorRT tensors (a weight comes as a constant of the first input's rank), ``attributes`` a dict.
    Raises BadInput for a node that is not there, BuildError where the rest of the graph cannot be parsed.
    """
    graph = export.load(graph)
    model = graph.model()
    nodes = nodes_called(model, op_type, graph)
    held = _with_placeholders(model, op_type).SerializeToString()
    arrays = _arrays(model)
    kept = []  # parser and arrays own the weights, which the builder reads after this function has returned

    def define(trt, network):
        parser = trt.OnnxParser(network, logger())
        if not parser.parse(held):
            reason = parser.get_error(0).desc().strip() if parser.num_errors else "no reason given"
            raise BuildError(
                f"{graph.path.name} without its {op_type}: the parser stopped: {reason}; another operator is "
                "unknown, too"
            )
        kept.extend([parser, arrays])
        for node in nodes:
            _replace(trt, network, node, arrays, make)

    return define


def _with_placeholders(model, op_type: str):
    """The graph with every unknown node replaced by one that has the same output and reads the first input."""
    from onnx import helper

    held = type(model)()
    held.CopyFrom(model)
    for at, node in enumerate(held.graph.node):
        if node.op_type == op_type:
            held.graph.node[at].CopyFrom(helper.make_node(PLACEHOLDER, node.input[:1], node.output[:1], name=node.name))
    return held


def _arrays(model) -> dict:
    from onnx import numpy_helper

    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def _replace(trt, network, node, arrays: dict, make: Callable) -> None:
    from onnx import helper

    tensors = _tensors(network)
    lost = sorted({*node.output, *node.input} - set(tensors) - set(arrays))
    if lost:
        raise BuildError(
            f"the parser keeps no tensor named {lost}, so nothing can be connected to it; rewrite the graph instead: "
            "plugins.rewritten"
        )
    rank = len(tensors[node.output[0]].shape)
    inputs = [_constant(trt, network, arrays[name], rank) if name in arrays else tensors[name] for name in node.input]
    tail = make(
        trt, network, inputs, {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    )
    if not isinstance(tail, trt.ITensor):
        raise BadInput(f"make() gave a {type(tail).__name__}; return the tensor of the last layer, layer.get_output(0)")
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for place in range(layer.num_inputs):
            read = layer.get_input(place)
            if read is not None and read.name == node.output[0]:
                layer.set_input(place, tail)
    placeholder = tensors[node.output[0]]
    if placeholder.is_network_output:
        network.unmark_output(placeholder)
        placeholder.name = f"{node.output[0]} (before)"
        tail.name = node.output[0]
        network.mark_output(tail)


def _tensors(network) -> dict:
    tensors = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for place in range(layer.num_outputs):
            tensors[layer.get_output(place).name] = layer.get_output(place)
    return tensors


def _constant(trt, network, array, rank: int):
    shape = (*(1,) * (rank - array.ndim), *array.shape)
    return network.add_constant(shape, trt.Weights(array)).get_output(0)
