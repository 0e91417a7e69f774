"""Record of labs 09 and 09c what takes too long for a notebook: every cut of a network measured, and auxiliary streams.

`python3 tools/record_lab09.py` on a GPU machine, up to a minute and a half: an engine for every cut. With
LABSUPPORT_METRICS set to a folder the metrics are left there, without, they go into data/recordings/: each at once, and
those of the cuts anew after every cut, with the number of cuts so far as their samples. All engines here are built at
level 1, to save time: both sides of each comparison are.

The error of the cost model is recorded in two ways. As predicted beforehand, `cost_model_error` is its median and
`cost_model_worst_error` its worst. `…_same_speed` are the same after the first device's part was scaled by what that
device took for the whole network, timed in turn with each cut: what is left is the model's own, and not a core that
slowed down.
"""

from __future__ import annotations

import signal
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import elapsed

LAB, CUTS = "09_placement", "09c_cuts"
COMMAND = "python3 tools/record_lab09.py"
ENOUGH_S = 80  # no further cut is begun after this; one takes about five
RUNS = 24  # of the prediction and of the check alike
AIM = 0.20  # of the median error
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
    from labsupport import build, runtimes
    from labsupport.placement import cuts, transfers

    graph, frame = camera()
    places = cuts.natural(graph)

    def on_core(part):
        return runtimes.OnnxRuntime(part, threads=1)

    def on_gpu(part):
        return runtimes.TensorRt(
            build.engine(part, precision="fp32", optimization_level=1, name="camera", progress=False), cuda_graph=True
        )

    core, whole = on_core(graph), on_gpu(graph)
    crossing = transfers.link(whole, [0.002, 0.1, 0.6, 4, 24])
    model = cuts.cost_model(graph, core, whole, frame, crossing, cuts=places, runs=RUNS)
    elapsed.say(f"{model}, fixed {model.fixed_ms:.3f} ms")
    likely = sorted(places, key=model.latency_ms)  # the likeliest best ones first
    rows = []
    for row in cuts.measure(
        graph,
        likely,
        on_core,
        on_gpu,
        frame,
        beside=core,
        runs=RUNS,
        seconds=ENOUGH_S - (elapsed.seconds() - started),
    ):
        rows.append(row)
        place, slowed = row["cut"], row["beside"].median_ms / sum(model.first_ms)
        parts = ", ".join(f"{ms:.3f}" for ms in model.parts_ms(place))
        elapsed.say(
            f"{cuts.short(place.name):16} predicted {model.latency_ms(place):.3f} ({parts}), measured "
            f"{row['latency'].median_ms:.3f} ms, the core took {slowed:.2f} times as long as before: then "
            f"{model.slowed(slowed).latency_ms(place):.3f} ms"
        )
        told = record(book, model, rows)
    print(*told, sep="\n", flush=True)
    reached = (
        f"{how} {statistics.median(off):.0%}, {statistics.median(off) <= AIM}"
        for how, off in errors_of(model, rows).items()
    )
    print(f"the aim of a median error of at most {AIM:.0%}:", "; ".join(reached), flush=True)
    best = min(rows, key=lambda row: row["latency"].median_ms)["cut"]
    if best != model.choose("latency"):
        print(
            book.record(
                "placement.chosen_cut_over_best",
                **against(graph, model.choose("latency"), best, on_core, on_gpu, frame),
            ),
            flush=True,
        )
    if len(rows) < len(places):
        print(f"no time was left for {len(places) - len(rows)} of {len(places)} cuts", flush=True)


def against(graph, chosen, best, on_core, on_gpu, frame) -> dict:
    """The best cut's time over the chosen one's, in turns: they were measured minutes apart, and the core may have
    changed its speed.
    """
    from labsupport import benchmarking
    from labsupport.placement import cuts

    sides = [cuts.placed(graph, cut, on_core, on_gpu) for cut in (best, chosen)]
    try:
        ratio = benchmarking.paired(*sides, frame, rounds=15, runs_per_round=2)
    finally:
        for side in sides:
            side.close()
    print(f"in turns with the best, {cuts.short(best.name)}: {ratio}", flush=True)
    return {
        "value": min(1.0, ratio.median),
        "unit": "fraction",
        "samples": len(ratio.samples),
        "spread": ratio.iqr / ratio.median,
    }


