"""Who could do the work: cores, GPUs, DLA cores, auxiliary streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from labsupport import environment
from labsupport.errors import BadInput, NotAvailable


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
    from labsupport.placement import cluster

    usable, multiprocessors, engines = environment.has("gpu"), None, None
    if usable:
        import torch

        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    if environment.has("gpu", "pycuda"):
        from labsupport.placement import transfers

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
            raise NotAvailable(
                f"this machine has {_count(builder.num_DLA_cores, 'DLA core')}, and core {core} was asked for; DLAs "
                "are part of Jetson modules such as Orin: leave configure out and the GPU does the work"
            )
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
