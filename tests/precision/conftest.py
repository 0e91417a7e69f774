"""A small network with a convolution, a norm and a softmax, which the tests of this room cast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labsupport import export


class Small(nn.Module):
    input_name, output_name = "x", "logits"

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return torch.softmax(self.out(self.norm(y) + 0.5), 1)


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Small()
        example = torch.randn(2, 1, 8, 8)
    return export.to_onnx(model.eval(), example, dynamic=False), example.numpy()
