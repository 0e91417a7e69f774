"""Zeros anywhere: exact counts, the argument untouched, zeros held while training goes on, and bad input named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import data, errors, models, pruning, training
from labsupport.pruning import masks


@pytest.fixture(scope="module")
def network():
    return models.resnet18(classes=4, width=8, size=32)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return data.Split(rng.integers(255, size=(24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 4, tuple("abcd"))


def same(first: nn.Module, second: nn.Module) -> bool:
    before, after = first.state_dict(), second.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.999])
def test_the_mask_drops_exactly_the_smallest(sparsity):
    weight = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = pruning.keep_largest(weight, sparsity)
    assert int((~mask).sum()) == min(round(sparsity * 105), 104) and mask.shape == weight.shape
    if 0 < sparsity:
        assert weight[~mask].abs().max() <= weight[mask].abs().min()


def test_equal_weights_are_still_counted_exactly():
    assert int(pruning.keep_largest(torch.ones(10, 10), 0.37).sum()) == 63


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_copy_is_pruned_and_the_count_is_conserved(network, scope):
    before = copy.deepcopy(network)
    pruned = pruning.magnitude(network, 0.8, scope=scope)
    assert same(before, network) and not same(before, pruned.model)
    assert pruned.kept + sum(int((~m).sum()) for m in pruned.masks.values()) == pruned.total
    assert pruned.sparsity == pytest.approx(0.8, abs=1e-3)
    assert pruning.zeros(pruned.model) == pytest.approx(0.8, abs=1e-3)
    shares = [1 - float(mask.float().mean()) for mask in pruned.masks.values()]
    assert (max(shares) - min(shares) < 0.01) == (scope == "layer")


def test_only_the_layers_named_are_pruned(network):
    pruned = pruning.magnitude(network, 0.5, layers=["layer2.0.conv1"])
    changed = [
        name for name, value in pruned.model.state_dict().items() if not torch.equal(value, network.state_dict()[name])
    ]
    assert changed == ["layer2.0.conv1.weight"] and list(pruned.masks) == ["layer2.0.conv1"]
    assert repr(pruned) == "Masked(ResNet: 50.0% of 1,152 weights are zero, in 1 layers)"


def test_fine_tuning_holds_the_zeros_and_moves_the_rest(network, pictures):
    pruned = pruning.magnitude(network, 0.9)
    before = copy.deepcopy(pruned.model)
    tuned = pruning.fine_tune(pruned, pictures, epochs=2, batch_size=8)
    assert same(before, pruned.model)
    assert tuned.sparsity == pruned.sparsity and tuned.masks.keys() == pruned.masks.keys()
    for name, mask in tuned.masks.items():
        weight = dict(tuned.model.named_parameters())[f"{name}.weight"]
        assert bool((weight[~mask] == 0).all()) and not bool(torch.signbit(weight[~mask]).any())
        assert bool((weight[mask] != dict(before.named_parameters())[f"{name}.weight"][mask]).any())
    assert tuned.model.state_dict().keys() == network.state_dict().keys()


def test_fine_tuning_that_was_interrupted_goes_on_where_it_stood(network, pictures, tmp_path, monkeypatch):
    from labsupport.training import checkpoints

    pruned = pruning.magnitude(network, 0.5)
    options = {"epochs": 3, "batch_size": 8}
    whole = pruning.fine_tune(pruned, pictures, **options)
    save, saved = checkpoints.save, []

    def stop_after_two(*args, **kwargs):
        saved.append(save(*args, **kwargs))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return saved[-1]

    monkeypatch.setattr(checkpoints, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        pruning.fine_tune(pruned, pictures, checkpoint=tmp_path / "tuning.pt", **options)
    monkeypatch.setattr(checkpoints, "save", save)
    resumed = pruning.fine_tune(pruned, pictures, checkpoint=tmp_path / "tuning.pt", **options)
    assert same(whole.model, resumed.model)


def test_a_checkpoint_of_another_model_is_refused(network, pictures, tmp_path):
    path = tmp_path / "tuning.pt"
    pruning.fine_tune(pruning.magnitude(network, 0.5), pictures, epochs=1, checkpoint=path)
    wider = models.resnet18(classes=4, width=16, size=32)
    with pytest.raises(errors.LabError, match="tuning.pt is a checkpoint of another model"):
        pruning.fine_tune(pruning.magnitude(wider, 0.5), pictures, epochs=1, checkpoint=path)
    with pytest.raises(errors.LabError, match="belongs to another training: its start is"):
        pruning.fine_tune(pruning.magnitude(network, 0.6), pictures, epochs=1, checkpoint=path)


@pytest.mark.parametrize(
    "sparsity, said",
    [
        (50, r"sparsity=50; wanted is the share of zeros, from 0 up to but not including 1; 50 % is 0.5"),
        (1, "sparsity=1"),
        (1.0, "not including 1"),
        (-0.1, "sparsity=-0.1"),
        (float("nan"), "sparsity=nan"),
        ("0.5", "sparsity='0.5'"),
        (True, "sparsity=True"),
        (None, "sparsity=None"),
        (100, "sparsity=100"),
    ],
)
def test_a_sparsity_that_is_no_share_is_refused(network, sparsity, said):
    with pytest.raises(errors.BadInput, match=said):
        pruning.magnitude(network, sparsity)
    with pytest.raises(errors.BadInput, match=said):
        pruning.keep_largest(torch.ones(4, 4), sparsity)


def test_a_layer_that_is_not_there_is_named_with_its_neighbors(network):
    with pytest.raises(
        errors.BadInput, match=r"ResNet has no convolution or dense layer 'layer2.0.conv9'; it has layer2.0.conv"
    ):
        pruning.magnitude(network, 0.5, layers=["layer2.0.conv9"])
    with pytest.raises(errors.BadInput, match="'bn1' as a BatchNorm2d, and a Conv2d or Linear is wanted"):
        pruning.magnitude(network, 0.5, layers=["bn1"])


def test_other_bad_input_is_named(network, pictures):
    with pytest.raises(errors.BadInput, match=r"scope='all' is not known; choose one of \['global', 'layer'\]"):
        pruning.magnitude(network, 0.5, scope="all")
    with pytest.raises(errors.BadInput, match="model='resnet'; wanted a torch.nn.Module"):
        pruning.masked("resnet", {"fc": torch.ones(1)})
    with pytest.raises(
        errors.BadInput, match=r"the mask of fc is torch.float32 \(4,\); wanted is torch.bool of .* \(4, 64\)"
    ):
        pruning.masked(network, {"fc": torch.ones(4)})
    with pytest.raises(errors.BadInput, match="a ResNet came; wanted is what pruning.magnitude"):
        pruning.fine_tune(network, pictures)


@pytest.mark.parametrize(
    "act, sentence",
    [
        (lambda: pruning.magnitude(None, 0.5), "model=None; wanted a torch.nn.Module"),
        (
            lambda: pruning.magnitude(nn.ReLU(), 0.5),
            "ReLU has no Conv2d and no Linear, and no other layer's weights are pruned here",
        ),
        (
            lambda: pruning.zeros(nn.ReLU()),
            "ReLU has no Conv2d and no Linear, and no other layer's weights are pruned here",
        ),
        (lambda: pruning.magnitude(nn.Linear(2, 2), 0.5, layers=[]), "layers is empty"),
        (lambda: pruning.keep_largest("weight", 0.5), "a str came; wanted is a weight tensor"),
        (lambda: pruning.keep_largest(torch.zeros(0, 3), 0.5), r"an empty tensor \(0, 3\) came"),
        (lambda: pruning.masked(nn.Sequential(nn.Linear(2, 2)), {"0": None}), "the mask of 0 is a NoneType"),
    ],
)
def test_what_has_no_weights_is_named(act, sentence):
    with pytest.raises(errors.BadInput, match=sentence):
        act()


def test_a_share_may_be_a_number_of_numpy():
    weight = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pruning.keep_largest(weight, np.float32(0.5)), pruning.keep_largest(weight, 0.5))


def test_zeros_stay_zero_at_every_step_of_the_training(monkeypatch):
    """Training a dense network and zeroing it at the end would give the same mask and another network."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = data.Split(rng.integers(255, size=(32, 28, 28, 1), dtype=np.uint8), np.arange(32) % 10, tuple("abcdefghij"))
    pruned = pruning.magnitude(models.article_cnn(), 0.75)
    shares = []

    def watch(module, inputs):
        shares.append(pruning.zeros(module))

    real = training.fit

    def fit(model, *args, **options):
        handle = model.register_forward_pre_hook(watch)
        try:
            return real(model, *args, **options)
        finally:
            handle.remove()

    monkeypatch.setattr(masks.training, "fit", fit)
    tuned = pruning.fine_tune(pruned, split, epochs=2, batch_size=8, progress=False)
    assert len(shares) >= 8 and min(shares) >= 0.749
    assert tuned.sparsity == pruned.sparsity and pruning.zeros(tuned.model) >= 0.749
