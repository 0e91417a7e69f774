"""The judge: how far an answer moved, which way a speed-up points, and tables that refuse a speed without an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from labsupport.drawing import Drawing, draw_bars, draw_histogram
from labsupport.errors import BadInput
from labsupport.measurements import Latency, Speedup, at_least
from labsupport.pareto import Gate, Limits, front, pareto
from labsupport.tables import expanded, frame_class, judgement, listed, numeric, one_machine, refuse_unjudged

__all__ = ["Drawing", "Gate", "Limits", "Speedup", "bars", "front", "histogram", "max_error", "pareto", "relative_error",
           "speedup", "table", "top1_agreement"]


def max_error(reference, outputs) -> float:
    """Largest |outputs - reference| over all elements and outputs; inf where either has a NaN, so that none passes.

    Arrays, CPU or CUDA tensors, or mappings of them by output name (same names on both sides).
    """
    return max(_largest(_difference(*pair)) for pair in _pairs(reference, outputs))


def relative_error(reference, outputs) -> float:
    """‖outputs - reference‖ / ‖reference‖ (Euclidean), the worst output of several; inf where there is a NaN."""
    def one(expected, got) -> float:
        off, scale = float(np.linalg.norm(_difference(expected, got))), float(np.linalg.norm(expected))
        if off == 0:
            return 0.0
        # an infinite reference would shrink every error to 0
        return off / scale if 0 < scale < math.inf and not math.isnan(off) else math.inf

    return max(one(*pair) for pair in _pairs(reference, outputs))


def top1_agreement(reference, outputs) -> float:
    """Share of rows, 0 to 1, whose largest entry stands at the same place; classes lie on the last axis.

    A row with a NaN on either side disagrees. Of several outputs the lowest share counts.
    """
    def one(expected, got) -> float:
        if expected.ndim < 2:
            raise BadInput(f"top-1 agreement needs scores of shape (N, classes), got {expected.shape}; "
                           "pass the network's outputs, not its argmax")
        sound = ~(np.isnan(expected).any(-1) | np.isnan(got).any(-1))
        return float(np.mean(sound & (expected.argmax(-1) == got.argmax(-1))))

    return min(one(*pair) for pair in _pairs(reference, outputs))


def speedup(before: Latency, after: Latency) -> Speedup:
    """How many times faster `after` is; refuses what is not comparable: machines, clocks or batch sizes that differ."""
    pair = {"before": before, "after": after}
    machines = {side: getattr(value, "machine", None) for side, value in pair.items()}
    if None not in machines.values() and machines["before"] != machines["after"]:
        raise BadInput(f"before ran on {machines['before']}, after on {machines['after']}; re-run one of them, "
                       "a speed-up across machines compares the machines")
    for side, value in pair.items():
        if not isinstance(value, Latency):
            raise BadInput(f"{side} is a {type(value).__name__}; speedup() takes two results of benchmarking.latency() "
                           "or of device_latency()")
    if before.clock != after.clock:
        raise BadInput(f"before was read on the {before.clock} clock, after on the {after.clock} clock; "
                       "measure both with latency() or both with device_latency()")
    if before.batch != after.batch:
        raise BadInput(f"before ran batch {before.batch}, after batch {after.batch}; "
                       "measure both at one batch, or compare their items/s")
    if not before.median_ms or not after.median_ms:
        raise BadInput("a median of 0 ms cannot be compared; give the calls more work, such as a larger batch")
    return Speedup(before, after)


def table(rows):
    """A pandas DataFrame, one row per mapping or measurement; a Latency becomes `median ms`, `p99 ms`, ….

    Refuses a row that shows a speed without an error or accuracy in numbers, and rows of different machines. With a
    `runtime` in every row that column is the index. Numbers are rounded to the digits their spread leaves standing.
    """
    complete = expanded(rows)
    for position, (row, has_speed) in enumerate(complete):
        refuse_unjudged(position, row, has_speed)
    frame = frame_class()([row for row, _ in complete])
    return frame.set_index("runtime") if "runtime" in frame and frame["runtime"].notna().all() else frame


def bars(rows, *, column="median ms", title="", same_answer=False) -> Drawing:
    """One labelled bar per row of `column`, from 0, quartiles as the error bar where the row holds a Latency.

    Refuses rows without an error or accuracy as `table` does. `same_answer=True` allows them where every bar is the
    same network and only the clock or the batch differs.
    """
    rows = listed(rows)
    complete = expanded(rows)
    labels, values, ranges, notes = [], [], [], []
    for position, (source, (row, has_speed)) in enumerate(zip(rows, complete)):
        if not same_answer:
            refuse_unjudged(position, row, has_speed)
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadInput(f"row {position} has {value!r} in column {column!r}; "
                           f"draw a column of finite numbers, such as one of {numeric(row)}")
        labels.append(_label(position, row, complete))
        values.append(value)
        ranges.append(_quartiles(source, column))
        notes.append(judgement(row))
    return draw_bars(labels, values, ranges, notes, unit=column, title=title)


def histogram(latencies, *, bins=30, title="") -> Drawing:
    """How often each latency occurred, with the median and the 99th percentile marked; the tail a mean hides."""
    at_least("bins", bins, 1)
    latencies = list(latencies) if isinstance(latencies, Iterable) else [latencies]
    for position, latency in enumerate(latencies):
        if not isinstance(latency, Latency):
            raise BadInput(f"histogram entry {position} is a {type(latency).__name__}; "
                           "pass results of benchmarking.latency() or of device_latency()")
    if not 1 <= len(latencies) <= 4:
        raise BadInput(f"histogram got {len(latencies)} latencies; between 1 and 4 stay legible in one picture")
    one_machine(enumerate(latencies))
    return draw_histogram(latencies, bins=bins, title=title)


def _pairs(reference, outputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matching arrays of both sides as float64; a bare array stands for the only output of the other side."""
    sides = [value if isinstance(value, Mapping) else None for value in (reference, outputs)]
    if sides[0] is None and sides[1] is None:
        reference, outputs = {"output": reference}, {"output": outputs}
    elif sides[0] is None or sides[1] is None:
        names = list(sides[0] or sides[1] or {})
        if len(names) != 1:
            raise BadInput(f"one side is a single array, the other has the outputs {names}; pick one of them by name")
        reference = sides[0] or {names[0]: reference}
        outputs = sides[1] or {names[0]: outputs}
    if set(reference) != set(outputs) or not reference:
        raise BadInput(f"the reference has the outputs {sorted(reference, key=str)}, the other {sorted(outputs, key=str)}; "
                       "compare networks with the same output names")
    return [_matching(name, reference[name], outputs[name]) for name in reference]


