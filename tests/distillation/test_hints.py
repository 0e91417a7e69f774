"""Hints, the audit of a step, the lab's networks and modelopt."""

from __future__ import annotations

import pytest
import torch
from teaching_stand_ins import OPTIONS, constant, net, same
from torch import nn
from torch.nn import functional as F

from labsupport import data, distillation
from labsupport.distillation.hints import Hint, tapped
from labsupport.errors import BadInput, LabError
from labsupport.training import checkpoints

# --- hints


def test_the_hints_losses_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    one = a[0].square().mean(0).flatten()
    assert torch.allclose(distillation.attention_map(a)[0], one / one.norm(), atol=1e-6)
    assert distillation.attention_loss(a, 5 * a) < 1e-10  # where it looks, not how much
    maps = [distillation.attention_map(x) for x in (a, b)]
    assert torch.allclose(distillation.attention_loss(a, b), (2 - 2 * (maps[0] * maps[1]).sum(1)).mean(), atol=1e-6)
    assert torch.allclose(distillation.feature_loss(a, b), (a - b).square().mean())


@pytest.mark.parametrize("kind, weight", [("features", 5.0), ("attention", 50.0)])
def test_a_hint_brings_the_stage_closer_to_the_teachers(teacher, split, kind, weight):
    options = OPTIONS | dict(epochs=12, shift_pixels=0)
    images = torch.from_numpy(data.preprocess(split.images))

    def distance(model):
        with torch.no_grad(), tapped(model, ["stages.1"]) as mine, tapped(teacher, ["stages.1"]) as theirs:
            model(images), teacher(images)
        return float(distillation.attention_loss(mine["stages.1"], theirs["stages.1"]))

    hinted = distillation.distill(
        net(4), teacher, split, alpha=0.0, hints=Hint("stages.1", "stages.1", kind, weight), **options
    )
    alone = distillation.distill(net(4), teacher, split, alpha=0.0, **options)
    assert distance(hinted.model) < distance(alone.model)
    assert "of stages.1" in repr(hinted) and list(hinted.model.state_dict()) == list(alone.model.state_dict())


@pytest.mark.parametrize(
    "hint, sentence",
    [
        (Hint("stages.9", "stages.1"), r"StagedCnn has no layer 'stages\.9'; it has stages"),
        (Hint("stages.1", "layer1"), r"StagedCnn has no layer 'layer1'"),
        (Hint("", "stages.1"), r"has no layer ''"),
        (Hint("head", "stages.1"), r"layer 'head' gives \(2, 3\); a hint compares maps"),
        (
            Hint("stages.0", "stages.1", "attention"),
            r"the student's stages\.0 is \(4, 4\) high and wide, the teacher's stages\.1 \(2, 2\)",
        ),
    ],
)
def test_a_hint_that_fits_nothing_is_refused(teacher, split, hint, sentence):
    with pytest.raises(BadInput, match=sentence):
        distillation.distill(net(), teacher, split, hints=[hint], **OPTIONS)


def test_a_hint_of_no_kind_or_weight_is_refused():
    with pytest.raises(BadInput, match=r"kind='logits' is not known; choose one of \['features', 'attention'\]"):
        Hint("a", "b", "logits")
    with pytest.raises(BadInput, match="weight=-1; it multiplies the hint's loss"):
        Hint("a", "b", weight=-1)


def test_features_to_compare_have_one_shape_and_are_maps():
    with pytest.raises(BadInput, match=r"bring the student's to the teacher's channels with nn\.Conv2d"):
        distillation.feature_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
    with pytest.raises(BadInput, match=r"features gives \(1, 2\); a hint compares maps"):
        distillation.attention_map(torch.zeros(1, 2))
    with pytest.raises(BadInput, match="choose two layers of the same height and width"):
        distillation.attention_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4))


def heeding(student, teacher, images, labels):
    with torch.no_grad():
        answers = teacher(images)
    return distillation.loss(student(images), answers, labels)


def deaf(student, teacher, images, labels):
    return F.cross_entropy(student(images), labels)


