"""What a version takes to the device: weights as the file stores them, activations as its kernels compute them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labsupport import export
from labsupport.errors import BadInput, one_of
from labsupport.export import onnx_graph
from labsupport.export.qdq_nodes import QDQ
from labsupport.footprint.tensor_lifetimes import VALUE_BYTES, lifetimes

MIB = 2**20


@dataclass(frozen=True)
class Shipped:
    """MiB of the weights in a file, and of the most activations that live at once."""

    weights_mib: float
    activations_mib: float

    @property
    def total_mib(self) -> float:
        return self.weights_mib + self.activations_mib


def shipped(graph, precision: str | None = None, *, batch: int = 1) -> Shipped:
    """Weights, wherever they stand in the file, and activations of a graph, for one batch size.

    ``precision`` is what the kernels compute in. Left out, it is read from the graph: "int8" where there are Q/DQ
    nodes, else the type of the weights. A graph of FP32 weights that the builder will cast ("fp16") counts them as
    narrow. Q/DQ nodes fuse into their layers and hold nothing.
    """
    graph = export.load(graph)
    stored = export.float_type(graph)
    kind = precision or ("int8" if graph.ops.get("QuantizeLinear") else stored)
    if precision:
        one_of(VALUE_BYTES, precision=precision)
    if kind not in VALUE_BYTES:
        choices = list(VALUE_BYTES)
        raise BadInput(
            f"{graph.path.name} has {kind} weights, which nothing counts in; give precision=, one of {choices}"
        )
    model = graph.model()
    from onnx import numpy_helper

    codes = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    weights = 0
    for weight in onnx_graph.tensors_of(model):
        array = numpy_helper.to_array(weight)
        # TensorRT's Q/DQ graphs keep FP32 weights before a QuantizeLinear, and the builder stores the codes alone
        weights += array.size if weight.name in codes else array.nbytes
    if stored == "fp32" and kind in ("fp16", "bf16"):
        weights //= 2
    plain = graph if not any(graph.ops.get(op) for op in QDQ) else _without_qdq(model)
    return Shipped(weights / MIB, lifetimes(plain, batch=batch, precision=kind).peak_mib)


def _without_qdq(model) -> export.OnnxGraph:
    """The layers alone: every pair of Quantize and Dequantize taken out, stored codes as float weights of their
    shape.
    """
    from onnx import numpy_helper

    stored = {weight.name: weight for weight in model.graph.initializer}
    source, kept = {}, []
    for node in model.graph.node:
        if node.op_type not in QDQ:
            kept.append(node)
        elif node.input[0] in stored:
            zeros = np.zeros(tuple(stored[node.input[0]].dims), np.float32)
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.output[0]))
        else:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    outputs = {output.name for output in model.graph.output}
    everywhere = list(onnx_graph.everywhere(kept))  # branches and bodies read tensors of the graph around them
    for node in everywhere:
        for place, name in enumerate(node.input):
            node.input[place] = source.get(name, name)
    for name in outputs & source.keys():  # the network's output was quantized and back: its writer gets that name
        for node in everywhere:
            node.output[:] = [name if written == source[name] else written for written in node.output]
            node.input[:] = [name if read == source[name] else read for read in node.input]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    read = outputs.union(*(node.input for node in everywhere))
    used = [weight for weight in model.graph.initializer if weight.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
    return export.save(model, export.fresh_folder() / "without_qdq.onnx")