def _matching(name, reference, outputs) -> tuple[np.ndarray, np.ndarray]:
    expected, got = _array(name, reference), _array(name, outputs)
    if expected.shape != got.shape:
        raise BadInput(f"{name!r} has shape {expected.shape} in the reference and {got.shape} in the other; "
                       "feed both the same batch")
    if not expected.size:
        raise BadInput(f"{name!r} is empty, shape {expected.shape}; an empty answer shows no error, feed at least one item")
    return expected, got


def _array(name, values) -> np.ndarray:
    if hasattr(values, "detach"):
        # float64 on the CPU: NumPy has no bfloat16, and float16 sums overflow
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal length make no array
        raise BadInput(f"{name!r} is a {type(values).__name__} that makes no array ({error}); "
                       "pass an array or tensor, or lists of equal length") from None
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{name!r} holds {array.dtype} of type {type(values).__name__}; expected numbers: an array or tensor")
    return array.astype(np.float64)


def _difference(expected, got) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        # equal infinities, as in masked scores, differ by nothing; their subtraction would be NaN
        return np.where(expected == got, 0.0, got - expected)


def _largest(difference) -> float:
    largest = float(np.abs(difference).max())
    return math.inf if math.isnan(largest) else largest


def _label(position, row, complete) -> str:
    """The runtime, and whatever else it takes to tell the bars apart."""
    parts = [str(row.get("runtime", row.get("name", f"row {position}")))]
    for key in ("clock", "batch"):
        if len({other.get(key) for other, _ in complete}) > 1:
            parts.append(f"batch {row.get(key)}" if key == "batch" else f"{row.get(key)} clock")
    return ", ".join(parts)


def _quartiles(source, column) -> tuple[float, float] | None:
    values = source.values() if isinstance(source, Mapping) else [source]
    latencies = [value for value in values if isinstance(value, Latency)]
    return latencies[0].quartiles_ms if column == "median ms" and len(latencies) == 1 else None
