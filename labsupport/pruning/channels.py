"""Whole channels removed: how important each is, which layers must shrink together, and the smaller network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport import data
from labsupport.data.datasets import Split
from labsupport.errors import BadInput, LabError, at_least, first_line, one_of
from labsupport.pruning import dependencies
from labsupport.pruning.dependencies import traceable
from labsupport.pruning.macs import Cost, cost, example_of
from labsupport.pruning.masks import layer, recomputed

CRITERIA = ("magnitude", "batchnorm", "taylor")


@dataclass(frozen=True, eq=False, repr=False)
class Slim:
    """A network with fewer channels, and its cost before and after."""

    model: nn.Module
    before: Cost
    after: Cost
    widths: dict[str, int]

    @property
    def mac_reduction(self) -> float:
        """How many times fewer MACs."""
        return self.before.over(self.after)

    def __repr__(self) -> str:
        return (
            f"Slim({type(self.model).__name__}: {self.mac_reduction:.2f}× fewer MACs, "
            f"{self.before.weights / self.after.weights:.2f}× fewer weights; {self.after})"
        )


def _check_criterion(criterion: str, batch: Split | None) -> None:
    """Raises BadInput for an unknown criterion, and for "taylor" without labeled images."""
    one_of(CRITERIA, criterion=criterion)
    if criterion == "taylor" and not isinstance(batch, Split):
        raise BadInput(
            f"criterion='taylor' reads gradients, and batch is a {type(batch).__name__}; "
            "pass some labeled images, such as batch=dataset.train.take(64)"
        )


def _take_gradients(model: nn.Module, batch: Split) -> None:
    """Leave in ``.grad`` the gradient of the mean loss over the batch, with BatchNorms as they are at inference."""
    device = next(model.parameters()).device
    model.eval().zero_grad(set_to_none=True)
    images, labels = torch.from_numpy(data.preprocess(batch.images)), torch.from_numpy(batch.labels)
    with torch.enable_grad():
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()


def slice_pair(first: nn.Conv2d, norm: nn.BatchNorm2d | None, second: nn.Conv2d, keep: Sequence[int] | Tensor):
    """New (first, norm, second) of which only the channels ``keep`` between them are left, in that order.

    first's outputs, all four vectors of the norm and second's inputs are indexed alike; with a permutation as ``keep``
    the pair computes what it did before. Raises BadInput for no channel, for one that is not there or comes twice.
    """
    for given, kind in ((first, nn.Conv2d), (norm, (nn.BatchNorm2d, type(None))), (second, nn.Conv2d)):
        if not isinstance(given, kind):
            raise BadInput(
                f"a {type(given).__name__} came; wanted are a Conv2d, the BatchNorm2d after it or None, a Conv2d"
            )
    width = first.out_channels
    keep = _indices(keep, width, "keep")
    if second.in_channels != width or first.groups != 1 or second.groups != 1:
        raise BadInput(
            f"first gives {width} channels in {first.groups} group(s), second takes {second.in_channels} in "
            f"{second.groups}; a pair is two plain convolutions, one right after the other"
        )
    first, norm, second = copy.deepcopy((first, norm, second))
    first.weight, first.out_channels = nn.Parameter(first.weight.detach()[keep]), len(keep)
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias.detach()[keep])
    if norm is not None:
        norm.num_features = len(keep)
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[keep]))
        norm.running_mean, norm.running_var = norm.running_mean[keep], norm.running_var[keep]
    second.weight, second.in_channels = nn.Parameter(second.weight.detach()[:, keep]), len(keep)
    return first, norm, second


def drop_channels(
    model: nn.Module, name: str, drop: Sequence[int] | Tensor, example: Tensor | None = None
) -> nn.Module:
    """A copy without these output channels of layer ``name``, and without them in every layer coupled to it.

    The network's outputs never shrink. Raises BadInput for a layer that is not there, for a channel that is not, for
    all channels at once, and where no network is left: groups, views or PixelShuffle that count on their number.
    """
    width = _width(layer(model, name))
    drop = _indices(drop, width, "drop").tolist()
    if len(drop) == width:
        raise BadInput(f"all {width} channels of {name} would go, and nothing could flow through it; keep at least one")
    thin = traceable(model)
    complaint = dependencies.drop(thin, name, drop, example if example is not None else example_of(model))
    if complaint:
        raise BadInput(f"channels {drop[:6]} of {name} cannot go: {complaint}")
    return _as_it_came(thin, model)


def shrink(
    model: nn.Module,
    *,
    macs: float = 0.5,
    criterion: str = "magnitude",
    round_to: int = 8,
    batch: Split | None = None,
    keep: str | Iterable[str] = (),
    example: Tensor | None = None,
) -> Slim:
    """A copy without the least important channels of each layer, until at most the share ``macs`` of MACs is left.

    Widths stay multiples of ``round_to`` where the layer is wider than that. What feeds the network's outputs keeps
    its width, and so do the layers named in ``keep`` and those that a view, a chunk, groups or PixelShuffle fix. Layers
    coupled by a residual sum are judged and pruned together. The network must be trained on afterward. Raises BadInput.
    """
    _check_criterion(criterion, batch)
    if not 0 < macs <= 1:
        raise BadInput(f"macs={macs!r}; wanted is the share of MACs to keep, above 0 and at most 1, such as 0.5")
    at_least(round_to=round_to)
    example = example if example is not None else example_of(model)
    if not cost(model, example).macs:
        raise BadInput(f"{type(model).__name__} multiplies nothing, so it has no MACs to take away")
    protected = [keep] if isinstance(keep, str) else list(keep or ())
    for name in protected:
        layer(model, name)
    graded = traceable(model)
    if criterion == "taylor":
        _take_gradients(graded, batch)
    options = {"macs": macs, "criterion": criterion, "round_to": round_to, "example": example}
    best, complaint = _search(model, graded, [*protected, *_last(model)], **options)
    fixed: dict[str, str] = {}
    if complaint:  # rare, so that not every network pays for a trial of each layer
        fixed = dependencies.fixed_layers(graded, example, round_to)
        best, complaint = _search(model, graded, [*protected, *fixed], **options)
    if best is None:
        complaint = complaint or recomputed(model) or _unranked(model, criterion) or _told(fixed)
        raise BadInput(
            f"{macs:.0%} of the MACs cannot be reached with widths of at least {round_to}; "
            f"raise macs, or lower round_to{': ' * bool(complaint)}{complaint}"
        )
    return best


def _unranked(model: nn.Module, criterion: str) -> str:
    """Why a criterion finds nothing to judge channels by; "" where it does."""
    if criterion != "batchnorm" or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return ""
    return "criterion='batchnorm' reads the factors of batch norms, and the network has none; use 'magnitude'"


def _told(fixed: dict[str, str]) -> str:
    """Which layers must keep their channels, and why the first of them must."""
    return (
        f"{', '.join(list(fixed)[:4])} keep theirs; of {next(iter(fixed))}: {next(iter(fixed.values()))}"
        if fixed
        else ""
    )


def _search(model, graded, fixed, *, macs, example, **options) -> tuple[Slim | None, str]:
    """The largest network within the share of MACs or None, and why one was no network; MACs fall with the ratio."""
    before, low, high, best = cost(model, example), 0.0, 0.95, None
    for _ in range(7):
        ratio = (low + high) / 2
        try:
            trial, twin = _pruned(graded, ratio, protected=fixed, example=example, **options)
        except LabError:
            raise
        except Exception as error:  # torch-pruning's own assertions
            return None, f"torch-pruning cannot follow its channels ({first_line(error)})"
        if complaint := twin.complaint(trial, example):
            return None, complaint
        after = cost(trial, example)
        if after.macs <= macs * before.macs:
            best, high = Slim(_as_it_came(trial, model), before, after, _widths(trial)), ratio
        else:
            low = ratio
    return best, ""


def _pruned(graded: nn.Module, ratio: float, criterion: str, round_to: int, protected: list[str], example: Tensor):
    """(the network at one pruning ratio, its twin)."""
    tp = dependencies.torch_pruning()
    trial = copy.deepcopy(graded)
    for ours, theirs in zip(trial.parameters(), graded.parameters(), strict=True):
        ours.grad = None if theirs.grad is None else theirs.grad.clone()  # deepcopy leaves gradients behind
    rank = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "batchnorm": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[criterion]()
    with torch.enable_grad():
        pruner = tp.pruner.BasePruner(
            trial,
            example,
            importance=rank,
            pruning_ratio=ratio,
            round_to=round_to,
            ignored_layers=[trial.get_submodule(name) for name in protected],
        )
    twin = dependencies.Twin(graded)
    for group in pruner.step(interactive=True):
        twin.follow(trial, group)
        group.prune()
    trial.zero_grad(set_to_none=True)
    return trial, twin


def _as_it_came(thin: nn.Module, model: nn.Module) -> nn.Module:
    """The thin network in the mode, and as frozen, as its original; torch-pruning leaves it in eval mode."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in thin.named_parameters():
        parameter.requires_grad_(name not in frozen)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in thin.named_modules():
        module.training = modes.get(name, module.training)
    return thin


def _last(model: nn.Module) -> list[str]:
    """The layer that names the classes, as a list; an empty one for a network of other layers."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]


def _widths(model: nn.Module) -> dict[str, int]:
    return {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def _width(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _indices(given: Sequence[int] | Tensor, width: int, what: str) -> Tensor:
    """Channel numbers as a tensor, each in range and once."""
    try:
        array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except ValueError:  # lists of different lengths
        array = np.empty(0)
    if array.dtype == bool and array.shape == (width,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise BadInput(f"{what} is {given!r:.60}; wanted are the numbers of channels, at least one, such as [0, 3, 5]")
    if array.min() < 0 or array.max() >= width or len(set(array.tolist())) != len(array):
        raise BadInput(
            f"{what} names channels from {array.min()} to {array.max()}, {len(array)} of them; there are "
            f"{width}, numbered from 0, and each may come once"
        )
    return torch.from_numpy(array.astype(np.int64))
