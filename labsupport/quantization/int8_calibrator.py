"""Implicit quantization as TensorRT 8 and 10 know it: a calibrator that feeds the builder, and its cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from labsupport import environment, errors, export
from labsupport.build import engines
from labsupport.errors import BadInput, LabError, NotAvailable, one_of
from labsupport.quantization import calibration

ALGORITHMS = ("entropy", "minmax")


def entropy_calibrator(trt, batches, cache_path, *, graph, algorithm: str = "entropy"):
    """A calibrator for ``config.int8_calibrator`` of TensorRT 8.6 and 10; its ranges are cached in ``cache_path``.

    ``batches`` are feeds as for ``calibration.collect``, all of one size: that of the calibration profile. The builder
    gets their addresses and nothing about their type, so leave the network's input FP32, as they are: with
    ``io_formats`` HALF for it, TensorRT 8.6 built an engine that answered nonsense. Beside the cache lies
    ``<name>.json`` with the checksums of graph and data; a cache that belongs to another graph, other data, another
    TensorRT or nobody known is refused here, before the build. ``algorithm``: "entropy" or "minmax", the one for
    transformers. It wants a weakly typed network, of which ``build`` makes none on TensorRT 10. Once the ranges are
    found, a second build takes them from memory. Raises BadInput and, on TensorRT 11 and RTX, NotAvailable. Source:
    https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-861/developer-guide/index.html#optimizing_int8_c
    """
    if environment.generation() not in ("8.6", "10"):
        raise NotAvailable(
            f"TensorRT {environment.machine().tensorrt} has no INT8 calibrators, TensorRT 11 removed them; "
            "put the scales into the graph: quantization.to_qdq(graph, batches)"
        )
    graph = export.load(graph)
    feeds, batch_size = _checked(graph, batches, algorithm)
    store = _Cache(cache_path, _identity(graph, feeds, algorithm))
    base = trt.IInt8EntropyCalibrator2 if algorithm == "entropy" else trt.IInt8MinMaxCalibrator

    class Calibrator(base):  # type: ignore[misc, valid-type]
        """Hands the builder one batch at a time as device pointers, and keeps the ranges that it finds."""

        def __init__(self):
            super().__init__()
            self.left, self.held, self.batches_given = iter(feeds), {}, 0
            self.from_cache = store.data is not None

        def get_batch_size(self):
            return batch_size

        def get_batch(self, names):
            feed = next(self.left, None)
            if feed is None:
                self.held = {}
                return None
            self.held = {name: _on_device(feed[name]) for name in names}  # the builder reads it until the next call
            self.batches_given += 1
            return [int(tensor.data_ptr()) for tensor in self.held.values()]

        def read_calibration_cache(self):
            return store.data

        def write_calibration_cache(self, cache):
            store.keep(bytes(cache))

    return Calibrator()


def _checked(graph: export.OnnxGraph, batches, algorithm: str) -> tuple[list[dict], int]:
    """All batches at once: an error inside the builder's callback would end the process."""
    one_of(ALGORITHMS, algorithm=algorithm)
    if graph.ops.get("QuantizeLinear"):
        raise BadInput(
            f"{graph.path.name} has Q/DQ nodes, so its scales are in the graph; build it without a calibrator"
        )
    feeds = list(calibration.feeds(graph, batches))
    sizes = sorted({len(x) for feed in feeds for x in feed.values()})
    if len(sizes) > 1:
        raise BadInput(
            f"the calibration batches have {sizes} items; a calibrator's batches are all of one size, leave the rest "
            "out"
        )
    return feeds, sizes[0]


class _Cache:
    """The ranges TensorRT found, with the identity of what they were found on; read and judged at once."""

    def __init__(self, path: str | os.PathLike, identity: dict):
        if not isinstance(path, (str, os.PathLike)):
            raise BadInput(
                f"cache_path is a {type(path).__name__}; give the name of the file that is to keep the ranges"
            )
        path = Path(path)
        self.path, self.identity, self.data = path, identity, None
        self.record = path.with_name(path.name + ".json")
        if path.is_file():
            self.data = self._read()

    def _read(self) -> bytes:
        again = "delete it, or give another cache_path, and calibrate again"
        try:
            kept = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise BadInput(
                f"{self.path.name} is a foreign calibration cache: {self.record.name}, which says what it was made on, "
                f"is missing or unreadable; {again}"
            ) from None
        data = self.path.read_bytes()
        if not isinstance(kept, dict) or kept.get("cache") != hashlib.sha256(data).hexdigest():
            raise BadInput(
                f"{self.path.name} is not the calibration cache that {self.record.name} describes: it was changed or "
                f"cut off; {again}"
            )
        for key, what in (
            ("graph", "another graph"),
            ("data", "other calibration data"),
            ("algorithm", "another algorithm"),
            ("tensorrt", "another TensorRT"),
        ):
            if kept.get(key) != self.identity[key]:
                raise BadInput(
                    f"{self.path.name} is a stale calibration cache: it was made with {what} "
                    f"({str(kept.get(key))[:12]}, now {self.identity[key][:12]}); {again}"
                )
        return data

    def keep(self, data: bytes) -> None:
        """For this process at least: an error raised in the builder's callback would end it."""
        self.data = data
        try:
            self.write(data)
        except LabError as error:
            errors.warn(f"the calibration is used and not kept: {error}")

    def write(self, data: bytes) -> None:
        """Record first: a crash between the two leaves a cache that is refused, never one that is trusted wrongly."""
        record = {**self.identity, "cache": hashlib.sha256(data).hexdigest()}
        engines.write_atomically(self.record, json.dumps(record, indent=1).encode())
        engines.write_atomically(self.path, data)


def _identity(graph: export.OnnxGraph, feeds: list[dict], algorithm: str) -> dict:
    data = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            data.update(f"{name}{feed[name].shape}{feed[name].dtype}".encode())
            data.update(np.ascontiguousarray(feed[name]).tobytes())
    return {
        "graph": graph.sha256,
        "data": data.hexdigest(),
        "algorithm": algorithm,
        "tensorrt": str(environment.machine().tensorrt),
    }


def _on_device(array: np.ndarray):
    import torch

    if array.dtype == np.int64 and environment.generation() == "8.6":  # its parser made the input INT32
        array = array.astype(np.int32)
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()
