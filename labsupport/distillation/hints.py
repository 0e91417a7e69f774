"""Hints: a student that also learns what the layers between input and answer say (FitNets, attention transfer)."""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from labsupport.errors import BadInput, one_of

KINDS = ("features", "attention")


@dataclass(frozen=True)
class Hint:
    """Which layer of the student follows which of the teacher, in what, and how much it counts beside the other losses.

    "features": the activations, through a 1×1 convolution that is trained along and thrown away (Romero et al. 2015,
    arXiv:1412.6550, who trained on the hint first and on the answers afterward; here the losses are added).
    "attention": only where they are large (Zagoruyko and Komodakis 2017, arXiv:1612.03928).
    """

    student: str
    teacher: str
    kind: str = "features"
    weight: float = 1.0

    def __post_init__(self) -> None:
        one_of(KINDS, kind=self.kind)
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 <= self.weight < math.inf:
            raise BadInput(f"weight={self.weight!r}; it multiplies the hint's loss: wanted a number of 0 or more")


def attention_map(features: Tensor) -> Tensor:
    """Where a layer looks: mean square over the channels, (N, C, H, W) → (N, H·W), each image's map of length 1."""
    _check_maps("features", features)
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of ‖map of student − map of teacher‖²; the channels may differ, height and width may not.

    A sum over the positions: the authors' code takes their mean, so a weight of theirs is divided by H·W here.
    """
    _check_same_size(student, teacher)
    return (attention_map(student) - attention_map(teacher.detach())).square().sum(dim=1).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two activations (N, C, H, W) of one shape; project the student's channels first."""
    if student.shape != teacher.shape:
        raise BadInput(
            f"the student's features are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "bring the student's to the teacher's channels with nn.Conv2d(C_student, C_teacher, 1)"
        )
    return F.mse_loss(student, teacher.detach())


@contextlib.contextmanager
def tapped(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, what the named layers put out in the last call of `model`: name → tensor."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            # a copy: an activation that works in place, as nn.ReLU(inplace=True) does, would overwrite it
            seen[name] = _pytree.tree_map_only(Tensor, torch.clone, output)

        return hook

    handles = [_named_layer(model, name).register_forward_hook(keep(name)) for name in dict.fromkeys(layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _named_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer called `name`; for one that is not there, BadInput with the names that come close."""
    layers = dict(model.named_modules())
    if not isinstance(name, str) or name not in layers or not name:
        names = [each for each in layers if each]
        close = difflib.get_close_matches(str(name), names, n=4) or names[:8]
        raise BadInput(
            f"{type(model).__name__} has no layer {name!r}; it has {', '.join(close)}, … "
            "(all of them: dict(model.named_modules()))"
        )
    return layers[name]


class Pupil(nn.Module):
    """A student with the projections that its hints need; calling it calls the student."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, hints: Sequence[Hint], examples: Tensor, seed: int
    ) -> None:
        super().__init__()
        self.student, self.hints = copy.deepcopy(student), tuple(hints)
        self.projections = nn.ModuleList()
        if not hints:
            return
        mine, theirs = (
            _shapes(self.student, [h.student for h in hints], examples),
            _shapes(teacher, [h.teacher for h in hints], examples),
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for hint in hints:
                _check_same_size(mine[hint.student], theirs[hint.teacher], hint)
                channels = mine[hint.student].shape[1], theirs[hint.teacher].shape[1]
                self.projections.append(nn.Conv2d(*channels, 1) if hint.kind == "features" else nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)

    def beside(self, teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Logits of the student, of the teacher (without gradients), and the weighted sum of the hints' losses."""
        with (
            tapped(self.student, [h.student for h in self.hints]) as mine,
            tapped(teacher, [h.teacher for h in self.hints]) as theirs,
        ):
            with torch.no_grad():
                answers = teacher(images)
            logits = self.student(images)
        hinted = 0.0
        for hint, project in zip(self.hints, self.projections, strict=True):
            differ = feature_loss if hint.kind == "features" else attention_loss
            hinted = hinted + hint.weight * differ(project(mine[hint.student]), theirs[hint.teacher])
        return logits, answers, hinted


def _shapes(model: nn.Module, layers: Sequence[str], examples: Tensor) -> dict[str, Tensor]:
    looked_at = copy.deepcopy(model).eval()
    with torch.no_grad(), tapped(looked_at, layers) as seen:
        looked_at(examples.to(next(looked_at.parameters()).device))
    for name in layers:
        _check_maps(f"layer {name!r}", seen.get(name))
    return seen


def _check_maps(what: str, features: object) -> None:
    if not isinstance(features, Tensor) or features.ndim != 4:
        came = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise BadInput(
            f"{what} gives {came}; a hint compares maps (N, C, H, W): choose a convolution, or a stage of them"
        )


def _check_same_size(student: Tensor, teacher: Tensor, hint: Hint | None = None) -> None:
    if student.shape[2:] != teacher.shape[2:]:
        names = (f" {hint.student}", f" {hint.teacher}") if hint else ("", "")
        raise BadInput(
            f"the student's{names[0]} is {tuple(student.shape[2:])} high and wide, the teacher's{names[1]} "
            f"{tuple(teacher.shape[2:])}; choose two layers of the same height and width"
        )
