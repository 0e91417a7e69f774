"""Kernel, library and plugin classes, as far as they can be held without a GPU: choices, arguments, checks, answers."""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from faces import stand_in

from labsupport import environment, plugins
from labsupport.errors import BadInput, BuildError, LabError, NotAvailable
from labsupport.plugins import ahead_of_time, cuda_kernels, decorated_plugin, device_runs, plugin_library, python_plugin

needs_rtx = pytest.mark.skipif(environment.generation() != "rtx", reason="TensorRT-RTX is not installed")
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler")
needs_compiler = pytest.mark.skipif(not shutil.which("g++") or sys.platform == "win32", reason="no C++ compiler")
FOLDER = plugin_library.FOLDER


# --- which kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, lanes", [("float32", 4), ("float16", 8)])
@pytest.mark.parametrize("columns", [1, 31, 64, 1000, 1024, 1032, 2048, 4096, 4099, 8192, 16384, 16392, 100_000])
def test_every_value_of_a_row_has_a_thread(dtype, lanes, columns):
    launch = plugins.launch_of(7, columns, dtype)
    assert launch.blocks == 7 and launch.threads % 32 == 0 and 32 <= launch.threads <= 1024
    if launch.variant == "any":
        assert columns % lanes or columns // lanes > 2048
    else:
        assert columns % lanes == 0 and launch.threads <= 512  # the launch bounds in the source
        assert int(launch.variant) * launch.threads * lanes >= columns


def test_what_is_not_aligned_goes_one_value_at_a_time():
    assert plugins.launch_of(4, 4096, "float16").variant == "2"
    assert plugins.launch_of(4, 4096, "float16", aligned=False).variant == "any"
    assert "one value at a time" in repr(plugins.launch_of(1, 3)) and "2 × 16 bytes" in repr(
        plugins.launch_of(4, 4096, "float16")
    )
    with pytest.raises(BadInput, match="dtype='int8'"):
        plugins.launch_of(1, 1, "int8")


def test_the_library_launches_by_the_same_numbers():
    source = (FOLDER / "launch.cu").read_text(encoding="utf-8")
    assert "packs <= 4 * 512" in source and cuda_kernels.MOST_PACKS == 4 * 512
    assert "packs <= 256 ? 0 : packs <= 512 ? 1 : 2" in source and "std::min(1024," in source
    kernels = plugins.SOURCE.read_text(encoding="utf-8")
    names = re.findall(r"^KERNEL\((\w+),", kernels, re.M)
    assert set(names) == {
        f"gated_rms_norm_{kind}_{variant}" for kind in ("float", "half") for variant in ("1", "2", "4", "any")
    }
    assert all(name in source for name in names)


@needs_nvcc
def test_the_kernels_compile_and_are_all_there(tmp_path):
    out = tmp_path / "kernel.cubin"
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-cubin", "-o", str(out), "--resource-usage", str(plugins.SOURCE)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert all(
        f"gated_rms_norm_{kind}_{variant}".encode() in out.read_bytes()
        for kind in ("float", "half")
        for variant in ("1", "4", "any")
    )
    assert not re.search(r"[1-9]\d* bytes spill", done.stderr + done.stdout), "a row does not stay in registers"


# --- the compiler and the context -----------------------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_a_missing_compiler_is_named_with_the_fix(no_compiler):
    with pytest.raises(NotAvailable, match="nvcc, the CUDA compiler, was not found .* or use the Triton version"):
        plugins.nvcc()
    with pytest.raises(NotAvailable, match="nvcc"):
        plugins.build_library()


@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable file")
def test_a_compiler_below_cuda_home_is_found(no_compiler, monkeypatch, tmp_path):
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert plugins.nvcc() == str(compiler)


@pytest.mark.skipif(environment.has("gpu"), reason="there is a GPU")
@pytest.mark.parametrize("make", [plugins.CudaKernel, plugins.triton_kernel, lambda: plugins.OnDevice("f", None)])
def test_without_a_gpu_each_says_so(make):
    with pytest.raises(NotAvailable, match="no GPU can be used here"):
        make()


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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["packed", "sliced"])
def test_the_kernel_gets_addresses_strides_and_sizes(kernel, dtype, layout):
    x, gate, weight = plugins.example(3, 16, dtype=dtype)
    x, gate = plugins.laid_out(x, gate, layout)
    y = torch.empty(3, 16, dtype=x.dtype)
    kernel.launch(x, gate, weight, y, 3, 16, plugins.EPSILON)
    assert np.abs(y.numpy() - plugins.reference(x, gate, weight)).max() < (1e-5 if dtype == "float32" else 2e-3)
    name, grid, block = kernel.fake.calls[-1]
    assert (
        name.startswith(f"gated_rms_norm_{'half' if dtype == 'float16' else 'float'}_")
        and grid == (3, 1)
        and block == (32, 1, 1)
    )
    assert kernel.fake.pushed == 0 and kernel.stream.cuda_stream == 77 and "GPU 0" in repr(kernel)


