"""Nodes that no layer names, as biases folded into a matmul: placed by the tensors that a kernel reads and writes.

A kernel must compute what lies between the tensors it reads, the nodes it names, and the tensors it delivers, since
nothing can leave it halfway and come back. What is placed so is marked as inferred, with the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from labsupport.export.qdq_nodes import QDQ
from labsupport.fusion.executed_nodes import passes_through
from labsupport.fusion.kernels import NO_WORK, Kernel
from labsupport.fusion.node_accounts import JOINS, VIEWS
from labsupport.fusion.onnx_nodes import NodeGraph


def with_unnamed(kernels: Sequence[Kernel], graph: NodeGraph) -> list[Kernel]:
    """The kernels with those unnamed nodes that exactly one of them can hold; the others stay unplaced."""
    taken = {node for kernel in kernels for node in kernel.nodes}
    evidences = [_inside(kernel, kernels, graph, taken) for kernel in kernels]
    once = [name for evidence in evidences for name in evidence]
    filled = []
    for kernel, evidence in zip(kernels, evidences, strict=True):
        mine = {name: why for name, why in evidence.items() if once.count(name) == 1}
        if mine:
            nodes = tuple(n.name for n in graph.nodes if n.name in mine or n.name in kernel.nodes)
            kernel = replace(kernel, nodes=nodes, inferred={name: mine[name] for name in nodes if name in mine})
        filled.append(kernel)
    return filled


def _inside(kernel: Kernel, kernels: Sequence[Kernel], graph: NodeGraph, taken: set[str]) -> Mapping[str, str]:
    """Unnamed node → the evidence that this kernel computes it."""
    own = [graph.by_name[name] for name in kernel.nodes if name in graph.by_name]
    if not own or kernel.kind == "region" or kernel.kind in NO_WORK:
        return {}
    reads = reached(kernel, kernels, backwards=True)
    delivers = reached(kernel, kernels, backwards=False)
    products = {tensor for node in own for tensor in node.outputs}
    others = {t.name for k in kernels for t in k.outputs} - delivers
    sinks = {t: f"its result {t} is made of what this kernel writes" for t in delivers - products}
    between = "its input comes from nodes of this kernel or from what it reads, and its result goes into them"
    sinks |= {t: between for node in own for t in node.inputs if t and t not in products}
    evidence: dict[str, str] = {}
    for sink, why in sinks.items():
        for name in _closed(sink, reads - delivers, products, others, graph, taken):
            evidence.setdefault(name, why)
    return evidence


def _closed(sink: str, reads, products, others, graph: NodeGraph, taken) -> set[str]:
    """Unnamed nodes from the kernel's own tensors to the sink; none where the way leads anywhere else."""
    names, todo, seen = set(), [sink], set()
    while todo:
        tensor = todo.pop()
        node = graph.producer.get(tensor)
        if tensor in seen or tensor in products or tensor in reads or not tensor or tensor in graph.constants:
            continue
        seen.add(tensor)
        if node is not None and (node.name in graph.constant_nodes or node.name in graph.shape_nodes):
            continue
        if node is None or node.name in taken or tensor in others or node.op in JOINS:
            return set()
        if node.op not in (*VIEWS, *QDQ) and not passes_through(graph, node):
            names.add(node.name)
        todo += node.inputs
    return names


def reached(kernel: Kernel, kernels: Sequence[Kernel], *, backwards: bool) -> set[str]:
    """Tensors that a kernel reads (or writes), also through copies and no-ops, which pass values on unchanged."""
    tensors: set[str] = set()
    todo = [kernel]
    while todo:
        one = todo.pop()
        new = {t.name for t in (one.inputs if backwards else one.outputs)} - tensors
        tensors |= new
        for other in kernels:
            edge = {t.name for t in (other.outputs if backwards else other.inputs)}
            if other.kind in NO_WORK and not other.nodes and edge & new:
                todo.append(other)
    return tensors
