"""Which packages are installed: the GPU set, the CPU set or TensorRT-RTX, and the frameworks that are optional."""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.environment import hardware

SETS = {
    "gpu": "the GPU set (TensorRT 11, PyTorch for CUDA, Torch-TensorRT, PyCUDA)",
    "cpu": "the CPU set (PyTorch, ONNX Runtime, TensorRT-RTX as builder)",
    "rtx": "the GeForce RTX set (TensorRT-RTX, PyTorch for CUDA)",
}
# What `test --all` adds: frameworks that a lab names where they are missing, and goes on without.
OPTIONAL = {
    "tensorflow": "TensorFlow and Keras (labs 12 and 13)",
    "phone": "ExecuTorch and LiteRT (lab 11)",
    "browser": "playwright and axe-core (JupyterLab's tests in a browser)",
    "serving": "Ray Serve, MLPerf's load generator and Triton's client (lab 11)",
}
NEEDED_GIB = {"gpu": 14, "cpu": 3, "rtx": 12}
TORCH = {"gpu": "torch==2.14.1", "cpu": "torch==2.13.0", "rtx": "torch==2.13.0"}  # torch-tensorrt binds the GPU's


@dataclass(frozen=True)
class Choice:
    """Which set to install, and why."""

    name: str
    reason: str

    def __repr__(self) -> str:
        others = " or ".join(f"--{name}" for name in SETS if name != self.name)
        return f"{self.reason}: installing {SETS[self.name]}. To choose otherwise: {others}"


def choose(asked: str | None = None, probe: hardware.GpuProbe | None = None) -> Choice:
    """The set asked for, else the GPU set where the driver shows an NVIDIA GPU, else the CPU set."""
    if asked:
        return Choice(asked, f"--{asked} was given")
    probe = probe or hardware.gpus()
    if not probe.gpus:
        no_driver = probe.problem in (None, hardware.NO_DRIVER)
        return Choice("cpu", "No NVIDIA GPU was found" if no_driver else f"No GPU can be used ({probe.problem})")
    gpu = probe.gpus[0].name
    if probe.cuda and int(probe.cuda.split(".")[0]) < 13:
        old = f"{gpu} has driver {probe.driver} (CUDA {probe.cuda}), and TensorRT 11 needs driver 580 (CUDA 13)"
        return Choice("cpu", old)
    return Choice("gpu", f"{gpu} found")
