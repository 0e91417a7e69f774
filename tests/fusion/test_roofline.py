"""Counting operations and bytes by hand-checked sums, and ceilings by a fake clock."""

from __future__ import annotations

import itertools

import pytest
from fusion_graphs import mysterious
from onnx_files import node, saved, value

from labsupport import export, models
from labsupport.errors import BadInput
from labsupport.fusion import blocks, roofline


def counted(block, folder, **options):
    graph = export.to_onnx(block, block.example_input(2), path=folder / "block.onnx")
    return roofline.work(graph, **options)


def test_a_convolution_block_by_hand(tmp_path):
    done = counted(blocks.ConvBlock(), tmp_path, batch=2)
    values, weights = 2 * 64 * 56 * 56, 64 * 64 * 9 + 64
    assert [step.op for step in done.steps] == ["Conv", "Relu"]
    assert [step.flops for step in done.steps] == [2 * values * 64 * 9, values]
    assert [step.bytes for step in done.steps] == [4 * (2 * values + weights), 4 * 2 * values]
    assert done.bytes_together == 4 * (2 * values + weights)


def test_a_tensor_that_a_node_reads_twice_is_moved_once(tmp_path):
    nodes = [node("Mul", ["x", "x"], "h", "square"), node("Concat", ["h", "x", "h"], "y", "thrice", axis=1)]
    done = roofline.work(saved(tmp_path, nodes, [value("x", [2, 8])], [value("y", [2, 24])]))
    assert [step.bytes for step in done.steps] == [4 * 2 * 16, 4 * 2 * (16 + 24)] and done.bytes_together == 4 * 2 * 32


def test_a_chain_moves_nineteen_tensors_apart_and_two_together(tmp_path):
    done = counted(blocks.PointwiseChain(), tmp_path, batch=3)
    tensor = 4 * 3 * 64 * 56 * 56
    assert (done.bytes_apart, done.bytes_together) == (19 * tensor, 2 * tensor)
    assert done.flops == 9 * tensor // 4


def test_half_precision_halves_the_bytes_and_no_operations(tmp_path):
    full, half = (counted(blocks.Mlp(), tmp_path, precision=precision) for precision in ("fp32", "fp16"))
    assert (half.bytes_apart * 2, half.bytes_together * 2, half.flops) == (
        full.bytes_apart,
        full.bytes_together,
        full.flops,
    )


def test_matmuls_and_networks(tmp_path):
    mlp = {step.name: step.flops for step in counted(blocks.Mlp(), tmp_path, batch=1).steps}
    assert mlp["/up/MatMul"] == mlp["/down/MatMul"] == 2 * 128 * 256 * 1024
    resnet = models.resnet18()
    graph = export.to_onnx(resnet, resnet.example_input(), path=tmp_path / "resnet.onnx")
    # He et al. 2015, table 1: 1.8 billion multiply-adds
    assert roofline.work(graph).flops / 2e9 == pytest.approx(1.8, rel=0.03)


def test_work_refuses_what_it_cannot_count(tmp_path):
    with pytest.raises(BadInput, match=r"precision='fp3' is not known; choose one of \['fp32'"):
        counted(blocks.ConvBlock(), tmp_path, precision="fp3")

    with pytest.raises(BadInput, match="cannot tell the shape of 'y' at odd"):
        roofline.work(mysterious(tmp_path))


def test_the_floor_is_the_slower_of_two():
    steps = roofline.Step("a", "Conv", 10**9, 10**6), roofline.Step("b", "Relu", 10**6, 10**9)
    done, ceiling = roofline.Work(steps, 10**6), roofline.Ceiling("cpu", gb_per_s=100, gflop_per_s=1000)
    assert ceiling.floor_ms(done, together=False) == pytest.approx(1 + 10)
    assert ceiling.floor_ms(done) == pytest.approx(1.001)
    assert ceiling.most_gain(done) == pytest.approx(11 / 1.001)


def test_ceilings_by_a_fake_clock():
    ticks = itertools.count(step=4_000_000)
    ceiling = roofline.measure("cpu", mib=8, rounds=1, now=lambda: next(ticks))
    assert ceiling.gb_per_s == pytest.approx(2 * 8 * 2**20 / 1e6)  # a round is 4 calls in 4 ms
    assert ceiling.gflop_per_s == pytest.approx(2 * 4 * 256 * 28 * 28 * 256 * 9 / 1e6)
    assert repr(ceiling).startswith("Ceiling(cpu: 16.8 GB/s from memory, ")


def test_measuring_leaves_tf32_as_it_was():
    import torch

    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    ticks = itertools.count(step=1000)
    roofline.measure("cpu", mib=1, rounds=1, now=lambda: next(ticks))
    assert [switch.fp32_precision for switch in switches] == before


def test_an_unknown_device_is_refused():
    with pytest.raises(BadInput, match=r"device='cuda:7' has no ceilings to measure; choose one of \['cpu', 'cuda'\]"):
        roofline.measure("cuda:7")


def test_work_reads_aloud(tmp_path):
    assert repr(counted(blocks.PointwiseChain(), tmp_path, batch=16)) == (
        "Work(9 nodes: 0.0289 GFLOP, 232.8 MiB moved apart, 24.5 MiB together)"
    )


def test_a_large_network_has_more_than_a_billion_operations_and_bytes():
    step = roofline.Step("gemm", "Gemm", 8_193_699_328, 3_000_000_000)
    assert roofline.Work((step,), 2_000_000_000).flops == 8_193_699_328


def test_a_ceiling_carries_the_name_of_any_chip():
    assert roofline.Ceiling("V100 SXM2", 900.0, 15_700.0).device == "V100 SXM2"
