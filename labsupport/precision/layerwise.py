"""Two precisions held against each other layer by layer: where the error begins, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from labsupport import export, runtimes
from labsupport.errors import BadInput
from labsupport.export import casting, surgery
from labsupport.precision import number_formats, rounding
from labsupport.precision.type_reports import MOVERS

CAUSES = ("overflow", "underflow", "cancellation", "rounding")
ROUNDINGS = 40  # a layer that rounds its inputs, weights and result errs by about one; forty have a reason


@dataclass(frozen=True)
class LayerError:
    """One node: the range of what it touches in FP32, its error here (inputs already off) and its own (inputs exact).

    ``cause`` is one of ``CAUSES`` where it errs by itself; else "inherited" from a node before that does, "accumulated"
    from many small roundings, or "".
    """

    node: str
    op: str
    largest: float
    smallest: float
    error: float
    own_error: float
    cause: str
    wide: bool = False

    def __repr__(self) -> str:
        why = f", {self.cause}" if self.cause else ""
        return f"{self.node} ({self.op}): own error {self.own_error:.1e}, so far {self.error:.1e}{why}"


@dataclass(frozen=True)
class Scan:
    """Every computing node of a network in the order in which it runs."""

    rows: tuple[LayerError, ...]
    to: str
    tolerance: float

    def __iter__(self) -> Iterator[LayerError]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, node: str) -> LayerError:
        for row in self.rows:
            if row.node == node:
                return row
        raise BadInput(f"{node!r} was not scanned; scanned are {[row.node for row in self.rows]}")

    @property
    def faults(self) -> tuple[LayerError, ...]:
        """Nodes that err by themselves, with exact inputs: the ones to keep wide."""
        return tuple(row for row in self.rows if row.cause in CAUSES)

    @property
    def first_bad(self) -> LayerError | None:
        """The first node whose result is off by more than the tolerance."""
        return next((row for row in self.rows if not row.error <= self.tolerance), None)

    @property
    def keep_wide(self) -> list[str]:
        """Names of the nodes that err by themselves or are wide already, for ``precision.cast(keep_wide=...)``."""
        return [row.node for row in self.rows if row.wide or row.cause in CAUSES]

    def table(self, *, worst: int | None = None):
        """One row a node (DataFrame), in running order; ``worst`` keeps that many, the largest own error first."""
        from labsupport.comparing.tables import frame_class

        rows = self.rows if worst is None else sorted(self.rows, key=lambda r: -r.own_error)[:worst]
        return frame_class()(
            [
                {
                    "node": r.node,
                    "operator": r.op,
                    "largest": r.largest,
                    "smallest": r.smallest,
                    "error so far": r.error,
                    "own error": r.own_error,
                    "cause": "kept wide" if r.wide else r.cause,
                }
                for r in rows
            ]
        )

    def __repr__(self) -> str:
        first = f"; first bad: {self.first_bad.node}" if self.first_bad else ""
        return f"Scan({len(self)} nodes in {self.to}: {len(self.faults)} err by themselves{first})"


def scan(graph, feed, *, to: str = "fp16", keep_wide=(), roundings: float = ROUNDINGS) -> Scan:
    """Run a network in FP32 and in ``to``, every tensor an output, and once more each node alone on exact inputs.

    ``feed`` is an array, or a mapping for several inputs, as the network takes it; some hundred items of real data. The
    errors are relative, ‖low − FP32‖ / ‖FP32‖; a node errs by itself when it is off by more than ``roundings`` times
    what one rounding costs, half of the format's epsilon. Sums are kept in FP32, as most GPU kernels do: what a kernel
    loses by narrow sums comes on top. Runs on the CPU. Raises BadInput for NaN in the feed and like ``precision.cast``.
    """
    if not roundings > 0:
        raise BadInput(f"roundings={roundings!r}; give a number above 0, such as {ROUNDINGS}")
    twins = Twins(graph, to, keep_wide).walk()
    low = rounding.rounded(casting.Typed(twins.graph, to, keep_wide).walk(keep_io=True).saved())
    exact = _run(twins.exposed(), feed)
    bad = _run(exposed(low, [t for t in twins.tensors if t in exact]), feed)
    format = number_formats.named(to)
    tolerance = roundings * format.epsilon / 2
    rows: list[LayerError] = []
    for node in twins.computing:
        row = _row(node, exact, bad, format, tolerance, twins.own)
        if not row.cause and row.error > tolerance:
            row = replace(row, cause="inherited" if any(r.cause in CAUSES for r in rows) else "accumulated")
        rows.append(row)
    return Scan(tuple(rows), to, tolerance)


def compare(reference, run, feed) -> list[tuple[str, float]]:
    """(tensor, relative error) for each output of two runtimes with the same inputs and outputs, in their order.

    For two graphs with every tensor an output, or an engine built from one. An error of inf says that the second run
    has infinity or NaN. Raises BadInput where the two networks do not take the same inputs.
    """
    mine, other = reference.inputs, run.inputs
    if set(mine) != set(other):
        raise BadInput(
            f"the reference takes {sorted(mine)}, the other run {sorted(other)}; compare two precisions of one network"
        )
    for name in mine:
        if len(mine[name].shape) != len(other[name].shape) or any(
            a and b and a != b for a, b in zip(mine[name].shape, other[name].shape, strict=True)
        ):
            raise BadInput(
                f"input {name!r} has shape {mine[name].shape} in the reference and {other[name].shape} in the other "
                "run; export both alike"
            )
    shared = [name for name in reference.outputs if name in run.outputs]
    if not shared:
        raise BadInput(
            f"no output in common: {list(reference.outputs)} and {list(run.outputs)}; expose the tensors of one graph"
        )
    expected, got = reference(feed), run(feed)
    return [(name, relative(expected[name], got[name])) for name in shared]


def relative(expected, got) -> float:
    """‖got − expected‖ / ‖expected‖ over the places that are finite in FP32; inf where ``got`` is not finite there."""
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if expected.shape != got.shape:
        raise BadInput(f"shapes {expected.shape} and {got.shape} came; an error is between two results of one shape")
    sound = np.isfinite(expected)
    if not np.isfinite(got[sound]).all():
        return float("inf")
    off, scale = np.linalg.norm((got - expected)[sound]), np.linalg.norm(expected[sound])
    return float(off / scale) if scale else float(0 if not off else "inf")


def exposed(graph, tensors: Iterable[str] | None = None) -> export.OnnxGraph:
    """The same network with the named tensors as further outputs; without names, all that its computing nodes write.

    For an engine, too: what must be written to memory cannot stay inside a fused kernel, so such an engine is slower
    and may round where the plain one does not. Raises BadInput for a tensor that is not there.
    """
    graph = export.load(graph)
    if tensors is None:
        import onnx

        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        model = graph.model()
        kinds = {n: v.type.tensor_type.elem_type for n, v in surgery.values_of(model).items()}
        written = [node.output[0] for node in model.graph.node if node.op_type not in MOVERS]
        tensors = [t for t in written if kinds.get(t) in floats]
    return export.exposed(graph, tensors)


class Twins(casting.Walk):
    """The FP32 network, and beside each node that would be narrow a twin that reads the exact tensors rounded."""

    def change(self, tensor, target, low):
        self.nodes.extend(rounding.pair(tensor, target, self.low, self.names))

    def narrow(self, exact):
        return number_formats.rounded(exact, self.suffix)

    def walk(self) -> Twins:
        """Write each node as it is and, where it would be narrow, its twin."""
        import onnx

        self.computing, self.narrowed, self.tensors, self.own = [], set(), [], {}
        for node in self.model.graph.node:
            self.nodes.append(node)
            results = [t for t in node.output if t in self.floats]
            if not results or node.op_type in MOVERS:
                continue
            self.computing.append(node)
            self.tensors += results
            if self.narrows(node):
                self.narrowed.add(node.name)
                self._twin(node)
        self.nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        return self

    def _twin(self, node) -> None:
        """The node once more, on its exact inputs rounded, and its results rounded."""
        import onnx

        (reads, writes), twin = self.narrow_places(node), onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = self.names.free(f"{node.name}/twin")
        twin.input[:] = [self.read(t, i in reads) if t else t for i, t in enumerate(node.input)]
        twin.output[:] = [t and self.names.free(f"{t}.twin") for t in node.output]
        self.nodes.append(twin)
        for place, tensor in enumerate(node.output):
            if tensor in self.floats:
                self.own[tensor] = twin.output[place]
            if place in writes:
                self.own[tensor] = self.names.free(f"{tensor}.own")
                self.nodes.extend(rounding.pair(twin.output[place], self.own[tensor], self.low, self.names))

    def exposed(self) -> export.OnnxGraph:
        """The graph saved, with every tensor that is read or written by a computing node as an output."""
        shown = [
            t
            for node in self.computing
            for t in (*node.input, *node.output)
            if t in self.floats and t not in self.weights
        ]
        return exposed(self.saved(), dict.fromkeys([*shown, *self.own.values()]))


def _run(graph, feed) -> dict:
    arrays = feed if isinstance(feed, Mapping) else {next(iter(graph.inputs)): feed}
    arrays = {name: x.detach().cpu().numpy() if hasattr(x, "detach") else x for name, x in arrays.items()}
    with runtimes.OnnxRuntime(graph, optimization="off") as run:
        outputs = run(arrays)
    return {**{name: np.asarray(x) for name, x in arrays.items()}, **outputs}


def _row(node, exact, low, format, tolerance, own) -> LayerError:
    results = [t for t in node.output if t in exact]
    touched = [exact[t] for t in dict.fromkeys((*node.input, *results)) if t in exact and exact[t].dtype.kind == "f"]
    sizes = np.concatenate([np.abs(x[np.isfinite(x) & (x != 0)]).ravel() for x in touched] or [np.zeros(1)])
    sizes = sizes if sizes.size else np.zeros(1)
    error = max((relative(exact[t], low[t]) for t in results if t in low), default=0.0)
    wide = not any(t in own for t in results)
    own = max((relative(exact[t], exact[own[t]]) for t in results if t in own), default=0.0)
    cause = "" if own <= tolerance else _cause(node, exact, results, sizes, format)
    return LayerError(node.name, node.op_type, float(sizes.max()), float(sizes.min()), error, own, cause, wide)


def _cause(node, exact, results, sizes, format) -> str:
    if sizes.max() > format.max:
        return "overflow"
    lost = max(
        float((np.abs(x[x != 0]) < format.smallest_normal / 8).mean()) if (x != 0).any() else 0.0
        for x in (exact[t] for t in (*node.input, *results) if t in exact)
    )
    if lost > 0.01:
        return "underflow"
    inputs = [np.abs(exact[t]).max() for t in node.input if t in exact and exact[t].size]
    small = max((np.abs(exact[t]).max() for t in results if exact[t].size), default=0.0)
    return (
        "cancellation" if node.op_type in ("Sub", "Add", "Sum") and inputs and small < max(inputs) / 32 else "rounding"
    )
