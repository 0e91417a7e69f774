"""A small network that learns from a large one: losses, hints, and an audit that the teacher was really heard.

The parts: ``teaching`` (the loop), ``losses``, ``hints`` (inner layers), ``teacher_audit``, ``networks`` (students).
"""

from __future__ import annotations

from labsupport.distillation.hints import Hint, Pupil, attention_loss, attention_map, feature_loss
from labsupport.distillation.losses import loss, soft_gradient, soft_loss, softened
from labsupport.distillation.networks import StagedCnn, parameters, staged_cnn
from labsupport.distillation.teacher_audit import Audit, audit, freeze
from labsupport.distillation.teaching import Distilled, check_pair, distill

__all__ = [
    "Audit", "Distilled", "Hint", "Pupil", "StagedCnn", "attention_loss", "attention_map", "audit", "check_pair",
    "distill", "feature_loss", "freeze", "loss", "parameters", "soft_gradient", "soft_loss",
    "softened", "staged_cnn",
]  # fmt: skip
