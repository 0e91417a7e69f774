"""Examine this machine and its packages; standard library only, so it answers in a broken environment too."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from labsupport import environment
from labsupport.command_line import shadows
from labsupport.command_line.findings import Finding, Report
from labsupport.command_line.import_probes import DEADLINE_S, finish_imports, start_imports
from labsupport.environment import hardware, packages
from labsupport.environment.packages import package_version

SUPPORTED_PYTHON = ((3, 10), (3, 13))
INSTALL = "python3 -m labsupport lab"
# What each row needs to be there for; a missing optional package is a note.
REQUIRED = ("numpy", "torch", "onnx", "onnxruntime", "pandas", "matplotlib", "ipykernel", "nbclient")
OPTIONAL = ("jupyterlab", "nbval", "pycuda", "torch-tensorrt", "tensorflow")
TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "onnx": "ONNX",
    "onnxruntime": "ONNX Runtime",
    "jupyterlab": "JupyterLab",
    "pycuda": "PyCUDA",
    "torch-tensorrt": "Torch-TensorRT",
    "tensorflow": "TensorFlow",
}


def examine(*, imports: bool = True, deadline_s: float = DEADLINE_S) -> Report:
    """Examine machine, packages and how they fit together, in under 5 s; no probe can take the others down."""
    # The slow imports run in child processes while everything else is looked at.
    importing = start_imports() if imports else {}
    started = time.monotonic()
    findings: list[Finding] = []
    checks: list[tuple[str, Callable[[], list]]] = [
        ("Python", check_python),
        ("System", check_system),
        ("Package", check_shadows),
        ("GPU", check_gpu),
        ("TensorRT", check_tensorrt),
        ("Packages", check_packages),
        ("ONNX Runtime", check_onnxruntime),
        ("Versions", check_requirements),
        ("Versions", check_fit),
        ("Binary interfaces", check_binary_interfaces),
        ("Disk", check_disk),
        ("Memory", check_memory),
        ("Cache folder", check_cache),
    ]
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:  # the doctor must answer on the machine that breaks it
            findings.append(Finding(name, f"could not be examined ({type(error).__name__}: {error})", "note"))
    findings += finish_imports(importing, deadline_s=max(0.5, deadline_s - (time.monotonic() - started)))
    findings.append(_lane())
    return Report(tuple(findings))


def _lane() -> Finding:
    try:
        return Finding("This machine", environment.lane())
    except Exception as error:
        return Finding("This machine", f"unclear: {error}", "problem", "unset LABSUPPORT_TENSORRT")


def check_python(version: tuple[int, int] | None = None) -> list[Finding]:
    """Python between the oldest and the newest that every dependency has builds for."""
    version = version or sys.version_info[:2]
    value = f"{'.'.join(map(str, version))} at {sys.executable}"
    oldest, newest = SUPPORTED_PYTHON
    if oldest <= tuple(version) <= newest:
        return [Finding("Python", value)]
    span = " to ".join(".".join(map(str, bound)) for bound in SUPPORTED_PYTHON)
    fix = "install Python 3.12 from https://www.python.org/downloads, then: python3.12 -m labsupport lab"
    return [Finding("Python", f"{value}; the labs need {span}", "problem", fix)]


def check_shadows() -> list[Finding]:
    """Files that notebooks would import in place of the workbook's package; no row where there are none."""
    fix = "give it another name, or move it away"
    return [Finding("Package", f"{path} hides labsupport", "problem", fix) for path in shadows.foreign()]


def check_system(system: str | None = None) -> list[Finding]:
    """Operating system; without a TensorRT on macOS."""
    system = system or platform.system()
    value = f"{system} {platform.release()} {platform.machine()}"
    if system == "Darwin":
        return [Finding("System", f"{value}; TensorRT has no macOS release, ONNX Runtime executes the labs", "note")]
    return [Finding("System", value)]


