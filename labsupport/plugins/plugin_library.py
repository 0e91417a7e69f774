"""The plugin as a shared library: compiled from cpp_plugin/, checked against this TensorRT, loaded into its registry.

With TensorRT 8.6 on an H100 it was compiled, loaded and run in engines (lab 10); what it compiles for 10 and 11, no
engine has run.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from labsupport import environment
from labsupport.errors import BadInput, BuildError, LabError, NotAvailable
from labsupport.plugins.cuda_kernels import nvcc

FOLDER = Path(__file__).resolve().parent / "cpp_plugin"
SYSTEM_HEADERS = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/tensorrt/include",
    "/usr/include",
)
_loaded: dict = {}


def headers(folder: str | os.PathLike | None = None) -> tuple[Path, int]:
    """(folder with TensorRT's headers, their major version): ``folder``, TENSORRT_INCLUDE_DIR, TENSORRT_ROOT, or the
    system's.

    The Python wheels bring no headers. Raises BadInput for a folder without them, NotAvailable where none are found.
    """
    named = [
        folder or os.environ.get("TENSORRT_INCLUDE_DIR"),
        os.environ.get("TENSORRT_ROOT") and Path(os.environ["TENSORRT_ROOT"]) / "include",
    ]
    given = [Path(place) for place in named if place]
    for place in (*given, *map(Path, SYSTEM_HEADERS)):
        version = place / "NvInferVersion.h"
        if version.is_file() and (place / "NvInfer.h").is_file():
            text = version.read_text(encoding="utf-8", errors="replace")
            match = re.search(r"#define\s+(?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE)\s+(\d+)", text)
            if not match:
                raise BadInput(
                    f"{version} names no major version of TensorRT; point TENSORRT_INCLUDE_DIR at the headers of "
                    "your release"
                )
            return place, int(match.group(1))
        if given and place == given[0]:
            raise BadInput(
                f"{place} has no NvInfer.h and NvInferVersion.h; name the folder include/ of TensorRT's tar archive "
                "or of its repository"
            )
    raise NotAvailable(
        "TensorRT's C++ headers were not found (its Python wheels bring none); take include/ from the tar archive, "
        "or from github.com/NVIDIA/TensorRT at the tag of your version, and set TENSORRT_INCLUDE_DIR to it"
    )


def build(include: str | os.PathLike | None = None, *, architecture: str | None = None) -> Path:
    """Compile the library with nvcc, or find the one compiled before; cpp_plugin/CMakeLists.txt does the same with
    CMake.

    ``architecture`` such as "sm_90"; None asks the GPU. Raises NotAvailable without nvcc, headers or a GPU to ask,
    BadInput where the headers are another TensorRT's than this machine's, BuildError where the compiler fails.
    """
    compiler = nvcc()
    folder, major = headers(include)
    _check_major(major, f"the headers in {folder}")
    architecture = architecture or _architecture()
    sources = [
        FOLDER / "launch.cu",
        FOLDER / "version.cpp",
        FOLDER / ("plugin_v2.cpp" if major < 10 else "plugin_v3.cpp"),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[chu]*"))))
    digest.update((folder / "NvInferVersion.h").read_bytes() + architecture.encode())
    suffix = {"win32": ".dll"}.get(sys.platform, ".so")
    path = environment.cache_dir() / f"gated_rms_norm_plugin-{digest.hexdigest()[:12]}{suffix}"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as staged:
        written = Path(staged) / path.name
        position = [] if sys.platform == "win32" else ["-Xcompiler", "-fPIC"]
        command = [
            compiler,
            "-std=c++17",
            "-O3",
            f"-arch={architecture}",
            "--shared",
            *position,
            "-cudart",
            "static",
            "-w",
            "-isystem",
            str(folder),
            "-o",
            str(written),
            *map(str, sources),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()] or [
                f"it ended with {done.returncode}"
            ]
            raise BuildError(
                f"nvcc could not compile the plugin: {lines[0].strip()}; are the CUDA toolkit and its C++ compiler "
                "installed whole?"
            )
        os.replace(written, path)
    return path


def load(path: str | os.PathLike):
    """Load a plugin library into TensorRT's registry; its operators are known from then on, in this process.

    A plugin library is native code and runs with your rights: load only what you compiled. Raises BadInput for a file
    that is missing, no library, or built for another TensorRT; NotAvailable on TensorRT-RTX, LabError where TensorRT
    refuses.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise BadInput(
            f"{path.name}: no such plugin library (looked in {path.parent}); build it with "
            f"plugins.build_library(), or with CMake in {FOLDER.name}"
        )
    trt = environment.tensorrt()
    _check_major(built_for(path), path.name)
    if environment.generation() == "rtx":
        raise NotAvailable(
            "TensorRT-RTX takes no plugins: its parser finds them and then ends the process. Rewrite the graph "
            "instead: plugins.rewritten"
        )
    if path not in _loaded:
        handle = trt.get_plugin_registry().load_library(str(path))
        if handle is None:
            raise LabError(
                f"TensorRT {environment.machine().tensorrt} did not take {path.name}; are its operators registered "
                "already? Restart the kernel to load another"
            )
        _loaded[path] = handle
    return _loaded[path]


def built_for(path: str | os.PathLike) -> int:
    """Major version of the TensorRT that a library was compiled for, by its own word. Raises BadInput for no such
    library.
    """
    path = Path(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BadInput(
            f"{path.name} cannot be loaded ({error}); is it a shared library for this platform, cut off, or lacking "
            "another one?"
        ) from error
    if not hasattr(library, "tensorrtMajor"):
        raise BadInput(
            f"{path.name} does not say which TensorRT it was built for; build it from {FOLDER.name}, which does"
        )
    return int(library.tensorrtMajor())


def _check_major(major: int, what: str) -> None:
    here = environment.machine()
    if here.tensorrt is None:
        raise NotAvailable(environment.why_not("tensorrt"))
    wanted = 11 if environment.generation() == "rtx" else int(here.tensorrt.split(".")[0])
    if major != wanted:
        raise BadInput(
            f"{what}: made for TensorRT {major}, and this machine has {here.tensorrt}; a plugin of one does not fit "
            f"the other: build it with the headers of {wanted}"
        )


def _architecture() -> str:
    environment.require("gpu")
    major, minor = environment.machine().compute_capability
    return f"sm_{major}{minor}"
