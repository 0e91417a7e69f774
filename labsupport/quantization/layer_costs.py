"""Which layers eight bits hurt, found one layer at a time, and which to keep wide so that an accuracy budget holds."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from labsupport import environment, export
from labsupport.errors import BadInput, one_of
from labsupport.quantization import qdq

MEASURES = ("accuracy", "error")


@dataclass(frozen=True)
class LayerCost:
    """One layer quantized alone: what the evaluation gave, and how much worse that is than FP32."""

    layer: str
    op: str
    value: float
    cost: float


@dataclass(frozen=True)
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
    the scan. Interactions between layers are not seen. Raises BadInput.
    """
    calibration = qdq.calibrate(graph, batches, target=target)
    graph = export.load(graph)
    _check_measure(measure)
    every = qdq.operators(graph)
    chosen = _chosen([name for name, op in every.items() if op in qdq.LAYERS], layers)
    baseline = _value(evaluate, graph)
    rows = []
    for layer in _bar(chosen, "sensitivity", progress):
        one = qdq.to_qdq(graph, calibration, target=target, method=method, exclude=set(every) - {layer})
        value = _value(evaluate, one)
        _discard(one)  # as large as the weights, and there is one for every layer
        rows.append(LayerCost(layer, every[layer], value, _cost(measure, baseline, value)))
    return Sensitivity(tuple(sorted(rows, key=lambda row: -row.cost)), baseline, measure)


def _discard(graph) -> None:
    with contextlib.suppress(OSError):  # on Windows a session of the caller's may hold it; it goes with the process
        graph.path.unlink()


def _check_measure(measure: str) -> None:
    one_of(MEASURES, measure=measure)


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


def _chosen(layers: list[str], wanted: Iterable[str] | None) -> list[str]:
    if wanted is None:
        return layers
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise BadInput("layers is empty; leave it out to scan all of them")
    for name in wanted:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, 3, 0.3) or layers[:3]
            raise BadInput(
                f"layers names {name!r}, which cannot be quantized or is not there; did you mean one of {near}?"
            )
    return wanted


def _bar(things, label: str, progress: bool):
    return environment.bar(things, label=label, unit="layers", shown=progress)
