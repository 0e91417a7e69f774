"""What the network is fed: arrays from a file, or values made from the graph's own shapes and types."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport.errors import BadInput, LabError, first_line

LABELS = "labels"
MADE = 8  # samples that are made where none are given
TYPES = {"fp32": "float32", "fp16": "float16", "double": "float64"}
NUMBERS = ("float32", "float16", "float64", "bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
# Sizes to try for free axes, of pictures and of sequences; the first that runs is taken.
PICTURES, SEQUENCES = (224, 64, 320, 640, 48, 32), (512, 64, 128, 16000, 16, 1)
WHOLE = ("ids", "rate", "ones", "length")  # what a whole number may mean


@dataclass(frozen=True, eq=False)
class Samples:
    """Feeds of one call each, where they come from, and a label for each where there are any."""

    feeds: tuple[dict, ...]
    origin: str
    given: bool
    labels: np.ndarray | None = None


def numbers_only(graph) -> None:
    """Raise BadInput where an input or output is no tensor of numbers."""
    for name, (_, kind) in (*graph.inputs.items(), *graph.outputs.items()):
        if TYPES.get(kind, kind) not in NUMBERS:
            raise BadInput(
                f"{name!r} is {kind}, and what runs here are networks from number tensors to number tensors; cut the "
                "network there and examine the part between"
            )


def from_file(path: str | os.PathLike, graph) -> Samples:
    """Samples of an .npz with an array for each input (or an .npy for the only one), and ``labels`` if there are any.

    An array of the input's own rank is cut along its first axis: into calls of the fixed size, or of one where that
    axis is free. An array with one axis more holds one sample a row. Raises BadInput.
    """
    arrays = _read(Path(path), graph)
    labels = arrays.pop(LABELS, None) if LABELS not in graph.inputs else None
    if arrays.keys() != graph.inputs.keys():
        raise BadInput(
            f"{Path(path).name} has {sorted(arrays)}; the network wants exactly {sorted(graph.inputs)}, and perhaps "
            f"{LABELS!r} beside them"
        )
    parts = {name: _cut(name, x, *graph.inputs[name]) for name, x in arrays.items()}
    count = max(map(len, parts.values()))
    uneven = [name for name, samples in parts.items() if len(samples) not in (1, count)]
    if uneven:
        raise BadInput(
            f"{uneven[0]!r} holds {len(parts[uneven[0]])} samples, another input {count}; give as many of each, or one "
            "for all"
        )
    feeds = tuple({name: samples[i % len(samples)] for name, samples in parts.items()} for i in range(count))
    if labels is not None and len(np.ravel(labels)) != count:
        raise BadInput(f"there are {len(np.ravel(labels))} labels for {count} samples; give one label a sample")
    told = f"{count} sample{'s' * (count != 1)} from {Path(path).name}"
    return Samples(feeds, told, True, None if labels is None else np.ravel(labels))


def _read(path: Path, graph) -> dict:
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file of inputs; save one with np.savez({path.stem!r}, name=array, …)")
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {name: content[name] for name in content.files} if hasattr(content, "files") else content
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise BadInput(
            f"{path.name} holds no plain arrays ({first_line(error)}); save them with np.savez(path, name=array, …)"
        ) from error
    except Exception as error:  # zipfile.BadZipFile and zlib's own errors
        raise BadInput(f"{path.name} is damaged ({first_line(error)}); save it again") from error
    if isinstance(arrays, np.ndarray):
        if len(graph.inputs) != 1:
            raise BadInput(
                f"{path.name} is one array, and the network has the inputs {list(graph.inputs)}; save an .npz with an "
                "array for each name"
            )
        arrays = {next(iter(graph.inputs)): arrays}
    return dict(arrays)


def _cut(name: str, x: np.ndarray, shape: tuple, kind: str) -> list[np.ndarray]:
    """Samples of one input, each of a shape that one call takes."""
    wanted = TYPES.get(kind, kind)
    if str(x.dtype) != wanted:
        raise BadInput(f"input {name!r} is {x.dtype} in the file; the network wants {wanted}: save it as that type")
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise BadInput(f"input {name!r} holds NaN in the file; look at the preprocessing")
    whole = x
    if x.ndim == len(shape) and shape:
        size = shape[0] if isinstance(shape[0], int) else 1
        if not x.shape[0] or x.shape[0] % size:
            raise BadInput(f"input {name!r} has {x.shape[0]} rows; one call takes {size}: give a multiple of that")
        whole = x.reshape(-1, size, *x.shape[1:])
    elif x.ndim == len(shape):
        whole = x[None]
    fits = whole.ndim == len(shape) + 1 and all(
        not isinstance(want, int) or want == have for want, have in zip(shape, whole.shape[1:])
    )
    if not fits or not whole.size:
        raise BadInput(
            f"input {name!r} has shape {x.shape} in the file; the network wants {_said(shape)}, with more rows or one "
            "axis more in front for several samples"
        )
    return [np.asarray(sample, order="C") for sample in whole]  # which leaves a single number without an axis


def made(graph, runs: Callable[[Mapping], object], *, count: int = MADE) -> Samples:
    """Samples drawn from the graph's shapes and types; the first sizes of free axes with which ``runs(feed)`` succeeds.

    Raises BadInput where none does, with what the last attempt said.
    """
    last = "no attempt was made"
    steps = range(len(PICTURES)) if _free(graph) else range(1)
    for step, state, meaning in itertools.product(steps, (False, True), WHOLE if _whole(graph) else WHOLE[:1]):
        feed = _drawn(graph, step, state, meaning, 0)
        try:
            runs(feed)
        except LabError as error:  # the next sizes may fit
            last = str(error)
            continue
        feeds = tuple(_drawn(graph, step, state, meaning, seed) for seed in range(count))
        shapes = ", ".join(f"{name} {_said(x.shape)}" for name, x in feed.items())
        return Samples(feeds, f"{count} samples made from the graph's own shapes ({shapes}), random values", False)
    raise BadInput(f"no inputs could be made that this network accepts ({last}); give some with --inputs data.npz")


def _free(graph) -> bool:
    return any(not isinstance(axis, int) for shape, _ in graph.inputs.values() for axis in shape)


def _whole(graph) -> bool:
    return any("int" in kind for _, kind in graph.inputs.values())


def _drawn(graph, step: int, state: bool, meaning: str, seed: int) -> dict:
    """One feed; the same sizes for every seed. ``state``: of three axes the middle one is a batch, as in an LSTM's."""
    rng, feed, batches = np.random.default_rng(seed), {}, _batch_names(graph)
    for name, (shape, kind) in graph.inputs.items():
        size = (PICTURES if len(shape) == 4 else SEQUENCES)[step]
        # a first free axis is the batch, and every axis of its name; another one of a single axis has no batch
        batch = (0, 1) if state and len(shape) == 3 else (0,) if len(shape) > 1 else ()
        sizes = [d if isinstance(d, int) else 1 if i in batch or d in batches else size for i, d in enumerate(shape)]
        feed[name] = _values(rng, name, sizes, TYPES.get(kind, kind), meaning, size)
    return feed


