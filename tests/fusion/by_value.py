"""An oracle for the X-ray of ONNX Runtime: what a kernel is said to hold, against the numbers that it really wrote.

It shares nothing with labsupport.fusion: it runs the original graph with every tensor among its outputs, and the
optimized graph likewise, and compares.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper

NCHWC = "com.microsoft.nchwc"


def everything(path, feed) -> dict:
    """All tensors of a graph as it stands, by name; ``.N`` behind a blocked tensor: N channels of it, in plain order."""
    model = onnx.load(str(path))
    blocked: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type != "ReorderOutput" and (node.domain == NCHWC or blocked & set(node.input)):
            blocked.update(node.output)
    names = [tensor for node in model.graph.node for tensor in node.output if tensor]
    for name in set(names) - {value.name for value in model.graph.output}:
        model.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {item.name: feed[item.name] for item in session.get_inputs()}
    found = {**feed, **dict(zip(names, session.run(names, feed) if names else (), strict=True))}
    return {name: (value, name in blocked) for name, value in found.items()}


def plain(array, channels: int):
    """A blocked tensor in plain order, by the runtime's own operator."""
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    node = helper.make_node("ReorderOutput", ["x"], ["y"], domain=NCHWC, channels=channels)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(NCHWC, 1)]
    graph = helper.make_graph([node], "plain", [helper.make_tensor_value_info("x", 1, array.shape)], ends[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": array})[0]


def equal(mine, theirs, loose: float = 0.0) -> bool:
    """The same numbers in this order or another; whole numbers up to ``loose`` of their spread, as through Q and DQ."""
    (mine, blocked), (theirs, _) = mine, theirs
    if not hasattr(mine, "dtype") or not hasattr(theirs, "dtype"):
        return str(mine) == str(theirs)
    if blocked and mine.ndim == 4 and mine.size >= theirs.size:
        mine = plain(mine, theirs.size // (mine.size // mine.shape[1]))
    if mine.size != theirs.size:
        return False
    if mine.dtype.kind not in "fiub" or theirs.dtype.kind not in "fiub":
        return mine.tolist() == theirs.tolist()
    if not mine.size:
        return True
    a, b = (np.nan_to_num(x.astype(np.float64).ravel(), nan=3.25, posinf=1e6, neginf=-1e6) for x in (mine, theirs))
    half = 2e-2 if "float16" in (mine.dtype.name, theirs.dtype.name) else 0
    close = 1e-4 * max(1.0, np.abs(b).max()) * (1 + 100 * half)
    for one, other in ((a, b), (np.sort(a), np.sort(b))):
        if np.abs(one - other).max() <= close:
            return True
        if mine.dtype.kind != theirs.dtype.kind and loose and np.std(one) and np.std(other):
            one, other = ((x - x.mean()) / x.std() for x in (one, other))
        if loose and np.sqrt(np.mean((one - other) ** 2)) <= loose * (np.std(other) or 1):
            return True
    return False


def users(graph, tensor: str, holders) -> set[str]:
    """Placed nodes that read a tensor, also through nodes that no kernel holds; "" for the network's output."""
    found = {""} if tensor in graph.outputs else set()
    for node in graph.readers.get(tensor, ()):
        placed = [name for name in (node.name, *graph.twins.get(node.name, ())) if name in holders]
        found |= {placed[0]} if placed else set().union(*(users(graph, o, holders) for o in node.outputs))
    return found


def faults(plan, original, executed, feed, loose: float = 0.0) -> list[str]:
    """Everything that an X-ray says of kernels and that their numbers do not bear out."""
    known, written = everything(original, feed), everything(executed, feed)
    holders: dict[str, int] = {}
    for kernel in plan.kernels:
        for name in kernel.nodes:
            holders[name] = holders.get(name, 0) + 1
    wrong = []
    for kernel in plan.kernels:
        for tensor, end in kernel.ends.items():
            if not equal(written[tensor], known[end], loose) if end in known else end not in plan.graph.constants:
                wrong.append(f"{kernel.layer_type} {kernel.name}: {tensor} is not {end}")
        mine = [plan.graph.by_name[name] for name in kernel.nodes]
        last = [
            tensor
            for node in mine
            for tensor in node.outputs
            if users(plan.graph, tensor, holders) - set(kernel.nodes) and tensor
        ]
        outputs = [written[tensor.name] for tensor in kernel.outputs]
        if mine and all(holders[node.name] == 1 for node in mine):
            for tensor in last:
                if not any(equal(output, known[tensor], loose) for output in outputs):
                    wrong.append(f"{kernel.layer_type} {kernel.name} does not end in {tensor}")
        if not mine and not kernel.doubtful and kernel.launches and plan.accounts().complete:
            sources = [written[tensor.name] for tensor in kernel.inputs if tensor.name in written]
            if sources and not any(equal(output, source, loose) for output in outputs for source in sources):
                if not any(output[1] or source[1] for output in outputs for source in sources):
                    wrong.append(f"{kernel.layer_type} {kernel.name} is no copy")
    return wrong
