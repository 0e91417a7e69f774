"""What machine this is: GPU, driver, which TensorRT and which generation of its API; cheap to import."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.packages import generation_of, package_version, tensorrt_cuda_major, torch_build

REPOSITORY = Path(__file__).resolve().parent.parent
GENERATIONS = ("8.6", "10", "11", "rtx")
PRODUCTS = ("tensorrt", "tensorrt_rtx")
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
NEEDS = ("gpu", "tensorrt", "engine building", "engine execution", *GENERATIONS, ">=10", "triton", "pycuda", "onnxruntime")
# Oldest and newest compute capability that each generation runs engines on (its support matrix).
CAPABILITIES = {"8.6": ((5, 0), (9, 0)), "10": ((7, 0), (12, 9)), "11": ((7, 5), (99, 0)), "rtx": ((7, 5), (99, 0))}
RTX_REFUSES = ((9, 0), (10, 0), (10, 3))  # data-centre parts: H100, B200, B300
DRIVER_FOR_CUDA = {11: "450", 12: "525", 13: "580"}
INSTALL_GPU = "python3 -m labsupport lab --gpu"
INSTALL_CPU = "python3 -m labsupport lab --cpu"


@dataclass(frozen=True)
class Machine:
    """Hardware and versions; `gpu` names the part that is there, `problem` why it cannot be used (None: it can)."""

    python: str = ""
    os: str = ""
    cpu: str = ""
    cores: int = 1
    memory_gib: float | None = None
    gpu: str | None = None
    gpus: int = 0
    compute_capability: tuple[int, int] | None = None
    gpu_memory_mib: int | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    tensorrt_product: str | None = None
    generation: str | None = None
    torch: str | None = None
    onnxruntime: str | None = None
    pycuda: str | None = None
    problem: str | None = None

    def __repr__(self) -> str:
        capability = ".".join(map(str, self.compute_capability or ("unknown",)))
        gpu = f"{self.gpu}, compute capability {capability}" if self.gpu else "no GPU"
        trt = f"{TITLES[self.tensorrt_product]} {self.tensorrt}" if self.tensorrt_product else "no TensorRT"
        return f"Machine({gpu}; {trt}; Python {self.python} on {self.os})"


@functools.lru_cache(maxsize=None)  # functools.cache is newer than 3.8, and a too old Python is told so later
def machine() -> Machine:
    """This machine, probed once a process; `machine.cache_clear()` probes anew."""
    from labsupport import hardware

    probe = hardware.gpus()
    gpu, problem = _visible(probe)
    product = _choose_product(gpu is not None and problem is None)
    version = package_version(product) if product else None
    torch, torch_cuda = torch_build()
    problem = problem or _too_old(probe, product, version, torch_cuda) or _cpu_build(torch, torch_cuda)
    return Machine(
        python=platform.python_version(), os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=hardware.cpu_name(), cores=hardware.cores(), memory_gib=hardware.memory_gib()[0],
        gpu=gpu.name if gpu else None, gpus=len(probe.gpus) if gpu else 0,
        compute_capability=gpu.compute_capability if gpu else None,
        gpu_memory_mib=gpu.memory_mib if gpu else None, driver=probe.driver, cuda=probe.cuda,
        tensorrt=version, tensorrt_product=product, generation=generation_of(product, version),
        torch=torch, onnxruntime=package_version("onnxruntime"), pycuda=package_version("pycuda"), problem=problem)


def _visible(probe):
    """The GPU that CUDA would call device 0, and why there is none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not probe.gpus or chosen is None:
        return (probe.gpus[0] if probe.gpus else None), probe.problem
    first = chosen.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return probe.gpus[0], None
    if first.isdigit() and int(first) < len(probe.gpus):
        return probe.gpus[int(first)], None
    return None, f"CUDA_VISIBLE_DEVICES={chosen!r} hides every GPU; unset it, or set it to 0"


def _choose_product(gpu: bool) -> str | None:
    """TensorRT before TensorRT-RTX, except without a GPU: only RTX's builder works there."""
    asked = os.environ.get("LABSUPPORT_TENSORRT")
    if asked:
        if asked not in PRODUCTS:
            raise BadInput(f"LABSUPPORT_TENSORRT={asked!r} is no TensorRT; unset it or choose from {list(PRODUCTS)}")
        return asked if package_version(asked) else None
    order = PRODUCTS if gpu else PRODUCTS[::-1]
    return next((product for product in order if package_version(product)), None)


