"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from faces import stand_in
from kernels_stand_ins import Launched
from plugin_forms_stand_ins import Registry

from labsupport import environment, export, plugins
from labsupport.plugins import cuda_kernels, plugin_library, python_plugin


@pytest.fixture
def kernel(monkeypatch):
    fake = Launched()
    driver, compiler = fake.module("pycuda.driver"), types.ModuleType("pycuda.compiler")
    compiler.compile = lambda source, **options: source.encode()
    pycuda = types.ModuleType("pycuda")
    pycuda.driver, pycuda.compiler = driver, compiler
    for name, module in {"pycuda": pycuda, "pycuda.driver": driver, "pycuda.compiler": compiler}.items():
        monkeypatch.setitem(sys.modules, name, module)
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda *size, **options: zeros(*size, **{k: v for k, v in options.items() if k != "device"})
    )
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: types.SimpleNamespace(cuda_stream=handle))
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    monkeypatch.setattr(cuda_kernels, "nvcc", lambda: "nvcc")
    made = plugins.CudaKernel()
    made.fake, made.compiler = fake, compiler
    return made


# --- on the device --------------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """PyTorch's streams and graphs, that do nothing; CPU tensors pass for the GPU's."""
    import contextlib

    class Stream:
        cuda_stream = 5
        synchronize = wait_stream = lambda self, *_: None

    class Graph:
        replayed = 0

        def replay(self):
            Graph.replayed += 1

    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": lambda graph, stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    return Graph


@pytest.fixture
def tensorrt_11(monkeypatch):
    """A TensorRT 11 that has what plugins touch."""
    trt = types.SimpleNamespace(
        float32="FLOAT",
        float16="HALF",
        TensorFormat=types.SimpleNamespace(LINEAR="LINEAR", CHW4="CHW4"),
        PluginFieldType=types.SimpleNamespace(FLOAT32="f32"),
        DimsExprs=list,
        PluginFieldCollection=list,
        PluginField=lambda name, data, type: types.SimpleNamespace(name=name, data=data, type=type),
    )
    for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One"):
        setattr(trt, name, type(name, (), {}))
    registry = Registry()
    trt.registry, trt.get_plugin_registry = registry, lambda: registry
    here = types.SimpleNamespace(tensorrt="11.0.0", generation="11")
    stand_in(monkeypatch, environment, "machine", lambda: here)
    stand_in(monkeypatch, environment, "tensorrt", lambda: trt)
    stand_in(monkeypatch, environment, "generation", lambda: "11")
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    monkeypatch.setattr(python_plugin, "_registered", {})
    monkeypatch.setattr(plugin_library, "_loaded", {})
    return trt


@pytest.fixture(scope="module")
def block():
    return plugins.GatedBlock(hidden=8, inner=16)


@pytest.fixture
def graph(block):
    return export.to_onnx(block, block.example_input())
