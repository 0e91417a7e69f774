"""Networks whose Python reads a tensor: the exported graph must follow its input, or the line that froze it is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import export, runtimes
from labsupport.errors import BadInput, LabError


class Own(nn.Module):
    """One convolution, and what a test does with it."""

    def __init__(self, then):
        super().__init__()
        self.then, self.conv = then, nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.then(self.conv, x)


class Two(Own):
    """The same with a second input."""

    def forward(self, x, w):
        return self.then(self.conv, x, w)


def int_batch(conv, x):
    return conv(x).view(int(x.shape[0]), -1)


def loop(conv, x):
    return torch.stack([conv(x[i : i + 1])[0].mean((1, 2)) for i in range(x.shape[0])])


def length(conv, x):
    return conv(x).reshape(len(x), -1)


def each(conv, x):
    return torch.stack([conv(image[None])[0].mean((1, 2)) for image in x])


def sum_of_items(conv, x):
    return sum(conv(x)[i].mean((1, 2)) for i in range(x.shape[0]))


def largest(conv, x):
    return conv(x) / x.abs().max().item()


def branch(conv, x):
    return conv(x) if x.sum() > 0 else -conv(x)


@pytest.mark.parametrize(
    "then, line",
    [
        (int_batch, "view.int.x.shape"),
        (loop, "the first axis of 'output'"),
        (length, "reshape.len.x"),
        (each, "for image in x"),
        (sum_of_items, "the first axis of 'output'"),
        (largest, "item"),
        (branch, r"if x.sum\(\) > 0"),
    ],
)
def test_what_tracing_froze_is_named(then, line):
    model, x = Own(then).eval(), torch.rand(2, 3, 6, 5) + 0.1
    if then is branch:
        x = x - x.mean() - 0.01 * x[0].mean()  # its sum changes sign when an item comes twice
        x[0] += 0.2
        x[1] -= 0.21
    with pytest.raises(BadInput, match=rf"Own: the graph answers as the example, not as its input: .*{line}"):
        export.to_onnx(model, x)


def test_a_frozen_number_is_found_with_a_fixed_batch_too():
    with pytest.raises(BadInput, match=r"item.*became a constant") as caught:
        export.to_onnx(Own(largest).eval(), torch.rand(2, 3, 6, 5), dynamic=False)
    assert "dynamic=False" not in str(caught.value)
    graph = export.to_onnx(Own(int_batch).eval(), torch.rand(2, 3, 6, 5), dynamic=False)  # one batch is what was asked
    assert graph.inputs["input"][0][0] == 2


def test_reading_a_shape_as_a_tensor_is_no_fault():
    model, x = Own(lambda conv, x: conv(x).reshape(x.shape[0], -1)).eval(), torch.rand(2, 3, 6, 5)
    graph = export.to_onnx(model, x)
    more = torch.rand(5, 3, 6, 5)
    with runtimes.OnnxRuntime(graph) as run, torch.no_grad():
        np.testing.assert_allclose(run(more.numpy())["output"], model(more), atol=1e-5)


def test_an_assertion_of_the_networks_own_is_no_fault():
    def checked(conv, x):
        assert int(x.shape[1]) == 3 and bool((x > -1e9).all())
        return conv(x)

    assert export.to_onnx(Own(checked).eval(), torch.rand(2, 3, 6, 5)).outputs["output"][0][0] == "batch"


def test_an_output_without_a_batch_is_declared_as_it_is():
    graph = export.to_onnx(Own(lambda conv, x: conv(x).mean((0, 2, 3))).eval(), torch.rand(2, 3, 6, 5))
    assert graph.outputs["output"][0] == (4,) and graph.inputs["input"][0][0] == "batch"


def test_a_network_of_one_batch_size_is_told():
    def four(conv, x):
        return conv(x).view(2, int(x[0].numel() // 3) * 4)

    with pytest.raises(BadInput, match=r"takes no other batch than the example's .*export it with dynamic=False"):
        export.to_onnx(Own(four).eval(), torch.rand(2, 3, 6, 5))


def test_a_network_that_draws_numbers_is_compared_by_its_shapes():
    def noisy(conv, x):
        return conv(x) + torch.randn_like(x[:, :1]) * float(int(x.shape[1]))

    assert export.to_onnx(Own(noisy).eval(), torch.rand(2, 3, 6, 5)).ops["Conv"] == 1


@pytest.mark.parametrize(
    "kind, then, said",
    [
        (Own, branch, "a condition or a size depends on a tensor's value: Could not guard on data-dependent"),
        (Own, loop, r"the network fixes inputs\['x'\].shape\[0\] at 2, and it was to be free; say which axes are"),
        (Two, lambda conv, x, w: conv(x) @ w, r"the network fixes .*shape\[0\] at 5, and it was to be free; say which"),
    ],
)
def test_the_dynamo_exporters_own_cause_is_told(kind, then, said):
    examples = (torch.rand(2, 3, 6, 5), torch.rand(5, 7))[: 1 + (kind is Two)]
    with pytest.raises(LabError, match=said) as caught:
        export.to_onnx(kind(then).eval(), examples, exporter="dynamo")
    assert "\x1b" not in str(caught.value) and "step 1/3" not in str(caught.value)


def test_an_operator_without_an_onnx_form_is_named():
    if not hasattr(torch.ops, "labtests") or not hasattr(torch.ops.labtests, "odd"):
        odd = torch.library.custom_op(
            "labtests::odd", lambda x: x.clone(), mutates_args=(), schema="(Tensor x) -> Tensor"
        )
        odd.register_fake(torch.empty_like)
    with pytest.raises(LabError, match="No ONNX function found for .*labtests.odd.*error when translating node %odd"):
        export.to_onnx(
            Own(lambda conv, x: torch.ops.labtests.odd(conv(x))).eval(), torch.rand(2, 3, 6, 5), exporter="dynamo"
        )
