"""Where a network's bytes go: how long each tensor lives, the least memory that takes, and what a served one holds.

A plan of addresses follows from the lifetimes alone, so all of it is computed from an ONNX graph without a GPU.
What a process really holds is measured in `served`, part of this room.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labsupport import export
from labsupport.errors import BadInput, one_of
from labsupport.export import onnx_graph, surgery

MIB = 2**20
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
ENGINE_BYTES = {**VALUE_BYTES, "fp8": 1, "int32": 4, "int64": 8, "bool": 1}


@dataclass(frozen=True)
class Tensor:
    """One activation: its size and the steps, both included, between which its memory may hold nothing else."""

    name: str
    mib: float
    born: int
    dies: int
    op: str = ""

    def overlaps(self, other: Tensor) -> bool:
        """Whether the two are alive at one step, and so need memory of their own."""
        return self.born <= other.dies and other.born <= self.dies


@dataclass(frozen=True)
class Lifetimes:
    """All activations of one network, in the order they are written; step i runs node ``steps[i]``."""

    steps: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def total_mib(self) -> float:
        """Memory if every tensor kept an address of its own."""
        return math.fsum(tensor.mib for tensor in self.tensors)

    @property
    def live_mib(self) -> tuple[float, ...]:
        """Memory of the tensors that are alive, step by step."""
        return tuple(math.fsum(tensor.mib for tensor in self.at(step)) for step in range(len(self.steps)))

    @property
    def peak_mib(self) -> float:
        """The fullest step: less memory than this no plan of addresses can do with."""
        return max(self.live_mib, default=0.0)

    @property
    def peak_step(self) -> int:
        """Number of the (first) fullest step."""
        live = self.live_mib
        return live.index(max(live)) if live else 0

    def at(self, step: int) -> tuple[Tensor, ...]:
        """The tensors alive while a step runs: what it reads, what it writes, and what waits for a later reader."""
        return tuple(tensor for tensor in self.tensors if tensor.born <= step <= tensor.dies)

    def __repr__(self) -> str:
        return (
            f"Lifetimes({len(self.tensors)} tensors over {len(self.steps)} steps: {self.total_mib:.1f} MiB together, "
            f"at most {self.peak_mib:.1f} MiB at once, in step {self.peak_step})"
        )


def lifetimes(graph, *, batch: int = 1, precision: str = "fp32", sizes_of=None) -> Lifetimes:
    """Lifetimes of an ONNX graph's activations, run in the order of its nodes, for one batch size.

    A tensor lives from the node that writes it to the last that reads it. The network's own inputs and outputs are
    left out: their memory is the caller's. Tensors inside branches and loop bodies are not counted. Floating-point
    tensors count as ``precision``. ``sizes_of`` names the graph to look shapes up in, where ``graph`` has a runtime's
    fused operators that ONNX itself does not know.
    """
    one_of(VALUE_BYTES, precision=precision)
    model = export.load(graph).model()
    sizes = _sizes_mib(export.load(sizes_of).model() if sizes_of is not None else model, batch, VALUE_BYTES[precision])
    outputs = {value.name for value in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    last = {name: step for step, node in enumerate(nodes) for name in _reads(node)}
    tensors = [
        Tensor(name, _size_of(name, node, sizes), step, last.get(name, step), node.op_type)
        for step, node in enumerate(nodes)
        for name in node.output
        if name and name not in outputs
    ]
    return Lifetimes(tuple(node.name or node.op_type for node in nodes), tuple(tensors))


def schedule(steps: Iterable[tuple[str, float, Sequence[str]]]) -> Lifetimes:
    """Lifetimes of a network written down as (tensor, MiB, tensors it is computed from), one step each.

    A tensor that nobody reads is an output of the network; it belongs to the caller, like the input, "images".
    """
    steps, born = list(steps), {}
    names = [name for name, _, _ in steps]
    for step, (name, _, reads) in enumerate(steps):
        if isinstance(reads, str):
            raise BadInput(f"{name!r} reads {reads!r}; give a list of tensors, such as [{reads!r}]")
        for read in reads:
            if read not in born and read != "images":
                when = "only later" if read in names else "nowhere"
                raise BadInput(
                    f"step {step} computes {name!r} from {read!r}, which is written {when}; "
                    "a step may read what an earlier one wrote, or an input of the network"
                )
        if name in born:
            raise BadInput(
                f"{name!r} is written twice, in steps {born[name]} and {step}; give every tensor its own name"
            )
        born[name] = step
    last = {read: step for step, (_, _, reads) in enumerate(steps) for read in reads}
    tensors = tuple(Tensor(name, mib, born[name], last[name]) for name, mib, _ in steps if name in last)
    return Lifetimes(tuple(names), tensors)


def of_engine(engine) -> Lifetimes:
    """Lifetimes of what an engine's kernels write, from the inspector's records that were kept when it was built.

    Shapes must be fixed (see `at_batch`), or the inspector has no sizes to tell. Channels that a layout pads count.
    """
    records = [record for record in engine.layers if isinstance(record, Mapping)]
    if not records:
        raise BadInput(
            f"{engine.name} carries no layer records ({engine.evidence}); they are read back where a GPU "
            "can open the engine"
        )
    last = {tensor["Name"]: step for step, record in enumerate(records) for tensor in record.get("Inputs") or []}
    tensors: dict[str, Tensor] = {}
    for step, record in enumerate(records):
        for tensor in record.get("Outputs") or []:
            name = tensor["Name"]
            if name in last and name not in tensors:  # what nobody reads is an output of the network
                tensors[name] = Tensor(name, _record_mib(tensor), step, last[name], record.get("LayerType", ""))
    return Lifetimes(tuple(record.get("Name", "") for record in records), tuple(tensors.values()))


# --- sizes and names, read from a graph -------------------------------------------------------------------------


def _sizes_mib(model, batch: int, value_bytes: int) -> dict[str, float | None]:
    surgery.fix_batch(model, batch)
    model = surgery.inferred(model, data_prop=True)
    sizes: dict[str, float | None] = {}
    for value in [*model.graph.value_info, *model.graph.output]:
        kind = value.type.tensor_type
        bits = onnx_graph.bits(kind.elem_type, of_floats=8 * value_bytes)
        complete = kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim) and bits
        count = math.prod(axis.dim_value for axis in kind.shape.dim)
        sizes[value.name] = math.ceil(count * bits / 8) / MIB if complete else None
    return sizes


def _size_of(name: str, node, sizes: Mapping) -> float:
    if sizes.get(name) is None:
        foreign = (
            f"{node.domain}::{node.op_type} is an operator that ONNX does not define, so nobody tells its results; "
        )
        known = (
            "its shape is not known, or it is text, a sequence or a map; export it with dynamic=False, for an example "
            "of the batch you mean, or "
        )
        raise BadInput(
            f"the size of {name!r}, written by {node.name or node.op_type}, does not follow from the graph: "
            f"{known if node.domain in ('', 'ai.onnx') else foreign}pass sizes_of=<the graph before fusion>"
        )
    return sizes[name]


def _reads(node) -> list[str]:
    """What a node reads, also inside its branches and loop bodies."""
    inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return [*node.input, *(name for graph in inner for each in graph.node for name in _reads(each))]


def _record_mib(tensor: Mapping) -> float:
    from labsupport.build import network

    layout = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("Format") or "")
    shape, width = list(tensor.get("Dimensions") or []), ENGINE_BYTES.get(network.short_type(layout))
    if width is None or any(axis < 0 for axis in shape):
        raise BadInput(
            f"the inspector gives {tensor.get('Name')!r} as {shape} {layout!r}, which has no fixed size; "
            "build the engine from footprint.at_batch(graph, batch)"
        )
    padded = re.search(r"channel % (\d+)", layout)
    if padded and len(shape) > 1:
        shape[1] = -(-shape[1] // int(padded[1])) * int(padded[1])
    return math.prod(shape) * width / MIB
