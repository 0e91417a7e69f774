"""The fastest runtime this machine has for a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.runtimes.onnx_runtime import OnnxRuntime
from labsupport.runtimes.torch_runtime import Torch
from labsupport.runtimes.trt_runtime import TensorRt

if TYPE_CHECKING:
    from torch import nn


def best(model: nn.Module | None, graph, engine=None, *, cuda_graph: bool = True):
    """The fastest runtime this machine has for a network: its engine where one can run, else ONNX Runtime."""
    if engine is not None and engine.runnable_here:
        return TensorRt(engine, cuda_graph=cuda_graph)
    return OnnxRuntime(graph) if graph is not None else Torch(model)
