"""Networks that are lists of layers, that hold a recurrent one, or that give a criterion nothing to judge by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import data, pruning
from labsupport.data.datasets import Split
from labsupport.errors import BadInput
from labsupport.pruning.channels import _take_gradients

X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(3))


class Listed(nn.Module):
    """A stem, and convolutions in a list inside a module of their own, with a product of the module's own."""

    def __init__(self):
        super().__init__()
        self.body, self.f = nn.Module(), nn.Linear(8, 4)
        self.body.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)])
        self.body.forward = self.run
        self.pool = nn.AdaptiveAvgPool2d(1)

    def run(self, x):
        for layer in self.body.layers:
            x = torch.relu(layer(x))
        rows = x.flatten(2)  # (N, 8, 36)
        return (rows @ rows.transpose(1, 2)) @ x.mean((2, 3), keepdim=True).flatten(2)  # (N, 8, 1)

    def forward(self, x):
        return self.f(self.body(x).flatten(1))


def test_each_product_is_counted_for_one_layer():
    found = pruning.cost(Listed(), X)
    own = 8 * 8 * 36 + 8 * 8
    assert found.layers == {
        "body": own,
        "body.layers.0": 64 * 8 * 3 * 9,
        "body.layers.1": 36 * 8 * 8 * 9,
        "f": 8 * 4,
    }
    assert sum(found.layers.values()) == found.macs
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    cost = pruning.cost(encoder, torch.randn(2, 5, 16))
    assert sum(cost.layers.values()) == cost.macs and cost.layers["layers.1.linear1"] == 5 * 16 * 32


class Weighted(nn.Module):
    """A matrix that meets a vector."""

    def __init__(self, bias: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 7)), nn.Parameter(torch.randn(6)) if bias else None

    def forward(self, x):
        product = torch.addmv(self.bias, self.weight, x[0]) if self.bias is not None else self.weight @ x[0]
        return product[None]


@pytest.mark.parametrize("bias", [True, False])
def test_a_matrix_and_a_vector_count_with_and_without_a_bias(bias):
    assert pruning.cost(Weighted(bias), torch.randn(1, 7)).macs == 6 * 7


def test_a_network_that_torch_pruning_cannot_follow_is_told_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.h = nn.LSTM(16, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.h(self.l(x)[0][:, -1])

    with pytest.raises(BadInput, match="torch-pruning cannot follow the channels of h .*choose another layer"):
        pruning.coupled(Recurrent(), "h", torch.randn(2, 5, 16))


class Halved(nn.Module):
    """A convolution whose result is cut in two."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 16, 1), nn.Linear(32, 4)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.h(torch.cat([self.b(left), right], 1).mean((2, 3)))


def test_a_share_that_cannot_be_reached_names_what_stands_in_its_way():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    with pytest.raises(BadInput, match="criterion='batchnorm' reads the factors of batch norms, and the network has"):
        pruning.shrink(plain, criterion="batchnorm", round_to=2, example=X)
    assert pruning.shrink(plain, round_to=2, example=X).mac_reduction >= 2
    with pytest.raises(BadInput, match=r"a, b, h keep theirs; of a: the network does not run without them"):
        pruning.shrink(Halved(), round_to=2, example=X)
    lines = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU())
    with pytest.raises(
        BadInput, match="Sequential has no Conv2d and no Linear, and no other layer's weights are pruned"
    ):
        pruning.magnitude(lines, 0.5)


def test_importance_by_gradients_reads_the_norms_as_they_are_at_inference():
    """In training mode the statistics of the batch would be taken, and moved."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    nn.init.normal_(net[1].running_mean)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, 6), tuple("abcd"))
    before = net[1].running_mean.clone()
    _take_gradients(net.train(), split)
    assert torch.equal(net[1].running_mean, before)
    with torch.enable_grad():
        net.eval()
        loss = nn.functional.cross_entropy(
            net(torch.from_numpy(data.preprocess(split.images))), torch.from_numpy(split.labels)
        )
        (expected,) = torch.autograd.grad(loss, [net[0].weight])
    torch.testing.assert_close(net[0].weight.grad, expected)
