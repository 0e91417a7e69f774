"""Two of four: the mask on every axis, permutations that change no answer, reports, Model Optimizer, and bad input named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import errors, export, models, pruning


@pytest.fixture(scope="module")
def network():
    return models.resnet18(classes=4, width=16, size=32)


def by_hand(weight):
    """The two largest of each four, one group after the other."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 4):
            for place in sorted(range(4), key=lambda i: -abs(float(weight[row, start + i])))[:2]:
                mask[row, start + place] = True
    return mask


def test_the_mask_is_that_of_the_hand():
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pruning.mask24(weight), by_hand(weight))
    assert torch.equal(pruning.mask24(weight.T.contiguous(), axis=0), by_hand(weight).T)


def test_a_convolution_is_grouped_along_its_inputs():
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = pruning.mask24(weight)
    assert mask.shape == weight.shape
    for i in range(3):
        assert torch.equal(mask[:, :, i, 1], by_hand(weight[:, :, i, 1]))
    assert pruning.share24(weight * mask) == 1 and pruning.share24(weight) == 0
    assert 0 < pruning.share24(weight * mask, axis=0) < 1


def test_of_equal_weights_two_stay():
    assert pruning.mask24(torch.ones(3, 8)).sum(1).tolist() == [4, 4, 4]
    assert pruning.mask24(torch.tensor([[0.0, 0, 0, 5]])).tolist() == [[True, False, False, True]]


def test_a_network_is_pruned_where_kernels_take_it(network):
    before = copy.deepcopy(network.state_dict())
    halves = pruning.magnitude24(network)
    assert halves.skipped == {"conv1": "3 inputs and 16 outputs", "fc": "128 inputs and 4 outputs"}
    assert halves.sparsity == 0.5 and len(halves.masks) == 19
    assert repr(halves).endswith("zero, in 19 layers; 2 left dense: conv1, fc)")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert {line.name for line in pruning.report24(halves.model) if line.obeys} == set(halves.masks)


def test_swapping_inputs_never_loses():
    weight = torch.randn(16, 24, 3, 3, generator=torch.Generator().manual_seed(1))
    weight[:, :4] *= 20  # one group has all that is large
    better = pruning.permute(weight)
    assert sorted(better.order.tolist()) == list(range(24))
    assert better.after > better.before + 0.05
    assert better.before == pytest.approx(pruning.magnitude_kept(weight, pruning.mask24(weight)), abs=1e-5)
    sorted_weight = weight[:, better.order]
    assert better.after == pytest.approx(pruning.magnitude_kept(sorted_weight, pruning.mask24(sorted_weight)), abs=1e-5)
    assert repr(better).startswith("Permutation(")


def test_a_weight_that_cannot_gain_stays_as_it_is():
    better = pruning.permute(torch.eye(8))
    assert better.before == better.after == 1 and better.order.tolist() == list(range(8))


def test_a_report_tells_the_axis(network):
    weight = network.layer2[0].conv2.weight.detach()
    layer = nn.Conv2d(32, 32, 3)
    with torch.no_grad():
        layer.weight.copy_(weight * pruning.mask24(weight, axis=0))
    (line,) = pruning.report24(nn.Sequential(layer))
    assert line.along_outputs == 1 and line.along_inputs < 1 and not line.obeys and line.zeros == 0.5
    assert (
        repr(line) == f"0 32×32×3×3: 50% zeros; groups of 2:4 along inputs {line.along_inputs:.0%}, along outputs 100%"
    )


def test_a_graph_is_reported_like_its_module(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.Linear(12, 6)).eval()
    thin = pruning.masked(net, {"0": pruning.mask24(net[0].weight), "3": pruning.mask24(net[3].weight)}).model
    graph = export.to_onnx(thin, torch.randn(1, 16, 4, 4), path=tmp_path / "thin.onnx")
    lines = pruning.report24(graph)
    assert [(line.shape, line.zeros, line.obeys) for line in lines] == [
        ((8, 16, 3, 3), 0.5, True),
        ((12, 32), 0.5, True),
        ((6, 12), 0.0, False),
    ]
    assert [line.shape for line in pruning.report24(tmp_path / "thin.onnx")] == [line.shape for line in lines]
    assert lines[2].along_outputs is None and "along outputs none" in repr(lines[2])


def test_weights_that_have_no_groups_of_four_are_refused(network):
    with pytest.raises(
        errors.BadInput, match=r"a weight of shape \(64, 10\) has 10 values along axis 1, no multiple of 4"
    ):
        pruning.mask24(torch.randn(64, 10))
    with pytest.raises(errors.BadInput, match=r"conv1: a weight of shape \(16, 3, 7, 7\) has 3 values along axis 1"):
        pruning.magnitude24(network, layers=["conv1"])
    with pytest.raises(errors.BadInput, match="axis=2, but the weight has shape"):
        pruning.mask24(torch.randn(8, 8), axis=2)
    for what in (torch.randn(8), np.ones((8, 8)), None):
        with pytest.raises(errors.BadInput, match="came; wanted is a weight tensor"):
            pruning.mask24(what)


def test_other_bad_input_is_named(network, tmp_path):
    with pytest.raises(errors.BadInput, match="no layer of Sequential can be 2:4: 0 has 3 inputs and 5 outputs"):
        pruning.magnitude24(nn.Sequential(nn.Linear(3, 5)))
    with pytest.raises(errors.BadInput, match="no convolution or dense layer 'layer9'"):
        pruning.magnitude24(network, layers=["layer9"])
    graph = export.to_onnx(nn.Sequential(nn.ReLU()), torch.randn(1, 4), path=tmp_path / "none.onnx")
    with pytest.raises(errors.BadInput, match="no convolution or product with a constant weight"):
        pruning.report24(graph)
