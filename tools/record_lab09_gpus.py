"""Record lab 09's multi-GPU figures on a machine with several GPUs: `python3 tools/record_lab09_gpus.py`, under a
minute.

One ResNet-18 engine, FP16, batch 64, built once; one process for each GPU runs it, first alone, then together. With
LABSUPPORT_METRICS set to a folder the metrics are left there; without, each goes into data/recordings/ at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import elapsed

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
    return build.engine(
        graph,
        precision="fp16",
        optimization_level=1,
        io_formats={"images": ("HALF", "LINEAR")},
        name="resnet18_b64_half_in",
    )


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
    from labsupport import environment, recordings
    from labsupport.placement import cluster

    print(environment.describe(), flush=True)
    found = cluster.devices()
    print(f"GPUs: {len(found)}", flush=True)
    if len(found) < 2:
        print("one GPU has nothing to be compared with; only its own rates are recorded", flush=True)
    built = engine()
    elapsed.say(built)
    counts = sorted({1, min(2, len(found)), len(found)})
    with cluster.GpuWorkers(built, batch=BATCH) as workers:
        elapsed.say("workers ready")
        with recordings.session(LAB, command=command()) as book:
            for feed in cluster.FEEDS:
                rates = rates_of(workers, feed, counts)
                book.record(f"one_gpu.{feed}_fed_rate", rates[1])
                name = "throughput_over_one" if feed == "host" else "throughput_over_one_device_resident"
                for gpus in counts[1:]:
                    subject, ratio = (
                        "two_gpus" if gpus == 2 else f"gpus{gpus}",
                        rates[gpus].items_per_s / rates[1].items_per_s,
                    )
                    print(book.record(f"{subject}.{name}", ratio, "×", samples=2), flush=True)
    elapsed.say("done")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside; what was measured is kept"))
    main()
