"""Which layers eight bits hurt, found one layer at a time, and which to keep wide so that an accuracy budget holds."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from labsupport import environment, export
from labsupport.errors import BadInput, LabError
from labsupport.quantization import qdq

MEASURES = ("accuracy", "error")


@dataclass(frozen=True)
class LayerCost:
    """One layer quantized alone: what the evaluation gave, and how much worse that is than FP32."""

    layer: str
    op: str
    value: float
    cost: float


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """Layers by what quantizing them alone costs, the worst first."""

    rows: tuple[LayerCost, ...]
    baseline: float
    measure: str

    def __iter__(self) -> Iterator[LayerCost]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> LayerCost:
        return self.rows[place]

    @property
    def worst(self) -> LayerCost:
        """The layer that costs most."""
        return self.rows[0]

    def __repr__(self) -> str:
        return (
            f"Sensitivity({len(self.rows)} layers, FP32 {self.measure} {self.baseline:.4g}; "
            f"worst {self.worst.layer}: costs {self.worst.cost:.4g})"
        )

    def table(self):
        """One row a layer (DataFrame): layer, operator, the measure, and its cost against FP32."""
        from labsupport.comparing.tables import frame_class

        cost = "accuracy drop" if self.measure == "accuracy" else "added error"
        return frame_class()(
            [{"layer": r.layer, "operator": r.op, self.measure: r.value, cost: r.cost} for r in self.rows]
        )


@dataclass(frozen=True, repr=False)
class Mixed:
    """A graph whose most sensitive layers stay wide, and what that costs against FP32."""

    graph: export.OnnxGraph
    wide: tuple[str, ...]
    quantized: tuple[str, ...]
    value: float
    baseline: float
    cost: float
    budget: float
    steps: tuple[tuple[int, float], ...]  # (layers kept wide, cost) of every graph that was tried

    def __repr__(self) -> str:
        return (
            f"Mixed({len(self.quantized)} of {len(self.quantized) + len(self.wide)} layers in INT8, "
            f"costs {self.cost:.4g} of a budget of {self.budget:.4g})"
        )


def sensitivity(
    graph,
    batches,
    evaluate: Callable,
    *,
    layers: Iterable[str] | None = None,
    measure: str = "accuracy",
    target: str = "tensorrt",
    method: str = "entropy",
    progress: bool = True,
) -> Sensitivity:
    """Quantize one layer at a time, evaluate, and sort: where the accuracy goes.

    ``evaluate(graph)`` gives a number for an ``OnnxGraph``, such as ``training.accuracy(OnnxRuntime(graph), split)``
    with ``measure="accuracy"`` (higher is better), or a distance from FP32 with ``measure="error"``. ``layers`` limits
    the scan. Interactions between layers are not seen; ``choose_mixed`` measures them. Raises BadInput.
    """
    known = qdq.calibrate(graph, batches, target=target)
    graph = graph if isinstance(graph, export.OnnxGraph) else export.load(graph)
    _check_measure(measure)
    every = qdq.operators(graph)
    chosen = _chosen([name for name, op in every.items() if op in qdq.LAYERS], layers)
    baseline = _value(evaluate, graph)
    rows = []
    for layer in _bar(chosen, "sensitivity", progress):
        one = qdq.to_qdq(graph, known, target=target, method=method, exclude=set(every) - {layer})
        value = _value(evaluate, one)
        _discard(one)  # as large as the weights, and there is one for every layer
        rows.append(LayerCost(layer, every[layer], value, _cost(measure, baseline, value)))
    return Sensitivity(tuple(sorted(rows, key=lambda row: -row.cost)), baseline, measure)


def choose_mixed(
    graph,
    batches,
    evaluate: Callable,
    *,
    budget: float,
    measure: str = "accuracy",
    ranking: Sensitivity | None = None,
    target: str = "tensorrt",
    method: str = "entropy",
    progress: bool = True,
) -> Mixed:
    """Keep as few layers wide as the budget asks for: all in INT8 at first, then the most sensitive one wide, and so
    on.

    ``budget`` is the accuracy that may be lost (0.005 is half a point), or with ``measure="error"`` the error that may
    be added. ``ranking`` is the result of ``sensitivity``; left out, it is made here. Greedy: the smallest set of that
    ranking that holds, not the smallest of all. Raises BadInput, and LabError when one INT8 layer is too much already.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget < math.inf:
        raise BadInput(f"budget={budget!r}; give the {measure} that may be lost, 0 or more (0.005 is half a point)")
    _check_measure(measure)
    known = qdq.calibrate(graph, batches, target=target)
    graph = graph if isinstance(graph, export.OnnxGraph) else export.load(graph)
    if ranking is None:
        ranking = sensitivity(graph, known, evaluate, measure=measure, target=target, method=method, progress=progress)
    if ranking.measure != measure:
        raise BadInput(f"the ranking is by {ranking.measure}, the budget by {measure}; measure both alike")
    names = qdq.layers(graph)
    worst_first = [row.layer for row in ranking if row.layer in names]
    if not worst_first:
        raise BadInput(f"the ranking holds none of the layers of {graph.path.name}; make it of this graph")
    steps = []
    for kept in _bar(range(min(len(worst_first), len(names) - 1) + 1), "mixed precision", progress):
        wide = tuple(worst_first[:kept])
        made = qdq.to_qdq(graph, known, target=target, method=method, exclude=wide)
        value = _value(evaluate, made)
        cost = _cost(measure, ranking.baseline, value)
        steps.append((kept, cost))
        if cost <= budget:
            rest = tuple(name for name in names if name not in wide)
            return Mixed(made, wide, rest, value, ranking.baseline, cost, float(budget), tuple(steps))
        _discard(made)
    raise LabError(
        f"no mix holds the budget of {budget:g}: with {steps[-1][0]} of {len(names)} layers wide it still costs "
        f"{steps[-1][1]:.4g}; "
        "raise the budget, calibrate on more data, or train with quantization (lab 06)"
    )


def _discard(graph) -> None:
    with contextlib.suppress(OSError):  # on Windows a session of the caller's may hold it; it goes with the process
        graph.path.unlink()


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise BadInput(f"measure={measure!r} is not one; choose one of {list(MEASURES)}")


def _cost(measure: str, baseline: float, value: float) -> float:
    return baseline - value if measure == "accuracy" else value - baseline


def _value(evaluate: Callable, graph) -> float:
    value = evaluate(graph)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadInput(
            f"evaluate(graph) gave a {type(value).__name__}; it must give one number, an accuracy or an error"
        ) from None
    if not math.isfinite(number):
        raise BadInput(f"evaluate(graph) gave {number} for {graph.path.name}; it must give a finite accuracy or error")
    return number


def _chosen(there: list[str], wanted: Iterable[str] | None) -> list[str]:
    if wanted is None:
        return there
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise BadInput("layers is empty; leave it out to scan all of them")
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, 3, 0.3) or there[:3]
            raise BadInput(
                f"layers names {name!r}, which cannot be quantized or is not there; did you mean one of {near}?"
            )
    return wanted


def _bar(things, label: str, progress: bool):
    return environment.bar(things, label=label, unit="layers", shown=progress)
