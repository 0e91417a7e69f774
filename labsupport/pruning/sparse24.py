"""Two of four: the one pattern of zeros that Tensor Cores skip, in at most two of every four weights along the inputs.

Mishra et al. 2021, arXiv:2104.08378. A convolution's weight (K, C, h, w) is grouped along C, for every h and w.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from labsupport.errors import BadInput
from labsupport.pruning.masks import Masked, masked, prunable

GROUP = 4


@dataclass(frozen=True, eq=False, repr=False)
class Permutation:
    """An order of input channels in which 2:4 loses less; the shares of the magnitude that stay, before and after."""

    order: Tensor
    before: float
    after: float

    def __repr__(self) -> str:
        moved = int((self.order != torch.arange(len(self.order))).sum())
        return (
            f"Permutation({moved} of {len(self.order)} channels moved: 2:4 keeps {self.after:.2%} of the "
            f"magnitude, {self.before:.2%} before)"
        )


@dataclass(frozen=True)
class Layer24:
    """How far one layer's weight obeys the pattern: the shares of groups of four with two zeros or more.

    ``along_inputs`` is the one that counts, ``along_outputs`` betrays a weight that was pruned along the wrong axis;
    None where that axis is no multiple of 4.
    """

    name: str
    shape: tuple[int, ...]
    zeros: float
    along_inputs: float | None
    along_outputs: float | None

    @property
    def obeys(self) -> bool:
        """Whether every group along the inputs has its two zeros, so that a sparse kernel may compute it."""
        return self.along_inputs == 1

    def __repr__(self) -> str:
        shown = ["none" if share is None else f"{share:.0%}" for share in (self.along_inputs, self.along_outputs)]
        return (
            f"{self.name} {'×'.join(map(str, self.shape))}: {self.zeros:.0%} zeros; "
            f"groups of 2:4 along inputs {shown[0]}, along outputs {shown[1]}"
        )


def mask24(weight: Tensor, *, axis: int = 1) -> Tensor:
    """Mask of a weight's shape, True for the two largest of every four neighbors along ``axis`` (1: the inputs).

    Raises BadInput where that axis is not a multiple of 4.
    """
    sizes = _groups(weight, axis).abs().unbind(-1)
    # a weight stays that fewer than two others beat; of equals, the first. Much faster than sorting millions of fours
    beaten = [
        sum((sizes[j] >= size if j < i else sizes[j] > size).byte() for j in range(GROUP) if j != i)
        for i, size in enumerate(sizes)
    ]
    return torch.stack([losses < 2 for losses in beaten], dim=-1).flatten(-2).movedim(-1, axis)


def share24(weight: Tensor, *, axis: int = 1) -> float:
    """Share of the groups of four along ``axis`` that have at least two zeros; 1.0 means that the weight is 2:4."""
    return float(
        ((_groups(weight, axis) != 0).sum(-1) <= 2).double().mean()
    )  # in float32, one in 20 million rounds away


def magnitude_kept(weight: Tensor, mask: Tensor) -> float:
    """Share of Σ|weight| that the mask keeps."""
    sizes = weight.detach().abs()
    return float((sizes * mask).sum() / sizes.sum())


def magnitude24(model: nn.Module, *, layers: Iterable[str] | None = None) -> Masked:
    """A copy in which the two smallest of every four weights along the inputs are zero.

    Without ``layers``, every layer with inputs in multiples of 16 and outputs in multiples of 8, which is what sparse
    kernels take; ``skipped`` of the result names the others. A layer named that is no multiple of 4 raises BadInput.
    """
    odd = {name: _too_odd(module) for name, module in prunable(model, layers).items() if layers is None}
    skipped = {name: why for name, why in odd.items() if why}
    chosen = {name: module for name, module in prunable(model, layers).items() if name not in skipped}
    if not chosen:
        said = "; ".join(f"{name} has {why}" for name, why in skipped.items())
        raise BadInput(f"no layer of {type(model).__name__} can be 2:4: {said}")
    masks = {}
    for name, module in chosen.items():
        try:
            masks[name] = mask24(module.weight)
        except BadInput as reason:
            raise BadInput(f"{name}: {reason}") from None
    return masked(model, masks, skipped)


def report24(source) -> list[Layer24]:
    """One line for each convolution and dense layer of a module, of an ONNX graph or of its path."""
    if isinstance(source, nn.Module):
        weights = {name: module.weight.detach() for name, module in prunable(source).items()}
    else:
        weights = _graph_weights(source)
    return [
        Layer24(
            name,
            tuple(weight.shape),
            round(float((weight == 0).float().mean()), 4),
            *(share24(weight, axis=axis) if weight.shape[axis] % GROUP == 0 else None for axis in (1, 0)),
        )
        for name, weight in weights.items()
    ]


def permute(weight: Tensor, *, sweeps: int = 4) -> Permutation:
    """Swap input channels between groups of four, pair of groups by pair, as long as 2:4 then keeps more magnitude.

    ``weight`` is (K, C, …). Greedy, so not the best of all orders, but never worse than the one given.
    Pool and Yu 2021, https://openreview.net/forum?id=WAO1STUPWPP.
    """
    sizes = _groups(weight, 1).abs().flatten(-2)
    columns = sizes.reshape(-1, sizes.shape[-1]).T.contiguous()  # (C, everything else)
    order = torch.arange(len(columns)).view(-1, GROUP)
    before = _kept(columns, order).sum()
    for _ in range(sweeps):
        moved = False
        for a in range(len(order)):
            for b in range(a + 1, len(order)):
                moved |= _swap(columns, order, a, b)
        if not moved:
            break
    total = columns.sum()
    return Permutation(order.flatten(), float(before / total), float(_kept(columns, order).sum() / total))


def _swap(columns: Tensor, order: Tensor, a: int, b: int) -> bool:
    """Exchange the one pair of channels between groups a and b that gains most, if any does; ``order`` changes."""
    trials = order[[a, b]].repeat(GROUP * GROUP, 1, 1)  # (16, 2, 4)
    places = torch.arange(GROUP * GROUP)
    i, j = places // GROUP, places % GROUP
    trials[places, 0, i], trials[places, 1, j] = order[b][j], order[a][i]
    gains = _kept(columns, trials.flatten(0, 1)).view(-1, 2).sum(1) - _kept(columns, order[[a, b]]).sum()
    best = int(gains.argmax())
    if gains[best] <= 1e-6 * columns.sum():
        return False
    order[[a, b]] = trials[best]
    return True


def _kept(columns: Tensor, groups: Tensor) -> Tensor:
    """Magnitude that 2:4 keeps in each group of four columns: the two largest in every row."""
    return columns[groups].topk(2, dim=1).values.sum(dim=(1, 2))


def _groups(weight: Tensor, axis: int) -> Tensor:
    """The weight as (…, groups, 4), the axis last."""
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        came = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise BadInput(f"{came} came; wanted is a weight tensor (outputs, inputs) or (outputs, inputs, height, width)")
    if not 0 <= axis < weight.ndim:
        raise BadInput(f"axis={axis}, but the weight has shape {tuple(weight.shape)}; 1 are the inputs, 0 the outputs")
    if weight.shape[axis] % GROUP:
        raise BadInput(
            f"a weight of shape {tuple(weight.shape)} has {weight.shape[axis]} values along axis {axis}, no "
            f"multiple of {GROUP}, so it has no groups of four; pad it with zeros, or leave the layer dense"
        )
    return weight.detach().movedim(axis, -1).unflatten(-1, (-1, GROUP))


def _too_odd(module: nn.Module) -> str:
    outputs, inputs = module.weight.shape[:2]
    return f"{inputs} inputs and {outputs} outputs" if inputs % 16 or outputs % 8 else ""


def _graph_weights(source) -> dict[str, Tensor]:
    """Weights of an ONNX graph's convolutions and products as (outputs, inputs, …), by the node's name."""
    from onnx import numpy_helper

    from labsupport import export
    from labsupport.export import constant_folding, qdq_nodes

    kinds = ("Conv", "Gemm", "MatMul")
    graph = constant_folding.with_plain_weights(export.load(source).model(), kinds).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    codes = {n.output[0]: n.input[0] for n in graph.node if n.op_type in qdq_nodes.QDQ}
    weights = {}
    for node in graph.node:
        name = node.input[1] if node.op_type in kinds else ""
        while name in codes:  # a scale leaves zeros where they are
            name = codes[name]
        if name in arrays and len(arrays[name].dims) > 1:
            values = numpy_helper.to_array(arrays[name])
            values = values.astype(np.float32) if values.dtype.kind == "V" else values.copy()  # BF16, FP8, INT4
            weight = torch.from_numpy(values)
            across = {a.name: a.i for a in node.attribute if a.name == "transB"}.get("transB", 0)
            weights[node.name or node.output[0]] = weight if node.op_type == "Conv" or across else weight.mT
    if not weights:
        raise BadInput("the graph has no convolution or product with a constant weight, so there is no pattern to see")
    return weights
