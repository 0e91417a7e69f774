"""Graphics processors, processor and memory of this machine, read without a heavy package."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NO_DRIVER = (
    "no NVIDIA driver was found (neither libcuda nor nvidia-smi); the GPU's cells need an NVIDIA GPU "
    "and the driver from https://www.nvidia.com/drivers"
)
NOT_LOADED = (
    "the NVIDIA driver is installed but not running (its kernel module is not loaded); "
    "reboot, or reinstall it from https://www.nvidia.com/drivers"
)
MISMATCH = "the NVIDIA driver was updated while the machine was running; reboot to load the new one"
NO_DEVICE = "the NVIDIA driver is there, but it sees no GPU; check that this machine (or container) was given one"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its name, compute capability (major, minor) and memory in MiB."""

    name: str
    compute_capability: tuple[int, int] | None = None
    memory_mib: int | None = None


@dataclass(frozen=True)
class GpuProbe:
    """What the driver answered; `problem` says in one clause why there is no GPU, `None` when there is one."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None


def gpus() -> GpuProbe:
    """GPUs of this machine, asked of NVML, else of nvidia-smi, else of the CUDA driver library."""
    first_problem = None
    for ask in (from_nvml, from_nvidia_smi, from_libcuda):
        probe = ask()
        if probe is None:
            continue
        if probe.gpus:
            return probe
        # The first tool that answers knows most about why; the later ones only repeat "no device".
        first_problem = first_problem or probe
    return first_problem or GpuProbe(problem=NO_DRIVER)


def _cuda_text(version: int) -> str:
    """13000 as the driver counts, "13.0" as people do."""
    return f"{version // 1000}.{version % 1000 // 10}"


def from_nvml(nvml=None) -> GpuProbe | None:
    """Ask NVML (the `pynvml` module); `None` when it is not installed or there is no driver library."""
    if nvml is None:
        try:
            import pynvml
        except Exception:  # a broken install of it must not take the lab down
            return None
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _nvml_problem(type(error).__name__)
    try:
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            try:
                memory_mib = nvml.nvmlDeviceGetMemoryInfo(handle).total >> 20
            except nvml.NVMLError:  # unified memory: Jetson, GB10
                memory_mib = None
            capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
            gpus.append(Gpu(_text(nvml.nvmlDeviceGetName(handle)), capability, memory_mib))
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        cuda = _cuda_text(nvml.nvmlSystemGetCudaDriverVersion())
    except nvml.NVMLError as error:
        return GpuProbe(problem=f"the NVIDIA driver answered with an error ({error}); reboot, or reinstall it")
    finally:
        nvml.nvmlShutdown()
    return GpuProbe(tuple(gpus), driver, cuda, None if gpus else NO_DEVICE)


def _nvml_problem(error: str) -> GpuProbe | None:
    if "DriverNotLoaded" in error:
        return GpuProbe(problem=NOT_LOADED)
    if "LibRmVersionMismatch" in error:
        return GpuProbe(problem=MISMATCH)
    return None


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def from_nvidia_smi(ask=None) -> GpuProbe | None:
    """Ask the nvidia-smi program; `None` when there is none. `ask(*options)` returns (exit code, text)."""
    if ask is None:
        program = shutil.which("nvidia-smi")
        if program is None:
            return None

        def ask(*options):
            try:
                done = subprocess.run([program, *options], capture_output=True, text=True, timeout=10)
            except (OSError, subprocess.TimeoutExpired) as error:
                return 1, str(error)
            return done.returncode, done.stdout + done.stderr

    code, text = ask("--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits")
    if code:
        if "mismatch" in text.lower():
            return GpuProbe(problem=MISMATCH)
        if "No devices were found" in text:
            return GpuProbe(problem=NO_DEVICE)
        return GpuProbe(problem=NOT_LOADED)
    gpus, driver = [], None
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4:
            continue
        name, driver, memory, capability = cells
        gpus.append(Gpu(name, _pair(capability), int(memory) if memory.isdigit() else None))
    if not gpus:
        return GpuProbe(problem=NO_DEVICE)
    banner = ask()[1].partition("CUDA Version:")[2].split()
    return GpuProbe(tuple(gpus), driver, banner[0] if banner else None)


def _pair(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def from_libcuda(library=None) -> GpuProbe | None:
    """Ask the CUDA driver library itself; `None` when there is none, so no driver at all."""
    if library is None:
        try:
            library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError:
            return None
    number = ctypes.c_int(0)
    version = number.value if library.cuDriverGetVersion(ctypes.byref(number)) == 0 else 0
    cuda = _cuda_text(version) if version else None
    code = library.cuInit(0)
    if code:
        why = {100: NO_DEVICE, 803: MISMATCH, 34: NOT_LOADED, 35: NOT_LOADED}.get(code)
        return GpuProbe(cuda=cuda, problem=why or f"the CUDA driver failed to start (error {code}); reboot")
    library.cuDeviceGetCount(ctypes.byref(number))
    gpus = tuple(_libcuda_device(library, index) for index in range(number.value))
    return GpuProbe(gpus, _kernel_driver(), cuda, None if gpus else NO_DEVICE)


def _libcuda_device(library, index: int) -> Gpu:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, 256, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    library.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(), (major.value, minor.value), size.value >> 20)


def _kernel_driver() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), None)


def gpu_slug(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" → "h100", "NVIDIA GeForce RTX 4090" → "rtx4090"."""
    noise = re.compile(r"nvidia|geforce|tesla|quadro|gpu|generation|graphics|\d+gb|hbm\d\w*|sxm\d*|\(nvgpu\)")
    words = re.split(r"[\s-]+", name.lower())
    return re.sub(r"[^a-z0-9]", "", "".join(word for word in words if not noise.fullmatch(word))) or "gpu"


def cpu_name() -> str:
    """Marketing name of the processor where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """Processor cores that this process may use, not those that the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Windows, macOS
        return os.cpu_count() or 1


def memory_gib() -> tuple[float | None, float | None]:
    """(total, available) host memory in GiB; `None` where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
        return round(kib["MemTotal"] / 2**20, 1), round(kib["MemAvailable"] / 2**20, 1)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _windows_memory() -> tuple[float | None, float | None]:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("total", "available", "page", "page_free", "virtual", "virtual_free", "extended")
            ),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return None, None
    return round(status.total / 2**30, 1), round(status.available / 2**30, 1)
