"""Networks that lab 03's exercises change, and what really runs of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from labsupport import files
from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong

# what is changed in Conv → ReLU; `changed` makes the network
CHANGES = {
    "stride": "the convolution takes every second pixel",
    "sigmoid": "a sigmoid takes the ReLU's place",
    "softsign": "x / (1 + |x|) takes its place, an operator that the runtime has no fused form for",
    "custom": (
        "a custom operator takes its place: QuickGelu, which the ONNX standard does not know and this runtime does"
    ),
    "second reader": "the ReLU's result and the convolution's are added",
    "precision": "the ReLU runs in FP16, the convolution in FP32",
    "reshape": "the picture is flattened before the ReLU and unflattened after it",
}
CLOSE = 1e-4  # sums of 576 products in another order differ by less


@functools.cache
def recorded_plan(name: str):
    from labsupport import fusion, recordings

    return fusion.xray(recordings.load_plan(name))


def network_of(given: Any):
    """A learner's network, from its class or as it is."""
    from torch import nn

    network = given() if isinstance(given, type) and issubclass(given, nn.Module) else given
    if not isinstance(network, nn.Module):
        raise Wrong(f"that is {described(given)}; hand in the class, such as check(Yours).")
    return network.eval()


def check_same_answer(reference, network, slips: dict | None = None) -> None:
    """Wrong unless the first outputs agree at two sizes, on pictures drawn anew.

    ``slips``: what a wrong answer may be, text → a function of the pictures.
    """
    import torch

    from labsupport import comparing

    for size in ((2, 64, 16, 16), (3, 64, 10, 14)):
        example = torch.randn(size)
        with torch.inference_mode():
            expected = reference(example)
            try:
                got = _first(network(example))
            except RuntimeError as fault:
                if size[0] == 2:
                    raise
                raise Wrong(f"it answers for pictures (2, 64, 16, 16) and fails for {size}: {fault}") from None
        if not isinstance(got, torch.Tensor):
            raise Wrong(f"forward gave {described(got)}. Did it forget its `return`?")
        if got.shape != expected.shape:
            raise Wrong(f"the first output has shape {tuple(got.shape)}; it was {tuple(expected.shape)}.")
        error = comparing.max_error(expected, got)
        if error > CLOSE:
            with torch.inference_mode():
                why = [text for text, slip in (slips or {}).items() if comparing.max_error(slip(example), got) < CLOSE]
            raise Wrong(
                f"the block now computes something else, up to {error:.2g} away; keep its first output unchanged. "
                f"{' '.join(why)}".strip()
            )


def _first(output):
    """The first of several outputs, which may come by name."""
    output = list(output.values()) if isinstance(output, Mapping) else output
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _in_a_row(network):
    """The network with its outputs as a tuple, as the exporter wants them."""
    from torch import nn

    class InARow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            output = self.inner(x)
            return tuple(output.values()) if isinstance(output, Mapping) else output

    return InARow().eval()


def behind_convolution(graph, op: str) -> bool:
    """Whether the first output comes from a node ``op``, and that one from a convolution."""

    def made_by(tensor: str, seen: set[str]):
        node = graph.producer.get(tensor)
        if node is None or node.name in seen:
            return
        seen.add(node.name)
        yield node
        for each in node.inputs:
            yield from made_by(each, seen)

    relus = [node for node in made_by(graph.outputs[0], set()) if node.op == op]
    return any(node.op == "Conv" for relu in relus for node in made_by(relu.outputs[0], set()))


def sibling_slips() -> dict:
    """What `blocks.Siblings` becomes by mistake: text → a function of the pictures."""
    import torch
    from torch.nn import functional as F

    from labsupport.fusion import blocks

    layers = [getattr(blocks.Siblings(), name) for name in ("left", "middle", "right")]
    return {
        "The ReLU of a sum is not the sum of ReLUs.": lambda x: torch.relu(sum(layer(x) for layer in layers)),
        "The biases are missing.": lambda x: sum(torch.relu(F.conv2d(x, layer.weight)) for layer in layers),
        "The ReLUs are missing.": lambda x: sum(layer(x) for layer in layers),
    }


def executed_kernels(network):
    """The X-ray of what ONNX Runtime, level extended, makes of a network."""
    import torch

    from labsupport import export, fusion, runtimes

    example = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    with files.scratch() as folder:
        with torch.inference_mode():
            named = isinstance(network(example), Mapping)
        network = _in_a_row(network) if named else network
        graph = export.to_onnx(network, example, path=folder / "yours.onnx", dynamic=False)
        with runtimes.OnnxRuntime(graph, optimization="extended") as run:
            return fusion.xray(run)


@functools.cache
def runs_as_one(name: str) -> bool:
    """Whether the changed network's convolution shares its kernel with the operation after it."""
    plan = executed_kernels(changed(name))
    ops = {node.name: node.op for node in plan.graph.nodes}
    return any(len(kernel.nodes) > 1 and any(ops[node] == "Conv" for node in kernel.nodes) for kernel in plan.kernels)


def changed(name: str):
    """The convolution block with one of ``CHANGES``, as a torch module."""
    import torch
    from torch.nn import functional as F

    from labsupport.fusion import blocks

    block = blocks.ConvBlock()
    if name == "stride":
        block.conv.stride = (2, 2)
    after = {
        "stride": torch.relu,
        "sigmoid": torch.sigmoid,
        "softsign": F.softsign,
        "custom": _quick_gelu,
        "second reader": lambda y: torch.relu(y) + y,
        "precision": lambda y: torch.relu(y.half()).float(),
        "reshape": lambda y: torch.relu(y.flatten(1)).unflatten(1, (64, 16, 16)),
    }[name]
    block.forward = lambda x: after(block.bn(block.conv(x)))  # type: ignore[method-assign]
    return block


def _quick_gelu(x):
    """x · sigmoid(1.7 x), exported as com.microsoft's QuickGelu: a node of a domain of its own, as a plugin's would
    be.
    """
    import torch

    class QuickGelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * torch.sigmoid(1.7 * x)

        @staticmethod
        def symbolic(g, x):
            return g.op("com.microsoft::QuickGelu", x, alpha_f=1.7).setType(x.type())

    return QuickGelu.apply(x)
