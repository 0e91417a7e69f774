"""Calibration: which values a network's activations take on real data, and where to clip them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport import export
from labsupport.errors import BadInput, LabError, first_line, one_of
from labsupport.export import onnx_graph, surgery
from labsupport.quantization import scales

METHODS = ("max", "percentile", "entropy", "mse")
BINS = 4096  # over both signs; at least 1024 of them hold the magnitudes that occur
CANDIDATES = 128  # how many thresholds entropy and mse try


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a tensor took which values: equal bins from -reach to reach, and the exact extremes."""

    counts: np.ndarray
    reach: float
    lowest: float
    highest: float
    name: str = "values"

    @property
    def edges(self) -> np.ndarray:
        """The len(counts) + 1 borders of the bins."""
        return np.linspace(-self.reach, self.reach, len(self.counts) + 1)

    @property
    def magnitudes(self) -> np.ndarray:
        """Counts of |value|: bins from 0 to reach."""
        half = len(self.counts) // 2
        return self.counts[half:] + self.counts[:half][::-1]

    def __repr__(self) -> str:
        return f"Histogram({self.name}: {int(self.counts.sum())} values, {self.lowest:.3g} to {self.highest:.3g})"

    def add(self, values) -> Histogram:
        """A histogram that holds these values too; the reach doubles, and bins merge in pairs, until they fit."""
        x = np.asarray(values, np.float32).ravel()
        if not np.isfinite(x).all():
            raise BadInput(
                f"{self.name} took the value NaN or infinity; look at the calibration data, or keep that layer out "
                "of FP16"
            )
        if not x.size:
            return self
        low, high = float(x.min()), float(x.max())
        most, counts, reach = max(-low, high), self.counts, self.reach
        if not counts.sum() and most > 0:  # nothing but zeros so far: the first values set the reach
            reach = most
        while reach < most:
            pairs = counts.reshape(-1, 2).sum(1)
            counts = np.pad(pairs, len(counts) // 4)
            reach *= 2
        more = np.histogram(x, len(counts), (-reach, reach))[0]
        return Histogram(counts + more, reach, min(self.lowest, low), max(self.highest, high), self.name)

    def gap(self) -> float:
        """How many times as large as all other values those are that lie farthest out, beyond an empty stretch; else 1.

        A mask of attention lies so: nothing between the scores and −1e9. What lies out there spans a factor of 4 at
        most.
        """
        bins = np.flatnonzero(self.magnitudes)
        below, above = bins[:-1] + 1, bins[1:]
        far = (above / below)[4 * above >= bins[-1]] if len(bins) else np.empty(0)
        return float(far.max(initial=1.0))

    def threshold(self, method: str = "max", *, percentile: float = 99.99, format: str = "int8") -> float:
        """Where to clip |value|: "max", "percentile", "entropy" (least KL divergence) or "mse" (least mean square).

        Sources: Migacz, "8-bit inference with TensorRT", GTC 2017 (entropy); Wu et al., arXiv:2004.09602 (the four).
        """
        one_of(METHODS, method=method)
        one_of(scales.FORMATS, format=format)
        if not 50 < percentile <= 100:
            raise BadInput(f"percentile={percentile!r}; give the share of values to keep, above 50 and at most 100")
        most = max(-self.lowest, self.highest, 0.0)
        if method == "max":
            return most
        if method == "percentile":
            share = np.cumsum(self.magnitudes) / self.magnitudes.sum()
            place = int(np.searchsorted(share, percentile / 100 - 1e-12))
            return min(most, (place + 1) * self.reach / len(share))
        bins = int(np.ceil(most / self.reach * (len(self.counts) // 2)))
        if bins <= CANDIDATES:
            return most
        tried = np.unique(np.linspace(CANDIDATES, bins, CANDIDATES).astype(int))
        cost = self._divergence if method == "entropy" else self._squared_error
        best = min(tried, key=lambda kept: cost(int(kept), bins, format))
        return min(most, float(best) * self.reach / (len(self.counts) // 2))

    def range(self, method: str = "max", *, percentile: float = 99.99, format: str = "int8") -> tuple[float, float]:
        """Lowest and highest value to keep: the threshold on both sides, no wider than the values that occurred."""
        limit = self.threshold(method, percentile=percentile, format=format)
        return max(min(self.lowest, 0.0), -limit), min(max(self.highest, 0.0), limit)

    def _divergence(self, kept: int, bins: int, format: str) -> float:
        """KL divergence between the clipped histogram and the same one in 128 levels."""
        magnitudes = self.magnitudes[:bins].astype(np.float64)
        # Bin 0 is left out: the exact zeros of a ReLU have a code of their own and would drown every other value.
        inside = np.concatenate([[0.0], magnitudes[1:kept]])
        clipped = inside.copy()
        clipped[-1] += magnitudes[kept:].sum()
        group = np.arange(kept) * CANDIDATES // kept
        filled = inside > 0
        sums, sizes = np.bincount(group, inside, CANDIDATES), np.bincount(group, filled, CANDIDATES)
        spread = np.where(filled, (sums / np.maximum(sizes, 1))[group], 0.0)
        if not clipped.sum() or not spread.sum():
            return np.inf
        p, q = clipped / clipped.sum(), spread / spread.sum()
        both = p > 0
        return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-10))))

    def _squared_error(self, kept: int, bins: int, format: str) -> float:
        """Mean squared error of the values, each taken at the middle of its bin."""
        width = self.reach / (len(self.counts) // 2)
        middles = (np.arange(bins) + 0.5) * width
        limit = kept * width
        low = 0.0 if format == "uint8" and self.lowest >= 0 else -limit
        worth = scales.fake_quantize(middles, scales.scale_of(low=low, high=limit, format=format))
        return float(np.sum(self.magnitudes[:bins] * (worth - middles) ** 2) / self.magnitudes.sum())


def histogram(values, *, name: str = "values", bins: int = BINS) -> Histogram:
    """The histogram of one array. Raises BadInput for an empty one, and for NaN."""
    x = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if not x.size:
        raise BadInput(f"{name} is empty, shape {x.shape}; there is nothing to calibrate on")
    return _empty(name, bins).add(x)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The histograms of one graph's activations; ``masked`` names those that took the value −inf and so have none."""

    sha256: str
    histograms: Mapping[str, Histogram]
    items: int
    masked: frozenset[str] = frozenset()

    def __getitem__(self, tensor: str) -> Histogram:
        if tensor not in self.histograms:
            raise BadInput(f"{tensor!r} was not calibrated; choose from {list(self.histograms)[:8]}…")
        return self.histograms[tensor]

    def __repr__(self) -> str:
        return f"Calibration({len(self.histograms)} tensors on {self.items} items)"


def collect(graph, batches, *, tensors: Iterable[str] | None = None, bins: int = BINS) -> Calibration:
    """Run a graph on calibration batches with ONNX Runtime and keep a histogram of every activation.

    ``batches`` is an iterable of feeds: arrays (N, …) for a one-input network, or mappings by input name, already
    preprocessed as for inference. ``tensors`` names the activations; left out, all floating-point ones. One pass and
    constant memory. Raises BadInput for data that are empty, wrongly shaped, constant or not finite.
    """
    graph = export.load(graph)
    session = _session(graph, tensors)
    wanted = [
        v.name
        for v in session.get_outputs()
        if v.type == "tensor(float)" and v.name not in graph.inputs and (tensors is None or v.name in set(tensors))
    ]
    fed = [
        name
        for name, (_, dtype) in graph.inputs.items()
        if dtype == "fp32" and (tensors is None or name in set(tensors))
    ]
    histograms = {name: _empty(name, bins) for name in [*fed, *wanted]}
    items, masked = 0, set()
    for feed in feeds(graph, batches):
        try:
            outputs = session.run(wanted, feed)
        except Exception as error:
            text = first_line(error)
            raise LabError(
                f"ONNX Runtime could not run {graph.path.name} on a calibration batch: {text}; compare it with "
                "graph.inputs"
            ) from error
        for name, values in [*((n, feed[n]) for n in fed), *zip(wanted, outputs)]:
            if np.isneginf(values).any():  # a mask: no code stands for it, and its layer stays wide
                masked.add(name)
                values = values[~np.isneginf(values)]
            histograms[name] = histograms[name].add(values)
        items += next((len(x) for x in feed.values() if x.ndim), 1)
    histograms = {name: histogram for name, histogram in histograms.items() if name not in masked}
    return Calibration(graph.sha256, histograms, items, frozenset(masked))


def feeds(graph, batches) -> Iterator[dict[str, np.ndarray]]:
    """The batches as checked feeds. Raises BadInput, at the latest when the last was read."""
    if isinstance(batches, (np.ndarray, Mapping)) or hasattr(batches, "detach"):
        batches = [batches]
    if isinstance(batches, (str, Path)) or not isinstance(batches, Iterable):
        raise BadInput(
            f"the calibration data are a {type(batches).__name__}; pass a list of arrays (N, …), or of mappings by "
            "input name"
        )
    if not graph.inputs:
        raise BadInput(f"{graph.path.name} has no inputs: all of it is constant, and nothing is there to calibrate")
    first: dict[str, object] = {}
    varies: dict[str, bool] = {}
    for place, batch in enumerate(batches):
        feed = _feed(graph, place, batch)
        for name, x in feed.items():
            first.setdefault(name, x.flat[0])
            varies[name] = varies.get(name, False) or bool((x != first[name]).any())
        yield feed
    if not first:
        raise BadInput(
            "there are no calibration batches; pass a list (a generator is empty once it was read), 100 or more "
            "images in all"
        )
    still = [name for name in first if not varies[name]]
    if len(still) == len(first):
        raise BadInput(
            f"the calibration data are constant: every value of {still[0]!r} is {first[still[0]]}; pass real, "
            "preprocessed items"
        )


def _feed(graph, place: int, batch) -> dict[str, np.ndarray]:
    if isinstance(batch, (tuple, list)):
        raise BadInput(
            f"calibration batch {place} is a {type(batch).__name__} of {len(batch)}; pass the preprocessed inputs "
            "alone, without labels"
        )
    if not isinstance(batch, Mapping):
        if len(graph.inputs) != 1:
            raise BadInput(
                f"calibration batch {place} is one array, but the network has the inputs {list(graph.inputs)}; pass "
                "mappings by name"
            )
        batch = {next(iter(graph.inputs)): batch}
    if batch.keys() != graph.inputs.keys():
        raise BadInput(
            f"calibration batch {place} has {sorted(batch)}; the network wants exactly {sorted(graph.inputs)}"
        )
    return {name: _checked(name, place, x, *graph.inputs[name]) for name, x in batch.items()}


def _checked(name: str, place: int, array, shape: tuple, dtype: str) -> np.ndarray:
    x = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    where, wanted = (
        f"calibration batch {place}, input {name!r}",
        {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "double": "float64"}.get(dtype, dtype),
    )
    if not x.size:
        raise BadInput(f"{where} is empty, shape {x.shape}; leave empty batches out")
    if x.ndim != len(shape) or any(isinstance(w, int) and w != g for w, g in zip(shape, x.shape)):
        said = "(" + ", ".join(str(w) for w in shape) + ")"
        raise BadInput(f"{where} has shape {x.shape}; the network wants {said}: preprocess it as for inference")
    if str(x.dtype) != wanted and not (wanted == "string" and x.dtype.kind in "OSU"):
        raise BadInput(
            f"{where} is {x.dtype}; the network wants {wanted}: preprocess it as for inference (data.preprocess)"
        )
    if x.dtype.kind == "f" and not (np.isfinite(x) | np.isneginf(x)).all():  # −inf is what masks hold
        raise BadInput(f"{where} holds NaN or infinity, from which every range would be NaN; look at the preprocessing")
    return x


def _session(graph, tensors):
    """A session that hands over the named tensors, or all of them, by one function for every room."""
    import onnxruntime as ort

    model = surgery.plain(graph.model())
    outputs = {name for node in model.graph.node for name in node.output if name}
    unknown = sorted(set(tensors or ()) - outputs - set(graph.inputs))
    if unknown:
        raise BadInput(f"{graph.path.name} has no tensor {unknown[0]!r}; it has {sorted(outputs)[:6]}…")
    file = export.fresh_folder() / "exposed.onnx"  # a file, because a session takes at most 2 GB of bytes
    onnx_graph.write(surgery.expose(model, sorted(outputs if tensors is None else set(tensors) & outputs)), file)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Constant folding takes nodes away whose outputs are wanted here, and ONNX Runtime 1.23 stops at that.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own types
        raise LabError(
            f"ONNX Runtime cannot load {graph.path.name} with its inner tensors shown: "
            f"{first_line(error)}; look at the node that it names"
        ) from error
    for part in file.parent.iterdir():
        part.unlink()
    return session


def _empty(name: str, bins: int) -> Histogram:
    if bins < 4 * CANDIDATES or bins % 4:
        raise BadInput(f"bins={bins!r}; give a multiple of 4, {4 * CANDIDATES} or more")
    return Histogram(np.zeros(bins, np.int64), 1e-12, np.inf, -np.inf, name)