def check_gpu(probe: hardware.GpuProbe | None = None, here: environment.Machine | None = None) -> list[Finding]:
    """GPU, driver and the CUDA it knows; having no NVIDIA driver is a note, having a broken one a problem."""
    probe = probe or hardware.gpus()
    here = here or environment.machine()
    if not probe.gpus:
        if probe.problem in (hardware.NO_DRIVER, hardware.NO_DEVICE, None):
            return [Finding("GPU", f"none: {probe.problem or hardware.NO_DEVICE}", "note")]
        return [Finding("GPU", probe.problem, "problem", _driver_fix(probe.problem))]
    names = ", ".join(gpu.name for gpu in probe.gpus)
    first = probe.gpus[0]
    capability = ".".join(map(str, first.compute_capability or ("unknown",)))
    memory = f", {first.memory_mib / 1024:.0f} GiB" if first.memory_mib else ""
    findings = [
        Finding("GPU", f"{names} (compute capability {capability}{memory})"),
        Finding("Driver", f"{probe.driver or 'unknown'}, CUDA {probe.cuda or 'unknown'}"),
    ]
    if here.problem:
        slot, name = (1, "Driver") if "driver" in here.problem else (0, "GPU")
        findings[slot] = Finding(name, here.problem, "problem", _driver_fix(here.problem))
    return findings


def _driver_fix(problem: str) -> str:
    if "hides" in problem:
        return "unset CUDA_VISIBLE_DEVICES"
    if "CPU build" in problem:
        return environment.INSTALL_GPU
    if "reboot" in problem and "reinstall" not in problem:
        return "reboot"
    page = "https://www.nvidia.com/drivers"
    return page if platform.system() == "Windows" else f"sudo apt install nvidia-driver-580 (or {page}), then reboot"


def check_tensorrt(version_of=package_version, machine: environment.Machine | None = None) -> list[Finding]:
    """Which TensorRT, which API generation, and whether two of them stand in each other's way."""
    here = machine or environment.machine()
    both = {product: version_of(product) for product in environment.PRODUCTS}
    wheels = [f"tensorrt-cu{major}" for major in (11, 12, 13) if version_of(f"tensorrt-cu{major}")]
    if len(wheels) > 1:
        # Both wheels fill the same folder `tensorrt`; what imports is a mixture.
        fix = f"python -m pip uninstall -y tensorrt {' '.join(wheels)}, then: {environment.INSTALL_GPU}"
        return [Finding("TensorRT", f"{' and '.join(wheels)} are both installed", "problem", fix)]
    if not any(both.values()):
        return [Finding("TensorRT", "not installed: no lab can build an engine", "note", _install_for(here))]
    titles = [f"{environment.TITLES[product]} {version}" for product, version in both.items() if version]
    if here.tensorrt_product is None:
        return [Finding("TensorRT", environment.why_not("tensorrt"), "problem", "unset LABSUPPORT_TENSORRT")]
    used = f"{environment.TITLES[here.tensorrt_product]} {here.tensorrt}"
    if here.generation is None:
        return [Finding("TensorRT", f"{used} is older than 8.6", "problem", environment.INSTALL_GPU)]
    if len(titles) > 1:
        value = f"{' and '.join(titles)}; the labs use {used} (LABSUPPORT_TENSORRT chooses)"
        return [Finding("TensorRT", value, "note")]
    return [Finding("TensorRT", f"{used}, API generation {here.generation}")]


def _install_for(here: environment.Machine) -> str:
    return environment.INSTALL_GPU if here.gpu else environment.INSTALL_CPU


def check_packages(version_of=package_version, torch_build=packages.torch_build) -> list[Finding]:
    """The packages that the labs import: a row each, and one for all that are missing."""
    findings, absent = [], []
    for name in (*REQUIRED, *OPTIONAL):
        version = version_of(name)
        if name == "torch":
            version, cuda = torch_build()
            version = version and f"{version} ({'for CUDA ' + cuda if cuda else 'CPU build'})"
        if version:
            findings.append(Finding(TITLES.get(name, name), version))
        else:
            absent.append(name)
    missing = [TITLES.get(name, name) for name in REQUIRED if name in absent]
    if missing:
        findings.append(Finding("Packages", f"not installed: {', '.join(missing)}", "problem", INSTALL))
    optional = [TITLES.get(name, name) for name in OPTIONAL if name in absent]
    if optional:
        findings.append(Finding("Packages", f"not installed, and optional: {', '.join(optional)}", "note"))
    return findings


def check_onnxruntime(version_of=None) -> list[Finding]:
    """onnxruntime and onnxruntime-gpu fill one folder; whichever was installed last half-wins."""
    installed = [
        name
        for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
        if (version_of or _distribution_version)(name)
    ]
    if len(installed) < 2:
        return []
    fix = f"python -m pip uninstall -y {' '.join(installed)}, then: python -m pip install onnxruntime==1.31.1"
    return [Finding("ONNX Runtime", f"{' and '.join(installed)} overwrite each other", "problem", fix)]


