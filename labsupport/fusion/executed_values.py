"""What the tensors of two graphs hold when both are fed the same random data: equal values tell which tensor is which.

Layouts differ (a transposed or blocked tensor holds the same numbers in another order), and so do types (an INT8 tensor
holds the same numbers up to a step). So two digests are compared: numbers at fixed places, and numbers by size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport.fusion.onnx_nodes import NodeGraph
from labsupport.fusion.plan_schema import BYTES

PLACES = 2048
CHUNK_BYTES = 2**28  # inner tensors fetched by one run
FREE = (2, 1, 8, 16, 32, 64, 224, 3)  # tried for axes without a fixed length, the batch among them
HIGHEST = (8, 2, 1)  # whole numbers are drawn below this: they may be rows of a table, or lengths
ROUNDING, STEPS = 1e-2, 0.2  # distance, of the spread: of floating-point arithmetic; of quantized arithmetic
UNSIGNED = 128  # what the runtime adds to the codes of INT8 where it has kernels for UINT8 alone


@dataclass(frozen=True, eq=False)
class Digest:
    """A tensor's size, numbers at fixed places in its own order, and at fixed places once sorted."""

    size: int
    whole: bool
    places: np.ndarray
    ordered: np.ndarray

    @property
    def weak(self) -> bool:
        """Whether so little is in it that others may well hold the same."""
        return self.size < 4 or not np.ptp(self.ordered)


class Values:
    """Digests of the tensors of a reference graph and of an executed one, of the same data."""

    def __init__(self, reference: Mapping[str, Digest], executed: Mapping[str, Sequence[Digest]]):
        self.reference, self.executed = reference, executed
        self.by_size: dict[int, list[str]] = {}
        for name, digest in reference.items():
            self.by_size.setdefault(digest.size, []).append(name)

    def like(self, tensor: str) -> dict[str, bool]:
        """Tensors of the reference with the values of an executed tensor → whether they stand in another order."""
        distances: dict[str, tuple[bool, float]] = {}
        for digest in self.executed.get(tensor, ()):
            for name in self.by_size.get(digest.size, ()):
                if (distance := _distance(digest, self.reference[name])) is not None:
                    distances[name] = distance
        least = min((distance for _, distance in distances.values()), default=0.0)
        return {name: differs for name, (differs, distance) in distances.items() if distance <= max(1e-3, 2 * least)}

    def weak(self, tensor: str) -> bool:
        """Whether the values of an executed tensor say little about which it is."""
        return all(digest.weak for digest in self.executed.get(tensor, ()))


def values_of(reference: tuple, executed: tuple, unknown: Sequence[str], folder: Path) -> Values | None:
    """Values of the tensors of two (path, NodeGraph); None where no random data run through both.

    ``unknown`` are those of the executed graph that matter; ``folder`` holds weights that a graph keeps apart.
    """
    graph = reference[1]
    names = [tensor for node in graph.nodes for tensor in node.outputs if tensor]
    digests, sizes = {}, set()
    try:
        feed, arrays = _arrays(reference[0], graph, names, folder, None)
        for name, array in (*feed.items(), *arrays):
            digests[name] = _digest(array)
            sizes.add(array.size)
        blocked, candidates = _blocked(executed[1]), {}
        for name, array in _arrays(executed[0], executed[1], unknown, folder, feed)[1] if unknown else ():
            views = _unblocked(array, sizes) if name in blocked else [array]
            candidates[name] = [digest for digest in map(_digest, views) if digest]
    except _NoData:
        return None
    return Values({name: digest for name, digest in digests.items() if digest}, candidates)


class _NoData(Exception):
    """No data that a graph takes were found."""


def _arrays(path: Path, graph: NodeGraph, names: Sequence[str], folder: Path, feed) -> tuple[dict, Iterator]:
    """The feed, which is drawn where none is given, and (tensor, array) of every number tensor among ``names``."""
    chunks: list[list[str]] = [[]]
    room = 0.0
    for name in names:
        dtype, shape = graph.types.get(name, ("", ("?",)))
        size = math.prod(d if isinstance(d, int) else 64 for d in shape) * BYTES.get(dtype, 4)
        chunks, room = (chunks, room + size) if room + size < CHUNK_BYTES else ([*chunks, []], size)
        chunks[-1].append(name)
    session = _session(path, chunks[0], folder)
    if feed is None:
        feed = next(
            (drawn for drawn in _feeds(session.get_inputs()) if _answer(session, None, drawn) is not None), None
        )
    if feed is None:
        raise _NoData

    def fetched():
        for place, chunk in enumerate(chunks):
            one = session if place == 0 else _session(path, chunk, folder)
            mine = {item.name: feed[item.name] for item in one.get_inputs()}
            answer = _answer(one, chunk, mine)
            if answer is None:
                raise _NoData
            yield from (pair for pair in zip(chunk, answer, strict=True) if getattr(pair[1], "dtype", None) is not None)

    return feed, fetched()


