"""Zeros anywhere: which weights of a network stay, and training on while the others stay zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from labsupport import training
from labsupport.data.datasets import Split
from labsupport.errors import BadInput, one_of

SCOPES = ("global", "layer")
PRUNABLE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, eq=False, repr=False)
class Masked:
    """A network some of whose weights are zero; ``masks`` holds, by layer name, True for every weight that stays.

    ``skipped`` says of the layers that were left dense why they were.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Weights of the masked layers, zero or not."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the masked layers' weights that is zero."""
        return 1 - self.kept / self.total

    def __repr__(self) -> str:
        left = f"; {len(self.skipped)} left dense: {', '.join(self.skipped)}" if self.skipped else ""
        return (
            f"Masked({type(self.model).__name__}: {self.sparsity:.1%} of {self.total:,} weights are zero, in "
            f"{len(self.masks)} layers{left})"
        )


def _check_sparsity(sparsity: float) -> float:
    """The sparsity as a float. Raises BadInput outside [0, 1)."""
    number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)  # also NumPy's float32
    if not number or not 0 <= sparsity < 1:
        said = f"; {sparsity:g} % is {sparsity / 100:g}" if number and 1 <= sparsity < 100 else ""
        raise BadInput(f"sparsity={sparsity!r}; wanted is the share of zeros, from 0 up to but not including 1{said}")
    return float(sparsity)


def layer(model: nn.Module, name: str, kinds: tuple[type, ...] = PRUNABLE) -> nn.Module:
    """The layer of that name. Raises BadInput, with near names, for one that is not there or of another kind."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    if name not in layers:
        import difflib

        near = difflib.get_close_matches(str(name), layers, n=3, cutoff=0.3) or list(layers)[:3]
        more = f" and {len(layers) - len(near)} more" if near else ""
        module = dict(model.named_modules()).get(name) if isinstance(name, str) else None
        what = f"no convolution or dense layer {name!r}"
        if module is not None:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            what = f"{name!r} as a {type(module).__name__}, and a {wanted} is wanted"
        raise BadInput(f"{type(model).__name__} has {what}; it has {', '.join(near) or 'none at all'}{more}")
    return layers[name]


def prunable(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Convolutions and dense layers by name, all of them or those named."""
    if isinstance(layers, str):
        layers = [layers]
    names = list(layers) if layers is not None else [n for n, m in model.named_modules() if isinstance(m, PRUNABLE)]
    if not names:
        raise BadInput(
            f"{type(model).__name__} has no {' and no '.join(kind.__name__ for kind in PRUNABLE)}, and no "
            "other layer's weights are pruned here"
            if layers is None
            else "layers is empty; name at least one layer, or leave it out for all of them"
        )
    return {name: layer(model, name) for name in names}


def keep_largest(weight: Tensor, sparsity: float) -> Tensor:
    """Mask of a weight's shape, True for the largest by magnitude; round(sparsity · n) are False, but never all."""
    if not isinstance(weight, Tensor) or not weight.numel():
        came = (
            f"a {type(weight).__name__}" if not isinstance(weight, Tensor) else f"an empty tensor {tuple(weight.shape)}"
        )
        raise BadInput(f"{came} came; wanted is a weight tensor, such as model.conv1.weight")
    zeros = min(round(_check_sparsity(sparsity) * weight.numel()), weight.numel() - 1)
    sizes = weight.detach().abs().flatten()
    if not zeros:
        return torch.ones_like(weight, dtype=torch.bool)
    threshold = _smallest(sizes, zeros)
    mask = sizes > threshold
    equal = (sizes == threshold).nonzero().flatten()  # as many of them stay as it takes
    mask[equal[: weight.numel() - zeros - int(mask.sum())]] = True
    return mask.view(weight.shape)


def _smallest(sizes: Tensor, count: int) -> Tensor:
    """The largest of the ``count`` smallest values; NumPy finds it in a fraction of the time that a sort, or kthvalue,
    takes.
    """
    if sizes.dtype in (torch.float16, torch.bfloat16):
        return _smallest(sizes.float(), count).to(sizes.dtype)
    return torch.from_numpy(np.partition(sizes.cpu().numpy(), count - 1)[count - 1 : count]).to(sizes.device)[0]


