"""How lab 12 measures a version that a learner hands in: on unseen signs, beside the learner's own PyTorch network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong

SPEED, MEMORY = "p50, share of PyTorch's", "weights and activations, share of FP32's"
# The notebook's gate, as far as a graph alone can be measured; tests hold the two together.
LIMITS = {
    "accuracy": ("at least", 0.95), "points lost to FP32": ("at most", 0.5),
    "accuracy, rain": ("at least", 0.90), "accuracy, blur": ("at least", 0.80),
    "accuracy, darkness": ("at least", 0.70), "accuracy, compression": ("at least", 0.85),
    SPEED: ("at most", 0.5), MEMORY: ("at most", 0.5),
    "file MiB": ("at most", 8), "file to first answer s": ("at most", 3),
}  # fmt: skip


def measured(graph: Any, model: Any, *, per_class: int) -> dict[str, float]:
    """The row of one graph beside the network it is to replace. Raises Wrong for what cannot be measured."""
    import numpy as np
    import torch

    from labsupport import benchmarking, data, export, runtimes, training
    from labsupport.data import roadside, sign_artwork
    from labsupport.footprint import shipped

    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "example_input", None)):
        raise Wrong(f"the second answer is {described(model)}; hand in the trained PyTorch network, `model`.")
    graph = _checked(graph)
    seed = int(np.random.default_rng().integers(1_000, 1_000_000))
    unseen = roadside.photographs(sign_artwork.artwork(), "test", per_class, 48, seed)
    row, baseline = {}, export.to_onnx(model, model.example_input())
    run, row["file MiB"], row["file to first answer s"] = _deployed(graph, data.preprocess(unseen.images[:1]))
    with run, runtimes.Torch(model, name="PyTorch, eager") as eager:
        row["accuracy"] = training.accuracy(run, unseen)
        by_model = training.accuracy(eager, unseen)
        row["points lost to FP32"] = round(100 * (by_model - row["accuracy"]), 2)
        for kind in roadside.CORRUPTIONS:
            row[f"accuracy, {kind}"] = training.accuracy(run, roadside.corrupted(unseen, kind, seed=seed))
        on_gpu = run.device == "cuda"
        gain = benchmarking.paired(
            eager, run, data.preprocess(unseen.images[:1]), rounds=10, clock="device" if on_gpu else "host"
        )
    least = LIMITS["accuracy"][1]
    if by_model < 0.9 * least <= row["accuracy"]:  # beside a network that reads nothing, everything looks good
        raise Wrong(f"the network beside it reads {by_model:.0%} of unseen signs: hand in the trained one, `model`.")
    row[SPEED] = 1 / float(gain)
    row[MEMORY] = shipped.shipped(graph).total_mib / shipped.shipped(baseline).total_mib
    return row


def in_words(row: Mapping[str, float]) -> str:
    """What of a row a learner wants to read."""
    faster, saved = 1 / row[SPEED], 1 - row[MEMORY]
    return (
        f"{row['accuracy']:.1%} of unseen signs, {row['points lost to FP32']:+.2f} points lost, "
        f"{faster:.2g} times as fast as PyTorch, {saved:.0%} of weights and activations saved"
    )


def _checked(graph: Any) -> Any:
    """The learner's graph, after a look at what goes in and out."""
    from pathlib import Path

    from labsupport import export

    if not isinstance(graph, (export.OnnxGraph, str, Path)):
        raise Wrong(f"the first answer is {described(graph)}; hand in the graph, an export.OnnxGraph, or its path.")
    graph = export.load(graph)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Wrong(
            f"the graph takes {list(graph.inputs)} and gives {list(graph.outputs)}; wanted are one input and one "
            "output."
        )
    ((shape, kind),) = graph.inputs.values()
    if kind != "fp32" or list(shape[1:]) != [3, 48, 48]:
        raise Wrong(
            f"the graph takes {kind} {tuple(shape)}; the car feeds float32 (N, 3, 48, 48), so keep the input as the "
            "network had it."
        )
    ((answer, _),) = graph.outputs.values()
    if list(answer[1:]) != [20]:
        raise Wrong(f"the graph answers {tuple(answer)}; wanted are 20 logits for each picture.")
    return graph


def _deployed(graph: Any, frame: Any) -> tuple:
    """(runtime, MiB of its file, seconds from the file to the first answer), as the lab deploys versions."""
    from labsupport import build, environment, export, runtimes

    source = graph
    if environment.has("engine execution"):
        kind = "int8" if graph.ops.get("QuantizeLinear") else "as-is" if export.float_type(graph) != "fp32" else "fp32"
        fixed = isinstance(next(iter(graph.inputs.values()))[0][0], int)
        source = build.engine(graph, precision=kind, batch=None if fixed else 1, name="signs_own_version")
    start = time.perf_counter()
    run = runtimes.TensorRt(source, cuda_graph=True) if source is not graph else runtimes.OnnxRuntime(source)
    run(frame)
    return run, source.path.stat().st_size / 2**20, time.perf_counter() - start
