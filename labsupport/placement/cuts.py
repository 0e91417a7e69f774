"""A network in two parts on two devices: where it can be cut, what each cut should cost, and what it does cost."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labsupport import benchmarking, build, comparing, export, fusion
from labsupport.benchmarking.measurements import at_least, one_of
from labsupport.errors import BadInput
from labsupport.fusion.onnx_nodes import nodes_of

OBJECTIVES = ("latency", "interval")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "uint8": 1, "int8": 1, "bool": 1, "int32": 4, "int64": 8, "double": 8}
LEAST = (1, 512)  # 2 KiB: what the least network reads and writes
# A cut just before one of these would tear apart what every runtime computes in one kernel, or rename the same bytes.
STICKS = (
    "Relu",
    "LeakyRelu",
    "Clip",
    "Sigmoid",
    "HardSwish",
    "BatchNormalization",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Cast",
)


@dataclass(frozen=True)
class Cut:
    """A tensor that alone carries everything the rest of the network needs; ``after`` nodes lie before it."""

    name: str
    shape: tuple
    mib: float
    after: int

    def __repr__(self) -> str:
        return f"{self.name} {'×'.join(map(str, self.shape))}, {self.mib:.3g} MiB"


def natural(graph) -> tuple[Cut, ...]:
    """The cuts of a chain-like network: its input, every tensor that is alive alone between two steps, its output.

    Shapes must be fixed (export with dynamic=False). Raises BadInput.
    """
    nodes, constants = _steps(graph)
    if len(nodes.inputs) != 1 or len(nodes.outputs) != 1:
        raise BadInput(
            f"{graph.path.name} has {len(nodes.inputs)} inputs and {len(nodes.outputs)} outputs; cuts are "
            "found in networks with one of each"
        )
    readers = {
        name: [node for node in nodes.nodes if name in node.inputs] for maker in nodes.nodes for name in maker.outputs
    }
    found = [_cut(graph, nodes, nodes.inputs[0], 0)]
    for place, node in enumerate(nodes.nodes[:-1], 1):
        alive = _alive(nodes, constants, place)
        if len(alive) == 1 and alive[0] in node.outputs:
            following = readers[alive[0]]
            if len(following) > 1 or following[0].op not in STICKS:
                found.append(_cut(graph, nodes, alive[0], place))
    return (*found, _cut(graph, nodes, nodes.outputs[0], len(nodes.nodes)))


def split(graph, at) -> tuple:
    """(head, tail) as two graphs; at the network's input there is no head, at its output no tail (None).

    ``at`` is a Cut or a tensor's name. Raises BadInput for a name that is not in the graph, and for a tensor beside
    which another one is needed, which is a cut through two wires.
    """
    import onnx

    name = getattr(at, "name", at)
    nodes, constants = _steps(graph)
    if name in nodes.inputs:
        return None, graph
    if name in nodes.outputs:
        return graph, None
    place = next((place for place, node in enumerate(nodes.nodes, 1) if name in node.outputs), None)
    if place is None or name in constants:
        raise BadInput(
            f"there is no tensor {name!r} to cut at in {graph.path.name}; choose one of "
            f"{[cut.name for cut in natural(graph)]}"
        )
    others = [other for other in _alive(nodes, constants, place) if other != name]
    if others:
        raise BadInput(
            f"{name!r} is no clean cut: {', '.join(others)} is needed behind it as well; choose one of "
            f"{[cut.name for cut in natural(graph)]}"
        )
    folder, parts = export.fresh_folder(), []
    for part, ends in (("head", (list(nodes.inputs), [name])), ("tail", ([name], list(nodes.outputs)))):
        path = folder / f"{graph.path.stem}.{part}.onnx"
        onnx.utils.extract_model(str(graph.path), str(path), *ends)
        parts.append(export.load(path))
    return tuple(parts)


class Placed:
    """A head on one device and a tail on another, called like one runtime; either may be None.

    ``cross`` is what happens to the array between the two, such as a copy; a TensorRT tail copies it by itself.
    """

    def __init__(self, head, tail, *, cross: Callable | None = None, name: str = "placed"):
        if head is None and tail is None:
            raise BadInput("both parts are None; give a runtime for the head, for the tail, or for both")
        self.head, self.tail, self.cross, self.name = head, tail, cross, name
        self.device = (tail or head).device

    def __call__(self, feed) -> dict:
        if self.tail is None:
            return self.head(feed)
        carried = feed if self.head is None else self.head(feed)
        if isinstance(carried, Mapping):
            carried = next(iter(carried.values()))
        return self.tail(self.cross(carried) if self.cross else carried)

    def close(self) -> None:
        """Close both parts."""
        for part in (self.head, self.tail):
            if part is not None:
                part.close()


def placed(graph, at, make_first: Callable, make_second: Callable, *, cross: Callable | None = None) -> Placed:
    """A graph cut in two, each part loaded on its device; where the second cannot be loaded the first is closed."""
    head, tail = split(graph, at)
    first = head and make_first(head)
    try:
        return Placed(first, tail and make_second(tail), cross=cross, name=short(getattr(at, "name", at)))
    except BaseException:
        if first is not None:
            first.close()
        raise


class Stages(dict):
    """Stages for pipeline.run by name, and what frees them: use it with ``with``, or call ``close``."""

    def close(self) -> None:
        """Close every stage; calling it again does nothing."""
        for stage in self.values():
            stage.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def stages(graph, at, make_first: Callable, make_second: Callable) -> Stages:
    """The parts of a cut as stages for pipeline.run, each on its own device; a cut at an end gives one stage."""
    both = placed(graph, at, make_first, make_second)
    parts = {"first": both.head and Placed(both.head, None), "second": both.tail and Placed(None, both.tail)}
    return Stages({name: part for name, part in parts.items() if part is not None})


@dataclass(frozen=True, repr=False)
class CostModel:
    """Predicted time of every cut: segments between two cuts on either device, plus the crossing at the cut.

    ``first_ms`` and ``second_ms`` have one entry per segment, ``cross_ms`` one per cut; ``fixed_ms`` is what a call of
    the second device costs besides its layers.
    """

    cuts: tuple[Cut, ...]
    first_ms: tuple[float, ...]
    second_ms: tuple[float, ...]
    cross_ms: tuple[float, ...]
    fixed_ms: float = 0.0

    def __post_init__(self) -> None:
        segments = len(self.cuts) - 1
        counts = len(self.first_ms), len(self.second_ms), len(self.cross_ms)
        if segments < 1 or counts != (segments, segments, segments + 1):
            raise BadInput(
                f"{len(self.cuts)} cuts make {segments} segments; got {len(self.first_ms)} and "
                f"{len(self.second_ms)} times and {len(self.cross_ms)} crossings"
            )

    def parts_ms(self, cut) -> tuple[float, float, float]:
        """Predicted ms on the first device, for the crossing, and on the second device."""
        place = self._place(cut)
        if place == len(self.cuts) - 1:
            return sum(self.first_ms), 0.0, 0.0
        return sum(self.first_ms[:place]), self.cross_ms[place], sum(self.second_ms[place:]) + self.fixed_ms

    def latency_ms(self, cut) -> float:
        """One request from its start to its answer: the parts follow one another."""
        return sum(self.parts_ms(cut))

    def interval_ms(self, cut) -> float:
        """Time between two answers when both devices work on different requests: the slower part sets the pace."""
        first, cross, second = self.parts_ms(cut)
        return max(first, cross + second)

    def slowed(self, first: float, second: float = 1.0) -> CostModel:
        """The same model where the devices take that many times as long as when it was made, such as a core beside
        busy ones.
        """
        if not (first > 0 and second > 0 and math.isfinite(first) and math.isfinite(second)):
            raise BadInput(f"first={first!r}, second={second!r}; give factors above 0, 1 for an unchanged device")
        times = {
            "first_ms": (self.first_ms, first),
            "second_ms": (self.second_ms, second),
            "cross_ms": (self.cross_ms, second),
        }
        scaled = {name: tuple(factor * ms for ms in each) for name, (each, factor) in times.items()}
        return dataclasses.replace(self, **scaled, fixed_ms=second * self.fixed_ms)

    def choose(self, objective: str = "latency") -> Cut:
        """The cut with the least predicted "latency", or the least "interval" between answers."""
        one_of("objective", objective, OBJECTIVES)
        cost = self.latency_ms if objective == "latency" else self.interval_ms
        return min(self.cuts, key=cost)

    def rows(self) -> list[dict]:
        """One row a cut: what is carried over, what each part should take, and the sum."""
        table = []
        for cut in self.cuts:
            first, cross, second = (round(ms, 3) for ms in self.parts_ms(cut))
            table.append(
                {
                    "cut": short(cut.name),
                    "MiB over": round(cut.mib, 3),
                    "first, ms": first,
                    "crossing, ms": cross,
                    "second, ms": second,
                    "predicted, ms": round(self.latency_ms(cut), 3),
                    "interval, ms": round(self.interval_ms(cut), 3),
                }
            )
        return table

    def frame(self):
        """The rows as a pandas DataFrame: a prediction has no error until something is measured."""
        from labsupport.comparing.tables import frame_class

        return frame_class()(self.rows()).set_index("cut")

    def _place(self, cut) -> int:
        name = getattr(cut, "name", cut)
        names = [each.name for each in self.cuts]
        if name not in names:
            raise BadInput(f"{name!r} is not one of the cuts {names}")
        return names.index(name)

    def __repr__(self) -> str:
        best = self.choose()
        return f"CostModel({len(self.cuts)} cuts; least latency {self.latency_ms(best):.3g} ms at {best.name})"


def cost_model(
    graph, first, second, feed, cross_ms: Callable[[float], float], *, cuts: Sequence[Cut] | None = None, runs: int = 20
) -> CostModel:
    """Predict every cut from two whole runs: layer times of ``first`` and of ``second``, and ``cross_ms(MiB)``.

    Both are runtimes of the whole graph. Profiling slows a network, so its layer times are used as shares of the time
    measured without it: of a TensorRT runtime the device's, elsewhere a call's. What a call of ``second`` costs
    besides, ``fixed_ms``, is measured with a network of next to nothing; for TensorRT that is one more engine, built in
    a moment.
    """
    cuts, ends = tuple(cuts or natural(graph)), (*graph.inputs, *graph.outputs)
    if (cuts[0].name, cuts[-1].name) != (ends[0], ends[-1]):
        raise BadInput(
            f"the cuts run from {cuts[0].name!r} to {cuts[-1].name!r}; begin with {ends[0]!r} and end with "
            f"{ends[-1]!r}, so that every layer lies between two of them"
        )
    here = benchmarking.latency(first, feed, runs=runs).median_ms
    fixed = _fixed_ms(second, cross_ms, runs)
    if second.device == "cuda":
        there = benchmarking.device_latency(second, feed, runs=runs).median_ms
    else:
        there = max(0.0, benchmarking.latency(second, feed, runs=runs).median_ms - fixed)
    return CostModel(
        cuts,
        _segments(first, graph, cuts, feed, here),
        _segments(second, graph, cuts, feed, there),
        tuple(cross_ms(cut.mib) for cut in cuts),
        fixed,
    )


def measure(
    graph,
    cuts: Sequence[Cut],
    make_first: Callable,
    make_second: Callable,
    feed,
    *,
    cross: Callable | None = None,
    beside=None,
    runs: int = 20,
    seconds: float = math.inf,
) -> Iterator[dict]:
    """Really cut at each place: a row with the cut, its Latency and how far its answer lies from the first cut's.

    With ``beside``, a runtime of the whole graph on the first device, it is timed in turn with each cut, A/B/B/A, and
    its Latency stands in the row: it tells how fast that device was meanwhile. No further cut is begun after
    ``seconds``: on a GPU each takes an engine of its own. A row comes as soon as it is measured.
    """
    at_least("runs", runs, 1)
    reference, begin = None, time.perf_counter()
    for cut in cuts:
        if reference is not None and time.perf_counter() - begin > seconds:
            break
        run = placed(graph, cut, make_first, make_second, cross=cross)
        try:
            answer = run(feed)
            reference = answer if reference is None else reference
            yield {
                "cut": cut,
                **_timed_beside(run, beside, feed, runs),
                "relative error": comparing.relative_error(reference, answer),
            }
        finally:
            run.close()


def _timed_beside(run, beside, feed, runs: int) -> dict:
    if beside is None:
        return {"latency": benchmarking.latency(run, feed, runs=runs)}
    rounds = math.ceil(runs / 4)  # a round takes two times two samples of each
    pair = benchmarking.paired(beside, run, feed, rounds=rounds, runs_per_round=2, warmup=3)
    return {"latency": pair.after, "beside": pair.before}


def short(name: str) -> str:
    """A tensor's name without what the exporter repeats in it: "layer1.0/Relu_1"."""
    parts = name.removesuffix("_output_0").strip("/").split("/")
    return "/".join(parts[-2:])


