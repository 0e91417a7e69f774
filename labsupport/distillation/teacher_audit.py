"""Two questions about any distillation step: did the teacher stay as it was, and did the student hear it at all?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput, LabError
from labsupport.training.checkpoints import fingerprint


@dataclass(frozen=True)
class Audit:
    """What one step did with the teacher. `loss_moves`, `gradient_moves`: they differ when the teacher errs."""

    asked: int
    in_eval: bool
    without_gradients: bool
    unchanged: bool
    loss_moves: bool
    gradient_moves: bool

    @property
    def frozen(self) -> bool:
        """Never in training mode, without gradients, every parameter and statistic the same bits as before."""
        return self.in_eval and self.without_gradients and self.unchanged

    @property
    def used(self) -> bool:
        """Another teacher would have moved the student elsewhere; a loss that changes by a constant does not."""
        return self.asked > 0 and self.gradient_moves

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong, one sentence each; empty for a sound step."""
        sentences = {
            "the teacher is never asked": self.asked > 0,
            "the teacher answers in training mode": self.in_eval,
            "gradients are computed for the teacher": self.without_gradients,
            "the teacher's weights or statistics change": self.unchanged,
            "the loss is the same when the teacher is shown the wrong images": self.loss_moves or self.gradient_moves,
            "the student's gradient is the same when the teacher is shown the wrong images": self.gradient_moves,
        }
        return tuple(sentence for sentence, fine in sentences.items() if not fine)

    def __repr__(self) -> str:
        said = "; ".join(self.complaints) or "nothing to complain of"
        return f"Audit(teacher frozen: {self.frozen}, teacher used: {self.used}; {said})"


def freeze(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradients: fit to be a teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def check_frozen(teacher: nn.Module) -> None:
    """Refuse a teacher that would change, or cost gradients, while it teaches."""
    training = [name or "the module itself" for name, module in teacher.named_modules() if module.training]
    if training:
        raise BadInput(
            f"the teacher is in training mode ({training[0]}): its batch norms would judge each image by its "
            "neighbors and change as they go; pass distillation.freeze(teacher)"
        )
    trainable = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    if trainable:
        raise BadInput(
            f"{len(trainable)} parameters of the teacher, such as {trainable[0]}, take gradients; a teacher "
            "does not learn while it teaches: pass distillation.freeze(teacher)"
        )


def audit(
    step: Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor],
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
) -> Audit:
    """Run `step(student, teacher, images, labels) -> loss` twice on copies, the second time with the teacher misled.

    Misled: for each image it is shown the negative of another one, so all it says, logits or features, is beside the
    point. Only calls of the teacher itself are seen, not answers computed before, nor calls of its layers one by one.
    Wants at least two different images (N, C, H, W). Raises BadInput, LabError for a loss that nothing can learn from.
    """
    if not isinstance(images, Tensor) or len(images) < 2 or torch.equal(images[0], images[1]):
        raise BadInput("an audit wants a batch of at least two different images, float32 (N, C, H, W)")
    first, loss, gradient = _observed(step, student, teacher, images, labels, misled=False)
    _, other_loss, other_gradient = _observed(step, student, teacher, images, labels, misled=True)
    return Audit(**first, loss_moves=_differ(loss, other_loss), gradient_moves=_differ(gradient, other_gradient))


def _observed(step, student, teacher, images, labels, *, misled):
    """What one step on copies does: facts about the teacher, the loss, and the student's gradient as one vector."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    before, modes = fingerprint(teacher), []

    def look(module, inputs, named):
        modes.append(any(part.training for part in module.modules()))
        # other images alone would not do: their mean loss is the same for a student that answers all alike
        swap = lambda value: -value.roll(1, 0) if isinstance(value, Tensor) else value  # noqa: E731
        return (tuple(map(swap, inputs)), {name: swap(value) for name, value in named.items()}) if misled else None

    handle = teacher.register_forward_pre_hook(look, with_kwargs=True)
    student.zero_grad(set_to_none=True)
    gpus = sorted({part.get_device() for part in (*student.parameters(), *teacher.parameters()) if part.is_cuda})
    with torch.random.fork_rng(devices=gpus):  # a dropout must draw alike both times, or it would pass for the teacher
        torch.manual_seed(0)
        loss = step(student, teacher, images, labels)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            came = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise LabError(
                f"the step returned {came} that no gradient flows from; return the loss, a scalar tensor that "
                "was computed from the student's answer"
            )
        loss.backward()
    handle.remove()
    gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    if not gradients:
        raise LabError("no parameter of the student got a gradient from the loss; compute it from student(images)")
    facts = {
        "asked": len(modes),
        "in_eval": not any(modes),
        "unchanged": fingerprint(teacher) == before,
        "without_gradients": all(p.grad is None for p in teacher.parameters()),
    }
    return facts, loss.detach(), torch.cat(gradients)


def _differ(one: Tensor, other: Tensor) -> bool:
    """More than rounding: two runs of one step on one machine may differ in the last bits."""
    scale = max(float(one.norm()), float(other.norm()), 1e-12)
    return one.shape != other.shape or float((one - other).norm()) > 1e-4 * scale