def test_packed_is_the_trap_that_strides_avoid(kernel):
    x, gate, weight = plugins.example(3, 16)
    x, gate = plugins.laid_out(x, gate, "sliced")
    y = torch.empty(3, 16)
    kernel.launch(x, gate, weight, y, 3, 16, plugins.EPSILON, packed=True)
    assert np.abs(y.numpy() - plugins.reference(x, gate, weight)).max() > 0.1


def test_an_address_off_16_bytes_takes_the_kernel_for_anything(kernel):
    x, gate, weight = plugins.example(2, 17)
    y = torch.empty(2, 16)
    kernel.launch(x[:, 1:], gate[:, 1:], weight[1:], y, 2, 16, plugins.EPSILON)
    assert kernel.fake.calls[-1][0] == "gated_rms_norm_float_any"


def test_a_source_that_does_not_compile_is_told_by_its_first_error(kernel):
    def refuse(source, **options):
        raise CompileError("note: x\nkernel.cu(3): error: expected a ;\nkernel.cu(9): error: more")

    kernel.compiler.compile = refuse
    with pytest.raises(
        BuildError, match=r"could not compile the kernel for sm_90: kernel.cu\(3\): error: expected a ;"
    ):
        plugins.CudaKernel(source="x")


class OnGpu:
    """What a check looks at in a tensor, on a GPU that need not be there."""

    def __init__(self, shape, dtype="float32", device="cuda:0", strides=None):
        self.shape, self.dtype, self._strides = (
            tuple(shape),
            getattr(torch, dtype),
            strides or torch.empty(shape).stride(),
        )
        self.device = torch.device(device)

    def data_ptr(self):
        return 256

    def stride(self, axis=None):
        return self._strides if axis is None else self._strides[axis]

    def dim(self):
        return len(self.shape)

    def numel(self):
        return int(np.prod(self.shape))

    def is_contiguous(self):
        return tuple(self._strides) == torch.empty(self.shape).stride()


X, W = OnGpu((4, 8)), OnGpu((8,))


@pytest.mark.parametrize(
    "tensors, message",
    [
        ((np.zeros((4, 8)), X, W), "x is a ndarray; the kernel reads torch tensors"),
        ((OnGpu((4, 8), "int32"), X, W), r"x is int32; the kernel is there for \['float32', 'float16'\]: convert"),
        ((OnGpu((4, 8), "bfloat16"), X, W), "x is bfloat16"),
        ((X, OnGpu((4, 8), "float16"), W), "gate is float16 and x is float32; all tensors need one type"),
        ((X, OnGpu((3, 8)), W), r"x has shape \(4, 8\) and gate \(3, 8\)"),
        ((X, X, OnGpu((4,))), r"weight has shape \(4,\); wanted is one value a column, \(8,\)"),
        ((OnGpu((4, 8), device="cpu"), X, W), r"x is on cpu and the kernel on cuda:0; .* x.to\('cuda:0'\)"),
        ((X, X, OnGpu((8,), device="cuda:1")), "weight is on cuda:1 and the kernel on cuda:0"),
        ((OnGpu((4, 8), strides=(1, 4)), X, W), r"x is a view with strides \(1, 4\); .*pass x.contiguous\(\)"),
        ((OnGpu((2, 4, 8), strides=(100, 16, 1)), OnGpu((2, 4, 8)), W), "x is a view with strides"),
        ((X, X, OnGpu((8,), strides=(2,))), "weight is a view with strides"),
        ((X, X, W, OnGpu((4, 4))), r"out has shape \(4, 4\); y has \(4, 8\)"),
        ((X, X, W, OnGpu((4, 8), strides=(16, 1))), "out is a view"),
    ],
)
def test_what_the_kernel_cannot_read_is_refused(tensors, message):
    with pytest.raises(BadInput, match=message):
        plugins.checked(*tensors)


def test_rows_may_lie_apart_and_may_be_none():
    assert plugins.checked(OnGpu((4, 8), strides=(16, 1)), OnGpu((4, 8), strides=(24, 1)), W) == (4, 8)
    assert plugins.checked(OnGpu((2, 3, 8)), OnGpu((2, 3, 8)), W) == (6, 8)
    assert plugins.checked(W, W, W) == (1, 8)
    assert plugins.checked(OnGpu((0, 8)), OnGpu((0, 8)), W) == (0, 8)
    assert plugins.checked(OnGpu((4, 1), strides=(2, 1)), OnGpu((4, 1), strides=(1, 4)), OnGpu((1,))) == (4, 1)


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


def test_a_function_runs_behind_the_protocol(device):
    feed = dict(zip(("x", "gate", "weight"), plugins.example(2, 4)))
    run = plugins.OnDevice("chain", plugins.chain)
    assert torch.equal(run(feed)["y"], plugins.chain(**feed))
    with pytest.raises(LabError, match=r"found no feed in chain; call bind\(feed\) first"):
        run.enqueue()
    run.bind(feed)
    run.enqueue()
    assert torch.equal(run.fetch()["y"], plugins.chain(**feed))
    for wrong, message in (
        (feed["x"], "it got Tensor"),
        ({"x": feed["x"]}, r"it got \['x'\]"),
        ({**feed, "x": None}, r"\['x'\] are not on the GPU"),
    ):
        with pytest.raises(BadInput, match=message):
            run(wrong)
    run.close()
    assert run.closed


