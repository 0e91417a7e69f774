"""What lies inside a Myelin region, which 8.6 lists as one layer: found by reachability, and marked as inferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from labsupport.fusion.executed_nodes import passes_through
from labsupport.fusion.kernels import Kernel
from labsupport.fusion.layer_names import name_parts, region_ends
from labsupport.fusion.onnx_nodes import NodeGraph
from labsupport.fusion.unnamed_nodes import reached

WHY = "it lies between the region's inputs and outputs"


def inside(kernels: Sequence[Kernel], graph: NodeGraph) -> list[Kernel]:
    """The kernels with their regions filled: all between its inputs and outputs that is named nowhere else.

    The borders are the region's tensors where the plan lists them, else the first and last node in its name.
    """
    taken = {node for kernel in kernels for node in kernel.nodes}
    written = {tensor.name for kernel in kernels for tensor in kernel.outputs}
    filled = []
    for kernel in kernels:
        if kernel.kind == "region":
            between = _between(kernel, kernels, graph, taken, written)
            taken |= between
            nodes = tuple(n.name for n in graph.nodes if n.name in between or n.name in kernel.nodes)
            kernel = replace(kernel, nodes=nodes, inferred={name: WHY for name in nodes if name in between})
        filled.append(kernel)
    return filled


def _between(
    kernel: Kernel, kernels: Sequence[Kernel], graph: NodeGraph, taken: set[str], written: set[str]
) -> set[str]:
    first, last = region_ends(kernel.name) or ("", "")
    firsts, lasts = ([n for n in name_parts(end) if n in graph.by_name] for end in (first, last))
    # a copy between a tensor of the graph and the region leaves the region only a name of TensorRT's own
    sources = [
        name for name in reached(kernel, kernels, backwards=True) if name in graph.producer or name in graph.inputs
    ]
    sinks = [name for name in reached(kernel, kernels, backwards=False) if name in graph.producer]
    sinks = sinks or [tensor for node in lasts for tensor in graph.by_name[node].outputs]
    elsewhere = taken - set(kernel.nodes)

    def over(node) -> bool:
        return (
            node.name not in elsewhere and node.name not in graph.constant_nodes and node.name not in graph.shape_nodes
        )

    # tensors that other layers write are borders too, whether or not the region lists them
    own = {t.name for t in kernel.outputs}
    nodes = graph.ancestors(sinks, until={*sources, *(written - own)}, over=over)
    if not sources and firsts:
        starts = [tensor for node in firsts for tensor in graph.by_name[node].outputs]
        nodes &= graph.descendants(starts) | set(firsts)
    return {name for name in nodes if name not in kernel.nodes and not passes_through(graph, graph.by_name[name])}
