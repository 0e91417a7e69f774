"""What every runtime shares: the protocol, the checks on a feed, static buffers and captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from labsupport.errors import BadInput, LabError


@dataclass(frozen=True)
class TensorSpec:
    """Shape (None for a free axis) and NumPy dtype name of one input or output."""

    shape: tuple
    dtype: str


@runtime_checkable
class Runtime(Protocol):
    """What every runtime offers: a name, typed inputs and outputs, a call, memory freed by ``close`` or ``with``."""

    name: str
    device: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def __call__(self, feed) -> dict: ...

    def close(self) -> None: ...


class Base:
    """What the runtimes share: checking a feed, closing once, use as a context manager."""

    name: str
    device: str = "cpu"
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    closed: bool = False
    _values_seen: bool = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"{type(self).__name__}({self.name} on {self.device}{state})"

    def close(self) -> None:
        """Free what the runtime holds; calling it again does nothing."""
        self.closed = True

    def synchronize(self) -> None:
        """Wait until the device has finished (nothing to wait for on the CPU)."""

    @property
    def launcher(self):
        """The bare call behind ``enqueue`` on a GPU, once a feed is bound: a graph's replay on the caller's stream,
        else ``enqueue``.
        """
        graphs = getattr(self, "_graphs", None)
        return graphs.current["replay"] if graphs else self.enqueue

    def checked(self, feed) -> dict:
        """The feed as a mapping, after names, shapes and types were compared with the network's.

        Values are looked at (NaN, infinity) until the first accepted feed and not again: scanning 19 MB on every
        call would be timed as inference. Raises BadInput.
        """
        if self.closed:
            raise LabError(f"{self.name} was closed and its memory freed; make a new runtime")
        if not isinstance(feed, Mapping):
            if len(self.inputs) != 1:
                raise BadInput(f"{self.name} has the inputs {list(self.inputs)}; pass a mapping from name to array")
            feed = {next(iter(self.inputs)): feed}
        if feed.keys() != self.inputs.keys():
            raise BadInput(f"{self.name} was fed {sorted(feed, key=str)}; it wants exactly {sorted(self.inputs)}")
        for name, array in feed.items():
            _check_array(self.name, name, array, self.inputs[name])
        if not self._values_seen:
            for name, array in feed.items():
                _check_values(self.name, name, array)
            self._values_seen = True
        return dict(feed)


def _check_array(runtime: str, name: str, array, spec: TensorSpec) -> None:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise BadInput(f"{runtime}: input {name!r} is a {type(array).__name__}; pass a NumPy array or a torch tensor")
    if len(shape) != len(spec.shape) or any(w is not None and w != g for w, g in zip(spec.shape, shape)):
        wanted = "(" + ", ".join("any" if d is None else str(d) for d in spec.shape) + ")"
        raise BadInput(f"{runtime}: input {name!r} has shape {tuple(shape)}; the network wants {wanted}")
    got = str(dtype).removeprefix("torch.")
    if spec.dtype == "string" and getattr(dtype, "kind", "") in "OSU":  # NumPy holds text in any of the three
        got = "string"
    if got != spec.dtype:
        way = f"convert it with .astype({spec.dtype!r}) or .to(torch.{spec.dtype})"
        way = "give an array of text" if spec.dtype == "string" else way
        raise BadInput(f"{runtime}: input {name!r} is {got}; the network wants {spec.dtype}: {way}")
    if 0 in tuple(shape):
        raise BadInput(f"{runtime}: input {name!r} is empty, shape {tuple(shape)}; feed at least one item")


def _check_values(runtime: str, name: str, array) -> None:
    if "float" not in str(array.dtype):
        return
    if isinstance(array, np.ndarray):
        sound = bool((np.isfinite(array) | np.isneginf(array)).all())
    else:
        sound = bool((array.isfinite() | array.isneginf()).all())
    if not sound:  # −inf is what the masks of attention hold, and the answer is finite
        raise BadInput(
            f"{runtime}: input {name!r} holds NaN or infinity; look at the preprocessing, the answer would be NaN too"
        )


class Replay:
    """Static buffers, and a CUDA graph per input shape, for a runtime that offers ``static`` and ``launch``."""

    def __init__(self, run, *, capture: bool = True):
        self.run, self.capture = run, capture
        self.made: dict[tuple, dict] = {}
        self.current: dict[str, Any] = {}

    @property
    def outputs(self) -> dict:
        return self.current["outputs"]

    def bind(self, feed: dict) -> None:
        import torch

        stream = self.run.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            self.load(feed)

    def load(self, feed: dict) -> dict:
        """Copy a feed into the static buffers of its shapes, captured when they are new; what `replay` then runs.

        For a caller who is on the runtime's stream, in inference mode, already.
        """
        key = tuple((n, tuple(x.shape)) for n, x in feed.items())
        if key not in self.made:
            self.made[key] = self._make(feed)
        self.current = self.made[key]
        self.run.fill(self.current["inputs"], feed)
        return self.current

    def _make(self, feed: dict) -> dict:
        import torch

        buffers = self.run.static(feed)
        self.run.fill(buffers, feed)
        for _ in range(3):  # a capture must not be the first call: lazy initialization cannot be recorded
            outputs = self.run.launch(buffers)
        self.run.stream.synchronize()
        if not self.capture:
            return {"inputs": buffers, "outputs": outputs, "replay": lambda: self._relaunch(buffers)}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.run.stream):
            outputs = self.run.launch(buffers)
        return {"inputs": buffers, "outputs": outputs, "replay": graph.replay, "graph": graph}

    def _relaunch(self, buffers: dict) -> None:
        self.current["outputs"] = self.run.launch(buffers)

    def enqueue(self) -> None:
        import torch

        with torch.cuda.stream(self.run.stream), torch.inference_mode():
            self.current["replay"]()

    def __call__(self, feed: dict) -> dict:
        import torch

        self.bind(feed)
        self.enqueue()
        torch.cuda.current_stream().wait_stream(self.run.stream)
        return self.outputs


def release_gpu_memory() -> None:
    """Hand PyTorch's cached GPU memory back to the driver, where other processes can use it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
