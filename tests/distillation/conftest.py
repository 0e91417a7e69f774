"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

import pytest
import torch
from teaching_stand_ins import net, pictures

from labsupport import data, distillation, training


@pytest.fixture(scope="module")
def split():
    return pictures()


@pytest.fixture(scope="module")
def teacher(split):
    return distillation.freeze(training.fit(net(6), split, epochs=6, batch_size=8, learning_rate=2e-2).model)


# --- the audit


@pytest.fixture(scope="module")
def batch(split):
    return torch.from_numpy(data.preprocess(split.images[:9])), torch.from_numpy(split.labels[:9])
