"""What each cut of a network should cost: layer times on either device, the crossing, and what a call costs besides."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from labsupport import benchmarking, build, export, fusion
from labsupport.errors import BadInput, one_of
from labsupport.placement.cut_places import Cut, natural, short, steps

OBJECTIVES = ("latency", "interval")
LEAST = (1, 512)  # 2 KiB: what the least network reads and writes


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
        times = (*self.first_ms, *self.second_ms, *self.cross_ms, self.fixed_ms)
        bad = [ms for ms in times if not (isinstance(ms, numbers.Real) and 0 <= ms < math.inf)]
        if bad:
            raise BadInput(f"{bad[0]!r} ms is no time of a segment or a crossing; give finite numbers, 0 or more")

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
        if not all(isinstance(each, numbers.Real) and 0 < each < math.inf for each in (first, second)):
            raise BadInput(f"first={first!r}, second={second!r}; give factors above 0, 1 for an unchanged device")
        times = {
            "first_ms": (self.first_ms, first),
            "second_ms": (self.second_ms, second),
            "cross_ms": (self.cross_ms, second),
        }
        scaled = {name: tuple(factor * ms for ms in each) for name, (each, factor) in times.items()}
        return dataclasses.replace(self, **scaled, fixed_ms=second * self.fixed_ms)  # type: ignore[arg-type]

    def choose(self, objective: str = "latency") -> Cut:
        """The cut with the least predicted "latency", or the least "interval" between answers."""
        one_of(OBJECTIVES, objective=objective)
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
    graph = export.load(graph)
    _check_runs({"first": first, "second": second}, graph)
    if not callable(cross_ms):
        raise BadInput(
            f"cross_ms is a {type(cross_ms).__name__}; give a function from MiB to ms, such as a copy's time"
        )
    cuts, ends = _checked_cuts(cuts, graph), (*graph.inputs, *graph.outputs)
    if (cuts[0].name, cuts[-1].name) != (ends[0], ends[-1]):
        raise BadInput(
            f"the cuts run from {cuts[0].name!r} to {cuts[-1].name!r}; begin with {ends[0]!r} and end with "
            f"{ends[-1]!r}, so that every layer lies between two of them"
        )
    first_ms = benchmarking.latency(first, feed, runs=runs).median_ms
    fixed = _fixed_ms(second, cross_ms, runs)
    if second.device == "cuda":
        second_ms = benchmarking.device_latency(second, feed, runs=runs).median_ms
    else:
        second_ms = max(0.0, benchmarking.latency(second, feed, runs=runs).median_ms - fixed)
    return CostModel(
        cuts,
        _segments(first, graph, cuts, feed, first_ms),
        _segments(second, graph, cuts, feed, second_ms),
        tuple(cross_ms(cut.mib) for cut in cuts),
        fixed,
    )


def _check_runs(runs: dict, graph) -> None:
    """Refuse what is no runtime, and a runtime of another network. Raises BadInput."""
    for which, run in runs.items():
        if not callable(run) or not hasattr(run, "device") or not hasattr(run, "inputs"):
            raise BadInput(f"{which} is a {type(run).__name__}; give a runtime of the whole graph, such as OnnxRuntime")
        for ours, theirs in ((graph.inputs, run.inputs), (graph.outputs, run.outputs)):
            shapes = {name: tuple(getattr(spec, "shape", None) or ()) for name, spec in theirs.items()}
            for name, (shape, _) in ours.items():
                if name not in shapes or _clash(shape, shapes[name]):
                    raise BadInput(
                        f"{which} ({run.name}) runs another network: {graph.path.name} has {name!r} as {shape}, "
                        f"the runtime as {shapes.get(name, 'nothing')}; load this graph"
                    )


def _clash(ours, theirs) -> bool:
    lengths = [(a, b) for a, b in zip(ours, theirs) if isinstance(a, int) and isinstance(b, int) and b >= 0]
    return len(ours) != len(theirs) or any(a != b for a, b in lengths)


def _checked_cuts(cuts, graph) -> tuple[Cut, ...]:
    """The cuts, named or whole, after a check that they are this network's and follow one another. Raises BadInput."""
    own = {cut.name: cut for cut in natural(graph)}
    chosen = list(own.values()) if not cuts else list(cuts)
    for cut in chosen:
        if getattr(cut, "name", cut) not in own or isinstance(cut, Cut) and cut != own[cut.name]:
            raise BadInput(
                f"{cut!r} is no cut of {graph.path.name}; choose from {list(own)}, as cuts.natural tells them"
            )
    chosen = [own[str(getattr(cut, "name", cut))] for cut in chosen]
    for before, after in zip(chosen, chosen[1:]):
        if not before.after < after.after:
            raise BadInput(
                f"{after.name!r} stands behind {before.name!r}; give each cut once, in the order of the network"
            )
    return tuple(chosen)


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
    """Time between neighboring cuts: each kernel counts where its last ONNX node lies, a copy beside what it is for."""
    plain = run if getattr(run, "_graphs", None) is None else type(run)(run.source)  # layers hide inside a CUDA graph
    plan = fusion.xray(getattr(plain, "source", plain), graph=graph, profile=fusion.profile(plain, feed))
    if plain is not run:
        plain.close()
    times = [0.0] * (len(cuts) - 1)
    for kernel, place in zip(plan.kernels, _places(plan, graph, cuts), strict=True):
        times[place] += kernel.time_ms or 0.0
    whole = sum(times)
    if not whole > 0:
        raise BadInput(f"the profile of {run.name} has no times; profile it with a larger input")
    return tuple(ms / whole * total_ms for ms in times)


