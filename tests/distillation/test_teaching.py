"""The losses are what they claim, the teacher teaches unchanged, and what cannot be distilled is named."""

from __future__ import annotations

import copy

import pytest
import torch
from teaching_stand_ins import CLASSES, OPTIONS, logits, net, pictures, same
from torch import nn
from torch.nn import functional as F

from labsupport import data, distillation, training
from labsupport.distillation.hints import Hint, Pupil
from labsupport.errors import BadInput, LabError
from labsupport.training import checkpoints

# --- the arithmetic


def test_the_soft_loss_is_its_formula_and_zero_for_equal_answers():
    z, v = logits(1), logits(2)
    p, q = (v / 3).softmax(1), (z / 3).softmax(1)
    assert torch.allclose(distillation.soft_loss(z, v, temperature=3.0), 9 * (p * (p / q).log()).sum(1).mean())
    assert (
        distillation.soft_loss(v, v + 7, temperature=3.0).abs() < 1e-12
    )  # a constant added to all logits says nothing
    assert torch.allclose(distillation.softened(z, 3.0), q) and torch.allclose(
        distillation.softened(z, 1.0), z.softmax(1)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_closed_gradient_is_that_of_autograd_and_of_finite_differences(temperature):
    z, v = logits(1).requires_grad_(), logits(2)
    (automatic,) = torch.autograd.grad(distillation.soft_loss(z, v, temperature=temperature), z)
    closed = distillation.soft_gradient(z.detach(), v, temperature=temperature)
    assert torch.allclose(automatic, closed, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: distillation.soft_loss(x, v, temperature=temperature), z)


def test_t_squared_keeps_the_size_of_the_gradient():
    z, v = logits(1), logits(2)
    centered = [x - x.mean(1, keepdim=True) for x in (z, v)]
    limit = (centered[0] - centered[1]) / z.shape[1] / len(z)
    assert torch.allclose(distillation.soft_gradient(z, v, temperature=1e4), limit, atol=1e-4)
    plain = [float((distillation.soft_gradient(z, v, temperature=T) / T**2).norm()) for T in (50.0, 100.0)]
    assert plain[0] / plain[1] == pytest.approx(4, abs=0.1)


def test_alpha_mixes_and_its_ends_leave_one_term_out():
    z, v, labels = logits(1), logits(2), torch.arange(6) % 5
    soft, hard = distillation.soft_loss(z, v), F.cross_entropy(z, labels)
    assert torch.allclose(distillation.loss(z, v, labels, alpha=0.3), 0.3 * soft + 0.7 * hard)
    assert distillation.loss(z, v, labels, alpha=0) == hard and distillation.loss(z, v, labels, alpha=1) == soft
    assert distillation.loss(z, v * float("nan"), labels, alpha=0) == hard


def test_no_gradient_reaches_the_teachers_logits():
    z, v = logits(1).requires_grad_(), logits(2).requires_grad_()
    distillation.soft_loss(z, v).backward()
    assert v.grad is None and z.grad is not None


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "4", True])
def test_a_temperature_that_is_none_is_refused(temperature, teacher, split):
    with pytest.raises(BadInput, match="it divides the logits, so it must be above 0"):
        distillation.soft_loss(logits(), logits(), temperature=temperature)
    with pytest.raises(BadInput, match="temperature="):
        distillation.distill(net(), teacher, split, temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 90, float("nan"), None])
def test_an_alpha_outside_0_and_1_is_refused(alpha, teacher, split):
    with pytest.raises(
        BadInput, match=r"alpha=.*(share of the soft labels in the loss, from 0 .* to 1|wanted a number)"
    ):
        distillation.distill(net(), teacher, split, alpha=alpha)


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(BadInput, match=r"the student's logits are \(6, 5\), the teacher's \(6, 4\)"):
        distillation.soft_loss(logits(), logits(classes=4))
    with pytest.raises(BadInput, match=r"wanted are two of one shape"):
        distillation.soft_gradient(logits()[0], logits()[0])


# --- the loop


def test_alpha_0_is_training_alone_bit_for_bit(teacher, split):
    taught = distillation.distill(net(), teacher, split, alpha=0.0, **OPTIONS)
    alone = training.fit(net(), split, **OPTIONS)
    assert same(taught.model, alone.model) and taught.losses == alone.losses


