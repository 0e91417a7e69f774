"""The operator as one CUDA kernel: compiled in the lab by PyCUDA, run on torch tensors without a copy."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from labsupport import environment
from labsupport.errors import BadInput, BuildError, NotAvailable, first_line
from labsupport.plugins.gated_norm import DTYPES, EPSILON, OP_TYPE, output_shape

SOURCE = Path(__file__).resolve().parent / "cpp_plugin" / "gated_rms_norm.cu"
PACK_BYTES, MOST_PACKS, MOST_THREADS = 16, 4 * 512, 1024


@dataclass(frozen=True)
class Launch:
    """Which of the four kernels fits a problem and how many threads it gets: what launch.cu decides in the plugin."""

    variant: str  # packs of 16 bytes a thread keeps in registers, "1", "2" or "4"; or "any"
    threads: int
    blocks: int

    def __repr__(self) -> str:
        how = "one value at a time" if self.variant == "any" else f"{self.variant} × 16 bytes a thread"
        return f"Launch({self.blocks} blocks of {self.threads} threads, {how})"


def launch_of(rows: int, columns: int, dtype: str = "float32", *, aligned: bool = True) -> Launch:
    """The launch for (rows, columns). ``aligned``: every row of every tensor begins at a multiple of 16 bytes."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype={dtype!r}; the kernel is there for {list(DTYPES)}")
    lanes = PACK_BYTES // (4 if dtype == "float32" else 2)
    packs = columns // lanes
    wide = aligned and columns % lanes == 0 and packs <= MOST_PACKS
    variant = "any" if not wide else "1" if packs <= 256 else "2" if packs <= 512 else "4"
    work = math.ceil((packs if wide else columns) / (4 if variant in ("4", "any") else int(variant)))
    return Launch(variant, min(MOST_THREADS, math.ceil(work / 32) * 32), rows)