def _batch_names(graph) -> set[str]:
    shapes = [shape for shape, _ in graph.inputs.values()]
    first = {shape[0] for shape in shapes if len(shape) > 1 and isinstance(shape[0], str)} - {"?"}
    return {name for name in first if not any(name == shape[0] and name in shape[1:] for shape in shapes if shape)}


def _values(rng, name: str, sizes: list[int], dtype: str, meaning: str, size: int) -> np.ndarray:
    if dtype == "bool":
        return np.ones(sizes, bool)
    if dtype.startswith("float"):
        return np.asarray(rng.standard_normal(sizes)).astype(dtype)
    if dtype == "uint8":
        return np.asarray(rng.integers(0, 256, sizes)).astype(dtype)
    few = int(np.prod(sizes)) == 1
    if "mask" in name.lower() or meaning == "ones":
        return np.ones(sizes, dtype)
    if len(sizes) < 2 and re.search(r"(^|[_.])(len|length)s?($|[_.:])", name.lower()):
        return np.full(sizes, size).astype(dtype)  # how much of the sequence counts: all of it
    if few and meaning != "ids":
        return np.full(sizes, 16000 if meaning == "rate" else size).astype(dtype)
    return np.asarray(rng.integers(0, 10, sizes)).astype(dtype)


def _said(shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
