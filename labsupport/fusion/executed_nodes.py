"""Which nodes of the original graph each node of ONNX Runtime's optimized graph computes.

Tensors that both graphs know by name are the fixed points. Between them structure decides: a kernel computes what lies
between the tensors it reads and those it writes, and nothing else may lead into it. Where several kernels lie between
two fixed points, values decide (``executed_values``): both graphs are fed the same data, and equal tensors are further
fixed points. What is still open is in doubt and is said to be so.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labsupport.export.qdq_nodes import QDQ
from labsupport.fusion.onnx_nodes import Node, NodeGraph

# The runtime puts these in on its own; they hand the same values on in another order or another type.
INSERTED = ("ReorderInput", "ReorderOutput", "Cast")
MOVERS = (*INSERTED, *QDQ, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")

WIDENED = "InsertedPrecisionFreeCast_"  # before a half-precision tensor's name: the same tensor in FP32


@dataclass(frozen=True)
class Placement:
    """Kernel → the nodes it computes, in execution order; kernel's tensor → the graph's tensor with the same values.

    ``doubtful`` are kernels that compute something of which nobody can say what; a kernel without nodes that is not
    among them only copies.
    """

    nodes: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, str]
    doubtful: frozenset[str] = frozenset()


def placement(original: NodeGraph, executed: NodeGraph, values=None) -> Placement:
    """Place the kernels ``executed`` on the nodes of ``original``; ``values`` is an executed_values.Values."""
    search = _Search(original, executed)
    search.by_name()
    if values is not None:
        search.by_value(values)
    nodes, doubtful = {}, set()
    for cluster in search.clusters():
        for name, work in search.divided(cluster).items():
            nodes[name] = tuple(n.name for n in original.nodes if n.name in (work or ()))
            doubtful |= {name} if work is None else set()
    return Placement(nodes, search.ends, frozenset(doubtful))


def through(upper: Placement, lower: Placement, direct: Placement, original: NodeGraph) -> Placement:
    """Kernels on the nodes of the original, by way of a graph in between: ``lower`` leads to it, ``upper`` from it.

    A kernel that the way leaves in doubt stands where ``direct`` placed it.
    """
    nodes, doubtful = {}, set()
    for kernel, inner in lower.nodes.items():
        names = {node for name in inner for node in upper.nodes[name]}
        if kernel in lower.doubtful or any(name in upper.doubtful for name in inner):
            names, doubt = set(direct.nodes[kernel]), kernel in direct.doubtful
            doubtful |= {kernel} if doubt else set()
        nodes[kernel] = tuple(n.name for n in original.nodes if n.name in names)
    ends = {tensor: upper.ends[end] for tensor, end in lower.ends.items() if end in upper.ends}
    return Placement(nodes, {**direct.ends, **ends}, frozenset(doubtful))


def passes_through(original: NodeGraph, node: Node) -> bool:
    """Whether a node hands its input on unchanged: Identity, Dropout out of training, a Cast to the type it has."""
    if node.op == "Identity" or node.op == "Dropout" and not any(node.inputs[2:]):
        return True
    types = [original.types.get(tensor, (None,))[0] for tensor in (node.inputs[:1] + node.outputs[:1])]
    return node.op in ("Cast", "CastLike") and len(types) == 2 and types[0] is not None and types[0] == types[1]


def _inserted(node: Node) -> bool:
    """Whether the runtime put it in for a layout or a type of its own; it says so in the names of its casts."""
    return node.op in INSERTED[:2] or node.op == "Cast" and "Inserted" in node.name


class _Search:
    def __init__(self, original: NodeGraph, executed: NodeGraph):
        self.original, self.executed = original, executed
        self.ends = {name: name for name in (*original.inputs, *original.constants)}
        self.same: dict[str, str] = {}
        for node in original.nodes:
            if passes_through(original, node):
                self.same[node.outputs[0]] = self.root(node.inputs[0])
            elif twins := original.twins.get(node.name):
                first = min(twins, key=original.place.__getitem__)
                if original.place[first] < original.place[node.name]:
                    self.same |= dict(zip(node.outputs, map(self.root, original.by_name[first].outputs), strict=True))

    def root(self, tensor: str) -> str:
        """The tensor of the original that is computed where this one is only handed on, or computed once more."""
        return self.same.get(tensor, tensor)

    def by_name(self) -> None:
        """Tensors that kept their names, the same operators on the same inputs, and copies of known tensors."""
        producers = self.original.producer
        twins = {self._key(node, node.inputs): node for node in reversed(self.original.nodes) if not node.random}
        for node in self.executed.nodes:
            plain = {t: t if t in producers else t.removeprefix(WIDENED) for t in node.outputs}
            self.ends |= {tensor: end for tensor, end in plain.items() if end in producers}
        for node in self.executed.nodes:
            if all(tensor in self.ends for tensor in node.outputs if tensor):
                continue
            if twin := twins.get(self._key(node, [self.ends.get(tensor, "?") for tensor in node.inputs])):
                self.ends |= {new: old for new, old in zip(node.outputs, twin.outputs, strict=True) if new}
            elif node.op in INSERTED and node.inputs[0] in self.ends and self._lossless(node):
                self.ends[node.outputs[0]] = self.ends[node.inputs[0]]
        for node in reversed(self.executed.nodes):
            if node.op in INSERTED[:2] and node.outputs[0] in self.ends:
                self.ends.setdefault(node.inputs[0], self.ends[node.outputs[0]])

    def _key(self, node: Node, reads) -> tuple:
        return node.op, node.domain, node.attributes, len(node.outputs), tuple(map(self.root, reads)), node.random

    def _lossless(self, node: Node) -> bool:
        kinds = [self.executed.types.get(tensor, ("",))[0] for tensor in (node.inputs[0], node.outputs[0])]
        return _inserted(node) or all(kind in ("fp16", "bf16", "fp32", "double") for kind in kinds)

    def by_value(self, values) -> None:
        """Tensors with new names: the tensor of the original that has their values and can be made of what is read."""
        for node in self.executed.nodes:
            for tensor in node.outputs:
                if tensor and tensor not in self.ends:
                    reads = self._known_behind(node)
                    close = {end: d for end, d in values.like(tensor).items() if self._reachable(end, reads)}
                    if end := self._best(node, close, reads, values.weak(tensor)):
                        self._end(node, tensor, end)

    def _end(self, node: Node, tensor: str, end: str) -> None:
        """Note where a tensor ends; where the same operator made it, its other results are that one's as well."""
        maker = self.original.producer.get(end)
        if maker and maker.op == node.op and len(maker.outputs) == len(node.outputs):
            if node.outputs.index(tensor) == maker.outputs.index(end):
                for mine, theirs in zip(node.outputs, maker.outputs, strict=True):
                    self.ends.setdefault(mine, theirs)
        self.ends[tensor] = end

    def _known_behind(self, node: Node) -> set[str]:
        reads, todo, seen = set(), list(node.inputs), set()
        while todo:
            tensor = todo.pop()
            if tensor in self.ends:
                reads.add(self.root(self.ends[tensor]))
            elif tensor in self.executed.producer and tensor not in seen:
                seen.add(tensor)
                todo += self.executed.producer[tensor].inputs
        return reads

    def _reachable(self, end: str, reads: set[str]) -> bool:
        return self.root(end) in reads or self.behind(end, reads) is not None

    def _best(self, node: Node, close: Mapping[str, bool], reads: set[str], weak: bool) -> str | None:
        """The candidate whose operator the kernel has (or ends in, by its activation), in the same order, the nearest.

        None where several have the same ``weak`` values, such as a single number, and no operator decides.
        """
        last = self.executed.activations.get(node.name, node.op)
        named = set(self.ends.values())
        makers = self.original.producer

        def rank(end: str) -> tuple:
            fits = end in makers and makers[end].op == last
            copied = self.root(end) in reads
            return not fits, close[end], not copied, end in named, len(self.behind(end, reads) or ())

        ranked = sorted(close, key=rank)
        if weak and len(ranked) > 1 and rank(ranked[0])[0] == rank(ranked[1])[0]:
            return None
        return ranked[0] if ranked else None

    def behind(self, end: str, reads: set[str]) -> set[str] | None:
        """Nodes behind one tensor, up to those that are read; None where the way leads past them to other inputs.

        Constants and shape arithmetic are no work of a kernel, unless it ends in them.
        """
        graph = self.original
        start = graph.producer.get(end)
        if start is None:
            return None
        names, seen, todo = {start.name}, {start.name}, list(start.inputs)
        while todo:
            tensor = todo.pop()
            node = graph.producer.get(tensor)
            if not tensor or self.root(tensor) in reads or tensor in graph.constants:
                continue
            if node is None:
                return None
            if node.name in seen or node.name in graph.constant_nodes or node.name in graph.shape_nodes:
                continue
            seen.add(node.name)
            names |= set() if passes_through(graph, node) else {node.name}
            todo += node.inputs[:1] if passes_through(graph, node) else node.inputs
        return names

    def _work(self, end: str, reads: set[str]) -> set[str]:
        """Nodes of a kernel that ends in a tensor.

        The runtime may have found that an input does not matter, such as the condition of a branch that is always
        taken: the way back then ends at what other kernels write.
        """
        names = self.behind(end, reads)
        if names is None:
            others = {self.root(tensor) for tensor in (*self.ends.values(), *self.original.inputs)}
            names = self.behind(end, reads | others)
        return names or set()

    def clusters(self) -> list[list[Node]]:
        """Kernels that tensors of unknown content hold together, in execution order; most stand alone."""
        group = {node.name: [node] for node in self.executed.nodes}
        for node in self.executed.nodes:
            for tensor in node.inputs:
                maker = self.executed.producer.get(tensor)
                if maker and tensor not in self.ends and group[maker.name] is not group[node.name]:
                    small, large = sorted((group[maker.name], group[node.name]), key=len)
                    large += small
                    group |= {member.name: large for member in small}
        order = self.executed.place
        return [sorted(g, key=lambda n: order[n.name]) for g in {id(g): g for g in group.values()}.values()]

    def divided(self, cluster: list[Node]) -> dict[str, set[str] | None]:
        """Nodes of each kernel of a cluster: set() for a copy, None where nobody can say."""
        outputs = {tensor for node in cluster for tensor in node.outputs}
        reads = {self.root(self.ends[t]) for n in cluster for t in n.inputs if t in self.ends and t not in outputs}
        inner = {self.root(self.ends[t]) for n in cluster for t in n.inputs if t in self.ends and t in outputs}
        work: set[str] = set()
        for node in cluster:
            for tensor in node.outputs:
                if tensor in self.ends and not self._copied(node, self.ends[tensor], reads):
                    work |= self._work(self.ends[tensor], reads | inner)
        if len(cluster) == 1:
            only = cluster[0]
            certain = work or any(t in self.ends for t in only.outputs)
            return {only.name: work if certain else None}
        return self._shared(cluster, work)

    def _shared(self, cluster: list[Node], work: set[str]) -> dict[str, set[str] | None]:
        """One node in several kernels, or several kernels of which one works and the others move data for it."""
        shapes = self.executed.shape_nodes | self.executed.constant_nodes
        insertions = [n.name for n in cluster if _inserted(n) or n.op in MOVERS and n.name in shapes]
        workers = [n.name for n in cluster if (n.name not in insertions if len(work) == 1 else n.op not in MOVERS)]
        if not work and not workers:
            return {node.name: set() for node in cluster}
        if len(work) == 1 and not workers:
            return {node.name: work for node in cluster}
        if not work or len(work) > 1 and len(workers) != 1:
            return {n.name: set() if n.name in insertions else None for n in cluster}
        if len(workers) == 1:
            for node in (*cluster, *reversed(cluster)):
                ends = [tensor for tensor in (node.inputs[0], node.outputs[0]) if tensor in self.ends]
                if node.name not in workers and ends:
                    self.ends.setdefault(node.inputs[0], self.ends[ends[0]])
                    self.ends.setdefault(node.outputs[0], self.ends[ends[0]])
        return {node.name: work if node.name in workers else set() for node in cluster}

    def _copied(self, node: Node, end: str, reads: set[str]) -> bool:
        """Whether a kernel only hands on what it reads, and is not itself a node that does so."""
        maker = self.original.producer.get(end)
        itself = maker is not None and maker.op == node.op and node.op in ("Identity", "Dropout", "Cast")
        return maker is None or self.root(end) in reads and not itself
