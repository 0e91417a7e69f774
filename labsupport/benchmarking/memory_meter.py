"""How much host and GPU memory a stretch of work took."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

from labsupport.errors import LabError, NotAvailable

MIB = 2**20
OWN, WHOLE = "this process", "the whole GPU"


@dataclass(frozen=True, repr=False)
class MemoryUse:
    """Host and GPU memory in MiB; `gpu_scope` says whose, `why_no_gpu` why there is no GPU figure.

    The host's is this process's. The GPU's is this process's where NVML tells it, else all that is used on the GPU.
    """

    host_mib: float
    gpu_mib: float | None
    why_no_gpu: str = ""
    gpu_scope: str = WHOLE

    def __repr__(self) -> str:
        gpu = (
            f"no GPU figure: {self.why_no_gpu}"
            if self.gpu_mib is None
            else f"GPU {self.gpu_mib:.0f} MiB ({self.gpu_scope})"
        )
        return f"host {self.host_mib:.0f} MiB, {gpu}"


class MemoryMeter:
    """What `with benchmarking.memory() as used:` hands out; filled in when the block ends."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.before: MemoryUse | None = None
        self.after: MemoryUse | None = None

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
        return None if self._why_no_gpu() else after.gpu_mib - self.before.gpu_mib

    def as_row(self) -> dict:
        gpu = self.gpu_mib
        return {"host MiB": round(self.host_mib), "GPU MiB": None if gpu is None else round(gpu)}

    def as_metric(self) -> dict:
        """The GPU's share; record `host_mib` as a plain number with unit "MiB"."""
        if self.gpu_mib is None:
            raise NotAvailable(f"no GPU memory was measured ({self._why_no_gpu()}); record host_mib with unit='MiB'")
        return {"value": self.gpu_mib, "unit": "MiB", "samples": 1, "spread": None}

    def _finished(self) -> MemoryUse:
        if self.after is None:
            raise LabError("this memory measurement is still running; read it after its `with` block has ended")
        return self.after

    def _why_no_gpu(self) -> str:
        for use in (self.after, self.before):
            if use.gpu_mib is None:
                return use.why_no_gpu
        if self.before.gpu_scope != self.after.gpu_scope:
            return f"at first it was that of {self.before.gpu_scope}, at the end that of {self.after.gpu_scope}"
        return ""

    def __repr__(self) -> str:
        if self.after is None:
            return f"{self.label}: memory measurement not finished"
        gpu = (
            f"no GPU figure ({self._why_no_gpu()})"
            if self.gpu_mib is None
            else f"GPU {self.gpu_mib:+.0f} MiB ({self.after.gpu_scope})"
        )
        return f"{self.label}: host {self.host_mib:+.0f} MiB, {gpu}"


def memory(label: str = "memory") -> MemoryMeter:
    """Context manager: MiB that the block's work still holds at its end, on the host and on the GPU.

    Host is the resident memory of this process. GPU is this process's, too, where NVML tells processes apart (Linux,
    not in most containers); elsewhere it is the whole device's, so other processes count if they change. The result
    says which of the two it is.
    """
    return MemoryMeter(label)


def memory_now() -> MemoryUse:
    """Host and GPU memory in use at this moment."""
    import psutil

    gc.collect()  # what nobody refers to any more is not the engine's memory
    whole_mib, why_not = whole_gpu_mib()  # first: it may import PyTorch, 200 MiB that are not the block's
    own_mib = None if whole_mib is None else _own_gpu_mib()
    host_mib = psutil.Process(os.getpid()).memory_info().rss / MIB
    if own_mib is not None:
        return MemoryUse(host_mib, own_mib, "", OWN)
    return MemoryUse(host_mib, whole_mib, why_not, WHOLE)


def whole_gpu_mib() -> tuple[float | None, str]:
    """MiB in use on the GPU by whomever, PyTorch's spare blocks handed back before; or None and why."""
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


def _own_gpu_mib() -> float | None:
    """MiB of the GPU that NVML books on this process; None where it does not know.

    It books none under Windows' own driver model. In a container it numbers processes as the host does, so this one
    is not in the list, or somebody else is under its number: then the figure can be too small for what PyTorch holds.
    Source: NVML API reference, nvmlDeviceGetComputeRunningProcesses_v3 (usedGpuMemory)
    """
    device, _ = nvml_device()
    if device is None:
        return None
    import pynvml

    try:
        booked = [
            process.usedGpuMemory
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device)
            if process.pid == os.getpid()
        ]
    except pynvml.NVMLError:
        return None
    if not booked or booked[0] is None or booked[0] / MIB < _pytorch_mib():
        return None
    return booked[0] / MIB


def _pytorch_mib() -> float:
    """MiB on the GPU that PyTorch knows to be this process's."""
    try:
        import torch

        return torch.cuda.memory_reserved() / MIB if torch.cuda.is_available() else 0.0
    except ImportError:
        return 0.0


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
