"""The checkers of lab 03: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labsupport import export
from labsupport.exercises import lab03, lab03_networks
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.fusion import blocks, roofline

NAMES = {"torch": torch, "blocks": blocks}


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab03, ["kernels", "gain", "swallowed", "forbids", "break_it", "merge_it"])


def test_gain():
    assert_checker(
        lab03.gain,
        wrong=[
            (9, "nine nodes become one kernel, but count bytes"),
            (19, "how many still do when one kernel runs"),
            (18, "how many still do"),
            (10, "10 is close"),
            (8.5, "8.5 is close"),
            (2, "not 2 times"),
            (-1, "not -1 times"),
            ("9.5", "a number is wanted"),
        ],
        right=[9.5, 19 / 2],
        namespace=NAMES,
    )


def test_the_gain_is_what_the_graph_says(tmp_path):
    chain = blocks.PointwiseChain()
    work = roofline.work(export.to_onnx(chain, chain.example_input(1), path=tmp_path / "chain.onnx"))
    assert work.bytes_apart / work.bytes_together == lab03.GPU_GAIN


def test_swallowed():
    assert_checker(
        lab03.swallowed,
        wrong=[
            ("/GlobalAveragePool", "is a kernel of its own in both plans"),
            ("/fc/Gemm", "is a kernel of its own in both"),
            ("/conv1/Conv", "is not alone in FP16: one kernel computes /conv1/Conv [+] /Relu"),
            ("/Flatten", "it was removed"),
            ("Softmax", "the graph has no node '/Softmax'"),
            (7, "wanted is text"),
            ("", "the graph has no node"),
        ],
        right=["/MaxPool", "MaxPool"],
        namespace=NAMES,
    )


def test_forbids():
    truth = ["softsign", "custom", "second reader", "precision", "reshape"]
    assert_checker(
        lab03.forbids,
        untouched=[...],
        wrong=[
            ([*truth, "stride"], "'stride' does not forbid it"),
            ([*truth, "sigmoid"], "'sigmoid' does not forbid it"),
            (truth[:4], "and one more does"),
            (truth[3:], "and three more do"),
            ([], "and five more do"),
            (["cast"], "'cast' is no change; the names are"),
            ("reshape", "a list"),
        ],
        right=[truth, tuple(reversed(truth)), truth * 2],
        namespace=NAMES,
    )


@pytest.mark.parametrize("name", lab03_networks.CHANGES)
def test_what_forbids_is_what_the_hint_says(name):
    assert lab03_networks.runs_as_one(name) == (name in ("stride", "sigmoid"))


class SecondOutput(blocks.ConvBlock):
    def forward(self, x):
        before = self.bn(self.conv(x))
        return torch.relu(before), before


class AuxiliaryHead(blocks.ConvBlock):
    """A twin: an auxiliary head reads what the ReLU reads, and the names are others."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(64, 8, 1)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return nn.ReLU()(y), self.head(y)


class WiderType(blocks.ConvBlock):
    """Another twin: the ReLU in another type is no neighbor of the convolution any more."""

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)).double()).float()


class ByName(blocks.ConvBlock):
    """A twin whose outputs have names."""

    def forward(self, x):
        before = self.bn(self.conv(x))
        return {"after": torch.relu(before), "before": before}


class ReadTwice(blocks.ConvBlock):
    def forward(self, x):
        before = self.bn(self.conv(x))
        return torch.relu(before) + 0 * before


class ReluElsewhere(blocks.ConvBlock):
    def forward(self, x):
        return self.bn(self.conv(x)).clamp(min=0), torch.relu(x)


class Unchanged(blocks.ConvBlock):
    pass


class TwoOfTheSame(blocks.ConvBlock):
    def forward(self, x):
        y = super().forward(x)
        return y, y * 2


class NoRelu(blocks.ConvBlock):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return y * (y > 0)


class Doubled(blocks.ConvBlock):
    def forward(self, x):
        return 2 * super().forward(x)


class Fails(blocks.ConvBlock):
    def forward(self, x):
        return x @ 3


class ReturnsNothing(blocks.ConvBlock):
    def forward(self, x):
        torch.relu(self.bn(self.conv(x)))


class Shorter(blocks.ConvBlock):
    def forward(self, x):
        return super().forward(x)[:, :8]


class Untouched(blocks.ConvBlock):
    forward = ...


