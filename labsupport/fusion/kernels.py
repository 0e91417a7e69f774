"""Kernels and plans: what runs, what it swallowed, in which types, for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from labsupport.errors import BadInput
from labsupport.fusion.node_accounts import Accounts, account
from labsupport.fusion.onnx_nodes import NodeGraph, nodes_of
from labsupport.fusion.plan_schema import NO_LAUNCH, Tensor

# Layers of these kinds move data or nothing; beside one that computes they hold only a part of an ONNX node.
NO_WORK = ("layout", *NO_LAUNCH)


@dataclass(frozen=True)
class Kernel:
    """One layer of an optimized network and the ONNX nodes it computes.

    ``inferred`` are those of its nodes that no layer names, each with the evidence that it lies here; ``parts`` are
    nodes that another kernel computes and of which this one does a part. ``note`` says where the kernel is of another
    kind than the operator. ``ends`` maps a tensor that it writes to that tensor of the graph which holds the same
    values; ``doubtful`` says that it computes and nobody can say what. Times are ms per inference.
    """

    name: str
    kind: str
    nodes: tuple[str, ...] = ()
    inferred: Mapping[str, str] = field(default_factory=dict, hash=False)
    parts: tuple[str, ...] = ()
    layer_type: str = ""
    tactic: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    weight_bytes: int = 0
    weight_dtype: str = ""
    note: str = ""
    ends: Mapping[str, str] = field(default_factory=dict, hash=False)
    doubtful: bool = False
    time_ms: float | None = None
    share: float | None = None

    @property
    def precision_in(self) -> str:
        """Types of its inputs, "fp16" or "fp16, int8"; "" where the plan does not say. Constants are not inputs."""
        return _types(self.inputs)

    @property
    def precision_out(self) -> str:
        """Types of its outputs."""
        return _types(self.outputs)

    @property
    def bytes(self) -> int | None:
        """Bytes read, written and taken from weights, once each; 0 where nothing runs.

        None where a shape is open or the plan does not list the weights, as of Myelin's regions and kernels.
        """
        if not self.launches:
            return 0
        weighted = self.kind == "convolution" or self.kind == "matmul" and len(self.inputs) < 2
        if self.kind == "region" or weighted and not self.weight_bytes:
            return None
        sizes = [tensor.bytes for tensor in (*self.inputs, *self.outputs)]
        return None if None in sizes or not sizes else sum(sizes) + self.weight_bytes

    @property
    def launches(self) -> bool:
        """Whether the GPU (or CPU) runs anything for it; a no-op only renames memory."""
        return self.kind not in NO_LAUNCH

    def __repr__(self) -> str:
        swallowed = " + ".join(self.nodes) if self.nodes else f"no ONNX node ({self.name})"
        types = f" {self.precision_in or '?'} → {self.precision_out or '?'}" if self.inputs or self.outputs else ""
        notes = [self.note] if self.note else []
        notes += [f"{self.share:.1%} of the time"] if self.share is not None else []
        return f"{self.kind}{types}: {swallowed}" + (f" ({'; '.join(notes)})" if notes else "")


@dataclass(frozen=True)
class Plan:
    """An optimized network: its kernels in order, the schema they were read from and, where given, the ONNX graph."""

    name: str
    kernels: tuple[Kernel, ...]
    schema: str
    maker: str
    graph: NodeGraph | None = None
    unknown: tuple[str, ...] = ()
    total_ms: float | None = None

    @property
    def kinds(self) -> Counter:
        """How many layers of which kind."""
        return Counter(kernel.kind for kernel in self.kernels)

    @property
    def launched(self) -> tuple[Kernel, ...]:
        """The kernels that run; no-ops, constants and host work left out."""
        return tuple(kernel for kernel in self.kernels if kernel.launches)

    @property
    def inserted(self) -> tuple[Kernel, ...]:
        """The kernels that run and stand for no ONNX node: copies into another layout or type."""
        return tuple(kernel for kernel in self.launched if not kernel.nodes and not kernel.doubtful)

    @property
    def detailed(self) -> bool:
        """Whether tensors and types are known; a plan of layer names only has none."""
        return any(kernel.outputs for kernel in self.kernels)

    def kernel_of(self, node: str) -> Kernel | None:
        """The kernel that computes an ONNX node, or None. Raises BadInput for a node that the graph lacks."""
        if self.graph is not None and node not in self.graph.by_name:
            near = [name for name in self.graph.by_name if node.strip("/").lower() in name.lower()][:3]
            raise BadInput(
                f"the graph has no node {node!r}; "
                + (f"close are {near}" if near else f"it has {list(self.graph.by_name)[:3]} and others")
            )
        return next((kernel for kernel in self.kernels if node in kernel.nodes), None)

    def together(self, *nodes: str) -> bool:
        """Whether one kernel computes all these ONNX nodes."""
        homes = [self.kernel_of(node) for node in nodes]
        return None not in homes and len({home.name for home in homes}) == 1

    def accounts(self, graph=None) -> Accounts:
        """Where every ONNX node went; ``graph`` only where the plan was read without one. Raises BadInput."""
        graph = nodes_of(graph) if graph is not None else self.graph
        if graph is None:
            raise BadInput(
                f"{self.name} was read without its ONNX graph, so nobody can say what is missing; pass graph="
            )
        claims: dict[str, tuple[str, ...]] = {}
        for kernel in self.kernels:
            for node in kernel.nodes:
                if node in graph.by_name:
                    claims[node] = (*claims.get(node, ()), kernel.name)
        inferred = {node: why for kernel in self.kernels for node, why in kernel.inferred.items() if node in claims}
        writers, readers = _borders(self.kernels, "outputs"), _borders(self.kernels, "inputs")
        # a builder's own layer without nodes may be a copy; where ONNX Runtime is read, each such kernel was looked at
        strict = self.maker != "ONNX Runtime"
        empty = [kernel for kernel in self.launched if not kernel.nodes]
        unowned = tuple(k.name for k in empty if k.doubtful or strict and k.kind != "layout")
        unknown = self.unknown or tuple(sorted({n for k in self.kernels for n in k.nodes} - set(graph.by_name)))
        books = account(graph, claims, inferred=inferred, unknown=unknown, writers=writers, readers=readers)
        return replace(books, unowned=unowned)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind}×{n}" if n > 1 else kind for kind, n in self.kinds.most_common())
        nodes = f" from {len(self.graph.nodes)} ONNX nodes" if self.graph else ""
        time = f"; {self.total_ms:.3g} ms" if self.total_ms is not None else ""
        names_only = "; layer names only: no types, no tactics" if self.schema == "layer names" else ""
        return f"Plan({self.name}: {len(self.launched)} kernels run{nodes}: {kinds}{time}{names_only})"


def with_times(plan: Plan, times: Mapping[str, float]) -> Plan:
    """The plan with a time for each kernel and its share of all that was timed. Raises BadInput where no name fits."""
    names = {kernel.name for kernel in plan.kernels}
    if not names & set(times):
        raise BadInput(
            f"the profile does not belong to {plan.name}: it times {next(iter(times))!r}, "
            f"and the plan has kernels such as {plan.kernels[0].name!r}"
        )
    total = sum(times.values())
    kernels = tuple(
        replace(k, time_ms=times[k.name], share=times[k.name] / total if total else 0.0) if k.name in times else k
        for k in plan.kernels
    )
    return replace(plan, kernels=kernels, total_ms=total)


def _borders(kernels, side: str) -> dict[str, list[str]]:
    borders: dict[str, list[str]] = {}
    for kernel in kernels:
        for tensor in getattr(kernel, side):
            borders.setdefault(tensor.name, []).append(kernel.name)
    return borders


def _types(tensors) -> str:
    return ", ".join(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.dtype))
