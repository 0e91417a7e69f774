"""One protocol, ``run(feed) -> outputs``, for PyTorch, ONNX Runtime and TensorRT; owns streams, buffers and graphs.

A feed is a mapping input name → array, or the array itself for a network with one input. NumPy in gives NumPy out,
through pinned buffers; CUDA tensors in give CUDA tensors out, without a copy. Outputs are new with every call.
The parts: ``protocol``, ``torch_runtime``, ``onnx_runtime``, ``trt_runtime`` and ``choice``.
"""

from __future__ import annotations

from labsupport.runtimes.choice import best
from labsupport.runtimes.onnx_runtime import LEVELS, OnnxRuntime
from labsupport.runtimes.protocol import Runtime, TensorSpec
from labsupport.runtimes.torch_runtime import Torch
from labsupport.runtimes.trt_runtime import TensorRt

__all__ = [
    "LEVELS", "OnnxRuntime", "Runtime", "TensorRt", "TensorSpec", "Torch", "best",
]  # fmt: skip
