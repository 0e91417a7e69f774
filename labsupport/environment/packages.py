"""Versions and folders of installed packages, found without importing any of them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11", "tensorrt-bindings"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
}


def package_version(name: str) -> str | None:
    """Version of an installed package without importing it; `None` when it is not installed."""
    from importlib import metadata

    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return _version_in_folder(name)


def _version_in_folder(name: str) -> str | None:
    """For packages copied without metadata (system packages, archives): read `__version__` as text."""
    folder = package_folder(name)
    for file in ("__init__.py", "version.py", "_version.py") if folder else ():
        path = folder / file
        if path.is_file():
            match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", path.read_text(errors="replace"), re.MULTILINE)
            if match:
                return match.group(1)
    return None


def package_folder(name: str) -> Path | None:
    """Folder of an importable package, found without importing it."""
    from importlib.util import find_spec

    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_build() -> tuple[str | None, str | None]:
    """(PyTorch's version, the CUDA it was built for); (…, None) for a CPU build, (None, None) without PyTorch."""
    folder = package_folder("torch")
    if folder is None or not (folder / "version.py").is_file():
        return None, None
    text = (folder / "version.py").read_text(errors="replace")
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return (version.group(1) if version else "unknown"), (cuda.group(1) if cuda else None)


def tensorrt_cuda_major(product: str, version: str | None) -> int:
    """CUDA major version that the installed TensorRT was built for, by the names of its packages."""
    from importlib import metadata

    for major in (13, 12, 11):
        for distribution in (f"{product}-cu{major}", f"{product}-cu{major}-libs", f"{product}-cu{major}-bindings"):
            try:
                metadata.version(distribution)
                return major
            except metadata.PackageNotFoundError:
                continue
    return 11 if (version or "").startswith("8.") else 12


def settle_distutils() -> None:
    """Let setuptools be imported late, beside what other packages have loaded.

    It puts its copy of distutils in the place of Python's, and fails where something stands in the way (TensorFlow and
    others load Python's first). Where Python still has one of its own, setuptools is told to leave it.
    """
    if sys.version_info < (3, 12) and "setuptools" not in sys.modules:
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")


def generation_of(product: str | None, version: str | None) -> str | None:
    """API generation of a TensorRT: "8.6", "10", "11" or "rtx"; `None` for none, or one too old for the labs."""
    if product == "tensorrt_rtx":
        return "rtx"
    if product is None or version is None:
        return None
    major = int(re.match(r"\d+", version).group()) if re.match(r"\d+", version) else 0
    if major < 8:
        return None
    return {8: "8.6", 9: "10", 10: "10"}.get(major, "11")
