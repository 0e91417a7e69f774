"""The checkers of lab 08: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
from solutions import shared_names
from torch.nn import functional as F

from labsupport import distillation
from labsupport.exercises import lab08
from labsupport.exercises.base import assert_checker, assert_complete, of

NAMES = {"torch": torch, "distillation": distillation, "F": F}


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab08, ["gain", "factor", "same_gradient", "hears", "proven", "front"])


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


def stepping(student, teacher, images, labels):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loss = right(student, teacher, images, labels)
    loss.backward()
    optimizer.step()
    return right(student, teacher, images, labels)


def backward_inside(student, teacher, images, labels):
    loss = right(student, teacher, images, labels)
    loss.backward()
    return loss


def by_soft_labels(student, teacher, images, labels):
    soft = F.softmax(teacher(images).detach(), dim=-1)
    return 0.7 * F.cross_entropy(student(images), soft) + 0.3 * F.cross_entropy(student(images), labels)


def without_squared_temperature(student, teacher, images, labels):
    soft, hard = (model(images) for model in (teacher, student))
    kl = F.kl_div(F.log_softmax(hard / 4, 1), F.softmax(soft / 4, 1), reduction="batchmean")
    return kl + 0.1 * F.cross_entropy(hard, labels)


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
            (lambda s, t, x, y: -distillation.soft_loss(s(x), t(x), temperature=4.0), "Is the sign right"),
            (lambda s, t, x, y: distillation.loss(s(x).softmax(1), t(x).softmax(1), y), "no probabilities"),
            (lambda s, t, x, y: distillation.loss(s(x), t(x).softmax(1), y), "no probabilities"),
            (lambda s, t, x, y: distillation.loss(s(x), t(x.flip(0)), y), "the same images"),
            (lambda s, t, x, y: F.cross_entropy(s(x), t(x).argmax(1)), "the teacher's chances|nobody listens"),
            (lambda s, t, x, y: distillation.loss(s.eval()(x), t(x), y), "leave it in training mode"),
            (
                lambda s, t, x, y: (t(x).softmax(1) * (t(x).softmax(1) / 0 * s(x).softmax(1)).log()).mean(),
                "the loss is",
            ),
            (lambda s, t, x, y: F.mse_loss(s(x), t(x), reduction="none"), "return their mean|no gradient"),
            (stepping, "weights moved inside the step"),
            (backward_inside, "calls backward by itself"),
        ],
        right=[right, right_by_squares, by_soft_labels, without_squared_temperature],
        namespace=NAMES,
    )


def by_statistics(alone, taught):
    gains = [after - before for before, after in zip(alone, taught)]
    if len(gains) <= 2:
        return False
    return statistics.mean(gains) / max(statistics.stdev(gains), 1e-9) * math.sqrt(len(gains)) > 2


def by_numpy(alone, taught):
    gains = np.array(taught) - np.array(alone)
    return np.bool_(len(gains) > 2 and gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(len(gains)))


def unpaired(alone, taught):
    spread = (np.var(alone) + np.var(taught)) / len(alone)
    return bool(len(alone) > 2 and np.mean(taught) - np.mean(alone) > 2 * spread**0.5)


def over_the_deviation(alone, taught):
    gains = np.subtract(taught, alone)
    return bool(len(gains) > 2 and gains.mean() > 2 * gains.std())


def of_any_size(alone, taught):
    gains = np.subtract(taught, alone)
    return bool(len(gains) > 2 and abs(gains.mean()) > 2 * gains.std(ddof=1) / len(gains) ** 0.5)


def test_proven():
    assert_checker(
        lab08.proven,
        wrong=[
            (lambda alone, taught: np.mean(taught) > np.mean(alone), "and it says"),
            (lambda alone, taught: True, "it says True"),
            (
                lambda alone, taught: all(b > a for a, b in zip(alone, taught)),
                "many seeds|one seed|two seeds|2.6 standard errors",
            ),
            (unpaired, "small gain of seeds that differ|2.6 standard errors"),
            (over_the_deviation, "many seeds with a wide spread|2.6 standard errors"),
            (of_any_size, "a teacher that harms"),
            (lambda alone, taught: max(taught) > max(alone), "and it says"),
            (lambda alone, taught: "yes", "wanted is True or False"),
            (lambda alone, taught: None, "`return`"),
            (lambda alone, taught: statistics.stdev(taught) > 0, "StatisticsError|and it says"),
            (0.4, "hand in the function itself"),
        ],
        right=[by_statistics, by_numpy],
        namespace={},
    )


def by_sorting(candidates):
    found, best = [], -1.0
    for ms in sorted({ms for _, ms in candidates.values()}):
        accuracy = max(a for a, m in candidates.values() if m == ms)
        if accuracy > best:
            best = accuracy
            found += [name for name, pair in candidates.items() if pair == (accuracy, ms)]
    return set(found)


def strictly(candidates):
    """Thinks that only a candidate that is better in both beats another."""
    return [n for n, (a, m) in candidates.items() if not any(x > a and y < m for x, y in candidates.values())]


def without_twins(candidates):
    return list({candidates[name]: name for name in by_sorting(candidates)}.values())


def test_front():
    assert_checker(
        lab08.front,
        wrong=[
            (["A", "E", "D"], "hand in the function itself"),
            (lambda candidates: ["A", "E", "D"], "the candidates are|is beaten by"),
            (lambda candidates: list(candidates), "is beaten by"),
            (lambda candidates: [max(candidates, key=candidates.get)], "beaten by no other, and is missing"),
            (strictly, "is beaten by"),
            (without_twins, "equals beat nobody"),
            (lambda candidates: [candidates[name] for name in by_sorting(candidates)], "front gave .*tuple"),
            (lambda candidates: None, "`return`"),
        ],
        right=[by_sorting, lambda candidates: (name for name in by_sorting(candidates))],
        namespace={},
    )


def test_lists_in_lists_are_no_names():
    assert "is none of them" in lab08.same_gradient.check([["kl"]]).message


def test_no_solution_overwrites_what_later_cells_of_the_notebook_need():
    for exercise in of(lab08).values():
        shared = shared_names(exercise.solution_source, "08_distillation", starters={"proven", "on_front"})
        assert not shared, f"the solution of {exercise.name} binds {shared}"
