"""A Q/DQ graph with two faults that lab 06 has mended, and what a mended one is held against."""

from __future__ import annotations

import functools
from typing import Any

from labsupport.exercises.answers import Wrong, described

CLOSE = 0.14  # of the answers' spread; a sound graph errs by half of it, one scale five times too large by more
SICK_SCALE, SICK_LAYER = "/4/MaxPool_output_0", "/7/Conv"


def pictures(count: int, seed: int | None = None):
    """(count, 3, 16, 16) drawn anew, or the same for the same seed."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16), dtype=np.float32)


@functools.cache
def sound():
    """(FP32 graph, Q/DQ graph) of a small convolutional network."""
    import torch
    from torch import nn

    from labsupport import export, quantization

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(6)
        first = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
        network = nn.Sequential(*first, *second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)).eval()
        for layer in (network[0], network[2], network[5], network[7], network[-1]):
            nn.init.kaiming_normal_(layer.weight)
    graph = export.to_onnx(network, torch.zeros(2, 3, 16, 16))
    return graph, quantization.to_qdq(graph, [pictures(64, seed=1)], method="max")


def sick():
    """(graph, images): a Q/DQ graph with one scale a thousand times too large and one pair missing, and 64 images to
    calibrate with.
    """
    import numpy as np
    from onnx import numpy_helper

    from labsupport import export

    model = sound()[1].model()
    scale = next(weight for weight in model.graph.initializer if weight.name == f"{SICK_SCALE}_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1000), scale.name))
    maker = {name: node for node in model.graph.node for name in node.output}
    layer = next(node for node in model.graph.node if node.name == SICK_LAYER)
    wide = maker[layer.input[0]]  # its data's DequantizeLinear
    narrow = maker[wide.input[0]]
    layer.input[0] = narrow.input[0]
    for node in (wide, narrow):
        model.graph.node.remove(node)
    return export.save(model, export.fresh_folder() / "sick.onnx"), pictures(64, seed=1)


def judge_mended(graph: Any) -> str:
    """What a mended graph teaches, or Wrong."""
    import numpy as np

    from labsupport import export, quantization, runtimes

    if not isinstance(graph, export.OnnxGraph):
        raise Wrong(f"that is {described(graph)}; hand in a graph, such as export.save(model, path) returns.")
    plain = sound()[0]
    if [*graph.inputs.values(), *graph.outputs.values()] != [*plain.inputs.values(), *plain.outputs.values()]:
        raise Wrong(f"this graph takes {dict(graph.inputs)}; mend the one of lab06.sick(), with its input and output.")
    placed = quantization.placement(graph)
    count = len(placed.quantized) + len(placed.wide)
    if count != 5:
        raise Wrong(f"this graph has {count} layers that could be quantized; the sick one has five.")
    fresh = pictures(256)
    with runtimes.OnnxRuntime(plain) as exact, runtimes.OnnxRuntime(graph) as low:
        (expected,), (got,) = exact(fresh).values(), low(fresh).values()
    spread = expected - expected.mean(axis=0)
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(spread))
    agree = float((got.argmax(axis=1) == expected.argmax(axis=1)).mean())
    if placed.wide:
        more = "" if error < CLOSE else " And the answers are still wrong: look at the scales as well."
        raise Wrong(f"{placed.wide[0]} does not read codes: its data or its weights come without Q and DQ.{more}")
    if not error < CLOSE:
        raise Wrong(
            f"all five layers read codes, and on images that you have not seen the answers are off by {error:.2g} of "
            f"their spread, {agree:.0%} choose the same class. Which scale times 127 is far from the largest value of "
            "its tensor?"
        )
    return (
        f"Five of five layers read codes; on 256 images drawn anew the answers are off by {error:.2g} of their spread, "
        f"and {agree:.0%} choose the class that FP32 chooses."
    )
