"""The lab's blocks: they fit the recorded plans, repeat their weights, and fall apart when asked to."""

from __future__ import annotations

import math

import pytest
import torch
from fusion_graphs import mysterious
from torch import nn

from labsupport import comparing, export, fusion, recordings, runtimes
from labsupport.errors import BadInput
from labsupport.fusion import blocks
from labsupport.fusion.onnx_nodes import nodes_of

BLOCKS = {
    "conv_block": blocks.ConvBlock,
    "pointwise_chain": blocks.PointwiseChain,
    "siblings": blocks.Siblings,
    "sibling_matmuls": blocks.SiblingMatmuls,
    "concat": blocks.Concat,
    "residual": blocks.Residual,
    "mlp": blocks.Mlp,
}
ALL = [*BLOCKS.values(), blocks.Attention, blocks.HandGelu, blocks.HandNorm]


def exported(block, folder, **options):
    return export.to_onnx(block, block.example_input(2), path=folder / "block.onnx", **options)


@pytest.mark.parametrize("kind", ALL)
def test_a_block_keeps_its_shape_and_repeats_its_weights(kind):
    example = kind().example_input(2)
    with torch.inference_mode():
        first, second, other = kind()(example), kind()(example), kind(seed=1)(example)
    assert example.shape == (2, *kind.shape) == first.shape
    assert first.equal(second)
    assert first.equal(other) == (not list(kind().parameters()))


def test_making_a_block_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    blocks.Residual()
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_exports_to_the_graph_that_its_plan_was_built_from(name, tmp_path):
    plan = fusion.xray(recordings.load_plan(f"{name}.fp16"))
    ours = nodes_of(exported(BLOCKS[name](), tmp_path, target="8.6"))
    assert [(node.name, node.op) for node in ours.nodes] == [(node.name, node.op) for node in plan.graph.nodes]
    assert BLOCKS[name]().example_input().numel() * 4 == max(
        kernel.inputs[0].bytes for kernel in plan.kernels if kernel.kind == "layout" and "fp32" in kernel.precision_in
    )


def test_the_hand_written_blocks_are_what_they_say():
    gelu, norm = blocks.HandGelu(), blocks.HandNorm()
    example, words = gelu.example_input(4), norm.example_input(2)
    assert comparing.max_error(nn.functional.gelu(example), gelu(example)) < 1e-5
    expected = nn.functional.layer_norm(words, (256,), norm.scale, norm.shift)
    assert comparing.max_error(expected.detach(), norm(words).detach()) < 1e-4
    assert 0.5 <= norm.scale.min() < norm.scale.max() < 1.5  # no channel that a scale near zero hides


@pytest.mark.parametrize("shape", [(0,), (2.5, 3)])
def test_an_impossible_example_is_refused(shape):
    with pytest.raises(BadInput, match="every axis is a whole number of 1 or more"):
        blocks.HandGelu().example_input(2, shape=shape)


@pytest.mark.parametrize("kind", [blocks.ConvBlock, blocks.PointwiseChain, blocks.Residual, blocks.Attention])
def test_unfused_gives_the_same_answer_and_every_tensor(kind, tmp_path):
    block = kind()
    graph, example = exported(block, tmp_path), block.example_input(2).numpy()
    apart = blocks.unfused(graph)
    nodes = nodes_of(graph)
    unmoved = {"Reshape", "Constant"} if kind is blocks.Attention else set()
    run = [n for n in nodes.nodes if n.name not in nodes.constant_nodes | nodes.shape_nodes and n.op not in unmoved]
    assert not unmoved or any(n.op == "Reshape" and n.name not in nodes.shape_nodes for n in nodes.nodes)
    assert list(apart.outputs)[0] == "output"
    assert set(apart.outputs) == {tensor for node in run for tensor in node.outputs}
    answers = [runtimes.OnnxRuntime(each)(example)["output"] for each in (graph, apart)]
    assert comparing.max_error(*answers) < 1e-4
    assert list(graph.outputs) == ["output"], "the graph that came must stay as it was"


def test_unfused_forbids_what_was_fused(tmp_path):
    graph = exported(blocks.ConvBlock(), tmp_path)
    together = [
        fusion.xray(runtimes.OnnxRuntime(each, optimization="extended")).together("/conv/Conv", "/Relu")
        for each in (graph, blocks.unfused(graph.path))
    ]
    assert together == [True, False]


def test_unfused_twice_adds_nothing(tmp_path):
    once = blocks.unfused(exported(blocks.Siblings(), tmp_path))
    assert blocks.unfused(once).outputs == once.outputs


def test_unfused_says_which_tensor_it_cannot_type(tmp_path):
    with pytest.raises(BadInput, match="cannot tell type and shape of 'y', which odd writes"):
        blocks.unfused(mysterious(tmp_path))


def test_a_block_names_its_ends(tmp_path):
    graph = exported(blocks.Concat(), tmp_path)
    assert (list(graph.inputs), list(graph.outputs)) == (["input"], ["output"])
    assert math.prod(blocks.Concat.shape) == 64 * 56 * 56


def test_attention_is_that_of_four_heads_over_the_places():
    block, x = blocks.Attention(), torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.unflatten(-1, (4, 64)).transpose(1, 2) for part in block.qkv(x).chunk(3, -1))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block(x), block.out(exact), rtol=1e-4, atol=1e-5)