def _distribution_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _distribution_requires(name: str) -> list[str]:
    from importlib import metadata

    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def check_requirements(version_of=_distribution_version, requires_of=_distribution_requires) -> list[Finding]:
    """What each package asks of the others (numpy, protobuf, torch for torch-tensorrt, …), against what is there."""
    requirement = _requirement_class()
    if requirement is None:
        return [Finding("Versions", "not compared: the package `packaging` is missing", "note")]
    findings = []
    for name in (*REQUIRED, *OPTIONAL, "tensorrt", "tensorrt-cu13", "tensorrt-rtx", "onnxscript", "polygraphy"):
        if not version_of(name):
            continue
        for line in requires_of(name):
            wanted = requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            have = version_of(wanted.name)
            if have and not wanted.specifier.contains(have, prereleases=True):
                fix = f'python -m pip install "{wanted.name}{wanted.specifier}"'
                value = f"{name} {version_of(name)} needs {wanted.name}{wanted.specifier}, and {have} is installed"
                findings.append(Finding("Versions", value, "problem", fix))
    return findings or [Finding("Versions", "fit together")]


def check_fit(version_of=package_version) -> list[Finding]:
    """What no package's metadata says: which TensorRT ONNX Runtime's provider loads, which PyTorch Torch-TensorRT."""
    from labsupport.roads import versions  # here, because the room imports NumPy

    return [
        Finding("Versions", str(pair), "problem", f'python -m pip install "{pair.other}=={pair.needed}.*"')
        for pair in versions.misfits(version_of)
    ]


def _requirement_class():
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except Exception:  # absent, or broken like the rest of the environment
            continue
    return None


# Compiled before NumPy 2 existed, so they crash with it though their metadata allows it.
BEFORE_NUMPY_2 = {"onnxruntime": (1, 19), "torch": (2, 3), "matplotlib": (3, 9), "pandas": (2, 2), "onnx": (1, 16, 2)}


def check_binary_interfaces(version_of=package_version) -> list[Finding]:
    """Packages compiled for NumPy 1 beside NumPy 2."""
    numpy = version_of("numpy")
    if not numpy or _numbers(numpy) < (2,):
        return []
    findings = []
    for name, first in BEFORE_NUMPY_2.items():
        version = version_of(name)
        if version and _numbers(version) < first:
            wanted = ".".join(map(str, first))
            value = f"{name} {version} was compiled for NumPy 1, and NumPy {numpy} is installed"
            findings.append(Finding("Versions", value, "problem", f'python -m pip install "{name}>={wanted}"'))
    return findings


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def check_disk(folder: Path | None = None, free_gib: float | None = None) -> list[Finding]:
    """Free disk where engines and caches go."""
    folder = folder or environment.REPOSITORY
    if free_gib is None:
        free_gib = shutil.disk_usage(folder).free / 2**30
    value = f"{free_gib:.1f} GiB free at {folder}"
    if free_gib >= 2:
        return [Finding("Disk", value)]
    return [Finding("Disk", f"{value}; the labs write up to 2 GiB", "problem", "python -m pip cache purge")]


def check_memory(free_gib: float | None = None, total_gib: float | None = None) -> list[Finding]:
    """Free host memory; a kernel that runs out of it dies without a word."""
    if free_gib is None:
        total_gib, free_gib = hardware.memory_gib()
    if free_gib is None:
        return [Finding("Memory", f"{total_gib or 'unknown'} GiB in all", "note" if not total_gib else "ok")]
    value = f"{free_gib:g} of {total_gib:g} GiB free"
    if free_gib >= 2:
        return [Finding("Memory", value)]
    fix = "close other programs, or shut down idle kernels (JupyterLab: Kernel > Shut Down All Kernels)"
    return [Finding("Memory", f"{value}; a lab needs up to 2 GiB", "problem", fix)]


def check_cache(cache_dir=None) -> list[Finding]:
    """Whether engines and timing caches can be written."""
    try:
        return [Finding("Cache folder", str((cache_dir or environment.cache_dir)()))]
    except RuntimeError as error:
        return [Finding("Cache folder", str(error), "problem", "set LABSUPPORT_CACHE to a writable folder")]
