"""Networks that lab 03's exercises change, and what really runs of them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

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


def check_same_answer(reference, network, why: str = "") -> None:
    import torch

    from labsupport import comparing

    example = reference.example_input(2, shape=(64, 16, 16))
    with torch.inference_mode():
        expected, got = reference(example), network(example)
    got = got[0] if isinstance(got, (tuple, list)) else got
    if not isinstance(got, torch.Tensor):
        raise Wrong(f"forward gave {described(got)}. Did it forget its `return`?")
    if got.shape != expected.shape:
        raise Wrong(f"the first output has shape {tuple(got.shape)}; it was {tuple(expected.shape)}.")
    error = comparing.max_error(expected, got)
    if error > CLOSE:
        raise Wrong(
            (
                f"the block now computes something else, up to {error:.1f} away; keep its first output unchanged. {why}"
            ).strip()
        )


def executed_kernels(network):
    """The X-ray of what ONNX Runtime, level extended, makes of a network."""
    import torch

    from labsupport import export, fusion, runtimes

    example = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="labsupport-lab03-") as folder:
        graph = export.to_onnx(network, example, path=Path(folder) / "yours.onnx", dynamic=False)
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
