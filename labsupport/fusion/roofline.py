"""What a network must compute and must move, and how long that takes at best on this machine: the roofline.

Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from labsupport import export
from labsupport.errors import BadInput, one_of
from labsupport.export import onnx_graph, surgery
from labsupport.runtimes.torch_runtime import fp32_math

# They hand on the same bytes under another shape: nothing to compute, nothing to move.
FREE = ("Constant", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape")
WEIGHTED = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
# Their products hide inside: in an equation, in steps over time, in bodies, in integers.
UNCOUNTED = (
    "Attention ConvInteger DFT DeformConv Einsum GRU If LSTM Loop MatMulInteger QLinearConv QLinearMatMul RNN STFT Scan"
).split()
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Step:
    """One ONNX node: floating-point operations, and bytes that it reads and writes when it runs alone."""

    name: str
    op: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Work:
    """What a network asks of a machine; ``bytes_together`` is what one kernel for all of it would move."""

    steps: tuple[Step, ...]
    bytes_together: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all nodes; a pointwise operation counts as one a value."""
        return sum(step.flops for step in self.steps)

    @property
    def bytes_apart(self) -> int:
        """Bytes moved when every node reads its inputs from memory and writes its output there."""
        return sum(step.bytes for step in self.steps)

    def __repr__(self) -> str:
        return (
            f"Work({len(self.steps)} nodes: {self.flops / 1e9:.3g} GFLOP, {self.bytes_apart / 2**20:.1f} MiB moved "
            f"apart, {self.bytes_together / 2**20:.1f} MiB together)"
        )


@dataclass(frozen=True)
class Ceiling:
    """The best rates that were measured on a machine: memory in GB/s (read and write added) and arithmetic."""

    device: str
    gb_per_s: float
    gflop_per_s: float
    precision: str = "fp32"

    def floor_ms(self, work: Work, *, together: bool = True) -> float:
        """No run can be faster, in ms: arithmetic and memory overlap at best, so the slower of the two counts.

        ``together=False`` adds up the floors of the nodes, each run alone.
        """
        if together:
            return self._floor(work.flops, work.bytes_together)
        return math.fsum(self._floor(step.flops, step.bytes) for step in work.steps)

    def most_gain(self, work: Work) -> float:
        """How many times faster fusing everything can make it, by this roofline."""
        return self.floor_ms(work, together=False) / self.floor_ms(work)

    def _floor(self, flops: int, size: int) -> float:
        return 1e3 * max(flops / (self.gflop_per_s * 1e9), size / (self.gb_per_s * 1e9))

    def __repr__(self) -> str:
        return (
            f"Ceiling({self.device}: {self.gb_per_s:.3g} GB/s from memory, {self.gflop_per_s:.3g} GFLOP/s in "
            f"{self.precision})"
        )


def work(graph, *, batch: int = 1, precision: str = "fp32") -> Work:
    """Count operations and bytes of an ONNX graph for one batch size; floating-point values count as ``precision``."""
    one_of(VALUE_BYTES, precision=precision)
    graph = export.load(graph)
    model = graph.model()
    model = surgery.plain(model) if model.functions else model
    surgery.fix_batch(model, batch)
    model = surgery.inferred(model, data_prop=True)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    named = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {**{value.name: shape for value in named if (shape := _shape(value)) is not None}, **weights}
    kinds = {value.name: value.type.tensor_type.elem_type for value in named}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    bits = {name: onnx_graph.bits(kind, of_floats=8 * VALUE_BYTES[precision]) for name, kind in kinds.items()}
    size = lambda name: math.ceil(math.prod(shapes[name]) * bits[name] / 8)  # noqa: E731
    constants = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    steps = []
    for node in model.graph.node:
        if node.op_type in FREE:
            continue
        if node.op_type in UNCOUNTED:
            raise BadInput(
                f"the operations of {node.name or node.output[0]} ({node.op_type}) do not follow from its tensors' "
                "shapes; write it with MatMul or Conv, or count the network without it"
            )
        touched = [name for name in dict.fromkeys((*node.input, *node.output)) if name and name not in constants]
        _demand_shapes(touched, shapes, f" at {node.name or node.op_type}")
        steps.append(Step(node.name, node.op_type, _flops(node, shapes), sum(map(size, touched))))
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    _demand_shapes(ends, shapes)
    return Work(tuple(steps), sum(map(size, dict.fromkeys((*ends, *weights)))))


def measure(device: str = "cpu", *, mib: int | None = None, rounds: int = 5, now=time.perf_counter_ns) -> Ceiling:
    """Measure both ceilings in FP32, best round: a copy of ``mib`` MiB; a matrix product or a convolution, the better.

    The copy must be larger than the cache: None takes 64 MiB on a CPU and 512 on a GPU. Uses as many threads as torch
    is set to. TF32 is off, as in build.engine(precision="fp32").
    """
    import torch

    if device not in ("cpu", "cuda"):
        raise BadInput(f"device={device!r} has no ceilings to measure; choose one of ['cpu', 'cuda']")
    on_gpu = device == "cuda"
    mib, side, shape = (mib or 512, 4096, (64, 256, 56, 56)) if on_gpu else (mib or 64, 768, (4, 256, 28, 28))
    source, square = torch.ones(mib * 2**18, device=device), torch.ones(side, side, device=device)
    target, product = torch.empty_like(source), torch.empty_like(square)
    # which of the two a library does better differs; channels last is what convolutions are fastest in
    images = torch.ones(shape, device=device).to(memory_format=torch.channels_last)
    weight = torch.ones(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    with torch.inference_mode(), fp32_math(tf32=False):
        copy_ns = _best(lambda: target.copy_(source), wait, rounds, now)
        product_ns = _best(lambda: torch.mm(square, square, out=product), wait, rounds, now)
        conv_ns = _best(lambda: torch.nn.functional.conv2d(images, weight, padding=1), wait, rounds, now)
    rates = 2 * side**3 / product_ns, 2 * math.prod(shape) * 256 * 9 / conv_ns
    return Ceiling(device, 2 * mib * 2**20 / copy_ns, max(rates))


def _best(call, wait, rounds: int, now) -> float:
    """ns of one call in the best round; the first round warms up and is not counted."""
    taken = []
    for _ in range(rounds + 1):
        wait()
        start = now()
        for _ in range(4):
            call()
        wait()
        taken.append((now() - start) / 4)
    return max(min(taken[1:]), 1e-3)


def _flops(node, shapes) -> int:
    values = math.prod(shapes[next(name for name in node.output if name)])
    if node.op_type in WEIGHTED:  # a transposed convolution uses its weights once an input value
        spread = math.prod(shapes[node.input[0]]) if node.op_type == "ConvTranspose" else values
        return 2 * spread * math.prod(shapes[node.input[1]][1:])
    if node.op_type in PRODUCTS:
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * values * shapes[node.input[0]][-2 if turned else -1]
    return values


def _demand_shapes(names, shapes, place: str = "") -> None:
    if lacking := [name for name in names if name not in shapes]:
        raise BadInput(
            f"ONNX cannot tell the shape of {lacking[0]!r}{place}, so its bytes cannot be counted; of the free axes "
            "only the first of each input, the batch, is known here: export the network with dynamic=False"
        )


def _shape(value) -> tuple[int, ...] | None:
    """The shape of a tensor; None where an axis is free, or nothing is known of it."""
    kind = value.type.tensor_type
    known = kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim)
    return tuple(axis.dim_value for axis in kind.shape.dim) if known else None