def _fixed_ms(second, cross_ms, runs: int) -> float:
    """What a call from NumPy to NumPy costs besides layers and crossing: nearly all that the least network takes.

    As a remainder of the whole network's time it would carry the errors of numbers many times as large. The one kernel,
    a few microseconds, counts with the call: between two events the host would be timed and not the kernel.
    """
    x = np.random.default_rng(0).standard_normal(LEAST, dtype=np.float32)
    with _least_like(second) as least:
        call = benchmarking.latency(least, x, runs=max(100, runs), warmup=20).median_ms
    return max(0.0, call - cross_ms(x.nbytes / 2**20)) if second.device == "cuda" else call


def _least_like(run):
    """A runtime of that kind for a network of a single ReLU."""
    graph = _least_network()
    if run.device != "cuda":
        return type(run)(graph)
    engine = build.engine(graph, precision="as-is", optimization_level=1, name="least", progress=False)
    return type(run)(engine, cuda_graph=getattr(run, "_graphs", None) is not None)


def _least_network():
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(LEAST)) for name in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    model = helper.make_model(
        helper.make_graph([node], "least", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return export.save(model, export.fresh_folder() / "least.onnx")


def _segments(run, graph, cuts, feed, total_ms: float) -> tuple[float, ...]:
    """Time between neighboring cuts: each kernel counts where its last ONNX node lies."""
    nodes, _ = _steps(graph)
    order = {node.name: place for place, node in enumerate(nodes.nodes, 1)}
    plain = run if getattr(run, "_graphs", None) is None else type(run)(run.source)  # layers hide inside a CUDA graph
    plan = fusion.xray(getattr(plain, "source", plain), graph=graph, profile=fusion.profile(plain, feed))
    times, place = [0.0] * (len(cuts) - 1), 0
    for kernel in plan.kernels:
        last = max((order[name] for name in kernel.nodes if name in order), default=None)
        if last is not None:  # a kernel without nodes changes a layout for the one before it
            place = next(k for k in range(len(times)) if last <= cuts[k + 1].after)
        times[place] += kernel.time_ms or 0.0
    if plain is not run:
        plain.close()
    whole = sum(times)
    if not whole > 0:
        raise BadInput(f"the profile of {run.name} has no times; profile it with a larger input")
    return tuple(ms / whole * total_ms for ms in times)


def _steps(graph):
    """The nodes of a graph without its constants, and the names that are constant."""
    nodes = nodes_of(graph)
    constants = set(nodes.constants)
    for node in nodes.nodes:
        if all(not name or name in constants for name in node.inputs):
            constants.update(node.outputs)
    steps = tuple(node for node in nodes.nodes if not set(node.outputs) <= constants)
    return dataclasses.replace(nodes, nodes=steps), constants


def _alive(nodes, constants, place: int) -> list[str]:
    """Tensors that exist after ``place`` steps and are still needed."""
    made = [*nodes.inputs, *(name for node in nodes.nodes[:place] for name in node.outputs)]
    needed = {name for node in nodes.nodes[place:] for name in node.inputs} | set(nodes.outputs)
    return [name for name in made if name in needed and name not in constants]


def _cut(graph, nodes, name: str, after: int) -> Cut:
    known = {**dict(graph.inputs), **dict(graph.outputs)}.get(name)
    dtype, shape = (known[1], known[0]) if known else nodes.types.get(name, ("", ()))
    if not shape or any(not isinstance(axis, int) for axis in shape):
        raise BadInput(
            f"the shape of {name!r} is {tuple(shape)}, not fixed, so its bytes are unknown; export the "
            "graph with dynamic=False"
        )
    return Cut(name, tuple(shape), math.prod(shape) * BYTES.get(dtype, 4) / 2**20, after)