def _session(path: Path, names: Sequence[str], folder: Path):
    """A session of a graph as it stands, with inner tensors among its outputs."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(path), load_external_data=False)
    outputs = {value.name for value in model.graph.output}
    for name in names:
        if name not in outputs:
            model.graph.output.add().name = name
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own: it has no common class, and the caller only asks for values
        raise _NoData from error


def _answer(session, names: Sequence[str] | None, feed) -> list | None:
    try:
        return session.run(names, feed)
    except Exception:  # data that this network does not take: other data are tried
        return None


def _feeds(inputs) -> Iterator[dict]:
    """Random data of every kind that a network may take, the likeliest first; none for inputs that are no arrays."""
    kinds = {"float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_}
    for length in FREE:
        for highest in HIGHEST:
            draw, feed = np.random.default_rng(0), {}
            for item in inputs:
                kind = item.type.removeprefix("tensor(").removesuffix(")")
                if kind not in kinds and not hasattr(np, kind):
                    return
                shape = [
                    d if isinstance(d, int) else FREE[0] if axis == 0 else length for axis, d in enumerate(item.shape)
                ]
                dtype = np.dtype(kinds.get(kind) or getattr(np, kind))
                if dtype.kind == "f":
                    feed[item.name] = draw.standard_normal(shape).astype(dtype)
                else:
                    feed[item.name] = draw.integers(0, 2 if dtype.kind == "b" else highest, shape).astype(dtype)
            yield feed


def _digest(array: np.ndarray) -> Digest | None:
    flat = np.ravel(array)
    if flat.dtype.kind not in "fiub" or not flat.size:
        return None
    places = np.linspace(0, flat.size - 1, min(PLACES, flat.size)).astype(int)
    flat = flat if flat.dtype.kind != "f" else np.nan_to_num(flat, nan=0.0, posinf=1e4, neginf=-1e4)
    ordered = np.sort(flat)
    return Digest(flat.size, flat.dtype.kind in "iu", flat[places].astype(float), ordered[places].astype(float))


def _distance(a: Digest, b: Digest) -> tuple[bool, float] | None:
    """(whether the order differs, distance as a share of the spread), or None where the values differ."""
    if a.whole and b.whole and np.all(a.places - b.places == UNSIGNED):
        return False, 0.0
    for differs, mine, theirs in ((False, a.places, b.places), (True, a.ordered, b.ordered)):
        if a.whole != b.whole:  # quantized: the scale and the zero point are left out of it
            mine, theirs = _standard(mine), _standard(theirs)
        spread = np.std(theirs) or 1.0
        distance = float(np.sqrt(np.mean((mine - theirs) ** 2)) / spread)
        if distance <= (STEPS if a.whole else ROUNDING):
            return differs, distance
    return None


def _standard(numbers: np.ndarray) -> np.ndarray:
    return (numbers - numbers.mean()) / (np.std(numbers) or 1.0)


def _blocked(graph: NodeGraph) -> set[str]:
    """Tensors whose channels lie in blocks: what the NCHWc operators write, up to where it is put in order again."""
    tensors: set[str] = set()
    for node in graph.nodes:
        if node.op != "ReorderOutput" and (node.domain.endswith(".nchwc") or tensors & set(node.inputs)):
            tensors.update(node.outputs)
    return tensors


def _unblocked(array: np.ndarray, sizes: set[int]) -> list[np.ndarray]:
    """A blocked tensor in plain order, once for every number of channels that it may really have."""
    block = _block()
    if array.ndim != 4 or array.shape[1] % block:
        return [array]
    n, c, h, w = array.shape
    plain = array.reshape(n, c // block, h, w, block).transpose(0, 1, 4, 2, 3).reshape(array.shape)
    counts = sorted({size // (n * h * w) for size in sizes if size % (n * h * w) == 0})
    return [plain[:, :count] for count in counts if c - block < count <= c]


@functools.cache
def _block() -> int:
    """How many channels this machine's NCHWc layout keeps together: asked of the runtime with a numbered picture."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 1, 2]) for name in "xy"]
    node = helper.make_node("ReorderOutput", ["x"], ["y"], domain="com.microsoft.nchwc", channels=64)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft.nchwc", 1)]
    graph = helper.make_graph([node], "block", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    plain = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(1, 64, 1, 2)})[0]
    return int(plain[0, 0, 0, 1])  # the first channel's second number lies behind a whole block
