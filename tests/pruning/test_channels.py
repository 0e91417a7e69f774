"""Whole channels: what a slice computes, who is coupled to whom, how small the network gets, and bad input named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labsupport import data, errors, models, pruning


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.settle(models.resnet18(classes=4, width=16, size=32), torch.randn(8, 3, 32, 32))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return data.Split(rng.integers(255, size=(24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 4, tuple("abcd"))


def pair_of(network):
    block = network.layer3[0]
    return block.conv1, block.bn1, block.conv2


def run(first, norm, second, x):
    return second(F.relu(norm(first(x))))


def test_macs_are_those_of_the_paper():
    cost = pruning.cost(models.resnet18())
    assert cost.macs == 1_814_073_344 and cost.weights == 11_689_512 and sum(cost.layers.values()) == cost.macs
    assert repr(cost) == "1814 million MACs, 11,689,512 weights"


def test_macs_are_counted_for_one_item_and_modes_are_put_back(network):
    network.train()
    assert pruning.cost(network, torch.randn(5, 3, 32, 32)).macs == pruning.cost(network).macs
    assert network.training and network.bn1.training
    network.eval()


def test_a_module_without_an_example_asks_for_one():
    with pytest.raises(errors.BadInput, match="Sequential has no example_input"):
        pruning.cost(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(errors.BadInput, match="model=3; wanted a torch.nn.Module"):
        pruning.cost(3)


def test_a_sliced_pair_computes_what_the_masked_pair_does(network):
    first, norm, second = pair_of(network)
    keep = torch.arange(0, 64, 2)
    x = torch.randn(2, 32, 8, 8)
    silenced = copy.deepcopy(norm)
    with torch.no_grad():
        silenced.weight[1::2] = silenced.bias[1::2] = 0
        expected = run(first, silenced, second, x)
        got = run(*pruning.slice_pair(first, norm, second, keep), x)
    assert torch.allclose(expected, got, atol=1e-5)


def test_a_permutation_changes_nothing_and_the_arguments_stay(network):
    first, norm, second = pair_of(network)
    before = copy.deepcopy((first, norm, second))
    x = torch.randn(2, 32, 8, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(
            run(first, norm, second, x), run(*pruning.slice_pair(first, norm, second, order), x), atol=1e-4
        )
    assert all(
        torch.equal(a, b)
        for x, y in zip(before, (first, norm, second))
        for a, b in zip(x.state_dict().values(), y.state_dict().values())
    )


def test_a_pair_may_have_biases_and_no_norm():
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
    thin, none, after = pruning.slice_pair(first, None, second, [6, 1])
    assert (
        none is None
        and thin.weight.shape[0] == 2
        and torch.equal(thin.bias, first.bias[[6, 1]])
        and after.weight.shape[1] == 2
    )
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[1, 6]] = True
    assert torch.equal(pruning.slice_pair(first, None, second, mask)[0].weight, first.weight[[1, 6]])


@pytest.mark.parametrize(
    "keep, said",
    [
        ([], "keep is .*; wanted are the numbers of channels, at least one"),
        ([0, 64], "from 0 to 64, 2 of them; there are 64"),
        ([-1], "from -1 to -1"),
        ([3, 3], "each may come once"),
        ([0.5], "wanted are the numbers"),
        ("ab", "wanted are the numbers"),
    ],
)
def test_channels_that_are_not_there_are_refused(network, keep, said):
    with pytest.raises(errors.BadInput, match=said):
        pruning.slice_pair(*pair_of(network), keep)


def test_two_layers_that_are_no_pair_are_refused(network):
    with pytest.raises(errors.BadInput, match="first gives 64 channels in 1 group.s., second takes 32"):
        pruning.slice_pair(network.layer3[0].conv1, None, network.layer3[0].conv1, [0])


def test_a_criterion_that_is_none_is_refused(network):
    with pytest.raises(
        errors.BadInput, match=r"criterion='random' is not known; choose one of \['magnitude', 'batchnorm', 'taylor'\]"
    ):
        pruning.shrink(network, macs=0.5, criterion="random")
    with pytest.raises(errors.BadInput, match="criterion='taylor' reads gradients, and batch is a NoneType"):
        pruning.shrink(network, macs=0.5, criterion="taylor")


def test_a_residual_sum_couples_layers(network):
    inner = pruning.coupled(network, "layer3.0.conv1")
    assert (inner.outputs, inner.norms, inner.inputs) == (("layer3.0.conv1",), ("layer3.0.bn1",), ("layer3.0.conv2",))
    outer = pruning.coupled(network, "layer3.0.conv2")
    assert outer.outputs == ("layer3.0.conv2", "layer3.0.downsample.0", "layer3.1.conv2")
    assert outer.inputs == ("layer3.1.conv1", "layer4.0.conv1", "layer4.0.downsample.0")
    assert repr(inner) == "outputs of layer3.0.conv1\n  with layer3.0.bn1\n  inputs of layer3.0.conv2"


def test_the_library_and_the_hand_drop_the_same_channels(network):
    first, norm, second = pruning.slice_pair(*pair_of(network), range(16, 64))
    smaller = pruning.drop_channels(network, "layer3.0.conv1", range(16))
    for ours, theirs in zip((first, norm, second), pair_of(smaller)):
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    assert network.layer3[0].conv1.out_channels == 64


def test_dropping_refuses_all_channels_and_unknown_layers(network):
    with pytest.raises(errors.BadInput, match="all 64 channels of layer3.0.conv1 would go, and nothing could flow"):
        pruning.drop_channels(network, "layer3.0.conv1", range(64))
    with pytest.raises(errors.BadInput, match="no convolution or dense layer 'layer9.conv'"):
        pruning.drop_channels(network, "layer9.conv", [0])
    with pytest.raises(errors.BadInput, match="drop names channels from 0 to 64"):
        pruning.drop_channels(network, "layer3.0.conv1", [0, 64])


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
def test_a_shrunk_network_keeps_at_most_the_macs_asked_for(network, pictures, criterion):
    before = copy.deepcopy(network.state_dict())
    slim = pruning.shrink(network, macs=0.6, criterion=criterion, batch=pictures, round_to=4)
    assert 0.4 < 1 / slim.mac_reduction <= 0.6 and slim.after.macs == pruning.cost(slim.model).macs
    assert all(width % 4 == 0 for width in slim.widths.values()) and slim.model.fc.out_features == 4
    assert slim.model(network.example_input(2)).shape == (2, 4)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in slim.model.parameters())
    assert repr(slim).startswith(f"Slim(ResNet: {slim.mac_reduction:.2f}× fewer MACs")


def test_a_layer_to_keep_keeps_its_width(network):
    slim = pruning.shrink(network, macs=0.7, round_to=4, keep=["layer4.1.conv1"])
    assert slim.widths["layer4.1.conv1"] == 128 and slim.widths["layer4.0.conv1"] < 128


@pytest.mark.parametrize(
    "options, said",
    [
        ({"macs": 0}, "macs=0; wanted is the share of MACs to keep"),
        ({"macs": 50}, "macs=50"),
        ({"macs": True}, "macs=True"),
        ({"round_to": 0}, "round_to=0; wanted a whole number"),
        ({"keep": ["head"]}, "no convolution or dense layer 'head'"),
        ({"macs": 0.001, "round_to": 16}, "0% of the MACs cannot be reached with widths of at least 16"),
    ],
)
def test_shrinking_refuses(network, options, said):
    with pytest.raises(errors.BadInput, match=said):
        pruning.shrink(network, **options)
    with pytest.raises(errors.NotAvailable, match="torch-pruning, which follows channels"):
        without("torch_pruning", lambda: pruning.shrink(network))


def without(module, call):
    """Run with a package that cannot be imported."""
    import sys
    from unittest import mock

    with mock.patch.dict(sys.modules, {module: None}):
        return call()


@pytest.mark.parametrize(
    "act",
    [
        lambda network: pruning.coupled(network, "layer2.0.conv1"),
        lambda network: pruning.drop_channels(network, "layer2.0.conv1", [0, 1]),
        lambda network: pruning.shrink(network, macs=0.6, keep="fc").model,
    ],
)
@pytest.mark.parametrize("training, trainable", [(True, True), (False, False)])
def test_mode_and_frozen_parameters_are_those_that_came(network, act, training, trainable):
    given = copy.deepcopy(network).train(training).requires_grad_(trainable)
    with torch.no_grad():  # torch-pruning reads the graph of gradients, wherever it is called
        made = act(given)
    for model in [given, *([made] if isinstance(made, nn.Module) else [])]:
        assert {module.training for module in model.modules()} == {training}
        assert {parameter.requires_grad for parameter in model.parameters()} == {trainable}


def test_a_frozen_network_is_pruned_as_a_trainable_one(network, pictures):
    frozen = copy.deepcopy(network).requires_grad_(False)
    for options in ({}, {"criterion": "taylor", "batch": pictures}):
        assert pruning.shrink(frozen, **options).widths == pruning.shrink(network, **options).widths


def test_nonsense_is_named(network):
    first, norm, second = pair_of(network)
    with pytest.raises(errors.BadInput, match="a NoneType came; wanted are a Conv2d"):
        pruning.slice_pair(None, norm, second, [0])
    with pytest.raises(errors.BadInput, match="wanted are the numbers of channels"):
        pruning.drop_channels(network, "conv1", [[1], [2, 3]])


@pytest.mark.parametrize(("kind", "axes"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_networks_of_other_convolutions_shrink_too(kind, axes):
    network, x = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 4, 1)), torch.randn(2, 3, *[6] * axes)
    slim = pruning.shrink(network, macs=0.6, round_to=2, example=x)
    assert slim.model(x).shape == network(x).shape and slim.after.macs <= 0.6 * slim.before.macs


def test_a_network_without_products_is_refused():
    with pytest.raises(errors.BadInput, match="Sequential multiplies nothing, so it has no MACs to take away"):
        pruning.shrink(nn.Sequential(nn.ReLU()), example=torch.randn(2, 3))
