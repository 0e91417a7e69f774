"""What a tap on a layer keeps: its output, whatever works on it in place afterward."""

from __future__ import annotations

import torch
from torch import nn

from labsupport.distillation import hints


class Tuple(nn.Module):
    def forward(self, x):
        return x * 2, {"more": x + 1}


def test_an_activation_in_place_does_not_reach_what_was_tapped():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1), nn.Sigmoid())
    x = torch.randn(2, 3, 6, 5)
    with hints.tapped(network, ["0", "1", "2"]) as seen:
        network(x)
    assert (seen["0"] < 0).any(), "the convolution's own output, before the ReLU wrote over it"
    torch.testing.assert_close(seen["0"], network[0](x))
    torch.testing.assert_close(seen["1"], torch.relu(network[0](x)))
    torch.testing.assert_close(seen["2"], network[2](seen["1"]))


def test_a_hint_on_a_layer_before_an_activation_in_place_trains():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    teacher = torch.randn(2, 4, 4, 4)
    with hints.tapped(network, ["0"]) as seen:
        network(torch.ones(2, 3, 6, 6))
    hints.feature_loss(seen["0"], teacher).backward()
    plain = nn.functional.mse_loss(network[0](torch.ones(2, 3, 6, 6)), teacher)
    (want,) = torch.autograd.grad(plain, network[0].weight)
    torch.testing.assert_close(network[0].weight.grad, want)


def test_outputs_of_several_tensors_are_kept_too():
    network = nn.Sequential(Tuple())
    with hints.tapped(network, ["0"]) as seen:
        answer = network(torch.ones(3))
    answer[0].zero_()
    assert seen["0"][0].tolist() == [2, 2, 2] and seen["0"][1]["more"].tolist() == [2, 2, 2]


def test_the_teacher_gets_no_gradient():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    hints.attention_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    hints.feature_loss(student, teacher).backward()
    assert teacher.grad is None