def test_a_graph_is_recorded_once_and_replayed(device):
    calls = []
    run = plugins.OnDevice(
        "f", lambda tokens: calls.append(1) or tokens + 1, cuda_graph=True, inputs=("tokens",), output="mixed"
    )
    run.bind({"tokens": torch.ones(2)})
    before = len(calls)
    run.enqueue()
    run.enqueue()
    assert (
        len(calls) == before
        and device.replayed == 2
        and run.name == "f graph"
        and run.fetch()["mixed"].tolist() == [2, 2]
    )


def test_a_function_hands_out_its_bare_call(device):
    run = plugins.OnDevice("f", lambda tokens: tokens + 1, inputs=("tokens",), output="mixed")
    with pytest.raises(LabError, match=r"f has nothing to launch yet; call bind\(feed\) first"):
        run.launcher()
    run.bind({"tokens": torch.ones(2)})
    assert run.launcher().tolist() == [2, 2]
    graph = run.as_graph()
    assert (
        graph.name == "f graph" == graph.as_graph().name
        and graph.stream is run.stream
        and list(graph.inputs) == ["tokens"]
    )
    graph.bind({"tokens": torch.ones(2)})
    graph.launcher()
    assert device.replayed == 1 and graph.fetch()["mixed"].tolist() == [2, 2]


def test_a_sweep_on_the_gpu_times_many_bare_calls(device, monkeypatch):
    from labsupport import benchmarking
    from labsupport.plugins import bandwidth_sweep

    made, timed = [], []

    def example(rows, columns, *, dtype, device):
        return plugins.example(rows, columns, dtype=dtype)

    def device_latency(run, feed, *, runs, warmup, enqueues):
        run.bind(feed)
        run.enqueue()
        run.synchronize()
        timed.append((run.name, runs, enqueues, run.device))
        return types.SimpleNamespace(median_ms=0.5)

    class Engine:
        name, device, stream = "TensorRT graph", "cuda", "stream"

        def bind(self, feed):
            self.launcher = lambda: made.append("replay")

        def enqueue(self):
            raise AssertionError("the bare replay is wanted")

        def synchronize(self):
            pass

        def __call__(self, feed):
            return {"y": plugins.chain(**feed)}

    monkeypatch.setattr(bandwidth_sweep, "example", example)
    monkeypatch.setattr(benchmarking, "device_latency", device_latency)
    chain = plugins.OnDevice("chain", plugins.chain)
    points = plugins.sweep([chain, chain.as_graph(), Engine()], rows=[2, 4], columns=8, device="cuda", samples=5)
    assert [point.name for point in points] == ["chain", "chain graph", "TensorRT graph", "device copy graph"] * 2
    assert [name for name, *_ in timed] == [point.name for point in points] and {each[1:] for each in timed} == {
        (5, 20, "cuda")
    }
    assert device.replayed == 4 and made == ["replay"] * 2 and all(point.ms == 0.5 for point in points)
    assert [point.error is None for point in points] == [False, False, False, True] * 2 and points[0].error < 1e-5


def test_the_copy_moves_as_many_bytes_as_the_operator(device):
    feed = dict(zip(("x", "gate", "weight"), plugins.example(4, 8, dtype="float16")))
    copied = plugins.device_copy(feed)(feed)["y"]
    assert 2 * copied.numel() * copied.element_size() == 3 * 4 * 8 * 2 == plugins.megabytes(feed) * 1e6


def test_a_compiler_that_fails_is_an_answer(device, monkeypatch):
    def fails(function):
        def run(**_):
            raise RuntimeError("\n  no C compiler found\nmore")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(NotAvailable, match=r"torch.compile does not work on this machine \(no C compiler found\)"):
        plugins.compiled_chain(dict(zip(("x", "gate", "weight"), plugins.example(2, 4))))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert device_runs.compiled_chain(dict(zip(("x", "gate", "weight"), plugins.example(2, 4)))).name == "torch.compile"


# --- the C++ project ------------------------------------------------------------------------------------------------


