"""The checkers of lab 07: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import copy

import pytest
import torch
from solutions import shared_names
from torch import nn

from labsupport import errors, models, pruning
from labsupport.exercises import lab07
from labsupport.exercises.base import assert_checker, assert_complete, of

CNN_WIDTH = 32


@pytest.fixture(scope="module")
def dense():
    return models.resnet18(classes=15, width=32, size=32)


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab07, ["zeros_speed", "across_flatten", "coupled_to", "aligned", "two_of_four", "no_gain"])


def sliced(model, keep, *, columns=None, bias=True, place=copy.deepcopy):
    thin = place(model)
    pixels = model.dense.in_features // model.conv.out_channels
    columns = [c * pixels + p for c in keep for p in range(pixels)] if columns is None else columns
    conv, dense = nn.Conv2d(1, len(keep), 3), nn.Linear(len(columns), 128)
    with torch.no_grad():
        conv.weight.copy_(model.conv.weight[keep])
        conv.bias.copy_(model.conv.bias[keep] if bias else 0 * model.conv.bias[keep])
        dense.weight.copy_(model.dense.weight[:, columns])
        dense.bias.copy_(model.dense.bias)
    thin.conv, thin.dense = conv, dense
    return thin


def sharing_the_end(model, keep):
    thin = sliced(model, keep)
    thin.out = model.out
    return thin


def of_one_size(model, keep):
    return sliced(model, keep, columns=[c * 25 + p for c in keep for p in range(25)])


def in_place(model, keep):
    with torch.no_grad():
        model.conv.weight *= 0.5
    return model


def test_across_flatten():
    def starter(model, keep):
        return ...

    assert_checker(
        lab07.across_flatten,
        starter,
        wrong=[
            (lambda model, keep: model, r"the convolution has 32 filters; asked for were \d"),
            (
                lambda model, keep: sliced(model, keep, columns=keep),
                r"dense reads (\d) values, but \1 channels of 25 pixels are \d+",
            ),
            (
                lambda model, keep: sliced(model, keep, columns=[p * CNN_WIDTH + c for p in range(25) for c in keep]),
                "answers differ by up to",
            ),
            (
                lambda model, keep: sliced(model, sorted(keep), columns=[c * 25 + p for c in keep for p in range(25)]),
                "in that order",
            ),
            (lambda model, keep: sliced(model, keep, bias=False), "did the bias of the convolution come along"),
            (in_place, "the model that was handed in is changed"),
            (sharing_the_end, "the model's own out.weight, no copy"),
            (of_one_size, "channels of 49 pixels are"),
            (lambda model, keep: None, "`return` missing"),
            (lambda model: model, "raised TypeError"),
            (7, "hand in the function itself"),
        ],
        right=[sliced, lambda model, keep: sliced(model, sorted(keep))],
        namespace={"torch": torch, "copy": copy},
    )


def test_coupled_to():
    truth = ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    assert_checker(
        lab07.coupled_to,
        untouched=[...],
        wrong=[
            (truth[:2], "layer2.1.conv2 itself is missing"),
            (truth[2:], "and 2 more have to go along"),
            (truth[1:], "and 1 more has"),
            ([*truth, "layer2.1.conv1"], "layer2.1.conv1 is not coupled: its output is read by conv2"),
            ([*truth, "layer3.0.conv1"], "layers of the next stage lose inputs"),
            ([*truth, "layer2.1.bn2"], "norms follow their convolution"),
            ([*truth, "conv2"], "conv2 is not among them; names are written"),
            ("layer2.1.conv2", "wanted is a list"),
        ],
        right=[truth, tuple(reversed(truth))],
        namespace={},
    )


def test_aligned(dense):
    layer4 = [name for name in pruning.cost(dense).layers if name.startswith("layer4")]
    right = pruning.shrink(dense, macs=0.6, round_to=16, keep=layer4)
    tuned = copy.deepcopy(right.model)
    with torch.no_grad():
        tuned.conv1.weight += 0.01
    assert_checker(
        lab07.aligned,
        untouched=(dense, ...),
        wrong=[
            ((dense, pruning.shrink(dense, macs=0.6, round_to=16).model), "layer4.* was to keep its outputs"),
            (
                (dense, pruning.shrink(dense, macs=0.6, round_to=2, keep=layer4).model),
                "no multiple of 16; there is an argument that rounds",
            ),
            ((dense, dense), "100 % of the MACs are left"),
            ((dense, tuned), "the filters of conv1 are not among those of `dense`"),
            ((dense, models.resnet50(15, width=32, size=32)), "have different layers"),
            ((dense, 0.5), "the smaller network is 0.5"),
            ((3, dense), "dense is 3"),
        ],
        right=[(dense, right.model), (dense, right)],
        namespace={"dense": dense, "pruning": pruning},
    )


def smallest(weight):
    return weight * ~pruning.mask24(weight)


def in_memory(weight):
    groups = weight.reshape(-1, 4)
    return (groups * pruning.mask24(groups)).reshape(weight.shape)


def one_of_four(weight):
    groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))
    return (groups * (groups.abs() == groups.abs().amax(-1, keepdim=True))).flatten(-2).movedim(-1, 1)


def fixed_places(weight):
    keep = torch.arange(weight.shape[1]) % 4 < 2
    return weight * keep[None, :, None, None]


def spoiling(weight):
    weight *= pruning.mask24(weight)
    return weight


def by_sorting(weight):
    """A twin: goes through the groups, and of equally large ones keeps the first."""
    out = weight.clone()
    for start in range(0, weight.shape[1], 4):
        order = weight[:, start : start + 4].abs().argsort(dim=1, descending=True, stable=True)
        out[:, start : start + 4] = out[:, start : start + 4].scatter(1, order[:, 2:], 0.0)
    return out


def test_two_of_four():
    def starter(weight):
        return ...

    def loops(weight):
        out = torch.zeros_like(weight)
        for start in range(0, weight.shape[1], 4):
            part = weight[:, start : start + 4]
            out[:, start : start + 4] = part * (part.abs() >= part.abs().sort(dim=1, descending=True).values[:, 1:2])
        return out

    assert_checker(
        lab07.two_of_four,
        starter,
        wrong=[
            (lambda w: w * pruning.mask24(w, axis=0), "lie along the filters, axis 0"),
            (in_memory, "every four neighbors in memory"),
            (smallest, "the two smallest of four were kept"),
            (one_of_four, "more than half of the weights are zero"),
            (fixed_places, "not the two largest of each four"),
            (pruning.mask24, "it gave the mask"),
            (spoiling, "is changed; return a new tensor"),
            (lambda w: w.flatten(1), r"it gave \(\d+, \d+\)"),
            (loops, "Some of these four are equally large"),
            (lambda w: (w * pruning.mask24(w)).float(), "for a weight of torch.float64 it gave torch.float32"),
            (lambda w: (w * pruning.mask24(w)).reshape(7, 11), "RuntimeError|ValueError"),
            (lambda w: 2 * w * pruning.mask24(w), "with their own values"),
            (lambda w: (w * pruning.mask24(w)).numpy(), "wanted is a tensor"),
            (lambda w: w * pruning.keep_largest(w, 0.5), "of the groups along the inputs have two zeros; all"),
            (lambda w: None, "it gave None"),
            (3, "hand in the function itself"),
        ],
        right=[lambda w: w * pruning.mask24(w), by_sorting],
        namespace={"torch": torch},
    )


def test_no_gain():
    truth = dict(lab07.TRUTH)
    assert_checker(
        lab07.no_gain,
        untouched={"A": ...},
        wrong=[
            (
                {**truth, "A": "anywhere"},
                "A is not 'anywhere'. Its report: 0 512×512×3×3: 50% zeros; .* along outputs 100%",
            ),
            (
                {**truth, "B": "refilled"},
                r"B is not 'refilled'. Its report: 0 16×16×1×1: 50% zeros; groups of 2:4 along inputs 100%",
            ),
            ({**truth, "C": "small"}, "C is not 'small'. Its report: 0 512×512×3×3: 0% zeros"),
            ({**truth, "D": "axis"}, "D is not 'axis'"),
            ({"A": "axis"}, "nothing said about B, C, D"),
            ({**truth, "A": "driver"}, "'driver' is no reason; the reasons are refilled, axis"),
            (["axis"], "wanted is a dict"),
        ],
        right=[truth, {letter: truth[letter] for letter in "DCBA"}],
        namespace={},
    )
    with pytest.raises(errors.BadInput, match="there is no case 'E'; choose from A, B, C, D"):
        lab07.case("E")


def test_a_reason_that_is_a_list_is_no_reason():
    assert "is no reason; the reasons are" in lab07.no_gain.check({"A": ["axis"]}).message


def test_no_solution_overwrites_what_later_cells_of_the_notebook_need():
    for exercise in of(lab07).values():
        shared = shared_names(exercise.solution_source, "07_pruning", starters={"thinner", "two_of_four"})
        assert not shared, f"the solution of {exercise.name} binds {shared}"
