"""Kernel, library and plugin classes, as far as they can be held without a GPU: choices, arguments, checks, answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from kernels_stand_ins import FOLDER, CompileError

from labsupport import environment, plugins
from labsupport.errors import BadInput, BuildError, LabError, NotAvailable
from labsupport.plugins import cuda_kernels, device_runs

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler")


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
@pytest.mark.parametrize("make", [plugins.CudaKernel, plugins.triton_kernel, lambda: plugins.OnDevice("f", print)])
def test_without_a_gpu_each_says_so(make):
    with pytest.raises(NotAvailable, match="no GPU can be used here"):
        make()


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
