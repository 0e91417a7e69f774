"""Record lab 09's multi-GPU figures on a machine with several GPUs: `python3 tools/record_lab09_gpus.py`, under a minute.

One ResNet-18 engine, FP16, batch 64, built once; one process for each GPU runs it, first alone, then together. With
LABSUPPORT_METRICS set to a folder the metrics are left there; without, they go into data/recordings/.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH = 64
LAB = "09_placement"


def engine():
    """ResNet-18 with FP16 inputs, as every worker loads it."""
    import torch

    from labsupport import build, export, models

    torch.manual_seed(0)
    model = models.settle(models.resnet18(), torch.randn(4, 3, 224, 224))
    graph = export.to_onnx(model, model.example_input(BATCH), dynamic=False)
    return build.engine(graph, precision="fp16", optimization_level=1, io_formats={"images": ("HALF", "LINEAR")}, name="resnet18_b64_half_in")


def main() -> None:
    from labsupport import cluster, environment, recordings

    started = time.perf_counter()
    print(environment.describe(), flush=True)
    found = cluster.devices()
    print(f"GPUs: {len(found)}", flush=True)
    built = engine()
    print(built, f"{time.perf_counter() - started:.1f} s", flush=True)
    counts = sorted({1, min(2, len(found)), len(found)})
    with recordings.session(LAB, command="python3 tools/record_lab09_gpus.py") as book, \
            cluster.GpuWorkers(built, batch=BATCH) as workers:
        print(f"workers ready after {time.perf_counter() - started:.1f} s", flush=True)
        for feed in cluster.FEEDS:
            rates = {}
            for gpus in (*counts, *counts):  # twice, the better one counts: the first finds clocks that idled
                rate = workers.rate(gpus, feed=feed, seconds=1.5)
                print(rate, flush=True)
                if gpus not in rates or rate.items_per_s > rates[gpus].items_per_s:
                    rates[gpus] = rate
            for gpus in counts[1:]:
                ratio = rates[gpus].items_per_s / rates[1].items_per_s
                subject = "two_gpus" if gpus == 2 else f"gpus{gpus}"
                name = "throughput_over_one" if feed == "host" else "throughput_over_one_device_resident"
                print(book.record(f"{subject}.{name}", ratio, "×", samples=2), flush=True)
            book.record(f"one_gpu.{feed}_fed_rate", rates[1])
    print(f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