def test_the_project_names_its_files_and_the_operator():
    cmake, readme = ((FOLDER / name).read_text(encoding="utf-8") for name in ("CMakeLists.txt", "README.md"))
    for path in (*FOLDER.glob("*.cu"), *FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")):
        assert f"`{path.name}`" in readme
        assert path.name in cmake or path.name in ("gated_rms_norm.cu", "launch.h")  # included by launch.cu
    for source in ("plugin_v2.cpp", "plugin_v3.cpp"):
        text = (FOLDER / source).read_text(encoding="utf-8")
        assert f'kNAME{{"{plugins.OP_TYPE}"}}' in text and 'kVERSION{"1"}' in text and "setLoggerFinder" in text
    assert (
        "getPluginCreators" in (FOLDER / "plugin_v2.cpp").read_text()
        and "getCreators" in (FOLDER / "plugin_v3.cpp").read_text()
    )


def header_folder(tmp_path, major):
    folder = tmp_path / f"include{major}"
    folder.mkdir(exist_ok=True)
    name = "NV_TENSORRT_MAJOR" if major < 10 else "TRT_MAJOR_ENTERPRISE"
    (folder / "NvInferVersion.h").write_text(
        f"#define {name} {major} //!< major\n#ifndef NV_TENSORRT_MAJOR\n#define NV_TENSORRT_MAJOR {name}\n"
        "#endif\n#define NV_TENSORRT_MINOR 6\n"
    )
    (folder / "NvInfer.h").write_text("")
    (folder / "cuda_runtime_api.h").write_text("typedef int cudaError_t; typedef void* cudaStream_t;\n")
    return folder


def test_headers_are_found_and_their_version_is_read(tmp_path, monkeypatch):
    for name in ("TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert plugins.headers(header_folder(tmp_path, 8)) == (tmp_path / "include8", 8)
    assert plugins.headers(header_folder(tmp_path, 11))[1] == 11
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path / "include11"))
    assert plugins.headers()[1] == 11
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BadInput, match=r"has no NvInfer.h and NvInferVersion.h"):
        plugins.headers()
    (tmp_path / "include8" / "NvInferVersion.h").write_text("nothing")
    with pytest.raises(BadInput, match="names no major version"):
        plugins.headers(tmp_path / "include8")
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    monkeypatch.setattr(plugin_library, "SYSTEM_HEADERS", ())
    with pytest.raises(NotAvailable, match="C\\+\\+ headers were not found .* set TENSORRT_INCLUDE_DIR"):
        plugins.headers()


@needs_rtx
def test_headers_of_another_tensorrt_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_library, "nvcc", lambda: "nvcc")
    with pytest.raises(BadInput, match="made for TensorRT 8, and this machine has 1.7.1.* headers of 11"):
        plugins.build_library(header_folder(tmp_path, 8), architecture="sm_90")


@needs_rtx
@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable file")
def test_a_compiler_that_fails_leaves_no_library(tmp_path, monkeypatch):
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'plugin.cpp(7): error: no such type' >&2; exit 2\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(plugin_library, "nvcc", lambda: str(compiler))
    with pytest.raises(BuildError, match=r"could not compile the plugin: plugin.cpp\(7\): error: no such type"):
        plugins.build_library(header_folder(tmp_path, 11), architecture="sm_90")
    assert not list(environment.cache_dir().glob("gated_rms_norm_plugin*"))


@needs_rtx
@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable file")
def test_a_library_is_compiled_once(tmp_path, monkeypatch):
    compiler, log = tmp_path / "nvcc", tmp_path / "log"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> \'{log}\'\nwhile [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(plugin_library, "nvcc", lambda: str(compiler))
    include = header_folder(tmp_path, 11)
    path = plugins.build_library(include, architecture="sm_90")
    assert path == plugins.build_library(include, architecture="sm_90") and path.read_text() == "library\n"
    (line,) = log.read_text().splitlines()
    assert "plugin_v3.cpp" in line and "plugin_v2.cpp" not in line and "-arch=sm_90" in line


def shared_library(tmp_path, source, name):
    path = tmp_path / name
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-I", str(header_folder(tmp_path, 8)), "-o", str(path), str(source)],
        check=True,
        timeout=60,
    )
    return path


@needs_compiler
def test_a_library_says_which_tensorrt_it_was_built_for(tmp_path):
    library = shared_library(tmp_path, FOLDER / "version.cpp", "version8.so")
    assert plugins.built_for(library) == 8
    if environment.generation() == "rtx":
        with pytest.raises(
            BadInput,
            match=r"version8.so: made for TensorRT 8, and this machine has 1.7.1.*; a plugin of one does not fit the other",
        ):
            plugins.load_library(library)


@needs_compiler
def test_a_library_of_somebody_else_is_refused(tmp_path):
    source = tmp_path / "other.cpp"
    source.write_text("int nothing() { return 0; }\n")
    with pytest.raises(BadInput, match="does not say which TensorRT it was built for"):
        plugins.built_for(shared_library(tmp_path, source, "other.so"))


