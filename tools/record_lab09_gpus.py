"""Record lab 09's multi-GPU figures on a machine with several GPUs: `python3 tools/record_lab09_gpus.py`, under a minute.

One ResNet-18 engine, FP16, batch 64, built once; one process for each GPU runs it, first alone, then together. Without
LABSUPPORT_METRICS the metrics of each way to feed go into data/recordings/ when that way is measured, also when the tool is
ended by Ctrl-C or a SIGTERM. With it set to a folder they are left there, and a whole recording, with the machine, the date
and the command, in `recordings/` inside of it: such machines are rare, and figures without their machine are worth little.
Both are written anew after every figure.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH = 64
LAB = "09_placement"


def command() -> str:
    """What a reader types to measure the same again: which GPUs were to be seen belongs to it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ("" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} ") + "python3 tools/record_lab09_gpus.py"


def engine():
    """ResNet-18 with FP16 inputs, as every worker loads it."""
    import torch

    from labsupport import build, export, models

    torch.manual_seed(0)
    model = models.settle(models.resnet18(), torch.randn(4, 3, 224, 224))
    graph = export.to_onnx(model, model.example_input(BATCH), dynamic=False)
    return build.engine(graph, precision="fp16", optimization_level=1, io_formats={"images": ("HALF", "LINEAR")}, name="resnet18_b64_half_in")


class Keeper:
    """Records in a lab's book and, where the metrics are left in a folder, keeps a whole recording beside them."""

    def __init__(self):
        self.metrics = {}

    def record(self, book, name: str, value, unit=None, samples=None):
        from labsupport import provenance

        made = book.record(name, value, unit, samples)
        self.metrics[name] = {key: getattr(made, key) for key in ("value", "unit", "samples", "spread")}
        folder = os.environ.get("LABSUPPORT_METRICS")
        if folder:
            here = provenance.here(command())
            place = Path(folder) / "recordings" / here.pop("machine_class") / f"{LAB}.json"
            provenance.write_json(place, {**here, "metrics": dict(sorted(self.metrics.items()))})
        return made


def rates_of(workers, feed: str, counts: list[int]) -> dict:
    """GPUs → the better one of two rates: the first finds clocks that idled."""
    rates = {}
    for gpus in (*counts, *counts):
        rate = workers.rate(gpus, feed=feed, seconds=1.5)
        print(rate, flush=True)
        if gpus not in rates or rate.items_per_s > rates[gpus].items_per_s:
            rates[gpus] = rate
    return rates


def main() -> None:
    from labsupport import cluster, environment, recordings

    started, keeper = time.perf_counter(), Keeper()
    print(environment.describe(), flush=True)
    found = cluster.devices()
    print(f"GPUs: {len(found)}", flush=True)
    if len(found) < 2:
        print("one GPU has nothing to be compared with; only its own rates are recorded", flush=True)
    built = engine()
    print(built, f"{time.perf_counter() - started:.1f} s", flush=True)
    counts = sorted({1, min(2, len(found)), len(found)})
    with cluster.GpuWorkers(built, batch=BATCH) as workers:
        print(f"workers ready after {time.perf_counter() - started:.1f} s", flush=True)
        for feed in cluster.FEEDS:
            with recordings.session(LAB, command=command()) as book:
                rates = rates_of(workers, feed, counts)
                keeper.record(book, f"one_gpu.{feed}_fed_rate", rates[1])
                name = "throughput_over_one" if feed == "host" else "throughput_over_one_device_resident"
                for gpus in counts[1:]:
                    subject, ratio = "two_gpus" if gpus == 2 else f"gpus{gpus}", rates[gpus].items_per_s / rates[1].items_per_s
                    print(keeper.record(book, f"{subject}.{name}", ratio, "×", samples=2), flush=True)
    print(f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside; what was measured is kept"))
    main()
