"""A PyTorch module behind the runtime protocol."""

from __future__ import annotations

import contextlib

import numpy as np

from labsupport import environment
from labsupport.errors import BadInput, LabError, NotAvailable, one_of
from labsupport.runtimes.protocol import Base, Replay, TensorSpec, release_gpu_memory

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16", "bfloat16", "float64")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class Torch(Base):
    """A PyTorch module as a runtime, in inference mode; ``cuda_graph`` replays captured launches on a GPU.

    ``dtype`` ("float16", …) and ``channels_last`` convert a copy of the module, never the module given. Inputs come as
    NCHW; another layout is made inside each call, so that a clock sees it. NumPy goes through pinned buffers.
    ``compiled`` is a torch.compile mode such as "max-autotune" (needs Triton on a GPU), with the weights frozen, so
    that batch norms are folded. ``tf32`` is off: PyTorch lets convolutions use it by default, and "fp32" would then
    mean 10 bits of mantissa.
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
        self._call = _compile(self._forward, compiled) if compiled else self._forward
        self.name = name or "torch" + ("" if dtype == "float32" else f" {dtype}") + (
            f" {compiled}" if compiled else ""
        ) + (" graph" if cuda_graph else "")
        self._graphs = Replay(self) if cuda_graph else None
        self.stream = torch.cuda.Stream() if self.device == "cuda" else None
        self._pinned: dict[tuple, torch.Tensor] = {}

    def _forward(self, x):
        return self.model(x.contiguous(memory_format=self._layout))

    def __call__(self, feed) -> dict:
        import torch

        array = self.checked(feed)[self._in]
        on_host = isinstance(array, np.ndarray)
        x = _as_tensor(array)
        with torch.inference_mode():
            if on_host and self.device == "cuda":
                x = self._staged("in", x).copy_(x)
            out = self._graphs({self._in: x}) if self._graphs else self.launch({self._in: self._moved(x)})
            out = out[self._out].clone() if self._graphs else out[self._out]
            if on_host and self.device == "cuda":
                landed = self._staged("out", out).copy_(out, non_blocking=True)
                torch.cuda.current_stream().synchronize()
                return {self._out: np.array(landed.numpy())}
        return {self._out: out.numpy() if on_host else out}

    def _moved(self, x):
        return self._plain(lambda: x.to(self.device, non_blocking=True))

    def _plain(self, make):
        """What ``make`` makes, as an ordinary tensor: for inference tensors torch.compile would compile once more."""
        import torch

        with torch.inference_mode(False), torch.no_grad():
            return make()

    def _staged(self, side: str, like):
        """A pinned buffer of a tensor's shape, which the driver can reach without a second copy."""
        import torch

        key = side, tuple(like.shape), like.dtype
        if key not in self._pinned:
            self._pinned[key] = torch.empty(tuple(like.shape), dtype=like.dtype, pin_memory=True)
        return self._pinned[key]

    def launch(self, buffers: dict) -> dict:
        """One forward pass; what a CUDA graph captures."""
        import torch

        if self.device != "cuda":
            return {self._out: self._call(buffers[self._in])}
        # The strongest honest baseline: cuDNN measures its kernels too; and TF32 is said, never assumed.
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            with fp32_math(self.tf32):
                return {self._out: self._call(buffers[self._in])}
        finally:
            torch.backends.cudnn.benchmark = before

    def fill(self, buffers: dict, feed: dict) -> None:
        """Copy a feed into the buffers of :meth:`static`."""
        for name, x in feed.items():
            buffers[name].copy_(x, non_blocking=True)

    def static(self, feed: dict) -> dict:
        """Device buffers of the feed's shapes, NCHW as they come."""
        import torch

        return self._plain(
            lambda: {n: torch.empty(tuple(x.shape), dtype=x.dtype, device=self.device) for n, x in feed.items()}
        )

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
        self._pinned = {}
        release_gpu_memory()


@contextlib.contextmanager
def fp32_math(tf32: bool):
    """Inside: whether products and convolutions of FP32 on a GPU may round to TF32. Afterward it is as it was."""
    import torch

    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before):
            switch.fp32_precision = precision


def _check_options(device, dtype, compiled) -> None:
    one_of(DTYPES, dtype=dtype)
    if device is not None:
        one_of(DEVICES, device=device)
    if compiled is not None:
        one_of(COMPILE_MODES, compiled=compiled)


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


def _compile(forward, mode: str):
    import torch
    from torch._inductor import config, select_algorithm

    # max-autotune prints every candidate it times, thousands of lines that no lesson needs.
    select_algorithm.PRINT_AUTOTUNE = config.max_autotune_report_choices_stats = False
    # Frozen: weights are constants, so that batch norms are folded, as in every engine it is compared with. As an
    # option of torch.compile it would come too late: what traces the module has to know it, too.
    config.freezing = True
    torch._dynamo.reset()
    return torch.compile(forward, mode=mode)
