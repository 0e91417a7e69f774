"""Training with rounding on networks of other people: changes in place, layers called twice, dense layers on maps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_networks import Net, conv

from labsupport import quantization
from labsupport.errors import LabError
from labsupport.quantization import qat

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def head(self, x):
    return self.f(x.mean((2, 3)))


CHANGES = {  # what changes the convolution's result in place before it is read again
    "a module": lambda s, y: s.act(y),
    "a function": lambda s, y: F.leaky_relu(y, 0.1, inplace=True),
    "a function by place": lambda s, y: F.relu(y, True),
    "a method": lambda s, y: y.clamp_(min=0),
    "torch's function": lambda s, y: torch.relu_(y),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_changed_in_place_is_read_as_it_is_then(kind):
    def run(s, x):
        y = s.a(x)
        z = CHANGES[kind](s, y)
        return head(s, s.b(z) + y)  # y is what z is

    torch.manual_seed(0)
    layers = {"a": conv(3, 8), "b": conv(8, 8), "f": nn.Linear(8, 4), "act": nn.ReLU(inplace=True)}
    net = Net(run, **layers).eval()
    exact = net(IMAGES).detach()
    prepared = qat.prepare(net, IMAGES)
    assert qat.quantizers(prepared) == (3, 3)  # of x, of the one tensor between, of the means
    assert (prepared(IMAGES) - exact).norm() < 0.02 * exact.norm()
    assert net.act.inplace and torch.equal(net(IMAGES), exact)  # the network that came in stays
    prepared.train()(IMAGES).square().mean().backward()  # what a gradient needs was not overwritten
    assert all(p.grad is not None for p in prepared.parameters() if p.requires_grad)


def test_a_change_of_a_part_and_a_constant_from_a_tensor_are_refused():
    layers = {"a": conv(3, 8), "f": nn.Linear(8, 4)}

    def part(s, x):
        y = s.a(x)
        y[:, 0].zero_()
        return head(s, y)

    def view(s, x):
        y = s.a(x)
        y.view(-1).relu_()
        return head(s, y)

    with pytest.raises(LabError, match="changes a part of a in place, which mean reads; write that line"):
        qat.prepare(Net(view, **layers), IMAGES)
    with pytest.raises(LabError, match=r"is zero_\(\), which has no form that leaves its tensor alone"):
        qat.prepare(Net(part, **layers), IMAGES)

    def kept(s, x):
        y = z = s.a(x)
        y *= 0.25  # a new tensor to the tracer, and z the old one
        return head(s, z)

    with pytest.raises(LabError, match="answers otherwise once it is traced: .*changes in place"):
        qat.prepare(Net(kept, **layers), IMAGES)
    drawn = Net(lambda s, x: head(s, s.a(x)) + torch.full((1,), float(torch.rand(()))), **layers)
    assert qat.quantizers(qat.prepare(drawn, IMAGES)) == (3, 2)  # it answers otherwise at each call, and by itself
    times = []

    def counting(s, x):  # stands for whatever Python does once, while it is traced
        times.append(1)
        return head(s, s.a(x)) * (2.0 if len(times) == 1 else 1.0)

    with pytest.raises(LabError, match="answers otherwise once it is traced"):
        qat.prepare(Net(counting, **layers), IMAGES)


def test_dense_layers_on_maps_are_counted_as_quantized():
    def run(s, x):
        y = s.a(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        return s.g(F.gelu(s.f(y))).mean((1, 2))

    torch.manual_seed(0)
    net = Net(run, a=conv(3, 8), f=nn.Linear(8, 16), g=nn.Linear(16, 4)).eval()
    prepared = qat.prepare(net, IMAGES)
    graph = qat.to_onnx(prepared, IMAGES[:2])
    placed = quantization.placement(graph)
    assert len(placed.quantized) == 3 and not placed.wide and graph.ops["MatMul"] == 2


def test_a_layer_called_twice_on_one_tensor_is_written_once():
    def run(s, x):
        return head(s, torch.maximum(s.a(x), s.b(x)) - s.a(x))

    torch.manual_seed(0)
    net = Net(run, a=conv(3, 8), b=conv(3, 8), f=nn.Linear(8, 4)).eval()
    placed = quantization.placement(qat.to_onnx(qat.prepare(net, IMAGES), IMAGES[:2]))
    assert len(placed.quantized) == 3 and not placed.wide


@pytest.mark.parametrize("drop", [nn.Dropout(0.2), nn.Dropout2d(0.2), nn.AlphaDropout(0.2), nn.Identity()])
def test_a_shortcut_is_found_behind_any_dropout(drop):
    torch.manual_seed(0)
    net = Net(lambda s, x: head(s, s.a(x) + s.d(s.b(s.a(x)))), a=conv(3, 8), b=conv(8, 8), f=nn.Linear(8, 4), d=drop)
    prepared = qat.prepare(copy.deepcopy(net).eval(), IMAGES)
    assert quantization.placement(qat.to_onnx(prepared, IMAGES[:2])).residual_adds == 1


def test_a_norm_without_statistics_of_its_own_is_not_folded():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    net = Net(lambda s, x: head(s, torch.relu(s.n(s.a(x)))), a=conv(3, 8), n=norm, f=nn.Linear(8, 4)).eval()
    exact = net(IMAGES).detach()
    assert (qat.prepare(net, IMAGES)(IMAGES) - exact).norm() < 0.03 * exact.norm()


def test_while_training_codes_reach_as_far_as_in_the_exported_graph():
    quantizer = qat.ActivationQuantizer(127.0)  # a scale of 1
    x = torch.tensor([-500.0, -128.4, -127.4, 3.6, 500.0])
    expected = [-128.0, -128.0, -127.0, 4.0, 127.0]
    assert quantizer.train()(x).tolist() == pytest.approx(expected)
    assert quantizer.eval()(x).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("place", [0, 1])
def test_each_answer_of_a_traced_network_is_compared(place, monkeypatch):
    """Of two answers one that is otherwise is enough; one that is off by less than a percent is not."""
    from labsupport.quantization import folded_networks

    net = Net(lambda s, x: head(s, s.a(x)), a=conv(3, 8), f=nn.Linear(8, 4)).eval()
    right = [torch.tensor([100.0, 0.0]), torch.tensor([1.0])]

    def answers_with(other):
        given = iter([right, right, [other if i == place else y for i, y in enumerate(right)]])
        monkeypatch.setattr(folded_networks, "_answers", lambda *_: next(given))
        return folded_networks.folded(net, IMAGES)

    assert answers_with(right[place] * 1.009) is not None
    with pytest.raises(LabError, match="Net answers otherwise once it is traced"):
        answers_with(right[place] * 1.02)
    drawn = iter([right, [y + 1 for y in right], [y + 2 for y in right]])
    monkeypatch.setattr(folded_networks, "_answers", lambda *_: next(drawn))
    assert folded_networks.folded(net, IMAGES) is not None  # one that draws numbers cannot be compared