def test_a_student_comes_to_answer_as_the_teacher_does(teacher, split):
    images = torch.from_numpy(data.preprocess(split.images))
    start = net()
    taught = distillation.distill(start, teacher, split, alpha=1.0, epochs=15, batch_size=8, shift_pixels=0)
    before, after = (distillation.soft_loss(model(images), teacher(images)).item() for model in (start, taught.model))
    assert after < before / 3 and taught.epochs == 15 and not taught.model.training
    assert same(start, net())  # the student that came is as it was
    assert repr(taught).startswith("Distilled(StagedCnn: 15 epochs at temperature 4, alpha 1, loss 0.")
    assert repr(taught).endswith(f"teacher {checkpoints.fingerprint(teacher)} unchanged)")


def test_the_teacher_that_came_is_untouched(teacher, split):
    before = checkpoints.fingerprint(teacher)
    done = distillation.distill(net(), teacher, split, hints=[Hint("stages.1", "stages.1")], **OPTIONS)
    assert done.teacher == before == checkpoints.fingerprint(teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_hooks for model in (teacher, done.model) for module in model.modules())


def test_another_teacher_makes_another_student(teacher, split):
    other = distillation.freeze(net(6, seed=9))
    assert not same(*(distillation.distill(net(), each, split, **OPTIONS).model for each in (teacher, other)))


