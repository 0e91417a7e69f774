"""Types of a network: cast narrow but for the layers that must stay wide, prescribed layer by layer, and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from labsupport import build, casting, data, environment, export, readback
from labsupport import network as network_of
from labsupport.autocast import autocast
from labsupport.errors import BadInput
from labsupport.rounding import rounded

__all__ = ["Score", "accuracy", "autocast", "cast", "node_types", "read_back", "rounded", "types", "weakly"]

# Nodes that carry values elsewhere; they compute nothing, so nothing is rounded in them.
MOVERS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "Identity", "Expand", "Cast", "Shape", "Pad",
          "Constant")  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Share of a labelled split that was answered right, and the share answered with NaN or infinity; 0 to 1."""

    accuracy: float
    unanswered: float
    images: int

    def __repr__(self) -> str:
        return f"{self.accuracy:.1%} right, {self.unanswered:.1%} answered with NaN or infinity, of {self.images} images"


def cast(graph, to: str = "fp16", *, keep_wide: Iterable[str] = (), keep_io: bool = True, path=None) -> export.OnnxGraph:
    """The same network with narrow weights and tensors, as strongly typed TensorRT (10, 11, RTX) reads it.

    ``to``: "fp16" or "bf16". ``keep_wide`` names the nodes that stay FP32, with Cast nodes around them; a node that reads
    what one of them writes gets it narrowed, so name the readers too until the numbers are small again. ``keep_io``
    leaves inputs and outputs FP32. A graph with Q/DQ nodes keeps its codes; its scales, and whatever is not INT8, become
    narrow, which takes opset 19. Returns a new graph. Raises BadInput for a graph that is narrow already, an opset
    below 13, branches and loops, names that are not there, and a scale that the narrow type does not hold.
    """
    return casting.Typed(graph, to, keep_wide).walk(keep_io).saved(path)


def node_types(graph) -> dict[str, str]:
    """Which type each computing node of a graph writes: node name → "fp32", "fp16" or "bf16"."""
    import onnx

    graph = graph if isinstance(graph, export.OnnxGraph) else export.load(graph)
    body = onnx.shape_inference.infer_shapes(graph.model()).graph
    short = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    kinds = {v.name: short.get(v.type.tensor_type.elem_type) for v in (*body.value_info, *body.output)}
    written = {node.name: kinds.get(node.output[0]) for node in body.node if node.op_type not in MOVERS}
    return {name: kind for name, kind in written.items() if kind}


def types(graph) -> Counter:
    """How many computing nodes of a graph write which type, e.g. Counter({"fp16": 21, "fp32": 8})."""
    return Counter(node_types(graph).values())


def read_back(plan, network) -> tuple[Counter, str]:
    """(layers by type, where that was read) of an engine that the raw TensorRT API built: ``plan`` and its network.

    The engine inspector answers where the engine can be opened; without a GPU the network does, whose types a strongly
    typed builder keeps. Build with ``profiling_verbosity`` DETAILED, or the inspector has nothing to say. Of a builder that
    stopped, whose ``plan`` is None, there are no layers to count.
    """
    if plan is None:
        return Counter(), "builder that stopped"
    if environment.has("engine execution"):
        return readback.read_precisions(readback.inspect(environment.tensorrt(), bytes(plan), build.logger())), "engine inspector"
    return network_of.layer_types(network), "typed network"


def accuracy(run, split, *, preprocess: Callable = data.preprocess, batch_size: int = 100) -> Score:
    """How much of a split a runtime gets right, an answer of NaN or infinity counted as wrong instead of refused.

    training.accuracy stops at such an answer; here it is the thing to be measured. Feeds BF16 runtimes, too. Raises
    BadInput for an empty split and for preprocessed images with NaN.
    """
    import torch

    if not len(split):
        raise BadInput("the split is empty; it takes at least one image")
    (name, spec), = run.inputs.items()
    size, right, lost = spec.shape[0] or batch_size, 0, 0
    for images, labels in split.batches(size):
        feed = preprocess(np.concatenate([images, images[:1].repeat(size - len(images), axis=0)]))
        if not np.isfinite(feed).all():
            raise BadInput("the preprocessed images hold NaN or infinity; look at preprocess, the answers would be NaN in every precision")
        whole = torch.from_numpy(feed).to(getattr(torch, spec.dtype))
        answer = run({name: whole if spec.dtype == "bfloat16" else whole.numpy()})
        logits = torch.as_tensor(answer.get("logits", next(iter(answer.values())))).float().cpu().numpy()[: len(labels)]
        sound = np.isfinite(logits).all(axis=1)
        right += int(((logits.argmax(axis=1) == labels) & sound).sum())
        lost += int((~sound).sum())
    return Score(right / len(split), lost / len(split), len(split))


def weakly(keep_wide: Iterable[str] = (), *, prefer: bool = False) -> Callable:
    """A ``configure=`` for build.engine on TensorRT 8.6: every computing layer FP16 but those that stay wide.

    8.6 types are wishes of layers, not of tensors: a wide layer needs its precision and its output type set. ``prefer``
    lets the builder refuse a wish with a warning; otherwise it must obey or fail. Give the engine a ``name`` of its own:
    the cache cannot see which layers are in the list.
    """
    if isinstance(keep_wide, str) or not isinstance(keep_wide, Iterable):
        raise BadInput(f"keep_wide={keep_wide!r} is no list; give a list of layer names, an empty one for none")
    wide = frozenset(keep_wide)

    def configure(trt, builder, network, config):
        environment.require("8.6")
        there = {network.get_layer(i).name for i in range(network.num_layers)}
        if wide - there:
            raise BadInput(f"keep_wide names {sorted(wide - there)}, and the network has no such layer; its layers are called as the graph's nodes")
        flags = trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS
        config.clear_flag(flags[prefer])
        config.set_flag(flags[not prefer])
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type.name not in build.COMPUTING:
                continue
            layer.precision = trt.DataType.FLOAT if layer.name in wide else trt.DataType.HALF
            if layer.name in wide:
                layer.set_output_type(0, trt.DataType.FLOAT)

    return configure
