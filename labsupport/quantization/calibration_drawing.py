"""The picture of a calibration: one activation's histogram, and where each method clips it."""

from __future__ import annotations

from collections.abc import Iterable

from labsupport.errors import BadInput
from labsupport.quantization.calibration import METHODS, Histogram


def draw_thresholds(histogram: Histogram, *, methods: Iterable[str] = METHODS, title: str = ""):
    """How often each magnitude occurred, on a logarithmic axis, with the threshold of each method (a Drawing)."""
    import numpy as np

    from labsupport.comparing.drawing import COLOURS, LINES, Drawing, canvas

    if not isinstance(histogram, Histogram) or not histogram.counts.sum():
        raise BadInput(
            "draw_thresholds wants the histogram of a tensor that was seen, such as quantization.histogram(values)"
        )
    methods = tuple(methods or ())
    if not methods:
        raise BadInput(f"methods is empty; name one of {list(METHODS)} at least")
    limits = {method: histogram.threshold(method) for method in methods}
    figure, axes = canvas(height=2.9)
    counts = histogram.magnitudes
    coarse = counts.reshape(128, -1).sum(1) if len(counts) % 128 == 0 else counts
    edges = np.linspace(0, histogram.reach, len(coarse) + 1)
    axes.stairs(np.maximum(coarse, 0.5), edges, fill=True, color="0.8", baseline=0.5)
    for place, (method, limit) in enumerate(limits.items()):
        axes.axvline(limit, color=COLOURS[place], linestyle=LINES[place], linewidth=1.6, label=f"{method}: {limit:.3g}")
    axes.set_yscale("log")
    axes.set_xlim(0, 1.05 * max(limits.values()))
    axes.set_xlabel("magnitude")
    axes.set_ylabel("how often")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # never over the bars
    axes.legend(fontsize=9, frameon=False, title="clip at", title_fontsize=9, **beside)
    axes.set_title(title, fontsize=10, loc="left")
    beyond = {m: _share_beyond(histogram, limit) for m, limit in limits.items()}
    listed = "; ".join(f"{m} at {limit:.3g}, {beyond[m]:.2%} of the values beyond" for m, limit in limits.items())
    return Drawing(figure, f"{title + ': ' if title else ''}histogram of {histogram.name}, clipped by {listed}.")


def _share_beyond(histogram: Histogram, limit: float) -> float:
    counts = histogram.magnitudes
    first = round(limit / histogram.reach * len(counts))
    return float(counts[first:].sum() / counts.sum())
