"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import ctypes
import types

import numpy as np

from labsupport import plugins
from labsupport.plugins import plugin_library

FOLDER = plugin_library.FOLDER


class CompileError(Exception):
    def __init__(self, stderr):
        super().__init__("nvcc compilation failed")
        self.stderr = stderr


class Launched:
    """PyCUDA's driver, whose kernel reads the addresses it is given: CPU tensors stand for the GPU's."""

    def __init__(self):
        self.calls, self.pushed = [], 0

    def module(self, name):
        driver = types.ModuleType("pycuda.driver")
        driver.init, driver.CompileError = lambda: None, CompileError
        context = types.SimpleNamespace(
            push=lambda: setattr(self, "pushed", self.pushed + 1), pop=lambda: setattr(self, "pushed", self.pushed - 1)
        )
        driver.Device = lambda n: types.SimpleNamespace(
            retain_primary_context=lambda: context, compute_capability=lambda: (9, 0)
        )
        driver.Stream = lambda: types.SimpleNamespace(handle=77)
        driver.module_from_buffer = lambda cubin: types.SimpleNamespace(get_function=self.function)
        return driver

    def function(self, name):
        return types.SimpleNamespace(
            prepare=lambda signature: self.calls.append((name, signature)), prepared_async_call=self.launch(name)
        )

    def launch(self, name):
        ctype, dtype = (ctypes.c_uint16, np.float16) if "half" in name else (ctypes.c_float, np.float32)

        def call(grid, block, stream, x, gate, weight, y, rows, columns, x_stride, gate_stride, epsilon):
            assert self.pushed == 1 and stream.handle == 77

            def at(address, count):
                return np.frombuffer((ctype * count).from_address(address), dtype=dtype)

            for row in range(rows):
                size = x_stride * row * np.dtype(dtype).itemsize, gate_stride * row * np.dtype(dtype).itemsize
                result = plugins.reference(
                    at(x + size[0], columns), at(gate + size[1], columns), at(weight, columns), epsilon
                )
                at(y + columns * row * np.dtype(dtype).itemsize, columns)[:] = result
            self.calls.append((name, grid, block))

        return call
