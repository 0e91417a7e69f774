"""Record of lab 09 what takes too long for a notebook: every cut of a network measured, and auxiliary streams.

`python3 tools/record_lab09.py` on a GPU machine, about a minute and a half: an engine for every cut. With LABSUPPORT_METRICS
set to a folder the metrics are left there; without, they go into data/recordings/.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LAB = "09_placement"
ENOUGH_S = 80  # no further cut is begun after this
CROP = (slice(None), slice(None), slice(428, 652), slice(848, 1072))


def camera():
    """A network that looks at the middle of a 1920×1080 frame, and such a frame."""
    import torch

    from labsupport import export, models

    class Cropped(torch.nn.Module):
        input_name, output_name = "frame", "logits"

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, frame):
            return self.network(frame[CROP])

    torch.manual_seed(0)
    network = models.settle(models.resnet18(width=32), torch.randn(4, 3, 224, 224))
    frame = torch.randn(1, 3, 1080, 1920)
    return export.to_onnx(Cropped(network), frame, dynamic=False), frame.numpy()


def cuts_of_the_camera(book, started: float) -> None:
    """Predict every cut from two runs, measure every cut, record how good choice and prediction are."""
    from labsupport import build, cuts, runtimes, transfers

    graph, frame = camera()
    places = cuts.natural(graph)

    def on_core(part):
        return runtimes.OnnxRuntime(part, threads=1)

    def on_gpu(part):
        return runtimes.TensorRt(build.engine(part, precision="fp32", optimization_level=1, name="camera", progress=False), cuda_graph=True)

    whole = on_gpu(graph)
    crossing = transfers.link(whole, [0.002, 0.1, 0.6, 4, 24])
    model = cuts.cost_model(graph, on_core(graph), whole, frame, crossing, cuts=places)
    chosen = model.choose("latency")
    print(f"{time.perf_counter() - started:.1f} s: {model}, fixed {model.fixed_ms:.3f} ms", flush=True)
    measured = {}
    for place in sorted(places, key=lambda cut: model.latency_ms(cut)):  # the likeliest best ones first
        if time.perf_counter() - started > ENOUGH_S:
            print(f"no time left for {place.name}", flush=True)
            continue
        row = cuts.measure(graph, [place], on_core, on_gpu, frame, runs=30)[0]
        measured[place.name] = row["latency"].median_ms
        parts = ", ".join(f"{ms:.3f}" for ms in model.parts_ms(place))
        print(f"{time.perf_counter() - started:.1f} s: {cuts.short(place.name):16} predicted {model.latency_ms(place):.3f} ({parts}), "
              f"measured {measured[place.name]:.3f} ms", flush=True)
    off = [abs(model.latency_ms(name) / ms - 1) for name, ms in measured.items()]
    print(book.record("placement.chosen_cut_over_best", min(measured.values()) / measured[chosen.name], "fraction", samples=len(measured)))
    print(book.record("placement.cost_model_error", statistics.median(off), "fraction", samples=len(off)))
    print(book.record("placement.cost_model_worst_error", max(off), "fraction", samples=len(off)))
    print(book.record("placement.chosen_cut_over_all_on_gpu", measured[places[0].name] / measured[chosen.name], "×", samples=30), flush=True)


def auxiliary_streams(book) -> None:
    """Four independent branches at batch 1, with and without auxiliary streams."""
    import torch

    from labsupport import benchmarking, build, comparing, export, placement, runtimes

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.paths = torch.nn.ModuleList(
                torch.nn.Sequential(*(layer for _ in range(3) for layer in (torch.nn.Conv2d(64, 64, size, padding=size // 2), torch.nn.Tanh())))
                for size in (1, 3, 5, 7))

        def forward(self, x):
            return torch.cat([path(x) for path in self.paths], 1)

    torch.manual_seed(0)
    network, x = Branches().eval(), torch.randn(1, 64, 28, 28)
    graph = export.to_onnx(network, x, dynamic=False)
    runs = {}
    for streams in (0, 3):
        engine = build.engine(graph, precision="fp32", optimization_level=1, name=f"branches_aux{streams}",
                              configure=placement.auxiliary(streams), progress=False)
        runs[streams] = runtimes.TensorRt(engine, name=f"{streams} auxiliary streams")
        print(f"up to {streams} auxiliary streams: the engine uses {runs[streams].trt_engine.num_aux_streams}", flush=True)
    error = comparing.relative_error(runs[0](x.numpy()), runs[3](x.numpy()))
    ratio = benchmarking.paired(runs[0], runs[3], x.numpy(), rounds=15, clock="device")
    print(book.record("branches.aux_streams_over_none", ratio), f"relative error {error:.1e}", flush=True)


def main() -> None:
    from labsupport import environment, recordings

    started = time.perf_counter()
    environment.require("engine execution")
    with recordings.session(LAB, command="python3 tools/record_lab09.py") as book:
        auxiliary_streams(book)
        cuts_of_the_camera(book, started)
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
