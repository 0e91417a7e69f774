"""Networks that call a layer twice, prepared for quantization-aware training: each call keeps its own batch norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import runtimes
from labsupport.quantization import qat, qdq


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.two(self.conv(torch.relu(self.one(self.conv(x)))))


class OnePath(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(x * 0.5)


class ReadTwice(nn.Module):
    """Its convolution is called once, and its result read by the norm and beside it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) * torch.sigmoid(y)


class OneNorm(nn.Module):
    """Two convolutions, one norm behind both."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.two(torch.relu(self.norm(self.one(x)))))


class LinearTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.norm = nn.Conv2d(6, 6, 1), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.fc(self.conv(x).mean((2, 3))))))


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.b.weight = self.a.weight
        self.one, self.two = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.two(self.b(torch.relu(self.one(self.a(x)))))


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc, self.flat = (
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8),
            nn.Linear(8, 4),
            nn.BatchNorm1d(4),
        )

    def forward(self, x):
        return self.flat(self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


def settled(kind):
    """The network with norms as training leaves them: no mean of 0, no scale of 1."""
    torch.manual_seed(0)
    network = kind()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 3)):
                values.uniform_(low, high)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return network.eval()


@pytest.mark.parametrize(
    "kind, norms, layers",
    [
        (TwoNorms, 2, 2),
        (OnePath, 1, 2),
        (ReadTwice, 1, 1),
        (OneNorm, 2, 2),
        (LinearTwice, 1, 3),
        (TiedWeights, 2, 2),
        (Once, 0, 2),
    ],
)
def test_a_prepared_network_answers_as_its_original(kind, norms, layers):
    network, x = settled(kind), torch.randn(32, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    prepared = qat.prepare(network, x)
    with torch.no_grad():
        exact, got = network.double()(x.double()), prepared(x)
    assert torch.linalg.norm(got - exact) / torch.linalg.norm(exact) < 0.03
    graph = qat.to_onnx(prepared, x[:2])
    assert graph.ops["BatchNormalization"] == norms and len(qdq.placement(graph).quantized) == layers
    with runtimes.OnnxRuntime(graph, optimization="off") as run:
        np.testing.assert_allclose(run(x.numpy())["output"], got.numpy(), atol=2e-2)