def side_by_side(student, teacher, images, labels):
    optimizer = torch.optim.Adam(teacher.train().requires_grad_().parameters())
    F.cross_entropy(teacher(images), labels).backward()
    optimizer.step()
    return F.cross_entropy(student(images), labels)


def in_training_mode(student, teacher, images, labels):
    return heeding(student, teacher.train(), images, labels)


def with_gradients(student, teacher, images, labels):
    return F.mse_loss(student(images), teacher.requires_grad_()(images))


def only_features(student, teacher, images, labels):
    with tapped(student, ["stages.1"]) as mine, tapped(teacher, ["stages.1"]) as theirs:
        student(images), teacher(images)
    return distillation.attention_loss(mine["stages.1"], theirs["stages.1"]) + deaf(student, teacher, images, labels)


@pytest.mark.parametrize(
    "step, frozen, used, complaint",
    [
        (heeding, True, True, None),
        (only_features, True, True, None),
        (deaf, True, False, "the teacher is never asked"),
        (constant, True, False, "gradient is the same when"),
        (side_by_side, False, False, "weights or statistics change"),
        (in_training_mode, False, True, "answers in training mode"),
        (with_gradients, False, True, "gradients are computed for the teacher"),
    ],
)
def test_the_audit_tells_steps_apart(teacher, batch, step, frozen, used, complaint):
    before, student = checkpoints.fingerprint(teacher), net(4).train()
    found = distillation.audit(step, student, teacher, *batch)
    assert (found.frozen, found.used) == (frozen, used)
    assert complaint is None and not found.complaints or any(complaint in said for said in found.complaints)
    assert repr(found).startswith(f"Audit(teacher frozen: {frozen}, teacher used: {used}; ")
    assert checkpoints.fingerprint(teacher) == before and not any(module.training for module in teacher.modules())
    assert (
        not teacher._forward_pre_hooks and same(student, net(4)) and all(p.grad is None for p in student.parameters())
    )


def test_a_constant_moves_the_loss_and_not_the_gradient(teacher, batch):
    found = distillation.audit(constant, net(4), teacher, *batch)
    assert found.loss_moves and not found.gradient_moves


def test_dropout_does_not_look_like_a_teacher(teacher, batch):
    student = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 8 * 3, 3)).train()
    assert not distillation.audit(deaf, student, teacher, *batch).gradient_moves


@pytest.mark.parametrize(
    "step, sentence",
    [
        (lambda s, t, x, y: 1.0, "the step returned a float that no gradient flows from"),
        (lambda s, t, x, y: s(x), r"the step returned a tensor \(9, 3\)"),
        (lambda s, t, x, y: t.requires_grad_()(x).sum(), "no parameter of the student got a gradient"),
    ],
)
def test_a_step_that_trains_nothing_is_refused(teacher, batch, step, sentence):
    with pytest.raises(LabError, match=sentence):
        distillation.audit(step, net(), teacher, *batch)


def test_an_audit_wants_two_different_images(teacher, batch):
    with pytest.raises(BadInput, match="at least two different images"):
        distillation.audit(heeding, net(), teacher, batch[0][:1], batch[1][:1])
    with pytest.raises(BadInput, match="at least two different images"):
        distillation.audit(heeding, net(), teacher, batch[0][:1].repeat(4, 1, 1, 1), batch[1][:4])


# --- networks and the package of others


def test_the_networks_of_the_lab():
    teacher, student = distillation.staged_cnn(width=32, depth=2), distillation.staged_cnn()
    assert (distillation.parameters(teacher), distillation.parameters(student)) == (289_391, 38_035)
    assert student(student.example_input(3)).shape == (3, 15) and not student.training
    assert same(student, distillation.staged_cnn()) and not same(student, distillation.staged_cnn(seed=1))


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"width": 0}, "width=0; wanted a whole number of at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"size": 4}, "size=4; three stages halve it three times"),
    ],
)
def test_networks_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(BadInput, match=sentence):
        distillation.staged_cnn(**given)
