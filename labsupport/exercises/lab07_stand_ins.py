"""Weights drawn anew for lab 07, and what a pruned network and a pruned weight are held against."""

from __future__ import annotations

import copy
import random
from typing import Any

from labsupport.exercises.answers import Wrong

CLOSE = 1e-4


def judge_thin(model: Any, thin: Any, keep: list[int], pixels: int) -> None:
    """Wrong unless ``thin`` has the channels ``keep`` and answers as ``model`` with the others at zero."""
    import torch

    filters, columns = thin.conv.weight.shape[0], thin.dense.weight.shape[1]
    if filters != len(keep):
        raise Wrong(f"the convolution has {filters} filters; asked for were {len(keep)}.")
    if columns != pixels * len(keep):
        raise Wrong(
            f"dense reads {columns} values, but {len(keep)} channels of {pixels} pixels are {pixels * len(keep)}. "
            "A flatten makes a block of columns of each channel."
        )
    places = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    if shared := [places[each.data_ptr()] for each in thin.parameters() if each.data_ptr() in places]:
        raise Wrong(
            f"the smaller network holds the model's own {shared[0]}, no copy: whoever trains one changes the other."
        )
    example = model.example_input(4)
    masked = copy.deepcopy(model)
    gone = [c for c in range(32) if c not in keep]
    with torch.no_grad():
        masked.conv.weight[gone] = masked.conv.bias[gone] = 0
        error = float((masked.eval()(example) - thin.eval()(example)).abs().max())
    if not error <= CLOSE:
        raise Wrong(
            f"the shapes are right, and the answers differ by up to {error:.2f}. Do the columns belong to the "
            f"channels {keep}, in that order, and did the bias of the convolution come along?"
        )


def drawn_weights() -> dict:
    """What is known of it → a weight drawn anew, one with equal magnitudes and one in FP64."""
    import torch

    def shape():
        return 4 * random.randint(2, 5), 4 * random.randint(2, 6), 3, 3

    return {
        "": torch.randn(shape()),
        " Some of these four are equally large, and still two go.": torch.randint(-2, 3, shape()).float(),
        " They came in FP64.": torch.randn(shape(), dtype=torch.float64),
    }


def judge_pattern(weight: Any, got: Any, hint: str) -> None:
    """Wrong unless ``got`` has the two largest of every four inputs of ``weight``, whichever of equal ones."""
    import torch

    from labsupport import pruning

    def grouped(tensor):
        return tensor.movedim(1, -1).unflatten(-1, (-1, 4))

    four, left = grouped(weight), grouped(got)
    untouched = bool(((left == four) | (left == 0)).all())
    magnitude = torch.allclose(left.abs().sum(-1), four.abs().topk(2, -1).values.sum(-1))
    if bool(((left != 0).sum(-1) <= 2).all()):
        if untouched and magnitude:
            return
        if bool((got != 0).sum() < (four.abs().topk(2, -1).values != 0).sum()):
            raise Wrong("more than half of the weights are zero; only two of four have to go.")
        if torch.allclose(left.abs().sum(-1), four.abs().topk(2, -1, largest=False).values.sum(-1)):
            raise Wrong("the pattern is right, but the two smallest of four were kept.")
        raise Wrong(
            "the pattern is right, but what is left are not the two largest of each four, with their own values."
        )
    if pruning.share24(got, axis=0) == 1:
        raise Wrong("the groups of four lie along the filters, axis 0; the sum that skips zeros runs along the inputs.")
    if _flat24(got):
        raise Wrong(
            "every four neighbors in memory have two zeros, but in memory 9 positions of one input stand "
            "side by side. Move the axis of the inputs to the end first."
        )
    raise Wrong(f"{pruning.share24(got):.0%} of the groups along the inputs have two zeros; all must.{hint}")


def _flat24(weight) -> bool:
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
