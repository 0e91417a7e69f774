"""Latency against channel count: a layer gets cheaper in steps, because kernels work in tiles of channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labsupport import files
from labsupport.errors import BadInput


@dataclass(frozen=True)
class Step:
    """One width of the sweep: time of the layers that have it, and their multiply-accumulates for the whole batch."""

    channels: int
    ms: float
    macs: int


def on_cpu(widths: Iterable[int], *, border: int = 64, size: int = 14, runs: int = 25) -> list[Step]:
    """Two 3×3 convolutions, border → width → border channels, in ONNX Runtime on one thread, batch 1.

    The smallest time of ``runs`` rounds through all widths: what else runs on the machine only ever adds.
    """
    import torch
    from torch import nn

    from labsupport import benchmarking, export, runtimes

    widths = _checked(widths)
    image = torch.randn(1, border, size, size, generator=torch.Generator().manual_seed(0))
    sessions, best = {}, dict.fromkeys(widths, float("inf"))
    with files.scratch() as folder:
        for width in widths:
            first, second = nn.Conv2d(border, width, 3, padding=1), nn.Conv2d(width, border, 3, padding=1)
            pair = nn.Sequential(first, nn.ReLU(), second).eval()
            graph = export.to_onnx(pair, image, path=folder / f"w{width}.onnx", dynamic=False)
            sessions[width] = runtimes.OnnxRuntime(graph)
        for _ in range(runs):
            for width, run in sessions.items():
                best[width] = min(best[width], *benchmarking.latency(run, image.numpy(), runs=2, warmup=1).samples_ms)
        for run in sessions.values():
            run.close()
    return [Step(width, best[width], 2 * 9 * border * width * size**2) for width in widths]


def on_gpu(widths: Iterable[int], *, inputs: int = 256, size: int = 28, batch: int = 32, runs: int = 20) -> list[Step]:
    """3×3 convolutions inputs → width in FP16, all in one engine, each timed by TensorRT's own profiler.

    One build for the whole sweep; the copies between layouts around a layer are not in its time.
    """
    import torch

    from labsupport import build, fusion, runtimes

    widths = _checked(widths)
    fan = _fan(widths, inputs, size, batch)
    engine = build.engine(fan, precision="fp16", strict=True, optimization_level=2, name="staircase")
    images = torch.randn(batch, inputs, size, size, generator=torch.Generator().manual_seed(0)).half().cuda()
    with runtimes.TensorRt(engine) as run:
        times = fusion.profile(run, {name: images for name in run.inputs}, runs=runs)
    named = {
        width: [ms for name, ms in times.items() if f"width_{width}_" in name and not name.startswith("Reformat")]
        for width in widths
    }
    missing = [width for width, found in named.items() if not found]
    if missing:
        raise BadInput(f"the profile does not name the convolutions of {missing} channels; it has {list(times)[:4]}")
    return [Step(width, max(found), 9 * inputs * width * size**2 * batch) for width, found in named.items()]


def draw(steps: list[Step], *, title: str, text: str):
    """Time over channel count as dots, and the line on which time would be proportional to MACs (a Drawing)."""
    from matplotlib.figure import Figure

    from labsupport.comparing.drawing import COLOURS, Drawing

    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    axes = figure.add_subplot(xlabel="channels", ylabel="ms")
    widths, times = [step.channels for step in steps], [step.ms for step in steps]
    axes.plot(widths, times, "o", color=COLOURS[0], markersize=4, label="measured")
    axes.plot([0, widths[-1]], [0, times[-1]], "--", color="black", linewidth=1, label="proportional to MACs")
    axes.set_xlim(0.9 * widths[0], 1.02 * widths[-1])
    axes.set_ylim(0, 1.1 * max(times))
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    return Drawing(figure, text)


def _fan(widths: list[int], inputs: int, size: int, batch: int):
    """Convolutions of each width side by side, each with an input of its own: those that share one would be merged."""
    import numpy as np

    from labsupport import environment

    def define(trt, network):
        rng = np.random.default_rng(0)
        for width in widths:
            weight = rng.standard_normal((width, inputs, 3, 3), dtype=np.float32) / (3 * inputs**0.5)
            weight = weight.astype(np.float16)
            images = network.add_input(f"images_{width}", trt.float16, (batch, inputs, size, size))
            conv = network.add_convolution_nd(images, width, (3, 3), trt.Weights(weight), trt.Weights())
            conv.name, conv.padding_nd = f"width_{width}_conv", (1, 1)
            alive.append(weight)  # TensorRT reads the array when it builds, not now
            result = conv.get_output(0)
            result.name = f"features_{width}"
            network.mark_output(result)
            if environment.generation() == "8.6":  # elsewhere types follow from the input's
                result.dtype = trt.float16

    alive: list = []
    return define


def _checked(widths: Iterable[int]) -> list[int]:
    widths = list(widths)
    if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise BadInput(f"widths={widths!r:.60}; wanted are whole numbers of channels, at least one of them")
    if widths != sorted(set(widths)):
        raise BadInput(f"widths={widths!r:.60}; give each once, the smallest first")
    return widths