def magnitude(
    model: nn.Module, sparsity: float, *, scope: str = "global", layers: Iterable[str] | None = None
) -> Masked:
    """A copy with the smallest weights set to zero, compared over all layers ("global") or in each one ("layer").

    Raises BadInput for a sparsity outside [0, 1) and for a layer that is not there. Han et al. 2015, arXiv:1506.02626.
    """
    one_of(SCOPES, scope=scope)
    _check_sparsity(sparsity)
    chosen = prunable(model, layers)
    if scope == "layer":
        return masked(model, {name: keep_largest(module.weight, sparsity) for name, module in chosen.items()})
    pooled = keep_largest(torch.cat([module.weight.detach().flatten() for module in chosen.values()]), sparsity)
    parts = pooled.split([module.weight.numel() for module in chosen.values()])
    return masked(
        model,
        {name: part.view(module.weight.shape) for (name, module), part in zip(chosen.items(), parts, strict=True)},
    )


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network, also where it holds tensors that it computed, such as weight_norm's weight: PyTorch copies
    no part of a graph of gradients, and they are computed anew at the next call.
    """
    held = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    try:
        for place, name, value in held:
            place[name] = value.detach()
        return copy.deepcopy(model)
    finally:
        for place, name, value in held:
            place[name] = value


def recomputed(model: nn.Module, members=None) -> str:
    """Which layers' weights are no parameters but computed at each call, and what to do about it; "" where none are.

    ``members`` are the modules to look at; left out, all of the network's.
    """
    removers = []
    for name, module in model.named_modules():
        looked_at = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and (members is None or module in members)
        if looked_at and "weight" not in module._parameters:
            hooks = {type(hook).__name__: hook for hook in module._forward_pre_hooks.values()}
            remover = f"torch.nn.utils.prune.remove({name}, 'weight')"
            if parametrize.is_parametrized(module, "weight"):
                remover = f"torch.nn.utils.parametrize.remove_parametrizations({name}, 'weight')"
            elif {"WeightNorm", "SpectralNorm"} & hooks.keys():
                kind = "weight_norm" if "WeightNorm" in hooks else "spectral_norm"
                remover = f"torch.nn.utils.remove_{kind}({name})"
            removers.append((name, remover))
    if not removers:
        return ""
    more = f" (and {len(removers) - 1} more)" if len(removers) > 1 else ""
    return (
        f"the weight of {removers[0][0]}{more} is computed anew at each call (weight_norm, spectral_norm, a mask …), "
        f"so nothing can be taken out of it; make it a plain weight first: {removers[0][1]}"
    )


def masked(model: nn.Module, masks: Mapping[str, Tensor], skipped: Mapping[str, str] | None = None) -> Masked:
    """A copy in which the weights are zero where their layer's mask is False."""
    if why := recomputed(model, {layer(model, name) for name in masks}):
        raise BadInput(why)
    pruned = copied(model)
    for name, mask in masks.items():
        weight = layer(pruned, name).weight
        if not isinstance(mask, Tensor):
            raise BadInput(
                f"the mask of {name} is a {type(mask).__name__}; wanted is a torch.bool tensor {tuple(weight.shape)}"
            )
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise BadInput(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; wanted is torch.bool of the "
                f"weight's shape {tuple(weight.shape)}"
            )
        with torch.no_grad():
            weight.masked_fill_(~mask.to(weight.device), 0)
    return Masked(pruned, dict(masks), dict(skipped or {}))


def fine_tune(
    pruned: Masked,
    split: Split,
    *,
    epochs: int = 2,
    learning_rate: float = 1e-3,
    checkpoint: str | Path | None = None,
    **options,
) -> Masked:
    """Train on with the zeros held at zero; the options, and what is raised, are those of training.fit.

    Give a rate well below that of the training before: Adam's steps are as large as the rate, however near the minimum
    is, and a network that needs little repair loses by large ones.

    The weight that the network computes with is the trained one times the mask, so no gradient reaches a zero.
    """
    if not isinstance(pruned, Masked):
        raise BadInput(f"a {type(pruned).__name__} came; wanted is what pruning.magnitude or pruning.magnitude24 made")
    held = copy.deepcopy(pruned.model)
    for name, mask in pruned.masks.items():
        parametrize.register_parametrization(layer(held, name), "weight", _Held(mask, layer(held, name).weight))
    options = {"epochs": epochs, "learning_rate": learning_rate, "checkpoint": checkpoint, **options}
    trained = training.fit(held, split, **options).model
    for name, mask in pruned.masks.items():
        module = layer(trained, name)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        with torch.no_grad():
            module.weight.masked_fill_(~mask.to(module.weight.device), 0)  # the product left -0.0 there
    return Masked(trained, pruned.masks, pruned.skipped)


class _Held(nn.Module):
    def __init__(self, mask: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def zeros(model: nn.Module) -> float:
    """Share of exact zeros among the weights of convolutions and dense layers."""
    weights = [module.weight for module in prunable(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