def nvcc() -> str:
    """Path of the CUDA compiler: on PATH, else below CUDA_HOME. Raises NotAvailable with the fix."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    compiler = shutil.which("nvcc") or next(
        (path for home in homes if (path := shutil.which("nvcc", path=str(Path(home) / "bin")))), None
    )
    if not compiler:
        raise NotAvailable(
            "nvcc, the CUDA compiler, was not found on PATH nor below CUDA_HOME; install the CUDA toolkit of your "
            "driver's version (https://developer.nvidia.com/cuda-downloads), or use the Triton version, which needs "
            "none"
        )
    return compiler


class CudaKernel:
    """The compiled kernel: ``kernel(x, gate, weight)`` on CUDA tensors, launched on ``kernel.stream``.

    PyCUDA makes the stream; PyTorch and TensorRT use it by its handle, so that all three can work on one queue
    (``with torch.cuda.stream(kernel.stream)``). PyCUDA joins the context that PyTorch has opened on ``device``.
    ``build_s`` is what compiling took. Raises NotAvailable without GPU, PyCUDA or nvcc, BuildError where nvcc fails.
    Source: https://documen.tician.de/pycuda/driver.html
    """

    name = "CUDA kernel"

    def __init__(self, *, device: int = 0, source: str | None = None):
        environment.require("gpu", "pycuda")
        import torch

        compiler = nvcc()
        torch.zeros(1, device=f"cuda:{device}")  # opens the primary context, if nothing has yet
        import pycuda.driver as driver

        driver.init()
        self._device, self.device = driver.Device(device), device
        self._context = self._device.retain_primary_context()
        start = time.perf_counter()
        with self:
            cubin = _cubin(source or SOURCE.read_text(encoding="utf-8"), compiler, self._device.compute_capability())
            self._module = driver.module_from_buffer(cubin)
            self._queue = driver.Stream()
        self.build_s = time.perf_counter() - start
        self.stream = torch.cuda.ExternalStream(self._queue.handle, device=f"cuda:{device}")
        self._functions: dict = {}

    def __enter__(self):
        self._context.push()
        return self

    def __exit__(self, *_):
        self._context.pop()

    def __repr__(self) -> str:
        return f"{OP_TYPE}(CUDA kernel on GPU {self.device}, compiled in {self.build_s:.1f} s)"

    def __call__(self, x, gate, weight, epsilon: float = EPSILON, *, out=None):
        """y as a new tensor, or in ``out``. Rows may lie apart (a slice of a wider tensor); values in a row may not."""
        import torch

        rows, columns = checked(x, gate, weight, out, device=self.device)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
        here = torch.cuda.current_stream(x.device)
        apart = here.cuda_stream != self.stream.cuda_stream
        if apart:
            self.stream.wait_stream(here)
        if rows and columns:  # a launch of nothing is an error
            self.launch(x, gate, weight, out, rows, columns, epsilon)
        if apart:
            here.wait_stream(self.stream)
        return out

    def launch(self, x, gate, weight, out, rows: int, columns: int, epsilon: float, *, packed: bool = False) -> None:
        """Enqueue without a look at the tensors. ``packed`` takes every row to follow the last without a gap."""
        strides = [columns if packed or tensor.dim() < 2 else tensor.stride(-2) for tensor in (x, gate)]
        size = x.element_size()
        aligned = not any(
            value % PACK_BYTES
            for value in (*(t.data_ptr() for t in (x, gate, weight, out)), *(s * size for s in strides))
        )
        launch = launch_of(rows, columns, str(x.dtype).removeprefix("torch."), aligned=aligned)
        function = self._function("half" if size == 2 else "float", launch.variant)
        with self:
            function.prepared_async_call(
                (launch.blocks, 1),
                (launch.threads, 1, 1),
                self._queue,
                x.data_ptr(),
                gate.data_ptr(),
                weight.data_ptr(),
                out.data_ptr(),
                rows,
                columns,
                *strides,
                epsilon,
            )

    def _function(self, kind: str, variant: str):
        if (kind, variant) not in self._functions:
            with self:
                function = self._module.get_function(f"gated_rms_norm_{kind}_{variant}")
                function.prepare("PPPPiiiif")
            self._functions[kind, variant] = function
        return self._functions[kind, variant]


def checked(x, gate, weight, out=None, *, device: int = 0) -> tuple[int, int]:
    """(rows, columns) after types, shapes, places and layouts were looked at. Raises BadInput, naming the fix."""
    tensors = {"x": x, "gate": gate, "weight": weight, **({} if out is None else {"out": out})}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "data_ptr"):
            raise BadInput(
                f"{OP_TYPE}: {name} is a {type(tensor).__name__}; the kernel reads torch tensors on the GPU: "
                f"torch.as_tensor({name}).cuda()"
            )
    kind = str(x.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise BadInput(
            f"{OP_TYPE}: x is {kind}; the kernel is there for {list(DTYPES)}: convert with x.half() or x.float()"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != x.dtype:
            raise BadInput(
                f"{OP_TYPE}: {name} is {str(tensor.dtype).removeprefix('torch.')} and x is {kind}; all tensors need "
                "one type"
            )
    shape = output_shape(tuple(x.shape), tuple(gate.shape), tuple(weight.shape))
    if out is not None and tuple(out.shape) != shape:
        raise BadInput(f"{OP_TYPE}: out has shape {tuple(out.shape)}; y has {shape}")
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" or tensor.device.index != device:
            raise BadInput(
                f"{OP_TYPE}: {name} is on {tensor.device} and the kernel on cuda:{device}; its address would mean "
                f"nothing there: {name}.to('cuda:{device}')"
            )
        _check_layout(name, tensor, packed=name in ("weight", "out"))
    return math.prod(shape[:-1]), shape[-1]


def _check_layout(name: str, tensor, *, packed: bool) -> None:
    if tensor.numel() == 0:
        return
    rows_apart = any(tensor.stride(i) != tensor.stride(i + 1) * tensor.shape[i + 1] for i in range(tensor.dim() - 2))
    if (packed and not tensor.is_contiguous()) or (tensor.shape[-1] > 1 and tensor.stride(-1) != 1) or rows_apart:
        raise BadInput(
            f"{OP_TYPE}: {name} is a view with strides {tuple(tensor.stride())}; the kernel walks along rows whose "
            f"values lie side by side, and would read other numbers: pass {name}.contiguous()"
        )


def _cubin(source: str, compiler: str, capability: tuple[int, int]) -> bytes:
    from pycuda import compiler as pycuda_compiler
    from pycuda.driver import CompileError

    arch = f"sm_{capability[0]}{capability[1]}"
    try:
        # no cache: PyCUDA writes its files in place, two kernels at once would tear them, and compiling takes a second
        return pycuda_compiler.compile(
            source, nvcc=compiler, options=["-O3", "-std=c++17"], no_extern_c=True, arch=arch, cache_dir=False
        )
    except CompileError as error:
        lines = [line for line in str(getattr(error, "stderr", "") or error).splitlines() if "error" in line.lower()]
        reason = lines[0].strip() if lines else first_line(error)
        raise BuildError(
            f"nvcc could not compile the kernel for {arch}: {reason}; the source is cpp_plugin/gated_rms_norm.cu"
        ) from error
