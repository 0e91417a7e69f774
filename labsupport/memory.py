"""How much host and GPU memory a stretch of work took."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

from labsupport.errors import LabError, NotAvailable

MIB = 2**20


@dataclass(frozen=True, repr=False)
class MemoryUse:
    """Host memory of this process and used memory of the whole GPU, in MiB; `why_no_gpu` where there is none."""

    host_mib: float
    gpu_mib: float | None
    why_no_gpu: str = ""

    def __repr__(self) -> str:
        gpu = f"no GPU figure: {self.why_no_gpu}" if self.gpu_mib is None else f"GPU {self.gpu_mib:.0f} MiB"
        return f"host {self.host_mib:.0f} MiB, {gpu}"


class MemoryMeter:
    """What `with benchmarking.memory() as used:` hands out; filled in when the block ends."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.before = self.after = None

    def __enter__(self) -> MemoryMeter:
        self.before = memory_now()
        return self

    def __exit__(self, *exception) -> None:
        self.after = memory_now()

    @property
    def host_mib(self) -> float:
        return self._finished().host_mib - self.before.host_mib

    @property
    def gpu_mib(self) -> float | None:
        after = self._finished()
        return None if after.gpu_mib is None or self.before.gpu_mib is None else after.gpu_mib - self.before.gpu_mib

    def as_row(self) -> dict:
        gpu = self.gpu_mib
        return {"host MiB": round(self.host_mib), "GPU MiB": None if gpu is None else round(gpu)}

    def as_metric(self) -> dict:
        """The GPU's share; record `host_mib` as a plain number with unit "MiB"."""
        if self.gpu_mib is None:
            raise NotAvailable(f"no GPU memory was measured ({self.after.why_no_gpu}); record host_mib with unit='MiB'")
        return {"value": self.gpu_mib, "unit": "MiB", "samples": 1, "spread": None}

    def _finished(self) -> MemoryUse:
        if self.after is None:
            raise LabError("this memory measurement is still running; read it after its `with` block has ended")
        return self.after

    def __repr__(self) -> str:
        if self.after is None:
            return f"{self.label}: memory measurement not finished"
        gpu = f"no GPU figure ({self.after.why_no_gpu})" if self.gpu_mib is None else f"GPU {self.gpu_mib:+.0f} MiB"
        return f"{self.label}: host {self.host_mib:+.0f} MiB, {gpu}"


def memory(label: str = "memory") -> MemoryMeter:
    """Context manager: MiB that the block's work still holds at its end, on the host and on the GPU.

    Host is the resident memory of this process; GPU is the whole device's, so other processes count if they change.
    """
    return MemoryMeter(label)


def memory_now() -> MemoryUse:
    """Host and GPU memory in use at this moment."""
    import psutil

    gc.collect()  # what nobody refers to any more is not the engine's memory
    gpu_mib, why_not = _gpu_used_mib()  # first: it may import PyTorch, 200 MiB that are not the block's
    host_mib = psutil.Process(os.getpid()).memory_info().rss / MIB
    return MemoryUse(host_mib, gpu_mib, why_not)


def _gpu_used_mib() -> tuple[float | None, str]:
    try:
        import torch

        if torch.cuda.is_available():
            # mem_get_info creates the CUDA context, so its several hundred MiB fall before the first block
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # PyTorch keeps freed blocks; the driver cannot tell them from used ones
            free, total = torch.cuda.mem_get_info()
            return (total - free) / MIB, ""
    except ImportError:
        pass  # NVML below knows the GPU without PyTorch
    device, why_not = nvml_device()
    if device is None:
        return None, why_not
    import pynvml

    try:
        return pynvml.nvmlDeviceGetMemoryInfo(device).used / MIB, ""
    except pynvml.NVMLError as error:
        return None, f"NVML gives no memory figure: {error}"


def nvml_device() -> tuple[object | None, str]:
    """The NVML handle of the GPU that PyTorch computes on, else of GPU 0; or None and why there is none."""
    try:
        import pynvml
    except ImportError:
        return None, "package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        uuid = _torch_gpu_uuid()
        return (pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)), ""
    except pynvml.NVMLError as error:
        return None, f"NVML sees no GPU: {error}"


def _torch_gpu_uuid() -> str | None:
    # NVML numbers all GPUs, CUDA only those in CUDA_VISIBLE_DEVICES; the UUID is the same in both
    try:
        import torch

        if torch.cuda.is_available():
            uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
            return f"GPU-{uuid}" if uuid else None
    except ImportError:
        pass  # without PyTorch there is no second numbering
    return None
