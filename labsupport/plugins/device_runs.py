"""Functions on CUDA tensors behind the runtime protocol, so that the stopwatch can time them beside engines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from labsupport import environment
from labsupport.errors import BadInput, LabError, NotAvailable, first_line
from labsupport.plugins.gated_norm import EPSILON
from labsupport.runtimes.protocol import Base, TensorSpec


class OnDevice(Base):
    """A function of CUDA tensors as a runtime: ``call(x=…, gate=…, weight=…)`` → one tensor, on ``stream``.

    ``inputs`` names the arguments. ``cuda_graph`` records the call once per :meth:`bind` and replays it: kernels
    without the cost of launching them.
    """

    def __init__(
        self,
        name: str,
        call: Callable,
        *,
        stream=None,
        cuda_graph: bool = False,
        inputs: tuple[str, ...] = ("x", "gate", "weight"),
        output: str = "y",
    ):
        environment.require("gpu")
        import torch

        self._last: Any = None
        self._feed: dict | None = None
        self.name, self.device, self._call, self._output = name + (" graph" if cuda_graph else ""), "cuda", call, output
        self.stream = stream or torch.cuda.Stream()
        self.inputs = {each: TensorSpec((None,), "any") for each in inputs}
        self.outputs = {output: TensorSpec((None,), "any")}
        self._capture, self._graph = cuda_graph, None

    def checked(self, feed) -> dict:
        """The feed as a mapping of the function's arguments, all on the GPU. Raises BadInput."""
        if not isinstance(feed, Mapping) or set(feed) != set(self.inputs):
            got = sorted(feed) if isinstance(feed, Mapping) else type(feed).__name__
            raise BadInput(f"{self.name} wants a mapping with {list(self.inputs)}; it got {got}")
        away = [name for name, tensor in feed.items() if not getattr(tensor, "is_cuda", False)]
        if away:
            raise BadInput(f"{self.name}: {away} are not on the GPU; pass tensors that were moved with .cuda()")
        return dict(feed)

    def __call__(self, feed) -> dict:
        import torch

        feed, here = self.checked(feed), torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream), torch.inference_mode():
            y = self._call(**feed)
        here.wait_stream(self.stream)
        return {self._output: y}

    def bind(self, feed) -> None:
        """Keep a feed, and call once, so that :meth:`enqueue` repeats what has run before."""
        import torch

        self._feed, self._graph = self.checked(feed), None
        self.stream.wait_stream(torch.cuda.current_stream())
        for _ in range(3 if self._capture else 1):
            self.enqueue()
        self.stream.synchronize()
        if self._capture:
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(graph, stream=self.stream):
                self._last = self._call(**self._feed)
            self._graph = graph

    def enqueue(self) -> None:
        """One asynchronous call with the bound feed on ``stream``."""
        import torch

        if self._feed is None:
            raise LabError(f"enqueue() found no feed in {self.name}; call bind(feed) first")
        with torch.cuda.stream(self.stream), torch.inference_mode():
            if self._graph is not None:
                self._graph.replay()
            else:
                self._last = self._call(**self._feed)

    @property
    def launcher(self) -> Callable:
        """The bare call behind :meth:`enqueue`, for a caller on ``stream`` and in inference mode: a graph's replay, or
        the function itself.
        """
        if self._feed is None:
            raise LabError(f"{self.name} has nothing to launch yet; call bind(feed) first")
        return functools.partial(self._call, **self._feed) if self._graph is None else self._graph.replay

    def as_graph(self) -> OnDevice:
        """The same function on the same stream once more, captured as a CUDA graph when it is bound."""
        name = self.name.removesuffix(" graph")
        return OnDevice(
            name, self._call, stream=self.stream, cuda_graph=True, inputs=tuple(self.inputs), output=self._output
        )

    def fetch(self) -> dict:
        """The output of the last call, as a new tensor, after the stream is done."""
        self.stream.synchronize()
        return {self._output: self._last.clone()}

    def synchronize(self) -> None:
        """Wait until the GPU has finished."""
        import torch

        torch.cuda.synchronize()

    def close(self) -> None:
        """Let go of feed, output and graph."""
        self.closed, self._feed, self._last, self._graph = True, None, None, None


def compiled_chain(feed: Mapping) -> OnDevice:
    """The chain as torch.compile fuses it, called once with the feed. Raises NotAvailable where compiling does not
    work.
    """
    import torch

    from labsupport.plugins.gated_norm import chain

    environment.require("gpu", "triton")
    run = OnDevice("torch.compile", torch.compile(chain))
    try:
        run(feed)
        run.synchronize()
    except Exception as error:  # it needs Triton, a C compiler and Python's headers, and says so in as many ways
        reason = first_line(error)
        raise NotAvailable(
            f"torch.compile does not work on this machine ({reason[:160]}); the other rows do without it"
        ) from error
    return run


def device_copy(feed: Mapping, *, cuda_graph: bool = False) -> OnDevice:
    """A copy that moves as many bytes as the operator at its best: x, gate and y once each, reads and writes."""
    import torch

    moved = feed["x"].numel() * 3 // 2  # a copy reads and writes, so half the values each way
    source = torch.randn(max(1, moved), device=feed["x"].device).to(feed["x"].dtype)
    target = torch.empty_like(source)
    return OnDevice("device copy", lambda x, gate, weight: target.copy_(source), cuda_graph=cuda_graph)


def megabytes(feed: Mapping) -> float:
    """What the operator must move at least, in MB (10⁶ bytes): x and gate read, y written."""
    return 3 * feed["x"].numel() * feed["x"].element_size() / 1e6


def triton_kernel():
    """The Triton version, ``kernel(x, gate, weight, epsilon)`` on CUDA tensors. Raises NotAvailable without Triton or
    GPU.
    """
    environment.require("gpu", "triton")
    from labsupport.plugins.triton_kernels import gated_rms_norm

    return lambda x, gate, weight, epsilon=EPSILON: gated_rms_norm(x, gate, weight, epsilon)