def test_break_it():
    assert_checker(
        lab03.break_it,
        wrong=[
            (Unchanged, "Conv and Relu still run as one FusedConv. Who else"),
            (TwoOfTheSame, "Conv and Relu still run as one FusedConv"),
            (Doubled, "the block now computes something else, up to"),
            (NoRelu, "there is no Relu left in the graph"),
            (Shorter, r"the first output has shape \(2, 8, 16, 16\); it was \(2, 64, 16, 16\)"),
            (ReturnsNothing, "forget its `return`"),
            (Fails, "`forward` raised TypeError"),
            (ReluElsewhere, "the first output does not come from it"),
            (lambda x: x, "hand in the class"),
            (int, "hand in the class"),
        ],
        right=[SecondOutput, SecondOutput(), AuxiliaryHead, WiderType, ByName],
        namespace=NAMES,
    )


def test_a_second_reader_is_not_praised_as_a_debug_output():
    verdict = lab03.break_it.check(ReadTwice)
    assert verdict.right and "Debug" not in verdict.message
    assert "Debug outputs" in lab03.break_it.check(SecondOutput).message


def test_an_untouched_class_is_not_attempted():
    Untouched.__module__ = "__main__"  # as in a notebook
    assert lab03.break_it.check(Untouched).outcome == "not attempted"


class Concatenated(blocks.Siblings):
    def forward(self, x):
        layers = self.left, self.middle, self.right
        y = F.conv2d(x, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
        return sum(torch.relu(y).chunk(3, 1))


class OneLayer(blocks.Siblings):
    """A twin: a new layer takes the weights once, and the parts are added by a reshape and a sum."""

    def make(self):
        super().make()
        self.all = nn.Conv2d(64, 192, 1)
        layers = self.left, self.middle, self.right
        self.all.weight.data = torch.cat([layer.weight for layer in layers]).detach()
        self.all.bias.data = torch.cat([layer.bias for layer in layers]).detach()

    def forward(self, x):
        return self.all(x).relu().unflatten(1, (3, 64)).sum(1)


class SumOfWeights(blocks.Siblings):
    def forward(self, x):
        layers = self.left, self.middle, self.right
        return torch.relu(F.conv2d(x, sum(layer.weight for layer in layers), sum(layer.bias for layer in layers)))


class Grouped(blocks.Siblings):
    def forward(self, x):
        layers = self.left, self.middle, self.right
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        return sum(torch.relu(F.conv2d(torch.cat([x, x, x], 1), weight, bias, groups=3)).chunk(3, 1))


class TwoOfThree(blocks.Siblings):
    def forward(self, x):
        layers = self.left, self.middle
        y = F.conv2d(x, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
        return sum(torch.relu(y).chunk(2, 1)) + torch.relu(self.right(x))


class WithoutBias(blocks.Siblings):
    def forward(self, x):
        weight = torch.cat([layer.weight for layer in (self.left, self.middle, self.right)])
        return sum(torch.relu(F.conv2d(x, weight)).chunk(3, 1))


class Einsum(blocks.Siblings):
    def forward(self, x):
        y = F.conv2d(
            x, torch.cat([self.left.weight, self.middle.weight]), torch.cat([self.left.bias, self.middle.bias])
        )
        right = torch.einsum("oc,nchw->nohw", self.right.weight[:, :, 0, 0], x) + self.right.bias[:, None, None]
        return sum(torch.relu(y).chunk(2, 1)) + torch.relu(right)


class OneSize(blocks.Siblings):
    def forward(self, x):
        layers = self.left, self.middle, self.right
        y = F.conv2d(x, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
        return torch.relu(y).view(2, 3, 64, 16, 16).sum(1)


def test_merge_it():
    assert_checker(
        lab03.merge_it,
        wrong=[
            (blocks.Siblings, "the answer is right, and the graph has 3 convolutions; wanted is one"),
            (TwoOfThree, "has 2 convolutions"),
            (SumOfWeights, "something else, .* The ReLU of a sum is not the sum of ReLUs"),
            (Grouped, "it reads 192 channels"),
            (blocks.ConvBlock, "computes something else"),
            (WithoutBias, "The biases are missing"),
            (Einsum, "does the rest of its work"),
            (OneSize, r"fails for \(3, 64, 10, 14\)"),
            ("Merged", "hand in the class"),
        ],
        right=[Concatenated, OneLayer, OneLayer()],
        namespace=NAMES,
    )
