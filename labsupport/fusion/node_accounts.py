"""Conservation of nodes: each ONNX node is in a kernel, or the accounts say what became of it, or that they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from labsupport.export.qdq_nodes import QDQ
from labsupport.fusion.executed_nodes import passes_through
from labsupport.fusion.onnx_nodes import Node, NodeGraph

# They give the same bytes another shape; without a kernel of their own nothing is left of them to run.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
JOINS = ("Concat", "Split", "Slice")


@dataclass(frozen=True)
class Accounts:
    """Where the nodes of a graph went. Every node is in exactly one of placed, folded, removed, moved, unplaced.

    ``placed`` maps a node to its kernel; ``inferred`` maps those of them that no layer names to the evidence, and
    ``split`` holds those that several kernels share. ``folded``, ``removed`` and ``moved`` map a node to the reason.
    ``unknown`` are nodes that the plan names and the graph lacks, ``unowned`` kernels that compute nobody knows what.
    """

    nodes: tuple[Node, ...]
    placed: Mapping[str, str]
    inferred: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    unplaced: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unowned: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every node has its account and every kernel that computes its nodes, all of them the graph's."""
        return not self.unplaced and not self.unknown and not self.unowned

    @property
    def balanced(self) -> bool:
        """Whether the books close: each node stands in one account and in no second one."""
        booked = [*self.placed, *self.folded, *self.removed, *self.moved, *self.unplaced]
        return len(booked) == len(set(booked)) == len(self.nodes) and set(booked) == {node.name for node in self.nodes}

    def __repr__(self) -> str:
        kernels = len({kernel for kernel in self.placed.values()})
        parts = [f"{len(self.placed)} in {kernels} kernels"]
        if self.inferred:
            parts[0] += f" ({len(self.inferred)} of them inferred)"
        parts += [
            f"{len(book)} {what}"
            for what, book in (("folded", self.folded), ("removed", self.removed), ("moved", self.moved))
            if book
        ]
        tail = f"{len(self.unplaced)} UNPLACED: {_few(self.unplaced)}" if self.unplaced else "nothing unplaced"
        foreign = (
            f"; the plan names {len(self.unknown)} nodes that the graph lacks: {_few(self.unknown)}"
            if self.unknown
            else ""
        )
        if self.unowned:
            foreign += f"; {len(self.unowned)} kernels compute what nobody knows: {_few(self.unowned)}"
        parts += ["unplaced"] if self.unplaced else []
        return f"{len(self.nodes)} ONNX nodes = {' + '.join(parts)}; {tail}{foreign}"

    def table(self):
        """One row per node: operator, account, kernel or reason, evidence where it is inferred (a pandas DataFrame)."""
        from labsupport.comparing.tables import frame_class

        rows = []
        for node in self.nodes:
            account, where = self.where(node.name)
            rows.append({"node": node.name, "operator": node.op, "account": account, "where": where})
            if self.inferred:
                rows[-1]["evidence"] = self.inferred.get(node.name, "")
        return frame_class()(rows)

    def where(self, name: str) -> tuple[str, str]:
        """Account of a node, and its kernel or the reason."""
        if name in self.placed:
            account = "inferred" if name in self.inferred else "split" if name in self.split else "kernel"
            return account, " and ".join(self.split.get(name, (self.placed[name],)))
        for account, book in (("folded", self.folded), ("removed", self.removed), ("moved", self.moved)):
            if name in book:
                return account, book[name]
        return "unplaced", "no kernel names it and no rule covers it"


def account(
    graph: NodeGraph, claims: Mapping[str, tuple[str, ...]], *, inferred=None, unknown=(), writers=None, readers=None
) -> Accounts:
    """Book every node: ``claims`` maps a node to its kernels, ``writers`` and ``readers`` a tensor to them."""
    books: dict[str, dict] = {"folded": {}, "removed": {}, "moved": {}}
    unplaced = []
    for node in graph.nodes:
        if node.name in claims:
            continue
        account_name, reason = _fate(graph, node, claims, writers or {}, readers or {})
        if account_name:
            books[account_name][node.name] = reason
        else:
            unplaced.append(node.name)
    return Accounts(
        nodes=graph.nodes,
        placed={name: kernels[0] for name, kernels in claims.items()},
        inferred=dict(inferred or {}),
        split={name: kernels for name, kernels in claims.items() if len(kernels) > 1},
        unplaced=tuple(unplaced),
        unknown=tuple(unknown),
        **books,  # type: ignore[arg-type]
    )


def _fate(graph: NodeGraph, node: Node, claims, writers, readers) -> tuple[str, str]:
    if node.name in graph.constant_nodes:
        return "folded", "hangs on constants alone: computed while building"
    if node.name in graph.dead_nodes:
        return "removed", "nobody reads its result"
    if passes_through(graph, node):
        return "removed", "hands its input on unchanged"
    if node.name in graph.shape_nodes:
        return "folded", "hangs on shapes alone: computed while building or on the host"
    twin = next((twin for twin in graph.twins.get(node.name, ()) if twin in claims), None)
    if twin:
        return "removed", f"computes the same as {twin}"
    if node.op in VIEWS:
        return "removed", "the same bytes in another shape"
    if node.op in QDQ:
        return "moved", "its scale went into the kernels beside it"
    if node.op in JOINS:
        return _in_place(node, writers, readers)
    return "", ""


def _in_place(node: Node, writers, readers) -> tuple[str, str]:
    """A Concat whose inputs are written straight into its output; a Split or Slice that is read where it lies."""
    names = [kernel for tensor in node.outputs for kernel in writers.get(tensor, [])]
    if node.op == "Concat" and names:
        return "moved", f"written in place by {' and '.join(dict.fromkeys(names))}"
    names = [kernel for tensor in node.outputs if tensor not in writers for kernel in readers.get(tensor, [])]
    if node.op != "Concat" and names:
        return "moved", f"read in place by {' and '.join(dict.fromkeys(names))}"
    return "", ""


def _few(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
