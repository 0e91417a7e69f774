"""Multiply-accumulates (MACs) and weights of a network, counted layer by layer while it runs once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput


@dataclass(frozen=True, repr=False)
class Cost:
    """MACs of one item and weights of a network; ``layers`` has the MACs of each convolution and dense layer."""

    macs: int
    weights: int
    layers: dict[str, int]

    def over(self, other: Cost) -> float:
        """How many times more MACs this one takes than ``other``."""
        return self.macs / other.macs

    def __repr__(self) -> str:
        return f"{self.macs / 1e6:.4g} million MACs, {self.weights:,} weights"


def cost(model: nn.Module, example: Tensor | None = None) -> Cost:
    """Count the MACs that convolutions and dense layers spend on one item, and all weights; nothing is changed.

    ``example`` (N, …) defaults to the model's own ``example_input()``. BatchNorm and activations are not counted: at
    inference they are folded or fused.
    """
    example = example if example is not None else example_of(model)
    spent: dict[str, int] = {}

    def count(name):
        def hook(layer, inputs, output):
            # every value of the output is a dot product as long as one filter
            spent[name] = spent.get(name, 0) + output[0].numel() * layer.weight[0].numel()

        return hook

    handles = [
        layer.register_forward_hook(count(name))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.inference_mode():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return Cost(sum(spent.values()), sum(p.numel() for p in model.parameters()), spent)


def example_of(model: nn.Module) -> Tensor:
    """An input for the model, on its device. Raises BadInput where it has no ``example_input``."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"a {type(model).__name__} came; wanted is a torch.nn.Module, such as models.resnet18()")
    if not callable(getattr(model, "example_input", None)):
        raise BadInput(
            f"{type(model).__name__} has no example_input(); pass an example, such as torch.randn(1, 3, 32, 32)"
        )
    return model.example_input().to(next(model.parameters()).device)
