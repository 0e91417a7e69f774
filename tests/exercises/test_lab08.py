"""The checkers of lab 08: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import torch
from solutions import shared_names
from torch import nn
from torch.nn import functional as F

from labsupport import distillation
from labsupport.exercises import lab08
from labsupport.exercises.base import assert_checker, assert_complete, of

NAMES = {"torch": torch, "distillation": distillation, "F": F}


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab08, ["gain", "factor", "same_gradient", "hears", "smaller", "front"])


def test_factor():
    assert_checker(
        lab08.factor,
        wrong=[
            (2, "the 1 / T of the chain rule alone"),
            (1, "so it would be with the T²"),
            (0.25, "the share that is left"),
            (16, "not 16 times"),
            (-4, "not -4 times"),
            ("four", "a number is wanted"),
        ],
        right=[4, 3.98],
        namespace=NAMES,
    )


def test_same_gradient():
    assert_checker(
        lab08.same_gradient,
        wrong=[
            (["kl"], "one more does. Its value differs"),
            (["cross entropy"], "one more does. Start with the definition"),
            (["kl", "no T squared"], "'no T squared' pulls otherwise: .* 16 times smaller"),
            (["kl", "mean"], "15 times smaller"),
            (["kl", "cross entropy", "reversed"], "'reversed' pulls otherwise"),
            (["softmax"], "'softmax' is none of them"),
            ([], "one more does"),
            ("kl", "list"),
        ],
        right=[["kl", "cross entropy"], ["cross entropy", "kl"]],
        namespace=NAMES,
    )


def test_the_suspects_pull_as_the_checker_says():
    student = torch.randn(8, 15, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher = torch.randn(8, 15, generator=torch.Generator().manual_seed(2))
    wanted = distillation.soft_gradient(student.detach(), teacher, temperature=4.0)
    gradients = {
        name: torch.autograd.grad(lab08.suspect(name)(student, teacher, 4.0), student)[0] for name in lab08.SUSPECTS
    }
    assert {name for name, found in gradients.items() if torch.allclose(found, wanted, atol=1e-6)} == lab08.SAME
    for name, times in (("no T squared", 16), ("mean", 15)):
        assert torch.allclose(times * gradients[name], wanted, atol=1e-6)


def right(student, teacher, images, labels):
    with torch.no_grad():
        answers = teacher(images)
    return distillation.loss(student(images), answers, labels)


def right_by_squares(student, teacher, images, labels):
    return F.mse_loss(student(images), teacher(images).detach())


def deaf(student, teacher, images, labels):
    return F.cross_entropy(student(images), labels)


def asked_in_vain(student, teacher, images, labels):
    teacher(images)
    return F.cross_entropy(student(images), labels)


def article(student, teacher, images, labels):
    optimizer = torch.optim.Adam(teacher.train().requires_grad_().parameters())
    F.cross_entropy(teacher(images), labels).backward()
    optimizer.step()
    return F.cross_entropy(student(images), labels)


def in_training_mode(student, teacher, images, labels):
    return right(student, teacher.train(), images, labels)


def with_gradients(student, teacher, images, labels):
    return F.mse_loss(student(images), teacher.requires_grad_()(images))


def no_return(student, teacher, images, labels):
    right(student, teacher, images, labels)


def untouched(student, teacher, images, labels):
    return ...


def test_hears():
    assert_checker(
        lab08.hears,
        untouched,
        wrong=[
            (deaf, "the teacher is never asked"),
            (asked_in_vain, "The teacher is asked, and nobody listens"),
            (article, "nobody listens"),
            (in_training_mode, "the teacher answers in training mode"),
            (with_gradients, "gradients are computed for the teacher"),
            (no_return, "no gradient flows from"),
            (torch.zeros(()), "hand in the function itself"),
            (lambda images: images, "argument"),
        ],
        right=[right, right_by_squares],
        namespace=NAMES,
    )


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 15)

    def forward(self, images):
        return self.layer(images[:, :, ::3, ::3].flatten(1))


class Dense(nn.Sequential):
    def __init__(self):
        super().__init__(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 15))


def test_smaller():
    assert_checker(
        lab08.smaller,
        wrong=[
            (distillation.staged_cnn(), "38,035 parameters are 7.6 times fewer"),
            (distillation.staged_cnn(width=32, depth=2), "as large as the teacher"),
            (distillation.staged_cnn(10, width=8), "the teacher tells 15 classes apart, the student 10"),
            (Linear(), "that network is linear"),
            (16, "hand in the network"),
        ],
        right=[distillation.staged_cnn(width=16), distillation.staged_cnn(width=8, depth=2), Dense()],
        namespace=NAMES,
    )


def test_front():
    assert_checker(
        lab08.front,
        wrong=[
            (["A", "B", "D"], "B is beaten by E"),
            (["A", "E", "D", "F"], "F is beaten by D: accuracy 0.9 against 0.85"),
            (["A", "E", "D", "C"], "C is beaten by B"),
            (["A"], "more are"),
            ([], "more are"),
            (["A", "A", "A"], "more are"),
            (["Z"], "'Z' is no candidate"),
        ],
        right=[["A", "E", "D"], ["D", "E", "A"]],
        namespace=NAMES,
    )


def test_a_network_handed_in_stays_in_its_mode():
    linear = Linear().train()
    assert "that network is linear" in lab08.smaller.check(linear).message and linear.training
    assert "is frozen" in lab08.smaller.check(distillation.freeze(distillation.staged_cnn(width=8))).message


def test_lists_in_lists_are_no_names():
    assert "is none of them" in lab08.same_gradient.check([["kl"]]).message
    assert "is no candidate" in lab08.front.check([{}]).message


def test_no_solution_overwrites_what_later_cells_of_the_notebook_need():
    for exercise in of(lab08).values():
        shared = shared_names(exercise.solution_source, "08_distillation")
        assert not shared, f"the solution of {exercise.name} binds {shared}"
