"""Students, teachers and duels drawn anew for lab 08, and what a learner's loss makes of a student."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

from labsupport.exercises.answers import Wrong, described

STEPS = 250
LEARNED = 0.45  # of the distance to the teacher that may be left; sound losses leave 0.25 at most, unsound ones 0.65


def class_of_two():
    """A student, a frozen teacher whose answers differ from image to image, six images and their labels."""
    import torch

    from labsupport import distillation

    teacher = distillation.staged_cnn(classes=5, width=4)
    images, labels = teacher.example_input(6), torch.arange(6) % 5
    with torch.no_grad():
        teacher.head.weight *= 50
        teacher.head.bias -= teacher(images).mean(0)  # so the likeliest class is not the same for all
    return (
        distillation.staged_cnn(classes=5, width=2).train(),
        distillation.freeze(teacher),
        images,
        labels,
    )


def look_at_loss(step: Callable, student, teacher, images, labels) -> None:
    """Wrong for what is no loss, for NaN, and for a step that trains by itself or changes the student's mode."""
    import torch

    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    before = [parameter.clone() for parameter in student.parameters()]
    modes: list[bool] = []
    student.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    loss = step(student, teacher, images.clone(), labels.clone())
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and not torch.isfinite(loss.detach()).all():
        raise Wrong(f"the loss is {float(loss):g}: a log of 0, or a division by 0? Start from logits; use log_softmax.")
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return  # the audit says what came
    if any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True)):
        raise Wrong("the student's weights moved inside the step; return the loss, whoever calls takes the step.")
    if any(parameter.grad is not None for parameter in student.parameters()):
        raise Wrong("the step calls backward by itself; return the loss, whoever calls does the rest.")
    if not student.training or not all(modes):
        raise Wrong("the student is switched to eval mode; it is being trained, so leave it in training mode.")
    if loss.ndim:
        raise Wrong(f"the loss is {described(tuple(loss.shape))}, one number for each; return their mean.")


def share_not_learned(step: Callable) -> float:
    """How far from the teacher a linear student stays that lowers the loss, over how far from it a guess is.

    Compared are the chances of those classes that the labels do not name; 0 is the teacher's own answer.
    """
    import torch
    from torch import nn

    images = torch.randn(12, 3, 8, 8)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(192, 6)) for _ in range(2))
    with torch.no_grad():
        nn.init.normal_(teacher[1].weight, std=1.2 / 192**0.5)
        nn.init.normal_(student[1].weight, std=0.2 / 192**0.5)
    teacher.eval().requires_grad_(False)
    student.train()
    labels = teacher(images).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 6  # the labels say otherwise here and there
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    for _ in range(STEPS):
        optimizer.zero_grad()
        step(student, teacher, images, labels).backward()
        optimizer.step()
    others = torch.ones(12, 6, dtype=torch.bool)
    others[torch.arange(12), labels] = False
    with torch.no_grad():
        theirs, mine = (model(images)[others].view(12, 5).log_softmax(dim=1) for model in (teacher, student))
        distance, guess = (float((theirs.exp() * (theirs - other)).sum(1).mean()) for other in (mine, -1.6094))
    return distance / guess


def drawn_duels() -> list[tuple[str, list[float], list[float], bool]]:
    """(what is tried, accuracies alone, accuracies taught, whether the gain is proven), drawn anew."""
    draw, cases = random.Random(), []

    def case(name: str, gains: list[float], right: bool, between: float = 0.01) -> None:
        alone = [0.7 + draw.uniform(-between, between) for _ in gains]
        cases.append((name, alone, [before + gain / 100 for before, gain in zip(alone, gains, strict=True)], right))

    big = draw.uniform(2.0, 6.0)
    case("a clear gain", [big + draw.uniform(-0.4, 0.4) for _ in range(5)], True)
    case("a mean that one seed made", [3 * big, -0.3 * big, 0.1 * big, -0.2 * big], False)
    case("a small gain of seeds that differ widely", [1 + draw.uniform(-0.15, 0.15) for _ in range(6)], True, 0.15)
    case("a teacher that harms", [-big + draw.uniform(-0.2, 0.2) for _ in range(5)], False)
    case("many seeds with a wide spread", [1 + 1.4 * (-1) ** i + draw.uniform(-0.2, 0.2) for i in range(40)], True)
    case("gains about 0", [draw.uniform(0.2, 0.4) * (-1) ** i for i in range(6)], False)
    case("the same twice", [0.0] * 5, False)
    case("three seeds that agree", [big, big + 0.1, big - 0.1], True)
    for errors, right in ((1.3, False), (2.6, True)):  # standard errors of the mean; about 0.3 each, of 12 such gains
        gains = [0.3 * errors + (-1) ** i for i in range(12)]
        case(f"a mean of {errors} standard errors", [big / 4 * gain for gain in gains], right)
    case("two seeds", [big, big + 0.1], False)
    case("one seed", [big], False)
    draw.shuffle(cases)
    return cases


def drawn_candidates() -> dict[str, tuple[float, float]]:
    """Eight candidates (accuracy, ms) on a coarse grid, so that some are equal in one or both."""
    draw = random.Random()
    pairs = [(draw.randint(80, 86) / 100, draw.randint(1, 6) / 2) for _ in range(7)]
    best = max(pairs, key=lambda pair: (pair[0], -pair[1]))  # on the front, and twice there
    names = draw.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 8)
    return dict(zip(names, draw.sample([*pairs, best], 8), strict=True))