def errors_of(model, rows) -> dict[str, list[float]]:
    """How far off each prediction was: as made beforehand, and with the first device's part at the speed it had
    meanwhile.
    """
    off = {"as predicted": [], "at the core's speed": []}
    for row in rows:
        now = model.slowed(row["beside"].median_ms / sum(model.first_ms))
        for each, prices in zip(off.values(), (model, now), strict=True):
            each.append(abs(prices.latency_ms(row["cut"]) / row["latency"].median_ms - 1))
    return off


def record(book, model, rows) -> list:
    """The figures of the cuts measured so far, in the book at once: a tool that is ended keeps them."""
    measured = {row["cut"].name: row["latency"].median_ms for row in rows}
    slowed = max(row["beside"].median_ms for row in rows) / sum(model.first_ms)
    before, beside = errors_of(model, rows).values()
    chosen, figures = (
        measured[model.choose("latency").name],
        {
            "cost_model_error": statistics.median(before),
            "cost_model_worst_error": max(before),
            "cost_model_error_same_speed": statistics.median(beside),
            "cost_model_worst_error_same_speed": max(beside),
        },
    )
    figures["chosen_cut_over_best"] = min(measured.values()) / chosen
    told = [book.record(f"placement.{name}", value, "fraction", samples=len(rows)) for name, value in figures.items()]
    told.append(book.record("placement.core_slowed_at_most", slowed, "×", samples=len(rows)))
    all_on_gpu = measured.get(model.cuts[0].name)
    if all_on_gpu:
        told.append(
            book.record(
                "placement.chosen_cut_over_all_on_gpu",
                all_on_gpu / chosen,
                "×",
                samples=len(rows[0]["latency"].samples_ms),
            )
        )
    return told


def auxiliary_streams(book) -> None:
    """Four independent branches at batch 1, with and without auxiliary streams."""
    import torch

    from labsupport import benchmarking, build, comparing, export, placement, runtimes

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.paths = torch.nn.ModuleList(
                torch.nn.Sequential(
                    *(
                        layer
                        for _ in range(3)
                        for layer in (torch.nn.Conv2d(64, 64, size, padding=size // 2), torch.nn.Tanh())
                    )
                )
                for size in (1, 3, 5, 7)
            )

        def forward(self, x):
            return torch.cat([path(x) for path in self.paths], 1)

    torch.manual_seed(0)
    network, x = Branches().eval(), torch.randn(1, 64, 28, 28)
    graph = export.to_onnx(network, x, dynamic=False)
    runs = {}
    for streams in (0, 3):
        engine = build.engine(
            graph,
            precision="fp32",
            optimization_level=1,
            name=f"branches_aux{streams}",
            configure=placement.auxiliary(streams),
            progress=False,
        )
        runs[streams] = runtimes.TensorRt(engine, name=f"{streams} auxiliary streams")
        print(
            f"up to {streams} auxiliary streams: the engine uses {runs[streams].trt_engine.num_aux_streams}", flush=True
        )
    error = comparing.relative_error(runs[0](x.numpy()), runs[3](x.numpy()))
    ratio = benchmarking.paired(runs[0], runs[3], x.numpy(), rounds=15, clock="device")
    print(book.record("branches.aux_streams_over_none", ratio), f"relative error {error:.1e}", flush=True)


def main() -> None:
    from labsupport import environment, recordings

    started = elapsed.seconds()
    environment.require("engine execution")
    with recordings.session(LAB, command=COMMAND) as book:
        auxiliary_streams(book)
    with recordings.session(CUTS, command=COMMAND) as book:
        cuts_of_the_camera(book, started)
    elapsed.say("done")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside; what was measured is kept"))
    main()
