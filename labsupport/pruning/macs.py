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
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    example = example if example is not None else example_of(model)
    examples = example if isinstance(example, (tuple, list)) else (example,)
    if not (isinstance(examples[0], Tensor) and examples[0].ndim and examples[0].shape[0]):
        raise BadInput(f"the example is {examples[0]!r:.60}; wanted is a tensor (N, …) of one item or more")
    uncounted = [(n, type(m).__name__) for n, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.Bilinear))]
    if uncounted:
        raise BadInput(
            f"the products of {uncounted[0][0] or 'the network'} ({uncounted[0][1]}) run inside one kernel, where "
            "nobody counts them; write it with nn.Linear or nn.LSTMCell"
        )
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel for attention, which the counter does not know
    counter = FlopCounterMode(display=False, custom_mapping=_products())
    try:
        # The plain kernels for attention: products inside a fused one are not counted on every device.
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
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


def _products() -> dict:
    """Products with a vector, which PyTorch's counter leaves out: operator → operations from the shapes."""
    aten = torch.ops.aten
    return {
        aten.mv: lambda matrix, vector, **_: 2 * matrix[0] * matrix[1],
        aten.dot: lambda one, other, **_: 2 * one[0],
        aten.addmv: lambda bias, matrix, vector, **_: 2 * matrix[0] * matrix[1],
    }


def _by_layer(model: nn.Module, counted: dict) -> dict[str, int]:
    """Operations of each innermost module that computes; products in a module's own forward count for that module."""
    top, spent = type(model).__name__, {}
    names = {f"{top}.{name}" if name else top: name for name, _ in model.named_modules()}
    totals = {names[path]: sum(ops.values()) for path, ops in counted.items() if path in names}
    owners = {name: _owner(name, totals) for name in totals if name}
    for name in owners:
        inner = sum(totals[other] for other, owner in owners.items() if owner == name)
        if totals[name] > inner:
            spent[name] = totals[name] - inner
    return spent


def _owner(name: str, known) -> str:
    """The innermost counted module around a module; a list of modules is not called, so nothing is counted for it."""
    while name and (name := name.rpartition(".")[0]) not in known:
        pass
    return name


def example_of(model: nn.Module) -> Tensor:
    """An input for the model, on its device. Raises BadInput where it has no ``example_input``."""
    if not callable(getattr(model, "example_input", None)):
        raise BadInput(
            f"{type(model).__name__} has no example_input(); pass an example, such as torch.randn(1, 3, 32, 32)"
        )
    return model.example_input().to(next(model.parameters()).device)
