"""How busy cores and GPU were while a block ran."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass

from labsupport import environment
from labsupport.errors import BadInput

LOOKS_BACK_S = 1.0  # NVML's sample period is between 1/6 s and 1 s, by product


@dataclass(frozen=True, repr=False)
class Load:
    """Means over a stretch of time: percent of each CPU core, percent of the time the GPU ran, samples taken."""

    seconds: float
    cpu_percent: tuple[float, ...]
    gpu_percent: float | None
    samples: int

    @property
    def cores_busy(self) -> float:
        """How many cores' worth of work was done by all programs."""
        return sum(self.cpu_percent) / 100

    def __repr__(self) -> str:
        gpu = "no GPU counter" if self.gpu_percent is None else f"GPU {self.gpu_percent:.0f} % of the time"
        return f"{self.cores_busy:.1f} of {len(self.cpu_percent)} cores busy, {gpu}, over {self.seconds:.1f} s"


class Watch:
    """Measures the load while its ``with`` block runs; ``load`` holds it afterwards.

    Cores by psutil, all programs included; the GPU by NVML, whose percentage says for how much of the time any kernel
    ran, not how many multiprocessors it filled. It looks back over up to a second, so what is read in the first second
    of a longer block is left out. Raises BadInput. Source:
    https://docs.nvidia.com/deploy/nvml-api/structnvmlUtilization__t.html
    """

    load: Load | None = None

    def __init__(self, *, every_s: float = 0.05):
        if not every_s > 0:
            raise BadInput(f"every_s={every_s!r}; give seconds above 0")
        self.every_s, self._stop, self._gpu = every_s, threading.Event(), []

    def __enter__(self):
        import psutil

        self._read_gpu = _gpu_reader()
        self._stop.clear()  # a Watch may be used again
        self._gpu = []
        psutil.cpu_percent(percpu=True)  # the next reading counts from here
        self._begin, self._psutil = time.perf_counter(), psutil
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(self.every_s):
            if self._read_gpu:
                self._gpu.append((time.perf_counter() - self._begin, self._read_gpu()))

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        cores = tuple(self._psutil.cpu_percent(percpu=True))
        readings = _of_the_block(self._gpu)
        gpu = statistics.fmean(readings) if readings else None
        self.load = Load(time.perf_counter() - self._begin, cores, gpu, max(1, len(readings)))


def _of_the_block(readings) -> list[float]:
    """Percentages out of (seconds since the block began, percent); those that look back before it only where there are
    no others.
    """
    later = [percent for seconds, percent in readings if seconds >= LOOKS_BACK_S]
    return later or [percent for _, percent in readings]


def _gpu_reader():
    """A function that reads the GPU's utilization in percent, or None."""
    if not environment.has("gpu"):
        return None
    from labsupport.benchmarking.memory_meter import nvml_device

    handle, _ = nvml_device()
    if handle is None:
        return None
    import pynvml

    def read() -> float:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    try:
        read()
    except pynvml.NVMLError:  # a part of a GPU (MIG) and some drivers have no such counter
        return None
    return read
