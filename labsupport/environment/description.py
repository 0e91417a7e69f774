"""This machine in words: the table at the head of every lab, its lane, the key of its recordings."""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.environment.folders import headless
from labsupport.environment.machines import TITLES, machine
from labsupport.environment.needs import has

# JupyterLab breaks printed lines within words; this table is the first output of every lab
WHOLE_WORDS = "<style>.jp-OutputArea-output pre {word-break: normal; overflow-wrap: anywhere}</style>"


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
    from labsupport.environment.hardware import gpu_slug

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
        rows = "".join(
            f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(value)}</td></tr>" for name, value in self.rows
        )
        return f"{'' if headless() else WHOLE_WORDS}<table>{rows}</table>"


def describe() -> Description:
    """This machine as a table, closed by the lane it takes through the labs."""
    here = machine()
    gpu = here.problem or "none"
    if here.gpu:
        capability = ".".join(map(str, here.compute_capability or ("?",)))
        memory = f", {here.gpu_memory_mib / 1024:.0f} GiB" if here.gpu_memory_mib else ""
        gpu = f"{here.gpu}{memory}, compute capability {capability}" + (f"; {here.problem}" if here.problem else "")
    product = TITLES.get(here.tensorrt_product or "", "TensorRT")
    rows = [
        ("Python", f"{here.python} on {here.os}"),
        ("Processor", f"{here.cpu}, {here.cores} cores, {here.memory_gib or '?'} GiB"),
        ("GPU", gpu),
    ]
    if here.driver or here.cuda:
        rows.append(("Driver", f"{here.driver or 'unknown'}, CUDA {here.cuda or 'unknown'}"))
    rows += [
        (product, f"{here.tensorrt}, API generation {here.generation}" if here.tensorrt else "not installed"),
        ("PyTorch", here.torch or "not installed"),
        ("ONNX Runtime", here.onnxruntime or "not installed"),
        ("This machine", lane()),
    ]
    return Description(tuple(rows))
