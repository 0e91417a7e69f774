"""One protocol, ``run(feed) -> outputs``, for PyTorch, ONNX Runtime and TensorRT; owns streams, buffers and graphs.

A feed is a mapping input name → array, or the array itself for a network with one input. NumPy in gives NumPy out,
through pinned buffers; CUDA tensors in give CUDA tensors out, without a copy. Outputs are new with every call.
"""

from __future__ import annotations

from labsupport.onnx_runtime import LEVELS, OnnxRuntime
from labsupport.protocol import Runtime, TensorSpec
from labsupport.torch_runtime import Torch
from labsupport.trt_runtime import TensorRt

__all__ = ["LEVELS", "OnnxRuntime", "Runtime", "TensorRt", "TensorSpec", "Torch", "best"]


def best(model, graph, engine=None, *, cuda_graph: bool = True):
    """The fastest runtime this machine has for a network: its engine where one can run, else ONNX Runtime."""
    if engine is not None and engine.runnable_here:
        return TensorRt(engine, cuda_graph=cuda_graph)
    return OnnxRuntime(graph) if graph is not None else Torch(model)
