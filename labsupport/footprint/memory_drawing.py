"""Lifetimes and address plans as pictures."""

from __future__ import annotations

from labsupport.footprint.arenas import Arena, checked
from labsupport.footprint.tensor_lifetimes import Lifetimes

# --- pictures ---------------------------------------------------------------------------------------------------


def draw_lifetimes(lives: Lifetimes, *, title: str = ""):
    """Each tensor as a bar from its writer to its last reader, above the MiB alive at each step."""
    from labsupport.comparing.drawing import COLOURS, Drawing

    figure, (bars, live) = _panels(2, height=2.2 + min(len(checked(lives).tensors), 20) * 0.14)
    for row, tensor in enumerate(lives.tensors):
        bars.barh(
            row,
            tensor.dies - tensor.born + 1,
            left=tensor.born - 0.5,
            height=0.8,
            color=COLOURS[0],
            edgecolor="white",
            linewidth=0.4,
        )
    if len(lives.tensors) <= 20:
        bars.set_yticks(
            range(len(lives.tensors)), [f"{tensor.name}, {tensor.mib:g} MiB" for tensor in lives.tensors], fontsize=8
        )
    else:
        bars.set_ylabel("tensors")
    bars.invert_yaxis()
    bars.set_title(title, fontsize=10, loc="left")
    live.stairs(
        lives.live_mib,
        [step - 0.5 for step in range(len(lives.steps) + 1)],
        fill=True,
        color=COLOURS[1],
        edgecolor="black",
    )
    live.axhline(lives.peak_mib, color="black", linestyle="--", linewidth=1)
    live.annotate(
        f"peak {lives.peak_mib:g} MiB", (len(lives.steps) - 0.5, lives.peak_mib), ha="right", va="bottom", fontsize=8
    )
    live.set_ylim(0, 1.3 * lives.peak_mib or 1)
    live.set_ylabel("MiB alive")
    live.set_xlabel("step")
    return Drawing(
        figure,
        f"{title + ': ' if title else ''}{len(lives.tensors)} tensors over {len(lives.steps)} steps; together "
        f"{lives.total_mib:.1f} MiB, alive at once at most {lives.peak_mib:.1f} MiB, in step {lives.peak_step}.",
    )


def draw_arena(plan: Arena, *, title: str = ""):
    """The block of memory over time: a rectangle per tensor, as wide as its life and as high as its size."""
    from labsupport.comparing.drawing import COLOURS, HATCHES, Drawing

    checked(getattr(plan, "lifetimes", plan))
    figure, (axes,) = _panels(1, height=3.0)
    named = len(plan.lifetimes.tensors) <= 12
    for i, tensor in enumerate(plan.lifetimes.tensors):
        style, low = i % len(COLOURS), plan.offsets[tensor.name]
        axes.bar(
            tensor.born - 0.5,
            tensor.mib,
            bottom=low,
            width=tensor.dies - tensor.born + 1,
            align="edge",
            color=COLOURS[style],
            hatch=HATCHES[style],
            edgecolor="white",
            linewidth=0.5,
        )
        if named:
            axes.text(
                (tensor.born + tensor.dies) / 2,
                low + tensor.mib / 2,
                tensor.name,
                ha="center",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    axes.axhline(plan.lifetimes.peak_mib, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(0, 1.12 * plan.size_mib or 1)
    axes.set_ylabel("MiB from the start")
    axes.set_xlabel("step (dashed: the peak, which no plan can undercut)")
    axes.set_title(title, fontsize=10, loc="left")
    return Drawing(
        figure,
        f"{title + ': ' if title else ''}{len(plan.offsets)} tensors share {plan.size_mib:.1f} MiB; apart they would "
        f"take {plan.lifetimes.total_mib:.1f} MiB, and less than {plan.lifetimes.peak_mib:.1f} MiB is impossible.",
    )


def _panels(count: int, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(count, sharex=True, squeeze=False, height_ratios=(3, 2)[:count])[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