def test_a_missing_or_damaged_library_is_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing.so: no such plugin library .* build it with"):
        plugins.load_library(tmp_path / "nothing.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(BadInput, match="text.so cannot be loaded"):
        plugins.built_for(tmp_path / "text.so")


@needs_rtx
def test_rtx_takes_no_library(tmp_path, monkeypatch):
    (tmp_path / "p.so").write_text("library")
    monkeypatch.setattr(plugin_library, "built_for", lambda path: 11)
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.load_library(tmp_path / "p.so")
    assert plugins.OP_TYPE not in plugins.registered()


class Registry:
    def __init__(self, takes=True):
        self.takes, self.loaded, self.creators, self.removed = takes, [], [], []
        self.all_creators = [types.SimpleNamespace(name="B"), types.SimpleNamespace(name="A")]

    def load_library(self, path):
        self.loaded.append(path)
        return object() if self.takes else None

    def deregister_creator(self, creator):
        self.removed.append(creator)
        return self.takes

    def register_creator(self, creator, namespace):
        self.creators.append((creator, namespace))
        return self.takes


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


def test_a_library_is_loaded_once_and_a_refusal_is_told(tensorrt_11, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_library, "built_for", lambda path: 11)
    path = tmp_path / "p.so"
    path.write_text("library")
    assert plugins.load_library(path) is plugins.load_library(path) and tensorrt_11.registry.loaded == [
        str(path.resolve())
    ]
    tensorrt_11.registry.takes = False
    (tmp_path / "q.so").write_text("library")
    with pytest.raises(LabError, match="did not take q.so; are its operators registered already"):
        plugins.load_library(tmp_path / "q.so")
    assert plugins.registered() == ("A", "B")


def plugin_can_be_run() -> bool:
    """Whether this machine can compile the library for its TensorRT and run an engine with it."""
    try:
        plugins.nvcc()
        return (
            environment.has("engine execution")
            and environment.generation() != "rtx"
            and plugins.headers()[1] == int(environment.machine().tensorrt.split(".")[0])
        )
    except LabError:
        return False


needs_plugin = pytest.mark.skipif(
    not plugin_can_be_run(), reason="needs a TensorRT that takes plugins, its headers, nvcc and a GPU"
)


@needs_plugin
def test_an_engine_with_the_plugin_is_right_at_odd_sizes_keeps_its_attribute_and_needs_the_library():
    from labsupport import build, runtimes

    plugins.load_library(plugins.build_library())
    assert "GatedRmsNorm" in plugins.registered()
    sides, sources = build.Profile((1, 1), (8, 256), (64, 4104)), ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    engine = build.engine(
        plugins.operator_graph("columns", epsilon=0.5),
        profiles={"x": sides, "gate": sides, "weight": build.Profile((1,), (256,), (4104,))},
        tactic_sources=sources if environment.generation() == "8.6" else None,
        progress=False,
    )
    for rows, columns in ((1, 1), (3, 7), (2, 33), (64, 1000), (5, 4099)):
        x, gate, weight = plugins.example(rows, columns, device="cuda")
        with runtimes.TensorRt(build.load(engine.path)) as run:
            y = run({"x": x, "gate": gate, "weight": weight})["y"].cpu().numpy()
        assert np.abs(y - plugins.reference(x, gate, weight, 0.5)).max() < 1e-4
        assert np.abs(y - plugins.reference(x, gate, weight)).max() > 1e-2  # with the usual epsilon
    code = f"from labsupport import build, runtimes; runtimes.TensorRt(build.load({str(engine.path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=FOLDER.parents[1]
    )
    assert done.returncode and "EngineError" in done.stderr


@needs_plugin
def test_layers_and_rewrite_are_right_at_an_odd_width():
    from test_plugins import decomposed  # the two files stand side by side

    from labsupport import build, export, runtimes

    block = plugins.GatedBlock(hidden=8, inner=33)
    graph, tokens = export.to_onnx(block, block.example_input()), block.example_input(5)

    def norm(trt, network, inputs, attributes):
        x, gate, weight = inputs
        kept.append(np.full((1, 1), attributes["epsilon"], np.float32))

        def joined(a, kind, b):
            return network.add_elementwise(a, b, getattr(trt.ElementWiseOperation, kind)).get_output(0)

        v = joined(
            x, "PROD", joined(gate, "PROD", network.add_activation(gate, trt.ActivationType.SIGMOID).get_output(0))
        )
        mean = network.add_reduce(joined(v, "PROD", v), trt.ReduceOperation.AVG, 2, True).get_output(0)
        epsilon = network.add_constant((1, 1), trt.Weights(kept[-1])).get_output(0)
        return joined(
            weight,
            "PROD",
            joined(v, "DIV", network.add_unary(joined(mean, "SUM", epsilon), trt.UnaryOperation.SQRT).get_output(0)),
        )

    kept = []
    for way in (plugins.with_layers(graph, "GatedRmsNorm", norm), plugins.rewritten(graph, "GatedRmsNorm", decomposed)):
        engine = build.engine(
            way, name="odd_width", batch=(1, 4, 8), optimization_level=0, progress=False, rebuild=True
        )
        with runtimes.TensorRt(engine) as run:
            assert np.abs(run(tokens.numpy())["mixed"] - block(tokens).detach().numpy()).max() < 1e-4


# --- the plugin in Python -------------------------------------------------------------------------------------------


def described(types_, formats):
    return [types.SimpleNamespace(desc=types.SimpleNamespace(type=t, format=f)) for t, f in zip(types_, formats)]


