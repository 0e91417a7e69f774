"""Roads from trained weights to something that answers: one protocol for all, and a table of how they compare.

`road(weights, example) -> runtime`: a road takes weights by name and an example batch, and makes a runtime of them.
`providers` asks ONNX Runtime who really computes, `versions` knows which releases fit together, `tensorflow` holds what
the roads from TensorFlow share.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from labsupport import benchmarking, comparing, environment, export
from labsupport.errors import BadInput, NotAvailable
from labsupport.protocol import Base, TensorSpec

__all__ = ["CLOSE", "Function", "Road", "mxnet_graph", "mxnet_reference", "travel"]

Road = Callable[[Mapping[str, np.ndarray], np.ndarray], Callable]
MXNET = environment.REPOSITORY / "data" / "mxnet"
SHA256 = {
    "digits.onnx": "cb0b9eba2d143c8b3578231cadbfc65bceaf46cd636c3f00a07fbbf583243b62",
    "reference.npz": "72b8c564a6efd6bb8ea50a51668edbb56f51b4c8dc16723a9a40bf5712e0982b",
}
CLOSE = 1e-4  # relative error that an FP32 road may have; rounding alone makes 1e-7 to 1e-6


class Function(Base):
    """Any function from one array to one array as a runtime, so that the stopwatch and the judge take it.

    ``example`` float32 (N, …) says what it takes: the first axis is the batch and is free. Raises BadInput where the
    function does not give an array, or gives another number of rows than came.
    """

    def __init__(self, call: Callable, example: np.ndarray, *, name: str, output: str = "logits"):
        self.name, self._call, self._output = name, call, output
        answer = np.asarray(call(example))
        if answer.ndim < 1 or len(answer) != len(example):
            raise BadInput(
                f"{name} answered {len(example)} inputs with shape {answer.shape}; a road gives one row an input"
            )
        self.inputs = {"images": TensorSpec((None, *example.shape[1:]), str(example.dtype))}
        self.outputs = {output: TensorSpec((None, *answer.shape[1:]), str(answer.dtype))}

    def __call__(self, feed) -> dict:
        (array,) = self.checked(feed).values()
        return {self._output: np.asarray(self._call(array))}


def travel(
    roads: Mapping[str, Road], weights: Mapping[str, np.ndarray], example: np.ndarray, expected, *, runs: int = 50
) -> list[dict]:
    """Take every road with the same weights and inputs: a row each of latency and error, or why the road is closed here.

    ``expected`` (N, classes) is what the network answers by the reference; the error is relative (Euclidean). A road that
    raises NotAvailable is closed; any other error of a road is the caller's to see. Each runtime is closed after use.
    """
    rows = []
    for name, road in roads.items():
        try:
            run = road(weights, example)
        except NotAvailable as reason:
            rows.append({"road": name, "closed": str(reason)})
            continue
        answer = _only(run(_feed(run, example)))
        row = {"road": name, "latency": benchmarking.latency(run, _feed(run, example), runs=runs, name=name)}
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


def mxnet_graph():
    """The digit network that MXNet 1.9.1 trained and exported, as an OnnxGraph. Raises BadInput where the file was changed."""
    return export.load(_whole(MXNET / "digits.onnx"), exporter="mxnet")


def mxnet_reference() -> tuple[np.ndarray, np.ndarray]:
    """(images float32 (32, 1, 28, 28) from -1 to 1, logits float32 (32, 10)): digits, and what MXNet itself answered."""
    with np.load(io.BytesIO(_whole(MXNET / "reference.npz").read_bytes()), allow_pickle=False) as stored:
        pixels, logits = stored["images"], stored["logits"]
    return ((pixels[:, None].astype(np.float32) / 255 - 0.5) / 0.5), logits


def _whole(path: Path) -> Path:
    """The file, after its checksum was compared."""
    restore = f"restore it with: git checkout -- data/mxnet/{path.name}"
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NotAvailable(f"{path.name} cannot be read ({error.strerror}); {restore}") from None
    if checksum != SHA256[path.name]:
        raise BadInput(
            f"{path.name} is not the file it should be: SHA-256 {checksum[:12]}…, wanted {SHA256[path.name][:12]}…; {restore}"
        )
    return path
