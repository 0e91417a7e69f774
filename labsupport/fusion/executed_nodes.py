"""Which nodes of the original graph each node of ONNX Runtime's optimized graph computes, found by tensor names.

A fused node writes the tensor that the last of its nodes wrote. So what it swallowed is everything behind that tensor
up to the tensors that other nodes of the optimized graph write. The NCHWc layout gives tensors new names; there the
node's name, its residual input and its activation say which tensor it is.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

from __future__ import annotations

from labsupport.fusion.onnx_nodes import Node, NodeGraph

LAYOUT = ("ReorderInput", "ReorderOutput")
NCHWC = "com.microsoft.nchwc"
SUM_INPUT = 3  # Conv of the NCHWc domain and FusedConv: X, W, B, Sum


def swallowed(original: NodeGraph, executed: NodeGraph) -> dict[str, tuple[str, ...]]:
    """Optimized node → the original nodes it computes, in execution order; () for one that the runtime inserted."""
    aliases = _aliases(original, executed)
    written = {aliases[tensor] for tensor in aliases}
    groups = {}
    for node in executed.nodes:
        ends = [aliases[tensor] for tensor in node.outputs if tensor in aliases]
        if node.op in LAYOUT or not ends:
            groups[node.name] = ()
            continue
        found = set()
        for end in ends:
            found |= _behind(original, end, written - {end})
        groups[node.name] = tuple(n.name for n in original.nodes if n.name in found)
    return groups


def dtypes(original: NodeGraph, executed: NodeGraph) -> dict[str, tuple]:
    """Tensor of the optimized graph → (dtype, shape), taken from the original where the layout gave it a new name."""
    aliases = _aliases(original, executed)
    found = {tensor: original.types[name] for tensor, name in aliases.items() if name in original.types}
    return {**executed.types, **found}


def _behind(original: NodeGraph, end: str, written: set[str]) -> set[str]:
    """Nodes behind one tensor, up to what other kernels write; constants and shape arithmetic are no work of it."""
    start = original.producer.get(end)
    if start is None:
        return set()
    shapes = original.shape_nodes if start.name not in original.shape_nodes else frozenset()

    def counts(node: Node) -> bool:
        if node is start:
            return True
        if node.name in original.constant_nodes or node.name in shapes or passes_through(original, node):
            # look behind a node that passes its input on, without counting it: see node_accounts
            return False
        return True

    ends, found, seen = [end], set(), set()
    while ends:
        tensor = ends.pop()
        node = original.producer.get(tensor)
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        twins = [original.by_name[name] for name in original.twins.get(node.name, ())]
        if node is not start and any(tensor in written for twin in twins for tensor in twin.outputs):
            continue  # its twin runs, and its readers read the twin's result
        if counts(node):
            found.add(node.name)
        elif not passes_through(original, node):
            continue
        ends += [i for i in node.inputs if i and i not in written]
    return found


def passes_through(original: NodeGraph, node: Node) -> bool:
    """Whether a node hands its input on unchanged: Identity, Dropout, a Cast to the type it already has."""
    if node.op in ("Identity", "Dropout"):
        return True
    known = [original.types.get(tensor, (None,))[0] for tensor in (node.inputs[:1] + node.outputs[:1])]
    return node.op == "Cast" and len(known) == 2 and known[0] is not None and known[0] == known[1]


def _aliases(original: NodeGraph, executed: NodeGraph) -> dict[str, str]:
    """Tensor of the optimized graph → the original tensor that holds the same values."""
    aliases = {name: name for name in original.inputs}
    for node in executed.nodes:
        if node.op in LAYOUT:
            source = aliases.get(node.inputs[0])
            name = node.outputs[0] if node.outputs[0] in original.producer else source
            if name:
                aliases[node.outputs[0]] = name
                aliases.setdefault(node.inputs[0], name)
            continue
        twin = original.by_name.get(node.name)
        for place, tensor in enumerate(node.outputs):
            if not tensor:
                continue
            name = tensor if tensor in original.producer else None
            hint = node.name.removesuffix("_nchwc").removesuffix("_nhwc")
            if name is None and hint != node.name and hint in original.producer:
                name = _with_epilogue(original, executed, node, hint, aliases)
            if name is None and twin and len(twin.outputs) == len(node.outputs):
                name = twin.outputs[place]
            if name:
                aliases[tensor] = name
    return aliases


def _with_epilogue(original: NodeGraph, executed: NodeGraph, node: Node, tensor: str, aliases: dict) -> str:
    """The tensor that an NCHWc convolution writes once its residual input and its activation are counted in."""
    if len(node.inputs) > SUM_INPUT and node.inputs[SUM_INPUT]:
        other = aliases.get(node.inputs[SUM_INPUT])
        adds = [n for n in original.readers.get(tensor, []) if n.op in ("Add", "Sum") and other in n.inputs]
        tensor = adds[0].outputs[0] if len(adds) == 1 else tensor
    activation = executed.settings.get(node.name, {}).get("activation")
    made_by = original.producer[tensor].op
    if activation and made_by != activation:
        acts = [n for n in original.readers.get(tensor, []) if n.op == activation]
        tensor = acts[0].outputs[0] if len(acts) == 1 else tensor
    return tensor