def test_the_class_answers_as_the_kernel_can(tensorrt_11):
    plugin = plugins.plugin_class(tensorrt_11)(1e-6)
    assert (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace, plugin.num_outputs) == (
        "GatedRmsNorm",
        "1",
        "",
        1,
    )
    assert plugin.get_capability_interface("any") is plugin
    assert plugin.get_output_data_types(["HALF", "HALF", "HALF"]) == ["HALF"]
    assert plugin.get_output_shapes([["n", 64], ["n", 64], [64]], [], None) == [["n", 64]]
    for kind in ("FLOAT", "HALF"):
        assert all(plugin.supports_format_combination(at, described([kind] * 4, ["LINEAR"] * 4), 3) for at in range(4))
    assert not plugin.supports_format_combination(0, described(["INT8"] * 4, ["LINEAR"] * 4), 3)
    assert not plugin.supports_format_combination(2, described(["HALF", "HALF", "FLOAT", "HALF"], ["LINEAR"] * 4), 3)
    assert not plugin.supports_format_combination(1, described(["HALF"] * 4, ["LINEAR", "CHW4", "LINEAR", "LINEAR"]), 3)
    assert plugin.supports_format_combination(
        0, described(["HALF", "INT8", "INT8", "INT8"], ["LINEAR", "CHW4", "CHW4", "CHW4"]), 3
    )


def test_what_the_engine_keeps_comes_back(tensorrt_11):
    plugin = plugins.plugin_class(tensorrt_11)(0.25, "BUILD")
    plugin.set_tactic(2)
    fields = plugin.get_fields_to_serialize()
    back = plugins.creator_class(tensorrt_11)().create_plugin("norm", fields, "RUNTIME")
    assert back.epsilon == 0.25 and back.phase == "RUNTIME" and back.tactic is None
    copy = plugin.attach_to_context(None)
    assert copy is not plugin and (copy.epsilon, copy.tactic, copy.phase) == (0.25, python_plugin.Tactic.TORCH, "BUILD")
    assert set(plugin.get_valid_tactics()) <= {1, 2} and min(python_plugin.Tactic) == 1  # 0 is TensorRT's own


def test_the_creator_reads_epsilon_and_refuses_what_it_does_not_know(tensorrt_11):
    def field(name, value):
        return types.SimpleNamespace(name=name, data=np.array([value], np.float32))

    assert python_plugin.epsilon_of([]) == plugins.EPSILON and python_plugin.epsilon_of([field("epsilon", 2.0)]) == 2.0
    with pytest.raises(BadInput, match=r"takes the attribute 'epsilon' and got \['eps'\]"):
        python_plugin.epsilon_of([field("eps", 1.0)])
    with pytest.raises(BadInput, match="epsilon=0.0; .* must be above 0"):
        python_plugin.epsilon_of([field("epsilon", 0.0)])
    assert [each.name for each in plugins.creator_class(tensorrt_11)().field_names] == ["epsilon"]


def test_the_plugin_computes_by_either_tactic(monkeypatch):
    x, gate, weight = plugins.example(2, 8)
    y = torch.empty(2, 8)
    python_plugin.compute(x, gate, weight, y, plugins.EPSILON, python_plugin.Tactic.TORCH)
    assert np.abs(y.numpy() - plugins.reference(x, gate, weight)).max() < 1e-5
    kernels, seen = types.ModuleType("labsupport.plugins.triton_kernels"), []
    kernels.gated_rms_norm = lambda *tensors, out: seen.append((len(tensors), out))
    monkeypatch.setitem(sys.modules, "labsupport.plugins.triton_kernels", kernels)
    monkeypatch.setattr(plugins, "triton_kernels", kernels, raising=False)
    python_plugin.compute(x, gate, weight, y, plugins.EPSILON, python_plugin.Tactic.TRITON)
    assert len(seen) == 1 and seen[0][0] == 4 and seen[0][1] is y


def test_registering_twice_is_once_and_a_name_that_is_taken_is_told(tensorrt_11):
    assert plugins.register() is plugins.register() and len(tensorrt_11.registry.creators) == 1
    python_plugin._registered.clear()
    tensorrt_11.registry.takes = False
    with pytest.raises(LabError, match="is registered already, perhaps by the C\\+\\+ library"):
        plugins.register()


def test_a_creator_that_was_taken_out_makes_room_for_another(tensorrt_11):
    assert plugins.unregister() is False
    creator = plugins.register()
    assert plugins.unregister() is True and tensorrt_11.registry.removed == [creator]
    assert plugins.register() is not creator
    tensorrt_11.registry.takes = False
    with pytest.raises(LabError, match="did not let go of the plugin GatedRmsNorm; restart"):
        plugins.unregister()


@needs_rtx
def test_rtx_takes_no_python_plugin_and_its_classes_fit_ours():
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.register()
    trt = environment.tensorrt()
    plugin = plugins.plugin_class(trt)(1e-6)
    tensors = [trt.DynamicPluginTensorDesc() for _ in range(4)]
    for tensor in tensors:
        tensor.desc.type, tensor.desc.format = trt.float16, trt.TensorFormat.LINEAR
    assert all(plugin.supports_format_combination(at, tensors, 3) for at in range(4))
    tensors[0].desc.type = trt.int8
    assert not plugin.supports_format_combination(0, tensors, 3)
    made = plugins.creator_class(trt)().create_plugin(
        "norm", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME
    )
    assert made.epsilon == pytest.approx(1e-6) and isinstance(made, trt.IPluginV3)


