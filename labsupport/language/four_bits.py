"""Weights of 4 bits in ONNX Runtime's MatMulNBits: whole zero points, and a product that gives back what they lose."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from labsupport.errors import BadInput

BLOCK = 32


def blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight (N, K) in blocks of 32 as levels 0–15 (N, K / 32, 32), steps and least values (N, K / 32).

    weight ≈ least + step × level, as GGUF's Q4_1 has it. Raises BadInput where K is no multiple of 32.
    """
    if weight.ndim != 2 or weight.shape[1] % BLOCK:
        raise BadInput(
            f"a weight of shape {weight.shape}; wanted is (outputs, inputs) with a multiple of {BLOCK} inputs"
        )
    grouped = weight.reshape(len(weight), -1, BLOCK)
    least = grouped.min(-1)
    step = np.maximum((grouped.max(-1) - least) / 15, 1e-12)
    levels = np.rint((grouped - least[..., None]) / step[..., None]).clip(0, 15).astype(np.uint8)
    return levels, step.astype(np.float32), least.astype(np.float32)


def quantized(graph, path: str | os.PathLike, *, exact: bool = True):
    """The graph with every product by a weight in 4 bits; an `export.OnnxGraph`.

    MatMulNBits wants zero points that are whole, and least / step is not: up to half a step is lost. That is a constant
    a block, so with ``exact`` the sums of 32 inputs times these constants, one row a block, are added again.
    """
    import onnx
    from onnx import helper, numpy_helper

    if graph.ops.get("MatMulNBits"):
        raise BadInput(f"{graph.path.name} has products of few bits already; was it quantized before?")
    model = graph.model()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, tensors, sums, swapped = [], [], set(), set()
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        x, name = node.input
        swapped.add(name)
        product, parts, lost = _product(node, numpy_helper.to_array(weights[name]), exact)
        nodes.append(product)
        tensors += parts
        if exact:
            tensors.append(numpy_helper.from_array(lost, f"{name}.lost"))
            nodes += ([] if x in sums else _sums(x)) + _given_back(node)
            sums.add(x)
    if not swapped:
        raise BadInput(f"{graph.path.name} has no product by a constant weight, so there is nothing to quantize")
    if exact:
        tensors.append(numpy_helper.from_array(np.array([-1], np.int64), "last axis"))
        tensors.append(numpy_helper.from_array(np.array([0, 0, -1, BLOCK], np.int64), "blocks of inputs"))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in swapped]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept + tensors)
    model.graph.node.extend(nodes)
    if all(item.domain != "com.microsoft" for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))
    return of_file(path)


def _product(node, weight: np.ndarray, exact: bool):
    """The node in 4 bits, its tensors, and what whole zero points lose of a weight (K, N): (K / 32, N)."""
    from onnx import helper, numpy_helper

    levels, step, least = blocks(np.ascontiguousarray(weight.T))
    zero = np.rint(-least / step).clip(0, 15).astype(np.uint8)  # (N, K / 32)
    parts = {"levels": _packed(levels), "step": step.reshape(-1), "zero": _packed(_even(zero)).reshape(-1)}
    name, output = node.input[1], node.output[0]
    inputs = [node.input[0], *(f"{name}.{part}" for part in parts)]
    sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": 4, "block_size": BLOCK}
    outputs = [f"{output}.whole" if exact else output]
    product = helper.make_node("MatMulNBits", inputs, outputs, name=node.name, domain="com.microsoft", **sizes)
    tensors = [numpy_helper.from_array(value, f"{name}.{part}") for part, value in parts.items()]
    return product, tensors, np.ascontiguousarray((least + step * zero).T.astype(np.float32))


def _sums(x: str) -> list:
    """Nodes that add up the inputs of each block: (B, T, K) → (B, T, K / 32)."""
    from onnx import helper

    return [
        helper.make_node("Reshape", [x, "blocks of inputs"], [f"{x}.blocks"]),
        helper.make_node("ReduceSum", [f"{x}.blocks", "last axis"], [f"{x}.sums"], keepdims=0),
    ]


def _given_back(node) -> list:
    """Nodes that add what was lost: sums (B, T, K / 32) times (K / 32, N)."""
    from onnx import helper

    (x, name), output = node.input, node.output[0]
    return [
        helper.make_node("MatMul", [f"{x}.sums", f"{name}.lost"], [f"{output}.lost"]),
        helper.make_node("Add", [f"{output}.whole", f"{output}.lost"], [output]),
    ]


def of_file(path: str | os.PathLike):
    """An `export.OnnxGraph` of a file with ONNX Runtime's own operators, which onnx.checker does not know."""
    from collections import Counter

    import onnx

    from labsupport import export

    model = onnx.load(str(path))
    ops = Counter(node.op_type for node in model.graph.node)
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    return export.OnnxGraph(path=Path(path), ops=ops, inputs={}, outputs={}, opset=opset)


def _packed(levels: np.ndarray) -> np.ndarray:
    """Two levels a byte, the first in the low half."""
    return levels[..., ::2] | levels[..., 1::2] << 4


def _even(zero: np.ndarray) -> np.ndarray:
    """Zero points (N, K / 32) padded to an even number a row."""
    return np.pad(zero, ((0, 0), (0, zero.shape[1] % 2)))
