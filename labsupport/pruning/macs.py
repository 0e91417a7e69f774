"""Multiply-accumulates (MACs) and weights of a network, counted layer by layer while it runs once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput


@dataclass(frozen=True, repr=False)
class Cost:
    """MACs of one item and weights of a network; ``layers`` has the MACs of each layer that multiplies."""

    macs: int
    weights: int
    layers: dict[str, int]

    def over(self, other: Cost) -> float:
        """How many times more MACs this one takes than ``other``."""
        return self.macs / other.macs

    def __repr__(self) -> str:
        return f"{self.macs / 1e6:.4g} million MACs, {self.weights:,} weights"


def cost(model: nn.Module, example: Tensor | None = None) -> Cost:
    """Count the MACs of one item, convolutions, dense layers and every other product, and all weights.

    ``example`` (N, …), or a tuple of inputs, defaults to the model's own ``example_input()``. PyTorch's FlopCounterMode
    counts, two operations a MAC; BatchNorm and activations are not counted: at inference they are folded or fused.
    Nothing is changed. Raises BadInput for layers that it cannot count: recurrent ones, and fused kernels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    example = example if example is not None else example_of(model)
    examples = example if isinstance(example, (tuple, list)) else (example,)
    uncounted = [n for n, m in model.named_modules() if isinstance(m, nn.RNNBase)]
    if uncounted:
        raise BadInput(
            f"{uncounted[0]!r} is recurrent: its products run inside one kernel, where nobody counts them; "
            "count it with nn.RNNCell, nn.GRUCell or nn.LSTMCell in a loop"
        )
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel for attention, which the counter does not know
    counter = FlopCounterMode(display=False)
    try:
        with torch.inference_mode(False), torch.no_grad(), counter:
            model.eval()(*examples)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
    spent = _by_layer(model, counter.get_flop_counts())
    items = 2 * examples[0].shape[0]
    total = counter.get_total_flops() // items
    return Cost(
        total, sum(p.numel() for p in model.parameters()), {name: flops // items for name, flops in spent.items()}
    )


def _by_layer(model: nn.Module, counted: dict) -> dict[str, int]:
    """Operations of each innermost module that computes; products in a module's own forward count for that module."""
    top, spent = type(model).__name__, {}
    names = {f"{top}.{name}" if name else top: name for name, _ in model.named_modules()}
    totals = {names[path]: sum(ops.values()) for path, ops in counted.items() if path in names}
    for name, flops in totals.items():
        inner = sum(f for n, f in totals.items() if n and n != name and _parent(n) == name)
        if name and flops > inner:
            spent[name] = flops - inner
    return spent


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def example_of(model: nn.Module) -> Tensor:
    """An input for the model, on its device. Raises BadInput where it has no ``example_input``."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"a {type(model).__name__} came; wanted is a torch.nn.Module, such as models.resnet18()")
    if not callable(getattr(model, "example_input", None)):
        raise BadInput(
            f"{type(model).__name__} has no example_input(); pass an example, such as torch.randn(1, 3, 32, 32)"
        )
    return model.example_input().to(next(model.parameters()).device)