def test_before_tensorrt_10_there_are_no_plugins_in_python(monkeypatch):
    def require(*needs):
        raise NotAvailable(f"this needs {needs}")

    stand_in(monkeypatch, environment, "require", require)
    for make in (plugins.plugin_class, plugins.creator_class):
        with pytest.raises(NotAvailable, match=">=10"):
            make(types.SimpleNamespace())


# --- the plugin by decorators ---------------------------------------------------------------------------------------


class Expression:
    """A dimension: a number that is known, or one that is free."""

    def __init__(self, value=None):
        self.value = value

    is_constant = property(lambda self: self.value is not None)

    def constant_value(self):
        return self.value

    def __floordiv__(self, other):
        return ("//", self.value, other.value)


@pytest.fixture
def trtp(monkeypatch):
    """A stand-in for the module tensorrt.plugin that keeps what it is given."""
    module = types.ModuleType("tensorrt.plugin")
    module.given = {}
    for name in ("TensorDesc", "AutoTuneCombination", "KernelLaunchParams", "SymExprs"):
        setattr(
            module, name, type(name, (), {"__init__": lambda self, *arguments: setattr(self, "arguments", arguments)})
        )
    module.SymIntExprs = types.SimpleNamespace(from_tuple=lambda values: list(values))
    module.SymInt32 = lambda value: value
    for name in ("register", "autotune", "aot_impl"):
        setattr(
            module,
            name,
            lambda plugin_id, name=name: lambda function: module.given.setdefault((name, plugin_id), function),
        )
    module.op = types.SimpleNamespace(workbook=types.SimpleNamespace(GatedRmsNorm="the definition"))
    return module


def test_the_declarations_are_what_tensorrt_plugin_reads(trtp, tensorrt_11):
    import inspect

    assert plugins.decorated(trtp, tensorrt_11) == "the definition"
    describe, tune, ahead = (
        trtp.given[name, "workbook::GatedRmsNorm"] for name in ("register", "autotune", "aot_impl")
    )
    parameters = inspect.signature(describe).parameters
    assert (
        list(parameters) == ["x", "gate", "weight", "epsilon"] and parameters["x"].annotation is trtp.TensorDesc
    )  # not its name
    assert (
        parameters["epsilon"].annotation is float and inspect.signature(describe).return_annotation is trtp.TensorDesc
    )
    assert list(inspect.signature(tune).parameters) == ["x", "gate", "weight", "outputs"]
    assert list(inspect.signature(ahead).parameters) == ["x", "gate", "weight", "epsilon", "outputs", "tactic"]
    assert describe(types.SimpleNamespace(like=lambda: "as x"), None, None, 1e-5) == "as x"
    (combination,) = tune(None, None, None, (None,))
    types_, layout, tactics = combination.arguments
    assert types_.count("FP32|FP16") == 4 and layout == "LINEAR" and tactics == [1, 2, 3]


def test_the_plugin_is_registered_once_though_the_cell_runs_twice(trtp, tensorrt_11, monkeypatch):
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    stand_in(monkeypatch, environment, "generation", lambda: "11")
    stand_in(
        monkeypatch, environment, "tensorrt", lambda: types.SimpleNamespace(__name__="tensorrt", __version__="11.0")
    )
    monkeypatch.setattr(decorated_plugin.importlib, "import_module", lambda name: trtp)
    monkeypatch.setattr(decorated_plugin, "_decorated", [])
    asked = []
    monkeypatch.setattr(trtp, "register", lambda plugin_id: asked.append(plugin_id) or (lambda function: function))
    assert plugins.decorated() == plugins.decorated() == "the definition" and len(asked) == 1


def test_a_tensorrt_10_before_the_decorators_is_named(monkeypatch, tensorrt_11):
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    stand_in(monkeypatch, environment, "generation", lambda: "10")
    old = types.SimpleNamespace(__name__="no_such_tensorrt", __version__="10.3")
    with pytest.raises(NotAvailable, match="TensorRT 10.3 has no plugins by decorators .*plugins.register"):
        decorated_plugin.decorated(None, old)
    with pytest.raises(NotAvailable, match="cannot compile ahead of time"):
        decorated_plugin.decorated(types.ModuleType("tensorrt.plugin"), old)


def entry(parameters: int, body: str = "ret;") -> str:
    """PTX as Triton 3.6 writes it: seven parameters, and those that it appends."""
    kinds = [".u64 .ptr .global .align 1"] * 3 + [".u32"] * 3 + [".u64 .ptr .global .align 1"] * (parameters - 6)
    declared = ",\n".join(f"\t.param {kind} kernel_param_{at}" for at, kind in enumerate(kinds))
    return f".version 8.7\n.target sm_90a\n.visible .entry kernel(\n{declared}\n)\n.reqntid 256\n{{\n\tld.param.b64 %rd1, [kernel_param_6];\n\t{body}\n}}\n"


