"""A PyTorch module behind the runtime protocol."""

from __future__ import annotations

import numpy as np

from labsupport import environment
from labsupport.benchmarking.measurements import one_of
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.runtimes.protocol import Base, Replay, TensorSpec, release_gpu_memory

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16", "bfloat16", "float64")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class Torch(Base):
    """A PyTorch module as a runtime, in inference mode; ``cuda_graph`` replays captured launches on a GPU.

    ``dtype`` ("float16", …) and ``channels_last`` convert a copy of the module, never the module given.
    ``compiled`` is a torch.compile mode such as "max-autotune" (needs Triton on a GPU). ``tf32`` is off: PyTorch
    lets convolutions use it by default, and "fp32" would then mean 10 bits of mantissa.
    Raises BadInput for a module without ``example_input`` and for unknown options.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    _bound: Replay | None = None

    def __init__(
        self,
        model,
        *,
        device: str | None = None,
        dtype: str = "float32",
        channels_last: bool = False,
        cuda_graph: bool = False,
        compiled: str | None = None,
        tf32: bool = False,
        name: str | None = None,
    ):
        import copy

        import torch

        _check_options(device, dtype, compiled)
        example = _example(model)
        self.device = device or ("cuda" if environment.has("gpu") and torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise NotAvailable(
                f"PyTorch cannot use a GPU here ({environment.why_not('gpu') or 'this is its CPU build'}); pass "
                "device='cpu'"
            )
        if cuda_graph and self.device != "cuda":
            raise NotAvailable("a CUDA graph records kernel launches, and there is no GPU here; leave cuda_graph out")
        if compiled and self.device == "cuda" and not environment.has("triton"):
            raise NotAvailable(f"torch.compile on a GPU generates Triton kernels: {environment.why_not('triton')}")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        kind, self.tf32 = getattr(torch, dtype), tf32
        self.model = copy.deepcopy(model).eval().to(device=self.device, dtype=kind).to(memory_format=layout)
        self._in, self._out = getattr(model, "input_name", "input"), getattr(model, "output_name", "output")
        in_dtype = dtype if example.is_floating_point() else str(example.dtype).removeprefix("torch.")
        # A module says nothing about its free axes: the first is the batch, and integer inputs have a free length.
        free = (None,) * example.dim() if not example.is_floating_point() else (None, *example.shape[1:])
        self.inputs = {self._in: TensorSpec(free, in_dtype)}
        with torch.inference_mode():
            probe = self.model(
                example.to(device=self.device, dtype=kind if example.is_floating_point() else example.dtype)
            )
        self.outputs = {self._out: TensorSpec((None, *probe.shape[1:]), str(probe.dtype).removeprefix("torch."))}
        self._layout = layout if example.dim() == 4 else torch.contiguous_format
        self._call = _compile(self.model, compiled) if compiled else self.model
        self.name = name or "torch" + ("" if dtype == "float32" else f" {dtype}") + (
            f" {compiled}" if compiled else ""
        ) + (" graph" if cuda_graph else "")
        self._graphs = Replay(self) if cuda_graph else None
        self.stream = torch.cuda.Stream() if self.device == "cuda" else None

    def __call__(self, feed) -> dict:
        import torch

        array = self.checked(feed)[self._in]
        on_host = isinstance(array, np.ndarray)
        x = _as_tensor(array)
        with torch.inference_mode():
            if self._graphs:
                out = self._graphs({self._in: x})[self._out].clone()
            else:
                x = x.to(self.device, non_blocking=True)
                out = self.launch({self._in: x.contiguous(memory_format=self._layout)})[self._out]
        return {self._out: out.cpu().numpy() if on_host else out}

    def launch(self, buffers: dict) -> dict:
        """One forward pass on buffers of the right layout; what a CUDA graph captures."""
        import torch

        if self.device != "cuda":
            return {self._out: self._call(buffers[self._in])}
        # The strongest honest baseline: cuDNN measures its kernels too; and TF32 is said, never assumed.
        before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = (
            True,
            self.tf32,
            self.tf32,
        )
        try:
            return {self._out: self._call(buffers[self._in])}
        finally:
            torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = (
                before
            )

    def fill(self, buffers: dict, feed: dict) -> None:
        """Copy a feed into the buffers of :meth:`static`."""
        for name, x in feed.items():
            buffers[name].copy_(x, non_blocking=True)

    def static(self, feed: dict) -> dict:
        """Device buffers of the feed's shapes, in the layout the module wants."""
        import torch

        return {
            n: torch.empty(tuple(x.shape), dtype=x.dtype, device="cuda").contiguous(memory_format=self._layout)
            for n, x in feed.items()
        }

    def bind(self, feed) -> None:
        """Put a feed into static device buffers, for :meth:`enqueue`. Raises NotAvailable on the CPU."""
        import torch

        self._needs_gpu("bind")
        feed = {n: _as_tensor(x) for n, x in self.checked(feed).items()}
        replay = self._graphs or Replay(self, capture=False)
        self._bound = replay
        with torch.inference_mode():
            replay.bind(feed)

    def enqueue(self) -> None:
        """One asynchronous inference of the bound feed on ``stream``."""
        self._needs_feed("enqueue")
        self._bound.enqueue()

    def fetch(self) -> dict:
        """The bound outputs, as new tensors, after the stream is done."""
        self._needs_feed("fetch")
        self.stream.synchronize()
        return {n: t.clone() for n, t in self._bound.outputs.items()}

    def _needs_gpu(self, caller: str) -> None:
        if self.device != "cuda":
            raise NotAvailable(
                f"{caller}() works on a GPU's queue, and {self.name} runs on the CPU; call run(feed) instead"
            )

    def _needs_feed(self, caller: str) -> None:
        self._needs_gpu(caller)
        if self._bound is None:
            raise LabError(
                f"{caller}() found no feed in {self.name}: it was closed, or bind(feed) was not called before"
            )

    def synchronize(self) -> None:
        """Wait until the GPU has finished."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Free the module and its graphs."""
        self.closed, self.model, self._call, self._graphs, self._bound = True, None, None, None, None
        release_gpu_memory()


def _check_options(device, dtype, compiled) -> None:
    one_of("dtype", dtype, DTYPES)
    if device is not None:
        one_of("device", device, DEVICES)
    if compiled is not None:
        one_of("compiled", compiled, COMPILE_MODES)


def _example(model):
    """An input of the module, from which the shapes and types of the runtime are read."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise BadInput(f"Torch got a {type(model).__name__}; it wants a torch.nn.Module, such as models.article_cnn()")
    example = model.example_input() if callable(getattr(model, "example_input", None)) else None
    if not isinstance(example, torch.Tensor):
        raise BadInput(
            f"{type(model).__name__} has no example_input() that returns a tensor; give it one: "
            "module.example_input = lambda: torch.randn(1, 3, 224, 224), in the shape it takes"
        )
    return example


def _as_tensor(array):
    import torch

    # from_numpy cannot read backwards: an image flipped by [..., ::-1] has negative strides
    return torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else torch.as_tensor(array)


def _compile(model, mode: str):
    import torch
    from torch._inductor import config, select_algorithm

    # max-autotune prints every candidate it times, thousands of lines that no lesson needs.
    select_algorithm.PRINT_AUTOTUNE = config.max_autotune_report_choices_stats = False
    torch._dynamo.reset()
    return torch.compile(model, mode=mode)
