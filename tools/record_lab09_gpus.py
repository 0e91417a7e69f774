"""Record lab 09c's multi-GPU figures on a machine with several GPUs: `python3 tools/record_lab09_gpus.py`, under a
minute.

One ResNet-18 engine, FP16, batch 64, built once; one process for each GPU runs it, first alone, then together. With
LABSUPPORT_METRICS set to a folder the metrics are left there; without, each goes into data/recordings/ at once.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import elapsed

BATCH = 64
LAB = "09c_cuts"
ROUNDS, SECONDS = 5, 1.0


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
        io_formats={"images": ("HALF", "LINEAR")},
        name="resnet18_b64_half_in",
    )


def rates_of(workers, feed: str, counts: list[int]) -> dict:
    """GPUs → rates of five rounds, the numbers of GPUs in turn; a round before them wakes the clocks."""
    rates: dict = {gpus: [] for gpus in counts}
    for _ in range(ROUNDS + 1):
        for gpus in counts:
            rates[gpus].append(workers.rate(gpus, feed=feed, seconds=SECONDS))
    print(*(each[-1] for each in rates.values()), sep="\n", flush=True)
    return {gpus: each[1:] for gpus, each in rates.items()}


def ratio_of(many, one) -> dict:
    """The median over rounds of how many times as many items per second, with its spread."""
    ratios = [a.items_per_s / b.items_per_s for a, b in zip(many, one, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(ratios)
    return {"value": middle, "unit": "×", "samples": len(ratios), "spread": (high - low) / middle}


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
                middle = sorted(rates[1], key=lambda rate: rate.items_per_s)[ROUNDS // 2]
                book.record(f"one_gpu.{feed}_fed_rate", middle)
                name = "throughput_over_one" if feed == "host" else "throughput_over_one_device_resident"
                for gpus in counts[1:]:
                    subject = "two_gpus" if gpus == 2 else f"gpus{gpus}"
                    print(book.record(f"{subject}.{name}", **ratio_of(rates[gpus], rates[1])), flush=True)
    elapsed.say("done")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside; what was measured is kept"))
    main()