@pytest.fixture
def fake_triton(monkeypatch):
    triton, kernels, compiled = types.ModuleType("triton"), types.ModuleType("labsupport.plugins.triton_kernels"), []
    triton.compiler = types.SimpleNamespace(ASTSource=lambda **parts: parts)
    metadata = types.SimpleNamespace(name="kernel", shared=32, global_scratch_size=0)
    result = types.SimpleNamespace(metadata=metadata, asm={"ptx": entry(7)})
    triton.compile = lambda source, target, options: compiled.append((source, options)) or result
    kernels.block_of, kernels.gated_rms_norm_kernel = lambda columns: 1 << (columns - 1).bit_length(), "the function"
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "labsupport.plugins.triton_kernels", kernels)
    monkeypatch.setattr(plugins, "triton_kernels", kernels, raising=False)
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    return types.SimpleNamespace(compiled=compiled, metadata=metadata, asm=result.asm)


class Shape(list):
    def numel(self):
        return Expression(12)


def test_the_kernel_is_compiled_ahead_with_its_arguments_in_order(trtp, fake_triton):
    x = types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(1000)]))
    name, ptx, launch, whole = decorated_plugin.compiled(trtp, x, 1e-5, 2, half=True)
    ((source, options),) = fake_triton.compiled
    assert (
        (name, ptx, options) == ("kernel", entry(7), {"num_warps": 8})
        and launch.block_x == 256
        and launch.shared_mem == 32
    )
    assert launch.grid_x == ("//", 12, 1000) and [each.value for each in whole] == [1000] * 3
    assert list(source["signature"]) == [
        "x",
        "gate",
        "weight",
        "columns",
        "x_stride",
        "gate_stride",
        "y",
        "EPSILON",
        "BLOCK",
    ]
    assert source["constexprs"] == {"EPSILON": 1e-5, "BLOCK": 1024} and source["signature"]["y"] == "*fp16"
    kernel = (FOLDER.parent / "triton_kernels.py").read_text(encoding="utf-8")
    names = [
        argument.arg
        for node in ast.walk(ast.parse(kernel))
        if getattr(node, "name", "") == "gated_rms_norm_kernel"
        for argument in node.args.args
    ]
    assert names[:7] == list(source["signature"])[:7]  # the same order


def test_a_row_of_unknown_length_is_refused_ahead_of_time(trtp, fake_triton):
    free = types.SimpleNamespace(shape_expr=Shape([Expression(8), Expression()]))
    with pytest.raises(NotAvailable, match="the last axis of x is free"):
        decorated_plugin.compiled(trtp, free, 1e-5, 1, half=False)
    fake_triton.metadata.global_scratch_size = 4
    with pytest.raises(BuildError, match="wants scratch memory .*plugins.register"):
        decorated_plugin.compiled(
            trtp, types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(8)])), 1e-5, 1, half=False
        )


@pytest.mark.parametrize("appended", [1, 2])  # Triton 3.3 and 3.4 append one address, 3.5 and newer two
def test_what_triton_appends_and_never_reads_is_left_away(trtp, fake_triton, appended):
    fake_triton.asm["ptx"] = entry(7 + appended)
    x = types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(1000)]))
    _, ptx, _, _ = decorated_plugin.compiled(trtp, x, 1e-5, 2, half=True)
    assert ptx == entry(7)
    made = plugins.ptx(1000)
    assert made.dropped == tuple(
        f"kernel_param_{7 + at}" for at in range(appended)
    ) and f"without {appended} that Triton had appended" in repr(made)


def test_what_triton_appends_and_reads_is_refused(fake_triton):
    fake_triton.asm["ptx"] = entry(9, "ld.param.b64 %rd2, [kernel_param_8];")
    with pytest.raises(
        BuildError,
        match=r"declares 9 parameters and its code reads \['kernel_param_8'\]; .*use Triton 3.2, .* plugins.register",
    ):
        plugins.ptx(64)
    fake_triton.asm["ptx"] = entry(9, "ld.param.b64 %rd2, [kernel_param_81];")  # another name that begins alike
    assert len(plugins.ptx(64).dropped) == 2
    fake_triton.asm["ptx"] = entry(6)
    with pytest.raises(BuildError, match="declares 6 parameters and it should take 7"):
        plugins.ptx(64)
    with pytest.raises(BuildError, match="declares 0 parameters"):
        ahead_of_time.without_scratch("nothing", "kernel")
    for columns, dtype in ((0, "float16"), (64, "int8")):
        with pytest.raises(BadInput, match="columns is a whole number of 1 or more, dtype one of"):
            plugins.ptx(columns, dtype=dtype)


@pytest.mark.skipif(not environment.has("triton"), reason="no Triton")
@pytest.mark.parametrize("columns, dtype", [(1, "float32"), (1000, "float16"), (4096, "float16")])
def test_triton_compiles_it_without_a_gpu(columns, dtype):
    made = plugins.ptx(columns, dtype=dtype, capability=(9, 0))
    assert made.threads == 256 and ".target sm_90" in made.text
    again, dropped = ahead_of_time.without_scratch(made.text, made.name)
    assert again == made.text and dropped == ()


@needs_rtx
def test_rtx_has_no_decorators():
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.decorated()
