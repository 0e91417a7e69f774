"""The protocol of a road, `road(weights, example) -> runtime`, and the journey along all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from labsupport import benchmarking, comparing
from labsupport.errors import BadInput, NotAvailable
from labsupport.runtimes.protocol import Base, TensorSpec

Road = Callable[[Mapping[str, np.ndarray], np.ndarray], Callable]
CLOSE = 1e-4  # relative error that an FP32 road may have; rounding alone makes 1e-7 to 1e-6


class Function(Base):
    """Any function from one array to one array as a runtime, so that the stopwatch and the judge take it.

    ``example`` float32 (N, …) says what it takes: the first axis is the batch and is free. ``device`` says where it
    computes, because numbers of two processors are not compared. Raises BadInput where the
    function does not give an array, or gives another number of rows than came.
    """

    def __init__(self, call: Callable, example: np.ndarray, *, name: str, device: str = "cpu"):
        self.name, self._call, self.device = name, call, device
        answer = np.asarray(call(example))
        if answer.ndim < 1 or len(answer) != len(example):
            raise BadInput(
                f"{name} answered {len(example)} inputs with shape {answer.shape}; a road gives one row an input"
            )
        self.inputs = {"images": TensorSpec((None, *example.shape[1:]), str(example.dtype))}
        self.outputs = {"logits": TensorSpec((None, *answer.shape[1:]), str(answer.dtype))}

    def __call__(self, feed) -> dict:
        (array,) = self.checked(feed).values()
        return {"logits": np.asarray(self._call(array))}


def travel(
    roads: Mapping[str, Road], weights: Mapping[str, np.ndarray], example: np.ndarray, expected, *, runs: int = 50
) -> list[dict]:
    """Take every road with the same weights and inputs: a row each of latency and error, or why the road is closed.

    ``expected`` (N, classes) is what the network answers by the reference; the error is relative (Euclidean). A road
    that raises NotAvailable is closed; any other error of a road is the caller's to see. Each runtime is closed.
    """
    if not roads:
        raise BadInput("roads is empty; give at least one, {name: road}")
    rows: list[dict] = []
    for name, road in roads.items():
        try:
            run = road(weights, example)
        except NotAvailable as reason:
            rows.append({"road": name, "closed": str(reason)})
            continue
        answer = _only(run(_feed(run, example)))
        row: dict = {"road": name, "latency": benchmarking.latency(run, _feed(run, example), runs=runs, name=name)}
        rows.append({**row, "relative error": comparing.relative_error(np.asarray(expected), np.asarray(answer))})
        getattr(run, "close", lambda: None)()
    return rows


def _feed(run, example: np.ndarray):
    """The example under the runtime's own input name: exporters rename inputs."""
    names = getattr(run, "inputs", None)
    return {next(iter(names)): example} if names and len(names) == 1 else example


def _only(answer):
    if not isinstance(answer, Mapping):
        return answer
    if len(answer) != 1:
        raise BadInput(f"the road gave the outputs {list(answer)}; a road of this comparison gives one")
    return next(iter(answer.values()))
