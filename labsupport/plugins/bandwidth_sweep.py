"""How fast several implementations are over sizes, in bytes a second, and at which sizes each of them is ahead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput
from labsupport.plugins.device_runs import device_copy, megabytes
from labsupport.plugins.gated_norm import example, reference

ENQUEUES = 20  # calls between two events: a single short one would be timed with the events themselves
CHECKED_ROWS = 64  # the reference is computed on the host: enough rows to see an error, few enough to wait for


@dataclass(frozen=True)
class Point:
    """One implementation at one size: MB that must move, time, and relative error (None: the copy, which answers
    nothing).
    """

    name: str
    mb: float
    ms: float
    error: float | None

    @property
    def gb_per_s(self) -> float:
        """Bytes that must move, by the time it took."""
        return self.mb / self.ms

    def __repr__(self) -> str:
        off = "" if self.error is None else f", relative error {self.error:.0e}"
        return f"{self.name} at {self.mb:.3g} MB: {self.ms:.4f} ms, {self.gb_per_s:.3g} GB/s{off}"


def sweep(
    runs, *, rows: Iterable[int], columns: int, dtype: str = "float32", device: str = "cpu", samples: int = 20
) -> tuple[Point, ...]:
    """Time every runtime with inputs x, gate, weight at every number of rows; on "cuda" beside a copy of as many bytes.

    The clock is the GPU's on "cuda" and the host's elsewhere. On "cuda" what repeats is the bare call, such as a
    graph's replay, several times between two events: where bytes are few it is launches that are timed, and no more
    Python than they need. Raises BadInput for sizes that are no whole numbers.
    """
    rows = list(rows)
    if not rows or not all(type(n) is int and n >= 1 for n in rows):
        raise BadInput(f"rows={rows}; give whole numbers of 1 or more")
    points = []
    for count in rows:
        feed = dict(zip(("x", "gate", "weight"), example(count, columns, dtype=dtype, device=device)))
        expected = reference(*(feed[name][:CHECKED_ROWS] if name != "weight" else feed[name] for name in feed))
        if device == "cpu":
            feed = {name: tensor.numpy() for name, tensor in feed.items()}
        points += [_point(run, feed, expected, device, samples) for run in runs]
        if device == "cuda":
            points.append(_point(device_copy(feed, cuda_graph=True), feed, None, device, samples))
    return tuple(points)


def _point(run, feed, expected, device, samples) -> Point:
    from labsupport import benchmarking

    error = None
    if expected is not None:
        y = run(feed)["y"][:CHECKED_ROWS]
        got = y.detach().cpu().double().numpy() if hasattr(y, "detach") else np.asarray(y, dtype=np.float64)
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
    size = feed["x"].nbytes if device == "cpu" else feed["x"].numel() * feed["x"].element_size()
    mb = megabytes(feed) if device == "cuda" else 3 * size / 1e6
    latency = (
        _bare_latency(run, feed, samples)
        if device == "cuda"
        else benchmarking.latency(run, feed, runs=samples, warmup=3)
    )
    return Point(run.name, mb, latency.median_ms, error)


class _Bare:
    """A bound runtime whose ``enqueue`` is the bare call, for the stopwatch of a caller on its stream."""

    device = "cuda"

    def __init__(self, run, feed):
        run.bind(feed)
        self.name, self.stream, self.synchronize = run.name, run.stream, run.synchronize
        self.enqueue = run.launcher

    def bind(self, feed) -> None:
        """Nothing: it is bound."""


def _bare_latency(run, feed, samples: int):
    import torch

    from labsupport import benchmarking

    bare = _Bare(run, feed)
    with torch.cuda.stream(bare.stream), torch.inference_mode():
        return benchmarking.device_latency(bare, feed, runs=samples, warmup=3, enqueues=ENQUEUES)


def fastest(points: Iterable[Point]) -> dict[float, Point]:
    """MB → the fastest answer at that size, the copy left out."""
    best: dict[float, Point] = {}
    for point in points:
        if point.error is not None and (point.mb not in best or point.ms < best[point.mb].ms):
            best[point.mb] = point
    return best


def draw(points: Iterable[Point], *, title: str = ""):
    """GB/s over MB, one line an implementation, told apart by color, dash and marker (a Drawing)."""
    from matplotlib.figure import Figure

    from labsupport.comparing.drawing import COLOURS, LINES, Drawing

    points = list(points)
    if not points:
        raise BadInput("there are no points to draw; measure some with plugins.sweep(...)")
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="MB that must move", ylabel="GB/s")
    for index, name in enumerate(dict.fromkeys(point.name for point in points)):
        line = [point for point in points if point.name == name]
        copy = line[0].error is None
        axes.plot(
            [point.mb for point in line],
            [point.gb_per_s for point in line],
            label=name,
            markersize=5,
            linewidth=1.3,
            color="black" if copy else COLOURS[index % len(COLOURS)],
            linestyle=LINES[index // len(COLOURS) % len(LINES)],
            marker="" if copy else "os^Dv*P"[index % 7],
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_title(title, fontsize=10, loc="left")
    return Drawing(figure, f"{title + ': ' if title else ''}GB/s over MB. Fastest: {_told(points)}.")


def _told(points) -> str:
    """Who is fastest where, each implementation once."""
    ahead = sorted(fastest(points).items())
    names = dict.fromkeys(point.name for _, point in ahead)
    return "; ".join(
        f"{name} at {', '.join(f'{mb:.2g}' for mb, point in ahead if point.name == name)} MB, up to "
        f"{max(point.gb_per_s for _, point in ahead if point.name == name):.3g} GB/s"
        for name in names
    )
