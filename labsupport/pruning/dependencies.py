"""Which layers must lose channels together, and whether a network that lost some is still the one it was made from."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from labsupport.errors import BadInput, LabError, NotAvailable, first_line
from labsupport.pruning.macs import example_of
from labsupport.pruning.masks import copied, layer, recomputed

NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
WIDE = (nn.Linear, nn.modules.conv._ConvNd)  # layers with a number of output channels
MIXING = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)  # their statistics run over channels, so fewer change all


@dataclass(frozen=True)
class Coupled:
    """What must lose the same channels as one layer: ``outputs`` shrink their outputs, ``inputs`` their inputs."""

    layer: str
    outputs: tuple[str, ...]
    norms: tuple[str, ...]
    inputs: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"outputs of {', '.join(self.outputs)}\n  with {', '.join(self.norms) or 'no norm'}\n  "
            f"inputs of {', '.join(self.inputs) or 'no other layer'}"
        )


def coupled(model: nn.Module, name: str, example: Tensor | None = None) -> Coupled:
    """The layers that must lose the same channels as layer ``name`` loses outputs, followed through residual sums.

    Source: DepGraph, Fang et al. 2023, arXiv:2301.12900 (torch-pruning).
    """
    layer(model, name)
    model = traceable(model)
    names = {module: n for n, module in model.named_modules()}
    parts: dict[str, list[str]] = {"outputs": [], "norms": [], "inputs": []}
    for dependency in _followed(model, name, example):
        module = dependency.target.module
        if module in names:
            way = "inputs" if reads(dependency) else "outputs"
            parts["norms" if isinstance(module, NORMS) else way].append(names[module])
    return Coupled(name, **{way: tuple(sorted(set(members))) for way, members in parts.items()})


def traceable(model: nn.Module) -> nn.Module:
    """A copy that torch-pruning can follow: it reads the graph of gradients, which a frozen network has none of."""
    model = copied(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _followed(model: nn.Module, name: str, example: Tensor | None) -> list:
    """What is coupled to a layer. Raises BadInput where torch-pruning does not see that layer in the network."""
    try:
        return [dependency for dependency, _ in group_of(model, name, [0], example)]
    except LabError:
        raise
    except Exception as error:  # torch-pruning's own, and the network's
        raise BadInput(
            f"torch-pruning cannot follow the channels of {name} ({first_line(error)}); choose another layer"
        ) from error


def group_of(model: nn.Module, name: str, channels: list[int], example: Tensor | None):
    """torch-pruning's group of a layer: (dependency, channels) for all that must shrink with it."""
    tp, graph = graph_of(model, example)
    conv = model.get_submodule(name)
    way = tp.prune_linear_out_channels if isinstance(conv, nn.Linear) else tp.prune_conv_out_channels
    return graph.get_pruning_group(conv, way, idxs=channels)


def graph_of(model: nn.Module, example: Tensor | None):
    """(torch-pruning, the dependency graph of a network)."""
    tp = torch_pruning()
    with torch.enable_grad():  # also where the caller switched gradients off
        return tp, tp.DependencyGraph().build_dependency(model, example if example is not None else example_of(model))


def torch_pruning():
    """The package. Raises NotAvailable."""
    try:
        import torch_pruning
    except ImportError:
        raise NotAvailable(
            "torch-pruning, which follows channels through a network, is not installed; "
            "get it with: python3 -m pip install torch-pruning"
        ) from None
    return torch_pruning


def reads(dependency) -> bool:
    """Whether a member of a group shrinks its inputs."""
    return "in_channels" in dependency.handler.__name__


class Twin:
    """The whole network, in which what a pruned one lost is read by nobody: both must answer alike."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kept, self.comparable = copy.deepcopy(model), {}, True

    def follow(self, thin: nn.Module, group) -> None:
        """Mask the inputs that this group of the thin network is about to lose."""
        names = {module: name for name, module in thin.named_modules()}
        for dependency, channels in group:
            module = dependency.target.module
            self.comparable = self.comparable and not isinstance(module, MIXING)
            if module not in names or not reads(dependency) or not isinstance(module, WIDE):
                continue
            weight = self.model.get_submodule(names[module]).weight
            weight = weight.transpose(0, 1) if getattr(module, "transposed", False) else weight  # inputs on axis 1
            kept = self.kept.setdefault(names[module], list(range(weight.shape[1])))
            if max(channels) >= len(kept):  # a grouped convolution reads by group
                self.comparable = False
                continue
            with torch.no_grad():
                weight[:, [kept[i] for i in channels]] = 0
            self.kept[names[module]] = [k for i, k in enumerate(kept) if i not in set(channels)]

    def complaint(self, thin: nn.Module, example: Tensor) -> str:
        """Why the thin network is not this one with fewer channels; "" where it is."""
        expected = outputs_of(self.model, example)
        try:
            got = outputs_of(thin, example)
        except Exception as error:  # the network's own code, on shapes that it did not foresee
            fault = first_line(error)
            return f"the network does not run without them ({fault}); a view, groups or a norm fixes their number"
        shapes = [[tuple(each.shape) for each in side] for side in (expected, got)]
        if shapes[0] != shapes[1]:
            return f"the network's outputs would change from {shapes[0]} to {shapes[1]}; they feed an output"
        if not all(torch.isfinite(each).all() for each in (*expected, *got)):
            return "the network answers NaN or infinity, before or after; look at its weights"
        if self.comparable and not all(
            torch.allclose(*pair, rtol=1e-2, atol=1e-3 * _size(pair[0])) for pair in zip(expected, got)
        ):
            return "what reads them would read other channels in their place: they are cut or joined by number"
        return ""


def outputs_of(model: nn.Module, example) -> list[Tensor]:
    """The tensors that a network answers in evaluation mode, in order; the modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            answer = model.eval()(*(example if isinstance(example, (tuple, list)) else (example,)))
    finally:
        for module, training in modes:
            module.training = training
    return [each for each in _pytree.tree_leaves(answer) if isinstance(each, Tensor)]


def _size(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def fixed_layers(model: nn.Module, example: Tensor, step: int) -> dict[str, str]:
    """Layers that cannot lose ``step`` channels, and why: name → complaint. One trial on a copy for each layer."""
    fixed = {}
    for name, module in model.named_modules():
        if isinstance(module, WIDE) and (width := _width(module)) > 1:
            thin = traceable(model)
            why = drop(thin, name, list(range(min(step, width - 1))), example)
            if why:
                fixed[name] = why
    return fixed


def drop(thin: nn.Module, name: str, channels: list[int], example: Tensor) -> str:
    """Take channels out of a layer and of all that is coupled to it, in place; why that is no network, or ""."""
    twin = Twin(thin)
    try:
        group = group_of(thin, name, channels, example)
        if why := recomputed(thin, {dependency.target.module for dependency, _ in group}):
            return why
        twin.follow(thin, group)
        group.prune()
    except BadInput:
        raise
    except Exception as error:  # torch-pruning's own assertions
        return f"torch-pruning cannot follow them ({first_line(error)})"
    return twin.complaint(thin, example)


def _width(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels
