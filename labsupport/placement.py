"""Who could do the work, and how busy they are: cores, GPUs, DLA cores, auxiliary streams, and their measured load.

The other parts of this room: `streams` (contexts at once), `pipeline` (stages in threads), `cuts` (a network in two
parts), `dispatch` and `pool` (queues and policies), `cluster` and `ray_actors` (several GPUs and machines), `transfers`
and `handover` (bytes on their way), `timeline` (what ran when).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from labsupport import environment
from labsupport.errors import BadInput, NotAvailable

LOOKS_BACK_S = 1.0  # NVML's sample period is between 1/6 s and 1 s, by product


@dataclass(frozen=True)
class Processors:
    """What this machine could place work on."""

    cores: int
    gpus: int
    multiprocessors: int | None
    copy_engines: int | None
    dla_cores: int

    def __repr__(self) -> str:
        gpu = _count(self.gpus, "GPU") if self.gpus else "no GPU"
        if self.multiprocessors:
            gpu += f" of {self.multiprocessors} multiprocessors"
            gpu += f" and {self.copy_engines} copy engines" if self.copy_engines else ""
        return f"{_count(self.cores, 'CPU core')}, {gpu}, {_count(self.dla_cores, 'DLA core')}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"


def processors() -> Processors:
    """Cores, GPUs with their multiprocessors and copy engines (the latter where PyCUDA can ask), and DLA cores."""
    from labsupport import cluster

    usable, multiprocessors, engines = environment.has("gpu"), None, None
    if usable:
        import torch

        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    if environment.has("gpu", "pycuda"):
        from labsupport import transfers

        with transfers.pycuda_context() as driver:
            engines = driver.Context.get_device().get_attribute(driver.device_attribute.ASYNC_ENGINE_COUNT)
    return Processors(environment.machine().cores, len(cluster.devices()), multiprocessors, engines, dla_cores())


def dla_cores() -> int:
    """How many deep-learning accelerators TensorRT finds: 1 or 2 on a Jetson Xavier or Orin, 0 elsewhere."""
    if not environment.has("tensorrt", "engine building"):
        return 0
    from labsupport import build

    return environment.tensorrt().Builder(build.logger()).num_DLA_cores


def on_dla(core: int = 0, *, fallback: bool = True) -> Callable:
    """A ``configure`` for build.engine that places every layer on a DLA core, and on the GPU what the DLA cannot do.

    Without ``fallback`` such a layer ends the build. A DLA computes in FP16 and INT8 only. Raises NotAvailable when the
    engine is built on a machine without that core.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-dla.html
    """
    if isinstance(core, bool) or not isinstance(core, int) or core < 0:
        raise BadInput(f"core={core!r}; DLA cores are numbered from 0")

    def configure(trt, builder, network, config):
        if core >= builder.num_DLA_cores:
            raise NotAvailable(f"this machine has {_count(builder.num_DLA_cores, 'DLA core')}, and core {core} was asked "
                               "for; DLAs are part of Jetson "
                               "modules such as Orin: leave configure out and the GPU does the work")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        if fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    return configure


def auxiliary(streams: int) -> Callable:
    """A ``configure`` for build.engine: the engine may run branches on up to ``streams`` further streams of its own."""
    if isinstance(streams, bool) or not isinstance(streams, int) or streams < 0:
        raise BadInput(f"streams={streams!r}; give a whole number, 0 or more")

    def configure(trt, builder, network, config):
        config.max_aux_streams = streams

    return configure


@dataclass(frozen=True, repr=False)
class Load:
    """Means over a stretch of time: percent of each CPU core, percent of the time the GPU ran anything, samples taken."""

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
    ran, not how many multiprocessors it filled. It looks back over up to a second, so what is read in the first second of
    a longer block is left out. Raises BadInput.
    Source: https://docs.nvidia.com/deploy/nvml-api/structnvmlUtilization__t.html
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
    """Percentages out of (seconds since the block began, percent); those that look back before it only where there are no others."""
    later = [percent for seconds, percent in readings if seconds >= LOOKS_BACK_S]
    return later or [percent for _, percent in readings]


def _gpu_reader():
    """A function that reads the GPU's utilization in percent, or None."""
    if not environment.has("gpu"):
        return None
    from labsupport.memory import nvml_device

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
