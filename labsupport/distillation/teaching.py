"""A small network that learns from a large one: soft labels, hints, and the proof that the teacher took part unchanged.

The parts: ``distillation_losses`` (the arithmetic), ``distillation_hints`` (what the layers between say),
``distillation_audit`` (frozen, and really used) and ``distillation_networks`` (a teacher and its smaller sisters).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from labsupport import data, training
from labsupport.data.datasets import Split
from labsupport.distillation.hints import Hint, Pupil
from labsupport.distillation.losses import check_weights, loss
from labsupport.distillation.teacher_audit import check_frozen
from labsupport.errors import BadInput, LabError
from labsupport.training import checkpoints, scoring


@dataclass(frozen=True, eq=False)
class Distilled:
    """A student after its lessons (on the CPU, in eval mode), and the fingerprint of the teacher who gave them."""

    model: nn.Module
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float
    teacher: str
    temperature: float
    alpha: float
    hints: tuple[Hint, ...] = ()

    @property
    def epochs(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        hints = "".join(f" + {hint.kind} of {hint.teacher}" for hint in self.hints)
        return (
            f"Distilled({type(self.model).__name__}: {self.epochs} epochs at temperature {self.temperature:g}, "
            f"alpha {self.alpha:g}{hints}, loss {self.losses[-1]:.3f}, training accuracy {self.accuracies[-1]:.1%}, "
            f"{self.seconds:.1f} s; teacher {self.teacher} unchanged)"
        )


def distill(
    student: nn.Module,
    teacher: nn.Module,
    split: Split,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    hints: Hint | Sequence[Hint] = (),
    epochs: int = 60,
    batch_size: int = 50,
    learning_rate: float = 2e-2,
    seed: int = 0,
    device: str = "cpu",
    preprocess: Callable[[np.ndarray], np.ndarray] = data.preprocess,
    **options,
) -> Distilled:
    """Train a copy of `student` on alpha · T² · KL(teacher ‖ student) + (1 − alpha) · cross entropy + hints.

    The loop is `training.fit`, so a student trained alone with the same options and seed sees the same images, moved
    alike, in the same order; with alpha=0 both give the same weights. The teacher sees each moved image too (Beyer et
    al. 2021, arXiv:2106.05237) and must be frozen; that it is unchanged at the end is checked bit by bit. `options` are
    further ones of `training.fit`: `shift_pixels`, `progress`, or `checkpoint`, with which an interrupted run goes on
    where it stood. Raises BadInput; LabError for a checkpoint of another student, teacher, training set or option.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    check_weights(temperature, alpha)
    hints = _checked_hints(hints)
    check_frozen(teacher)
    scoring.check_filled(split)
    scoring.check_device(device)
    examples = torch.from_numpy(preprocess(split.images[:2]))
    check_pair(student, teacher, examples)
    scoring.check_fits(student, split, preprocess)  # in `fit` the message would name the Pupil
    before = checkpoints.fingerprint(teacher)
    answering = copy.deepcopy(teacher).to(device)  # moving the teacher that came would change it
    pupil = Pupil(student, answering, hints, examples.to(device), seed)

    def objective(pupil: Pupil, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, answers, hinted = pupil.beside(answering, images)
        return logits, loss(logits, answers, labels, temperature=temperature, alpha=alpha) + hinted

    facts = {
        "trained by": "distillation.distill",
        "teacher": before,
        "temperature": temperature,
        "alpha": alpha,
        "hints": [repr(hint) for hint in hints],
    }
    history = training.fit(
        pupil,
        split,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        preprocess=preprocess,
        objective=objective,
        facts=facts,
        **options,
    )
    if checkpoints.fingerprint(answering) != before:
        raise LabError(
            "the teacher changed while it taught: its forward pass writes to a parameter or a buffer; "
            "the student learned from a moving target. Look for a layer that ignores eval()"
        )
    return Distilled(
        history.model.student, history.losses, history.accuracies, history.seconds, before, temperature, alpha, hints
    )


def _checked_hints(hints) -> tuple[Hint, ...]:
    hints = (hints,) if isinstance(hints, Hint) else tuple(hints or ())
    if wrong := [hint for hint in hints if not isinstance(hint, Hint)]:
        raise BadInput(
            f'hints hold {wrong[0]!r:.40}; wanted are distillation.Hint("layer of the student", "of the teacher")'
        )
    return hints


def check_pair(student: nn.Module, teacher: nn.Module, examples: Tensor) -> None:
    """Refuse a student that cannot learn, and two whose logits (N, classes) cannot be compared."""
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise BadInput(
            f"the student, a {type(student).__name__}, is frozen: no parameter of it takes gradients; "
            "unfreeze a copy with requires_grad_(True)"
        )
    counts = {}
    for role, model in (("student", student), ("teacher", teacher)):
        logits = scoring.evaluate(model, examples.numpy())
        if logits.ndim != 2 or len(logits) != len(examples):
            raise BadInput(
                f"the {role} answers {logits.shape} for {len(examples)} images; wanted one row of logits for each"
            )
        counts[role] = logits.shape[1]
    if counts["student"] != counts["teacher"]:
        raise BadInput(
            f"the teacher tells {counts['teacher']} classes apart, the student {counts['student']}; soft labels "
            f"need the same classes in the same order: make the student with classes={counts['teacher']}"
        )
