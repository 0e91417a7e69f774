"""Quantization-aware training: fake quantizers in a PyTorch network, trained through, and exported as explicit Q/DQ.

The forward pass rounds as the engine will; the backward pass treats rounding as if it were not there, which is the
straight-through estimator (Bengio et al. 2013, arXiv:1308.3432). ``training.fit`` trains the prepared network as any
other.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from labsupport import export
from labsupport.errors import BadInput, LabError, one_of
from labsupport.quantization import calibration, folded_networks, qdq

LAYERS = (nn.Conv2d, nn.Linear)
LOWEST, HIGHEST = -128, 127  # what QuantizeLinear clips to; a symmetric weight never reaches -128


class ActivationQuantizer(nn.Module):
    """Rounds and clips a tensor to INT8 with one scale, which is trained along with the weights.

    Going back, the slope for x is 1 inside the range and 0 outside, and the scale gets what it would have changed
    (LSQ, Esser et al. 2020, arXiv:1902.08153). Its logarithm is trained, so that it stays positive.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(max(limit, 1e-12) / HIGHEST).log())
        self.register_buffer("scale", self.log_scale.detach().exp())
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # the exporter writes this operator as a QuantizeLinear and a DequantizeLinear
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, LOWEST, HIGHEST)
        scale = self.log_scale.exp()
        codes = torch.clamp(x / scale, LOWEST, HIGHEST)
        return (codes + (codes.round() - codes).detach()) * scale

    def train(self, mode: bool = True) -> ActivationQuantizer:
        if not mode:
            self.scale = self.log_scale.detach().exp()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"holds ±{HIGHEST * self.log_scale.exp().item():.3g}"