def _too_old(probe, product, version, torch_cuda) -> str | None:
    """One sentence when the driver's CUDA is older than what TensorRT or PyTorch was built for."""
    if not probe.gpus or not probe.cuda:
        return None
    wanted = {}
    if product:
        wanted[f"{TITLES[product]} {version}"] = tensorrt_cuda_major(product, version)
    if torch_cuda:
        wanted["PyTorch"] = int(torch_cuda.split(".")[0])
    for name, major in wanted.items():
        if int(probe.cuda.split(".")[0]) < major:
            newer = DRIVER_FOR_CUDA.get(major, "580")
            return (f"the NVIDIA driver {probe.driver} is too old: it knows CUDA {probe.cuda}, and {name} needs CUDA "
                    f"{major}; install driver {newer} or newer from https://www.nvidia.com/drivers")
    return None


def _cpu_build(torch: str | None, torch_cuda: str | None) -> str | None:
    if torch and torch_cuda is None:
        return f"PyTorch {torch} is a CPU build and cannot use the GPU; install the GPU set: {INSTALL_GPU}"
    return None


def generation() -> str | None:
    """API generation of this machine's TensorRT: "8.6", "10", "11", "rtx", or `None` without one."""
    return machine().generation


def tensorrt():
    """The module `tensorrt` or `tensorrt_rtx`, whichever this machine uses; NotAvailable names the fix."""
    require("tensorrt")
    product = machine().tensorrt_product
    import importlib

    try:
        return importlib.import_module(product)
    except Exception as error:  # its native libraries raise whatever they like
        raise NotAvailable(
            f"{TITLES[product]} {machine().tensorrt} is installed but does not load "
            f"({type(error).__name__}: {error}); find out why with: python3 -m labsupport doctor") from error


def has(*needs: str) -> bool:
    """Whether this machine has all the `needs`, each one of `NEEDS`."""
    return not why_not(*needs)


def why_not(*needs: str) -> str:
    """What this machine lacks of `needs` and how to get it; "" when it has them all."""
    for need in needs:
        if need not in NEEDS:
            raise BadInput(f"{need!r} is nothing a lab can need; choose from {list(NEEDS)}")
        reason = _lacking(need, machine())
        if reason:
            return reason
    return ""


def require(*needs: str) -> None:
    """Raise NotAvailable, saying what is missing and how to get it, unless this machine has all the `needs`."""
    reason = why_not(*needs)
    if reason:
        raise NotAvailable(reason)


def _lacking(need: str, here: Machine) -> str:
    if need == "gpu":
        return "" if here.gpu and not here.problem else f"no GPU can be used here: {here.problem or 'none was found'}"
    if need in ("triton", "pycuda", "onnxruntime"):
        version = getattr(here, need, None) or package_version(need)
        install = INSTALL_GPU if need != "onnxruntime" else "python3 -m pip install onnxruntime"
        return "" if version else f"{need} is not installed; get it with: {install}"
    if here.tensorrt_product is None:
        asked = os.environ.get("LABSUPPORT_TENSORRT")
        why = f"LABSUPPORT_TENSORRT asks for {asked}, which is not installed" if asked else "no TensorRT is installed"
        return f"{why}; with an NVIDIA GPU run: {INSTALL_GPU}, without one: {INSTALL_CPU}"
    if here.generation is None:
        return f"TensorRT {here.tensorrt} is too old for these labs; they need 8.6 or newer: {INSTALL_GPU}"
    if need == "engine building":
        return _cannot_build(here)
    if need == "engine execution":
        return _lacking("gpu", here) or _wrong_gpu(here)
    wanted = {"tensorrt": GENERATIONS, ">=10": ("10", "11", "rtx")}.get(need, (need,))
    if here.generation in wanted:
        return ""
    have = f"{TITLES[here.tensorrt_product]} {here.tensorrt}"
    return f"this needs {_wish(need)}, and this machine has {have}; {_get(need)}"


def _cannot_build(here: Machine) -> str:
    reason = "" if here.generation == "rtx" else _lacking("gpu", here)
    if not reason:
        return ""
    return (f"TensorRT {here.tensorrt} builds on the GPU it builds for; {reason}. TensorRT-RTX builds without one: "
            "python3 -m pip install tensorrt-rtx==1.7.1.116, then set LABSUPPORT_TENSORRT=tensorrt_rtx")


def _wish(need: str) -> str:
    return {"rtx": "TensorRT-RTX", ">=10": "TensorRT 10 or newer"}.get(need, f"TensorRT {need}")


def _get(need: str) -> str:
    package = {"8.6": "tensorrt==8.6.1", "10": "'tensorrt-cu13<11'", "11": "tensorrt-cu13==11.0.0.114",
               ">=10": "tensorrt-cu13==11.0.0.114", "rtx": "tensorrt-rtx==1.7.1.116"}[need]
    return f"install it with: python3 -m pip install {package}"


