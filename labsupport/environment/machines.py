"""What machine this is: GPU, driver, which TensorRT and which generation of its API; cheap to import."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from labsupport.environment.packages import generation_of, package_version, tensorrt_cuda_major, torch_build
from labsupport.errors import BadInput

REPOSITORY = Path(__file__).resolve().parents[2]
GENERATIONS = ("8.6", "10", "11", "rtx")
PRODUCTS = ("tensorrt", "tensorrt_rtx")
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
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
    from labsupport.environment import hardware

    probe = hardware.gpus()
    gpu, problem = _visible(probe)
    product = _choose_product(gpu is not None and problem is None)
    version = package_version(product) if product else None
    torch, torch_cuda = torch_build()
    problem = problem or _too_old(probe, product, version, torch_cuda) or _cpu_build(torch, torch_cuda)
    return Machine(
        python=platform.python_version(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=hardware.cpu_name(),
        cores=hardware.cores(),
        memory_gib=hardware.memory_gib()[0],
        gpu=gpu.name if gpu else None,
        gpus=len(probe.gpus) if gpu else 0,
        compute_capability=gpu.compute_capability if gpu else None,
        gpu_memory_mib=gpu.memory_mib if gpu else None,
        driver=probe.driver,
        cuda=probe.cuda,
        tensorrt=version,
        tensorrt_product=product,
        generation=generation_of(product, version),
        torch=torch,
        onnxruntime=package_version("onnxruntime"),
        pycuda=package_version("pycuda"),
        problem=problem,
    )


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
            return (
                f"the NVIDIA driver {probe.driver} is too old: it knows CUDA {probe.cuda}, and {name} needs CUDA "
                f"{major}; install driver {newer} or newer from https://www.nvidia.com/drivers"
            )
    return None


def _cpu_build(torch: str | None, torch_cuda: str | None) -> str | None:
    if torch and torch_cuda is None:
        return f"PyTorch {torch} is a CPU build and cannot use the GPU; install the GPU set: {INSTALL_GPU}"
    return None


def generation() -> str | None:
    """API generation of this machine's TensorRT: "8.6", "10", "11", "rtx", or `None` without one."""
    return machine().generation
