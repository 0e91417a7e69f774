"""What a cell can ask for, what this machine lacks of it, and how to get it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from labsupport.environment.folders import cache_dir
from labsupport.environment.machines import GENERATIONS, INSTALL_CPU, INSTALL_GPU, TITLES, Machine, machine
from labsupport.environment.packages import package_version
from labsupport.errors import BadInput, NotAvailable

NEEDS = (
    "gpu",
    "tensorrt",
    "engine building",
    "engine execution",
    *GENERATIONS,
    ">=10",
    "triton",
    "pycuda",
    "cuda-python",
    "onnxruntime",
    "executorch",
    "litert",
    "mediapipe",
    "ray serve",
    "loadgen",
    "tritonclient",
    "triton server",
)
# Packages that only some labs use: need → modules that must be there, and how to get them.
OPTIONAL = {
    "cuda-python": (("cuda.bindings",), "python3 -m pip install cuda-bindings"),
    "executorch": (("executorch", "torchao"), "python3 -m pip install --editable '.[phone]'"),
    "litert": (("ai_edge_litert", "litert_torch", "ai_edge_quantizer"), "python3 -m pip install --editable '.[phone]'"),
    "mediapipe": (("mediapipe",), "python3 -m pip install --no-deps mediapipe==0.10.14"),
    "ray serve": (("ray", "starlette", "uvicorn"), "python3 -m pip install --editable '.[serving]'"),
    "loadgen": (("mlperf_loadgen",), "python3 -m pip install --editable '.[serving]'"),
    "tritonclient": (("tritonclient", "geventhttpclient"), "python3 -m pip install --editable '.[serving]'"),
}
# Oldest and newest compute capability that each generation runs engines on (its support matrix).
CAPABILITIES = {"8.6": ((5, 0), (9, 0)), "10": ((7, 0), (12, 9)), "11": ((7, 5), (99, 0)), "rtx": ((7, 5), (99, 0))}
TRITON_STAMP = "triton/ready.json"  # below the cache folder; `serve triton` writes it last
RTX_REFUSES = ((9, 0), (10, 0), (10, 3))  # data-centre parts: H100, B200, B300


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
            f"({type(error).__name__}: {error}); find out why with: python3 -m labsupport doctor"
        ) from error


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
            return _Line(reason)
    return ""


class _Line(str):
    """Text that a notebook shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


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
    if need in OPTIONAL:
        modules, install = OPTIONAL[need]
        missing = [module for module in modules if not _is_there(module)]
        return f"{need} lacks {', '.join(missing)}; get it with: {install}" if missing else ""
    if need == "triton server":
        ready = (cache_dir() / TRITON_STAMP).is_file()
        return (
            "" if ready else "Triton's environment was not made yet; make it with: python3 -m labsupport serve triton"
        )
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


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None  # some are folders without __init__.py
    except ModuleNotFoundError:  # the package above it
        return False


def _cannot_build(here: Machine) -> str:
    reason = "" if here.generation == "rtx" else _lacking("gpu", here)
    if not reason:
        return ""
    return (
        f"TensorRT {here.tensorrt} builds on the GPU it builds for; {reason}. TensorRT-RTX builds without one: "
        "python3 -m pip install tensorrt-rtx==1.7.1.116, then set LABSUPPORT_TENSORRT=tensorrt_rtx"
    )


def _wish(need: str) -> str:
    return {"rtx": "TensorRT-RTX", ">=10": "TensorRT 10 or newer"}.get(need, f"TensorRT {need}")


def _get(need: str) -> str:
    package = {
        "8.6": "tensorrt==8.6.1",
        "10": "'tensorrt-cu13<11'",
        "11": "tensorrt-cu13==11.1.0.106",
        ">=10": "tensorrt-cu13==11.1.0.106",
        "rtx": "tensorrt-rtx==1.7.1.116",
    }[need]
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
    return (
        f"{TITLES[here.tensorrt_product]} {here.tensorrt} does not run engines on {here.gpu} "
        f"(compute capability {capability[0]}.{capability[1]}); {fix}"
    )
