"""Exercises of lab 07: what zeros are worth, a slice across a flatten, coupled layers, aligned widths, 2:4 and no
gain.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.lab07_stand_ins import drawn_weights, judge_pattern, judge_thin

LAB, CHECK_S = "07_pruning", 120.0
SHARE, MULTIPLE = 0.6, 16

# Why 2:4 gains nothing; `case` makes the layers.
REASONS = {
    "refilled": "after pruning, the network was trained on without the mask, and the zeros filled up again",
    "axis": "two of every four are zero, but along the outputs: a sparse kernel skips along the inputs",
    "anywhere": "half of the weights are zero, but not two in every four",
    "small": "the pattern is right; the layer is so small that it waits for memory and launches, not for arithmetic",
}
TRUTH = {"A": "axis", "B": "small", "C": "refilled", "D": "anywhere"}


class ZerosSpeed(Prediction):
    question = "Nine of every ten weights of a network are set to zero. How many times faster will ONNX Runtime run it?"
    quantity = "dense time over time with 90 % zeros"
    unit = "×"
    within = 1.25


class AcrossFlatten(Exercise):
    question = (
        "Write `thinner(model, keep)`: a copy of an article CNN that has only the channels `keep` of its convolution, "
        "and answers as if the others were zero. Its layers are conv, then ReLU and a 2×2 pool, a flatten, dense, out."
    )
    hints = (
        "A flatten lays channels one after another, each with all its pixels. How many columns of `dense.weight` read "
        "one channel?",
        "Copy the model with `copy.deepcopy`. `dense.weight` is (128, C · pixels): unflatten(1, (C, -1)), index the "
        "channels, flatten(1). The convolution loses filters and biases.",
    )
    solution_source = """
        def thinner(model, keep):
            thin = copy.deepcopy(model)
            columns = model.dense.weight.detach().unflatten(1, (model.conv.out_channels, -1))[:, keep].flatten(1)
            thin.conv = torch.nn.Conv2d(model.channels, len(keep), 3)
            thin.dense = torch.nn.Linear(columns.shape[1], 128)
            with torch.no_grad():
                thin.conv.weight.copy_(model.conv.weight[keep])
                thin.conv.bias.copy_(model.conv.bias[keep])
                thin.dense.weight.copy_(columns)
                thin.dense.bias.copy_(model.dense.bias)
            return thin

        lab07.across_flatten.check(thinner)
    """
    answer = (
        "One channel is a block of columns, one for each pixel: 169 in the article CNN, so a filter of 9 weights takes "
        "21,632 with it."
    )

    def judge(self, thinner: Callable) -> str:
        import torch

        from labsupport import models

        for size in (12, 16):
            model = models.article_cnn(size=size, seed=random.randrange(1000))
            keep = random.sample(range(32), random.randint(3, 9))
            keep = keep[::-1] if keep == sorted(keep) else keep  # who sorts them is to be seen
            before = copy.deepcopy(model.state_dict())
            thin = thinner(model, list(keep))
            if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
                raise Wrong("the model that was handed in is changed. Work on copy.deepcopy(model).")
            if not isinstance(thin, torch.nn.Module):
                raise Wrong(
                    f"thinner returned {described(thin)}; wanted is the smaller network. Is a `return` missing?"
                )
            judge_thin(model, thin, keep, ((size - 2) // 2) ** 2)
        return "The same answers from fewer channels: nothing was approximated, the zeros just left."


class CoupledTo(Exercise):
    question = (
        "In a ResNet-18, which layers must lose the same outputs as `layer2.1.conv2`? Hand in their names, that "
        "one included, as a list."
    )
    hints = (
        "Its output is added to what the block received. Whatever is added must have the same channels.",
        "The block received the output of layer2.0, which is itself a sum of two branches: conv2 and the downsample.",
    )
    solution_source = 'lab07.coupled_to.check(["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"])'
    answer = '`pruning.coupled(network, "layer2.1.conv2").outputs` says the same: one stage of a ResNet has one width.'

    def judge(self, names: list) -> str:
        said, truth = {str(name) for name in names}, set(_coupled())
        if "layer2.1.conv2" not in said:
            raise Wrong("layer2.1.conv2 itself is missing from the list.")
        for name in sorted(said - truth):
            if name in ("layer2.0.conv1", "layer2.1.conv1"):
                raise Wrong(
                    f"{name} is not coupled: its output is read by conv2 of its own block only, and added to nothing."
                )
            if name.startswith(("layer3", "layer1", "conv1", "bn1")) or ".bn" in name:
                raise Wrong(
                    f"{name} is not wanted: layers of the next stage lose inputs, and norms follow their "
                    "convolution; the question is whose outputs shrink."
                )
            raise Wrong(f"{name} is not among them; names are written as in layer2.0.downsample.0.")
        missing = len(truth - said)
        if missing:
            raise Wrong(
                f"right so far, and {missing} more {'has' if missing == 1 else 'have'} to go along. What is "
                "added to this output, and what was that added to?"
            )
        return "Three convolutions share one set of channels, so pruning judges them together."


class Aligned(Exercise):
    question = (
        f"Shrink `dense` to at most {SHARE:.0%} of its MACs, all widths multiples of {MULTIPLE}, and no output "
        "of a layer4 convolution lost. Hand in `dense` and the smaller network, before fine-tuning."
    )
    hints = (
        "`pruning.shrink` takes `macs`, `round_to` and `keep`, a list of layers that keep their outputs.",
        "Layers coupled by a residual sum stay together, so name all of layer4: "
        "`[n for n in dense_layers if n.startswith('layer4')]`; the names are those of `pruning.cost(dense).layers`.",
    )
    solution_source = """
        layer4 = [name for name in pruning.cost(dense).layers if name.startswith("layer4")]
        lab07.aligned.check(dense, pruning.shrink(dense, macs=0.6, round_to=16, keep=layer4).model)
    """
    answer = (
        "What layer4 keeps, the earlier stages must give; they spend more MACs on each weight, so fewer weights go "
        "than it seems."
    )

    def judge(self, dense: Any, slim: Any) -> str:
        import torch

        from labsupport import pruning

        slim = getattr(slim, "model", slim)
        for given, what in ((dense, "dense"), (slim, "the smaller network")):
            if not isinstance(given, torch.nn.Module):
                raise Wrong(f"{what} is {described(given)}; hand in two networks: check(dense, slim.model).")
        before, after = _widths(dense), _widths(slim)
        if before.keys() != after.keys():
            raise Wrong("the two networks have different layers; the smaller one has the same, with fewer channels.")
        odd = {name: width for name, width in after.items() if width % MULTIPLE and width != before[name]}
        if odd:
            name, width = next(iter(odd.items()))
            raise Wrong(f"{name} has {width} channels, no multiple of {MULTIPLE}; there is an argument that rounds.")
        lost = [name for name in after if name.startswith("layer4") and after[name] < before[name]]
        if lost:
            raise Wrong(
                f"{lost[0]} went from {before[lost[0]]} to {after[lost[0]]} channels, and layer4 was to keep its "
                "outputs."
            )
        share = pruning.cost(slim).macs / pruning.cost(dense).macs
        if share > SHARE:
            raise Wrong(f"{100 * share:.4g} % of the MACs are left, more than {100 * SHARE:g} %.")
        if slim.conv1.weight.shape[0] and not _subset(slim.conv1.weight, dense.conv1.weight):
            raise Wrong(
                "the filters of conv1 are not among those of `dense`. Was it trained on already, or is it another "
                "network?"
            )
        return f"{share:.0%} of the MACs are left, and every width suits the kernels."


class TwoOfFour(Exercise):
    question = (
        "Write `two_of_four(weight)` for a convolution's weight (K, C, 3, 3): a new tensor in which, of every four "
        "neighboring input channels, only the two largest by magnitude are left, for each filter and each of the 9 "
        "positions."
    )
    hints = (
        "Move the axis of the inputs to the end first; then neighbors in memory are neighbors among the inputs.",
        "`groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))`; `groups.abs().topk(2, -1).indices` are the places to "
        "keep; `torch.zeros_like(groups).scatter(-1, places, 1)` is the mask. Then flatten(-2) and movedim(-1, 1).",
    )
    solution_source = """
        def two_of_four(weight):
            groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))
            places = groups.abs().topk(2, -1).indices
            mask = torch.zeros_like(groups).scatter(-1, places, 1)
            return (groups * mask).flatten(-2).movedim(-1, 1)

        lab07.two_of_four.check(two_of_four)
    """
    answer = "`weight * pruning.mask24(weight)` is the same."

    def judge(self, two_of_four: Callable) -> str:
        import torch

        for name, weight in drawn_weights().items():
            kept = weight.clone()
            got = two_of_four(weight)
            if not torch.equal(kept, weight):
                raise Wrong("the weight that was handed in is changed; return a new tensor.")
            if not isinstance(got, torch.Tensor) or got.shape != weight.shape:
                shape = tuple(got.shape) if isinstance(got, torch.Tensor) else described(got)
                raise Wrong(f"it gave {shape}; wanted is a tensor of the weight's shape {tuple(weight.shape)}.")
            if got.dtype == torch.bool:
                raise Wrong("it gave the mask; wanted is the weight with its zeros.")
            if got.dtype != weight.dtype:
                raise Wrong(f"for a weight of {weight.dtype} it gave {got.dtype}; the type is to stay.")
            judge_pattern(weight, got.detach(), name)
        return "Every group along the inputs has two zeros: the one pattern that a sparse kernel reads."


class NoGain(Exercise):
    question = (
        'Four colleagues pruned a layer "to 2:4", built it with sparse kernels allowed, and gained nothing. Find '
        'out why: look at `pruning.report24(lab07.case("A"))`, and so on to "D". Hand in a dict from letter to one of '
        f"{list(REASONS)}."
    )
    hints = (
        "A report has three shares: zeros at all, groups along the inputs, groups along the outputs. Which of the "
        "three must be 100 %?",
        "One layer obeys the pattern perfectly. Look at its shape: how many multiplications are there to skip?",
    )
    solution_source = """
        lab07.no_gain.check({"A": "axis", "B": "small", "C": "refilled", "D": "anywhere"})
    """
    answer = "\n".join(f"{letter}: {REASONS[reason]}." for letter, reason in TRUTH.items())

    def judge(self, reasons: dict) -> str:
        unknown = [str(reason) for reason in reasons.values() if not isinstance(reason, str) or reason not in REASONS]
        if unknown:
            raise Wrong(f"{unknown[0]!r} is no reason; the reasons are {', '.join(REASONS)}: see lab07.REASONS.")
        missing = [letter for letter in TRUTH if letter not in reasons]
        if missing:
            raise Wrong(f"there is nothing said about {', '.join(missing)}.")
        for letter, truth in TRUTH.items():
            said = reasons[letter]
            if said != truth:
                raise Wrong(f"{letter} is not {said!r}. {_evidence(letter)}")
        return (
            "Three layers never had the pattern where it counts; the fourth had it, and no arithmetic worth skipping."
        )


@functools.cache
def case(letter: str):
    """One of the layers "A" to "D" that gained nothing from 2:4, as a torch module."""
    import torch
    from torch import nn

    from labsupport import pruning
    from labsupport.errors import BadInput

    if letter not in TRUTH:
        raise BadInput(f"there is no case {letter!r}; choose from {', '.join(TRUTH)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(ord(letter))
        layer = nn.Conv2d(16, 16, 1) if letter == "B" else nn.Conv2d(512, 512, 3, padding=1)
        noise = 1e-4 * torch.randn_like(layer.weight)
    reason, weight = TRUTH[letter], layer.weight.detach()
    masks = {
        "axis": lambda: pruning.mask24(weight, axis=0),
        "small": lambda: pruning.mask24(weight),
        "refilled": lambda: pruning.mask24(weight),
        "anywhere": lambda: pruning.keep_largest(weight, 0.5),
    }
    with torch.no_grad():
        layer.weight.copy_(weight * masks[reason]() + (noise if reason == "refilled" else 0))
    return nn.Sequential(layer).eval()


def _evidence(letter: str) -> str:
    from labsupport import pruning

    return f"Its report: {pruning.report24(case(letter))[0]!r}."


@functools.cache
def _coupled() -> tuple[str, ...]:
    from labsupport import models, pruning

    return pruning.coupled(models.resnet18(classes=4, width=8, size=32), "layer2.1.conv2").outputs


def _widths(network) -> dict[str, int]:
    return {name: module.out_channels for name, module in network.named_modules() if hasattr(module, "out_channels")}


def _subset(thin, whole) -> bool:
    """Whether every filter of one layer is also a filter of the other, as far as their inputs are the same."""
    return thin.shape[1:] == whole.shape[1:] and all(bool((whole == row).flatten(1).all(1).any()) for row in thin)


zeros_speed = ZerosSpeed()
across_flatten = AcrossFlatten()
coupled_to = CoupledTo()
aligned = Aligned()
two_of_four = TwoOfFour()
no_gain = NoGain()
