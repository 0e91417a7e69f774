"""Soft labels: what a temperature does to logits, the loss that compares two of them, and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from labsupport.errors import BadInput


def softened(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Probabilities softmax(logits / temperature) over the last axis; 1 leaves them, more evens them out."""
    check_weights(temperature)
    return torch.softmax(logits / temperature, dim=-1)


def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² · KL(p ‖ q), mean over the batch: p, q are the softened logits (N, classes) of teacher and student.

    No gradient reaches the teacher. For high T the gradient fades as 1 / T²; the factor T² takes that back. The teacher
    stands first, so a class that it finds likely and the student does not costs most. Hinton et al. 2015,
    arXiv:1503.02531.
    """
    check_weights(temperature)
    _check_logits(student, teacher)
    q, p = F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher.detach() / temperature, dim=-1)
    # batchmean: "mean" would divide by the number of classes as well
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def soft_gradient(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Gradient of `soft_loss` by the student's logits in closed form: T · (q − p) / N, shape (N, classes)."""
    _check_logits(student, teacher)
    return temperature * (softened(student, temperature) - softened(teacher, temperature)) / len(student)


def loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0, alpha: float = 0.9) -> Tensor:
    """alpha · soft_loss + (1 − alpha) · cross entropy on the labels (N,), at temperature 1."""
    check_weights(temperature, alpha)
    hard = F.cross_entropy(student, labels)
    # at the ends one term is left out, not multiplied by 0: an infinite one would make NaN
    if alpha == 0:
        return hard
    soft = soft_loss(student, teacher, temperature=temperature)
    return soft if alpha == 1 else alpha * soft + (1 - alpha) * hard


def check_weights(temperature: float, alpha: float = 0.0) -> None:
    """Refuse a temperature of 0 or less, and an alpha that is no share."""
    if not _number(temperature) or not temperature > 0:
        raise BadInput(
            f"temperature={temperature!r}; it divides the logits, so it must be above 0: 1 leaves them as "
            "they are, 2 to 8 are usual"
        )
    if not _number(alpha) or not 0 <= alpha <= 1:
        raise BadInput(
            f"alpha={alpha!r}; it is the share of the soft labels in the loss, from 0 (labels only) to 1 "
            "(teacher only), such as 0.9"
        )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    for role, logits in (("student", student), ("teacher", teacher)):
        if not isinstance(logits, Tensor):
            raise BadInput(
                f"the {role}'s logits are a {type(logits).__name__}; wanted a tensor (N, classes): {role}(images)"
            )
    if student.ndim != 2 or student.shape != teacher.shape:
        raise BadInput(
            f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; wanted are "
            "two of one shape (N, classes), of the same images and the same classes"
        )