def _wrong_gpu(here: Machine) -> str:
    """Why this GPU cannot run engines of this TensorRT, though both are there."""
    capability = here.compute_capability
    if capability is None:
        return ""
    oldest, newest = CAPABILITIES[here.generation]
    refused = here.generation == "rtx" and capability in RTX_REFUSES
    if oldest <= capability <= newest and not refused:
        return ""
    fix = f"use TensorRT instead of TensorRT-RTX: {INSTALL_GPU}"
    if not refused:
        fix = "use a newer GPU" if capability < oldest else f"use a newer TensorRT: {INSTALL_GPU}"
    return (f"{TITLES[here.tensorrt_product]} {here.tensorrt} does not run engines on {here.gpu} "
            f"(compute capability {capability[0]}.{capability[1]}); {fix}")


def runtime_name() -> str:
    """What executes the networks here: "TensorRT 8.6.0", else "ONNX Runtime 1.31.1 (CPU)", else PyTorch."""
    here = machine()
    if has("engine execution"):
        return f"{TITLES[here.tensorrt_product]} {here.tensorrt}"
    if here.onnxruntime:
        return f"ONNX Runtime {here.onnxruntime} (CPU)"
    return f"PyTorch {here.torch} (CPU)" if here.torch else "no runtime"


def lane() -> str:
    """One line: which of the three ways through the labs this machine takes."""
    here = machine()
    if has("engine execution"):
        return f"{TITLES[here.tensorrt_product]} {here.tensorrt} on {here.gpu}"
    executor = "ONNX Runtime" if here.onnxruntime else "PyTorch" if here.torch else "nothing"
    builds = "; TensorRT-RTX builds engines without running them" if here.generation == "rtx" else ""
    where = f"{here.gpu} without a TensorRT that runs on it" if has("gpu") else "no GPU"
    return f"{where}: {executor} executes{builds}"


def machine_class() -> str:
    """Key of this machine's recordings: "h100-trt8.6", "rtx4090-rtx1.7", "cpu-ort1.31"."""
    here = machine()
    from labsupport.hardware import gpu_slug

    part = gpu_slug(here.gpu) if has("gpu") else "cpu"
    if has("engine execution"):
        return f"{part}-{'rtx' if here.generation == 'rtx' else 'trt'}{_two(here.tensorrt)}"
    if here.onnxruntime:
        return f"{part}-ort{_two(here.onnxruntime)}"
    return f"{part}-torch{_two(here.torch)}" if here.torch else part


def _two(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


@dataclass(frozen=True)
class Description:
    """The table that `describe()` returns; shows itself as text or HTML."""

    rows: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)

    def _repr_html_(self) -> str:
        from html import escape

        left = 'style="text-align:left"'
        rows = "".join(f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>"
                       for name, value in self.rows)
        return f"<table>{rows}</table>"


def describe() -> Description:
    """This machine as a table, closed by the lane it takes through the labs."""
    here = machine()
    gpu = here.problem or "none"
    if here.gpu:
        capability = ".".join(map(str, here.compute_capability or ("?",)))
        memory = f", {here.gpu_memory_mib / 1024:.0f} GiB" if here.gpu_memory_mib else ""
        gpu = f"{here.gpu}{memory}, compute capability {capability}" + (f"; {here.problem}" if here.problem else "")
    product = TITLES.get(here.tensorrt_product or "", "TensorRT")
    rows = [("Python", f"{here.python} on {here.os}"),
            ("Processor", f"{here.cpu}, {here.cores} cores, {here.memory_gib or '?'} GiB"),
            ("GPU", gpu)]
    if here.driver or here.cuda:
        rows.append(("Driver", f"{here.driver or 'unknown'}, CUDA {here.cuda or 'unknown'}"))
    rows += [(product, f"{here.tensorrt}, API generation {here.generation}" if here.tensorrt else "not installed"),
             ("PyTorch", here.torch or "not installed"), ("ONNX Runtime", here.onnxruntime or "not installed"),
             ("This machine", lane())]
    return Description(tuple(rows))


def cache_dir() -> Path:
    """Folder for engines and timing caches: LABSUPPORT_CACHE, else `.labcache` in the repository; made on demand."""
    folder = Path(os.environ.get("LABSUPPORT_CACHE") or REPOSITORY / ".labcache")
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        free_mib = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        raise LabError(f"the cache folder {folder} cannot be written ({error.strerror or error}); "
                       "set LABSUPPORT_CACHE to a folder that can") from error
    finally:
        try:
            probe.unlink(missing_ok=True)
        except OSError:
            pass
    if free_mib < 16:
        raise LabError(f"the cache folder {folder} has {free_mib} MiB left and an engine needs more; "
                       "free some space, or set LABSUPPORT_CACHE to a folder on another disk")
    return folder


def headless() -> bool:
    """Whether a test or a headless run drives this process: then no progress bar is drawn into the outputs."""
    return any(name in os.environ for name in ("PYTEST_CURRENT_TEST", "LABSUPPORT_METRICS", "LABSUPPORT_QUIET"))
