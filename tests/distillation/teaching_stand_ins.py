"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from labsupport import data, distillation
from labsupport.training import checkpoints

CLASSES = ("left", "right", "both")
OPTIONS = dict(epochs=3, batch_size=8, learning_rate=1e-2, seed=4)


def pictures(count=24, seed=0):
    """Three classes on 8×8 RGB: bright left, bright right, both."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int64)
    images = rng.integers(60, size=(count, 8, 8, 3), dtype=np.uint8)
    images[labels != 1, :, :4] += 150
    images[labels != 0, :, 4:] += 150
    return data.Split(images, labels, CLASSES)


def net(width=2, classes=3, seed=0, depth=1):
    return distillation.staged_cnn(classes, width=width, size=8, seed=seed, depth=depth)


def logits(seed=0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(6, classes, generator=generator, dtype=torch.float64)


def same(one, other):
    return checkpoints.fingerprint(one) == checkpoints.fingerprint(other)


def constant(student, teacher, images, labels):
    with torch.no_grad():
        return_of_teacher = F.cross_entropy(teacher(images), labels)
    return F.cross_entropy(student(images), labels) + return_of_teacher
