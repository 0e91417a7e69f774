"""Where the builder may place work besides the GPU's main stream: DLA cores, auxiliary streams."""

from __future__ import annotations

from collections.abc import Callable

from labsupport.errors import BadInput, NotAvailable, at_least


def on_dla(core: int = 0, *, fallback: bool = True) -> Callable:
    """A ``configure`` for build.engine that places every layer on a DLA core, and on the GPU what the DLA cannot do.

    Without ``fallback`` such a layer ends the build. A DLA computes in FP16 and INT8 only. Raises NotAvailable when the
    engine is built on a machine without that core.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-dla.html
    """
    if core < 0:
        raise BadInput(f"core={core!r}; DLA cores are numbered from 0")

    def configure(trt, builder, network, config):
        cores = f"{builder.num_DLA_cores or 'no'} DLA core{'s' * (builder.num_DLA_cores != 1)}"
        if core >= builder.num_DLA_cores:
            raise NotAvailable(
                f"this machine has {cores}, and core {core} was asked for; DLAs "
                "are part of Jetson modules such as Orin: leave configure out and the GPU does the work"
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        if fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    return configure


def auxiliary(streams: int) -> Callable:
    """A ``configure`` for build.engine: the engine may run branches on up to ``streams`` further streams of its own."""
    at_least(0, streams=streams)

    def configure(trt, builder, network, config):
        config.max_aux_streams = streams

    return configure