def _places(plan, graph, cuts) -> list[int]:
    """Segment of every kernel. Raises BadInput for one of which nobody can say on which side of a cut it lies."""
    order = {node.name: place for place, node in enumerate(steps(graph)[0].nodes, 1)}
    segments: dict[str, int] = {}
    for kernel in plan.kernels:
        if last := max((order[name] for name in kernel.nodes if name in order), default=0):
            segments[kernel.name] = next(k for k in range(len(cuts) - 1) if last <= cuts[k + 1].after)
    places, before = [], 0
    for kernel in plan.kernels:
        before = segments[kernel.name] if kernel.name in segments else _between(kernel, plan, segments, cuts, before)
        places.append(before)
    return places


def _between(kernel, plan, segments, cuts, before: int) -> int:
    """Segment of a kernel without nodes, by the kernels that write what it reads and read what it writes."""
    graph = plan.graph
    low = max(_nearest(kernel, plan.kernels, segments, backwards=True), default=None)
    high = min(_nearest(kernel, plan.kernels, segments, backwards=False), default=None)
    named = [tensor.name in graph.producer or tensor.name in graph.inputs for tensor in kernel.inputs]
    if low is None and high is None:  # a plan of names only, or a kernel that hangs on constants alone
        return before
    if low is None or high is None or low >= high or not kernel.time_ms:
        return low if low is not None else high
    if kernel.doubtful:
        raise BadInput(
            f"nobody can say on which side of {cuts[low + 1].name!r} the kernel {kernel.name!r} lies, so its "
            f"{kernel.time_ms:.3g} ms belong to no part; leave that cut out, or run the network at a lower optimization"
        )
    return high if any(named) else low  # a copy of a tensor that the network has is made for what reads it


def _nearest(kernel, kernels, segments, *, backwards: bool) -> list[int]:
    """Segments of the nearest kernels with a known one, against the flow of data or with it."""
    ours, theirs = ("inputs", "outputs") if backwards else ("outputs", "inputs")
    nearest, todo, seen = [], [kernel], {kernel.name}
    while todo:
        names = {tensor.name for tensor in getattr(todo.pop(), ours)}
        for other in kernels:
            if other.name not in seen and names & {tensor.name for tensor in getattr(other, theirs)}:
                seen.add(other.name)
                nearest += [segments[other.name]] if other.name in segments else []
                todo += [] if other.name in segments else [other]
    return nearest
