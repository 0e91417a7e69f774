"""A process of its own that times a `.pte` file: ExecuTorch's threads are set for a whole process, and once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from labsupport import environment, files
from labsupport.benchmarking.measurements import Latency
from labsupport.errors import LabError, at_least


def executorch_latency(path: str | Path, images, *, threads: int, runs: int = 100) -> tuple[Latency, np.ndarray]:
    """(Latency of ``images`` (1, …) on that many threads, the answers), measured in a process of its own.

    Raises NotAvailable, BadInput, LabError with what the process said.
    """
    environment.require("executorch")
    at_least(threads=threads)
    with files.scratch() as folder:
        np.save(folder / "images.npy", np.asarray(images))
        command = [sys.executable, "-m", __name__, str(path), str(folder), str(threads), str(runs)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if child.returncode:
            raise LabError(f"ExecuTorch with {threads} threads ended with {child.returncode}: {child.stderr[-300:]}")
        samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        answers = np.load(folder / "answers.npy")
    name, here = f"executorch, {threads} threads", environment.machine()
    return Latency(name, "host", samples, len(answers), f"{here.cpu}, {here.cores} cores"), answers


def _main(path: str, folder: str, threads: str, runs: str) -> None:
    import torch

    from labsupport import benchmarking
    from labsupport.phone.executorch_runtime import ExecuTorch, use_threads

    torch.set_num_threads(1)
    use_threads(int(threads))
    images = np.load(Path(folder) / "images.npy")
    with ExecuTorch(path) as run:
        np.save(Path(folder) / "answers.npy", run(images)["logits"])
        timing = benchmarking.latency(run, images, runs=int(runs))
    (Path(folder) / "samples.json").write_text(json.dumps(timing.samples_ms), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