class WeightQuantizer(nn.Module):
    """Rounds weights to INT8; while training, the scale follows the largest weight (of each output channel)."""

    def __init__(self, weight: Tensor, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel
        self.register_buffer("scale", self._scale_of(weight))
        self.register_buffer("zero_point", torch.zeros(self.scale.shape, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.scale = self._scale_of(weight)
        if self.per_channel:
            return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero_point, 0, LOWEST, HIGHEST)
        return torch.fake_quantize_per_tensor_affine(weight, self.scale, self.zero_point, LOWEST, HIGHEST)

    def _scale_of(self, weight: Tensor) -> Tensor:
        most = weight.detach().abs()
        return (most.flatten(1).amax(1) if self.per_channel else most.amax()).clamp(min=1e-12) / HIGHEST


class Quantized(nn.Module):
    """A network with quantizers, under the names of the one it was made from."""

    def __init__(self, body: fx.GraphModule, original: nn.Module) -> None:
        super().__init__()
        self.body = body  # copying an fx.GraphModule loses the attributes that are not its own
        for name in ("input_name", "output_name", "channels", "size"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def prepare(model: nn.Module, images, *, method: str = "max", per_channel: bool = True) -> nn.Module:
    """A copy with folded batch norms and fake quantizers where TensorRT wants Q/DQ, calibrated on ``images`` (N, C, H,
    W).

    Quantized are the input and the weights of every Conv2d and Linear that is called as a module, and the shortcut of
    each residual add, as ``quantization.to_qdq`` does in a graph. ``method`` is one of ``quantization.METHODS``. Before
    any training the result answers as post-training quantization does. Raises BadInput; LabError for a network that
    cannot be traced.
    """
    images = _checked(model, images)
    one_of(calibration.METHODS, method=method)
    folded = folded_networks.folded(model, images[:2])
    tensors, shortcuts = _quantized_tensors(folded)
    limits = _limits(folded, tensors, images, method)
    for layer in list(folded.modules()):
        if isinstance(layer, LAYERS):
            parametrize.register_parametrization(layer, "weight", WeightQuantizer(layer.weight, per_channel))
    for place, node in enumerate(tensors):
        name = f"quantizer_{place}"
        folded.add_submodule(name, ActivationQuantizer(limits[node.name]))
        with folded.graph.inserting_after(node):
            call = folded.graph.call_module(name, (node,))
        for user in [u for u in node.users if u is not call and (_is_layer(folded, u) or (u, node) in shortcuts)]:
            user.replace_input_with(node, call)
    folded.graph.lint()
    folded.recompile()
    return Quantized(folded, model).eval()


def quantizers(model: nn.Module) -> tuple[int, int]:
    """How many activation and weight quantizers a network has."""
    kinds = [type(module) for module in model.modules()]
    return kinds.count(ActivationQuantizer), kinds.count(WeightQuantizer)


def to_onnx(model: nn.Module, example: Tensor, *, path: str | Path | None = None) -> export.OnnxGraph:
    """Export a prepared network: each fake quantizer becomes a QuantizeLinear and a DequantizeLinear, opset 17.

    Raises BadInput for a network without quantizers, LabError when the exporter left one out.
    """
    activations, weights = quantizers(model)
    if not weights:
        raise BadInput(f"{type(model).__name__} has no quantizers; prepare it first: qat.prepare(model, images)")
    graph = export.to_onnx(model, example, opset=17, path=path)
    nodes = qdq.placement(graph)
    calls = _calls(model, weights)
    # torch writes the pair of a weight that is read twice once, or twice
    pairs = nodes.quantize == nodes.dequantize and activations + weights <= nodes.quantize <= activations + calls
    if not pairs or not weights <= len(nodes.quantized) <= calls:  # two calls on one tensor are written once
        raise LabError(
            f"the network has {activations} activation and {weights} weight quantizers, and its graph {nodes}; "
            "a quantizer whose result nobody reads is dropped by the exporter"
        )
    return graph


def _calls(model: nn.Module, weights: int) -> int:
    """How often layers with quantized weights are called: one that is called twice is written twice."""
    traced = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    return sum(_is_layer(module, node) for module in traced for node in module.graph.nodes) or weights


def _checked(model: nn.Module, images) -> Tensor:
    try:
        images = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(
            f"calibration images are a {type(images).__name__}; wanted one float array (N, C, H, W), such as "
            "data.preprocess makes"
        ) from None
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise BadInput(
            f"calibration images are {images.dtype} {tuple(images.shape)}; wanted float (N, C, H, W), such as "
            "data.preprocess makes"
        )
    if not images.isfinite().all():
        raise BadInput(
            "the calibration images hold NaN or infinity, from which every range would be NaN; look at the "
            "preprocessing"
        )
    if (images == images.flatten()[0]).all():
        raise BadInput(
            f"the calibration images are constant: every value is {images.flatten()[0].item():g}; pass real, "
            "preprocessed images"
        )
    channels = getattr(model, "channels", images.shape[1])
    if images.shape[1] != channels:
        raise BadInput(
            f"calibration images of {images.shape[1]} channels came, the network takes {channels}; the order is (N, "
            "C, H, W)"
        )
    if any(quantizers(model)):
        raise BadInput(
            f"{type(model).__name__} is quantized already ({sum(quantizers(model))} quantizers); prepare the FP32 "
            "network it was made from"
        )
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        raise BadInput(
            f"{type(model).__name__} has no layer with an INT8 kernel; a convolution or a dense layer has one"
        )
    return images


def _is_layer(folded: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(folded.get_submodule(node.target), LAYERS)


def _quantized_tensors(folded: fx.GraphModule) -> tuple[list[fx.Node], set[tuple[fx.Node, fx.Node]]]:
    """Tensors that get a quantizer, and (add, shortcut side) of each residual add."""
    order = {node: place for place, node in enumerate(folded.graph.nodes)}
    tensors = [node.all_input_nodes[0] for node in order if _is_layer(folded, node)]
    shortcuts = set()
    for node in order:
        if (
            node.op == "call_function"
            and node.target in (operator.add, operator.iadd, torch.add)
            and all(isinstance(a, fx.Node) for a in node.args)
        ):
            main = max((a for a in node.args if _is_layer(folded, a)), key=order.get, default=None)
            if main is not None:  # the convolution computes the sum, if the other side is INT8 and this one is not
                shortcuts |= {(node, a) for a in node.args if a is not main}
    return list(
        dict.fromkeys([*tensors, *(side for _, side in sorted(shortcuts, key=lambda s: order[s[1]]))])
    ), shortcuts


def _limits(folded: fx.GraphModule, tensors: Iterable[fx.Node], images: Tensor, method: str) -> dict[str, float]:
    """Where to clip each tensor, from its histogram over the images."""
    names, spans = {node.name for node in tensors}, {}

    class Watching(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if node.name in names:
                before = spans.get(node.name)
                spans[node.name] = before.add(value.numpy()) if before else calibration.histogram(value, name=node.name)
            return value

    with torch.inference_mode():
        for part in images.split(64):
            Watching(folded).run(part)
    return {name: max(map(abs, h.range(method))) for name, h in spans.items()}