class Drifting(nn.Module):
    """A teacher with a statistic that moves even in eval mode."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8 * 8 * 3, 3).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return self.head(images.flatten(1))


def test_a_teacher_that_changes_while_it_teaches_is_noticed(split):
    with pytest.raises(LabError, match="the teacher changed while it taught"):
        distillation.distill(net(), Drifting().eval(), split, **OPTIONS)


def test_a_teacher_that_is_not_frozen_is_refused(teacher, split):
    with pytest.raises(BadInput, match=r"the teacher is in training mode .*pass distillation\.freeze"):
        distillation.distill(net(), copy.deepcopy(teacher).train(), split)
    half = copy.deepcopy(teacher)
    half.stages[1].train()
    with pytest.raises(BadInput, match=r"in training mode \(stages\.1\)"):
        distillation.distill(net(), half, split)
    with pytest.raises(
        BadInput, match=r"11 parameters of the teacher, such as stages\.0\.0\.0\.weight, take gradients"
    ):
        distillation.distill(net(), net(6).eval(), split)
    with pytest.raises(BadInput, match="teacher='teacher.pt'; wanted a torch.nn.Module"):
        distillation.distill(net(), "teacher.pt", split)


def test_freeze_gives_a_copy():
    model = net().train()
    frozen = distillation.freeze(model)
    assert model.training and not frozen.training and all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in frozen.parameters()) and same(model, frozen)


def test_a_student_for_other_classes_is_refused(teacher, split):
    with pytest.raises(BadInput, match=r"the teacher tells 3 classes apart, the student 4; .* classes=3"):
        distillation.distill(net(classes=4), teacher, split)
    with pytest.raises(BadInput, match=r"the student answers \(2, 2, 8, 8\) for 2 images"):
        distillation.distill(nn.Conv2d(3, 2, 3, padding=1), teacher, split)


def test_an_empty_or_foreign_split_is_refused(teacher, split):
    with pytest.raises(BadInput, match="the split is empty"):
        distillation.distill(net(), teacher, data.Split(split.images[:0], split.labels[:0], CLASSES))
    with pytest.raises(BadInput, match="wanted a split"):
        distillation.distill(net(), teacher, split.images)
    with pytest.raises(BadInput, match="device='tpu'; wanted 'cpu'"):
        distillation.distill(net(), teacher, split, device="tpu")


# --- checkpoints


class Interrupts:
    """A preprocessing that stops the training once, in the middle of an epoch."""

    def __init__(self, call):
        self.call, self.calls = call, 0

    def __call__(self, images):
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt
        return data.preprocess(images)


@pytest.mark.parametrize("hints", [(), (Hint("stages.1", "stages.1"), Hint("stages.2", "stages.2", "attention"))])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, teacher, split, hints):
    straight = distillation.distill(net(), teacher, split, hints=hints, **OPTIONS)
    file = tmp_path / "student.pt"
    with pytest.raises(KeyboardInterrupt):  # two calls look at the data, three batches an epoch: this is in epoch 2
        distillation.distill(net(), teacher, split, hints=hints, checkpoint=file, preprocess=Interrupts(7), **OPTIONS)
    assert checkpoints.load(file, model=Pupil(net(), teacher, hints, torch.zeros(2, 3, 8, 8), 0)).epoch == 1
    resumed = distillation.distill(net(), teacher, split, hints=hints, checkpoint=file, **OPTIONS)
    assert same(straight.model, resumed.model) and straight.losses == resumed.losses
    again = distillation.distill(net(), teacher, split, hints=hints, checkpoint=file, **OPTIONS)
    assert same(straight.model, again.model)


def test_a_teacher_kept_before_names_had_fingerprints_is_not_found_and_an_interrupted_one_goes_on(tmp_path, split):
    old = tmp_path / "teacher_cpu.pt"
    old.write_bytes(b"of last year")
    start = net(6)
    file = checkpoints.place(tmp_path, "teacher_cpu", start).path
    with pytest.raises(KeyboardInterrupt):  # one call looks at the data, three batches an epoch: this is in epoch 2
        training.fit(start, split, checkpoint=file, preprocess=Interrupts(6), **OPTIONS)
    assert checkpoints.place(tmp_path, "teacher_cpu", net(6)).path == file and file.is_file()
    resumed = training.fit(net(6), split, checkpoint=file, **OPTIONS)
    assert same(resumed.model, training.fit(start, split, **OPTIONS).model) and old.read_bytes() == b"of last year"
    assert checkpoints.place(tmp_path, "teacher_cpu", net(6, seed=1)).path != file


def test_a_checkpoint_of_another_training_is_refused(tmp_path, teacher, split):
    file = tmp_path / "student.pt"
    distillation.distill(net(), teacher, split, checkpoint=file, **OPTIONS)
    whole = file.read_bytes()
    other = distillation.freeze(net(6, seed=9))
    for change, sentence in [
        (
            dict(teacher=other),
            rf"its teacher is '{checkpoints.fingerprint(teacher)}', wanted is '{checkpoints.fingerprint(other)}'",
        ),
        (dict(temperature=2.0), "its temperature is 4.0, wanted is 2.0"),
        (dict(alpha=0.5), "its alpha is 0.9, wanted is 0.5"),
        (dict(student=net(3)), "checkpoint of another model"),
        (dict(student=net(seed=1)), "its start is"),
        (dict(split=pictures(seed=1)), "its pixels and labels is"),
        (dict(hints=Hint("stages.1", "stages.1", "attention")), "its hints is"),
    ]:
        given = dict(student=net(), teacher=teacher, split=split) | change
        with pytest.raises(LabError, match=sentence):
            distillation.distill(**given, checkpoint=file, **OPTIONS)
    with pytest.raises(
        LabError, match="belongs to another training: its trained by is 'distillation.distill'|another model"
    ):
        training.fit(Pupil(net(), teacher, (), torch.zeros(2, 3, 8, 8), 0), split, checkpoint=file, **OPTIONS)
    assert file.read_bytes() == whole


# --- the objective of training.fit


def test_fit_takes_another_objective_and_keeps_it_in_the_checkpoint(tmp_path, split):
    def negligent(model, images, labels):
        answers = model(images)
        return answers, 0 * answers.sum() + 2

    history = training.fit(
        net(), split, objective=negligent, facts={"objective": "negligent"}, checkpoint=tmp_path / "a.pt", **OPTIONS
    )
    assert history.losses == (2.0, 2.0, 2.0)
    with pytest.raises(LabError, match="its objective is 'negligent', wanted is 'not there'"):
        training.fit(net(), split, checkpoint=tmp_path / "a.pt", **OPTIONS)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (
            dict(student=distillation.freeze(net()), hints=Hint("stages.2", "stages.2")),
            "the student, a StagedCnn, is frozen",
        ),
        (dict(student=None), "student=None; wanted a torch.nn.Module"),
        (dict(student=distillation.StagedCnn), "student=the class StagedCnn; wanted a torch.nn.Module"),
        (dict(hints=["stages.2"]), "hints hold 'stages.2'; wanted are distillation.Hint"),
    ],
)
def test_a_student_or_a_hint_that_is_none_is_refused(teacher, split, given, sentence):
    with pytest.raises(BadInput, match=sentence):
        distillation.distill(**(dict(student=net(), teacher=teacher, split=split) | given), **OPTIONS)


def test_logits_and_teachers_of_other_kinds_are_named():
    with pytest.raises(BadInput, match="the teacher's logits are a NoneType"):
        distillation.soft_loss(torch.zeros(2, 3), None)
    with pytest.raises(BadInput, match="model=None; wanted a torch.nn.Module"):
        distillation.freeze(None)


def test_a_teacher_asked_by_keyword_is_misled_as_well(teacher, batch):
    def by_keyword(student, teacher, images, labels):
        with torch.no_grad():
            answers = teacher(images=images)
        return distillation.loss(student(images), answers, labels)

    found = distillation.audit(by_keyword, net(), teacher, *batch)
    assert found.frozen and found.used
