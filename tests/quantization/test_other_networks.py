"""Q/DQ of what other exporters write: factors of a Gemm, inner tensors among the outputs, names that come twice."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_files import run, saved, value

from labsupport import quantization

RNG = np.random.default_rng(11)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def off(graph, other, feed) -> dict:
    exact, answer = run(graph, feed), run(other, feed)
    return {name: float(np.linalg.norm(answer[name] - x) / np.linalg.norm(x)) for name, x in exact.items()}


def rows(count=32, width=16):
    return RNG.standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("target", quantization.TARGETS)
@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_the_factor_of_a_bias_is_kept(tmp_path, target, beta):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one", alpha=0.5, beta=beta, transB=1),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], "two", alpha=2.0),
    ]
    weights = [weight("w", 8, 16), weight("v", 8, 8), weight("b", 8)]
    graph = saved(tmp_path, nodes, [value("x", ["n", 16])], [value("h", ["n", 8]), value("y", ["n", 8])], weights)
    feed = {"x": rows()}
    quantized = quantization.to_qdq(graph, [feed], target=target, method="max")
    assert len(quantization.placement(quantized).quantized) == 2
    assert max(off(graph, quantized, feed).values()) < 0.03


@pytest.mark.parametrize("clip", ["Relu", "Clip"])
def test_a_tensor_that_the_caller_reads_too_keeps_its_negative_values(tmp_path, clip):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "one"),
        helper.make_node(clip, ["h", *["zero"] * (clip == "Clip")], ["r"], "clip"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "two"),
    ]
    weights = [weight("w", 16, 8), weight("v", 8, 4), numpy_helper.from_array(np.float32(0), "zero")]
    graph = saved(tmp_path, nodes, [value("x", ["n", 16])], [value("h", ["n", 8]), value("y", ["n", 4])], weights)
    feed = {"x": rows()}
    assert max(off(graph, quantization.to_qdq(graph, [feed], target="onnxruntime", method="max"), feed).values()) < 0.05


def test_a_tensor_that_a_branch_reads_too_keeps_its_negative_values(tmp_path):
    body = {
        branch: helper.make_graph([helper.make_node(op, ["h"], [branch], op)], branch, [], [value(branch, ["n", 8])])
        for branch, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "one"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("If", ["c"], ["k"], "if", **body),
        helper.make_node("MatMul", ["r", "v"], ["y"], "two"),
    ]
    weights = [weight("w", 16, 8), weight("v", 8, 4), numpy_helper.from_array(np.array(True), "c")]
    graph = saved(tmp_path, nodes, [value("x", ["n", 16])], [value("k", ["n", 8]), value("y", ["n", 4])], weights)
    feed = {"x": rows()}
    assert max(off(graph, quantization.to_qdq(graph, [feed], target="onnxruntime", method="max"), feed).values()) < 0.05


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_nodes_of_one_name_are_told_apart(tmp_path, target):
    nodes = [helper.make_node("Tanh", ["x"], ["a"], "same"), helper.make_node("MatMul", ["a", "w"], ["y"], "same")]
    graph = saved(tmp_path, nodes, [value("x", ["n", 16])], [value("y", ["n", 4])], [weight("w", 16, 4)])
    feed = {"x": rows()}
    nodes[1].name = "other"
    (tmp_path / "apart").mkdir()
    apart = saved(
        tmp_path / "apart", nodes, [value("x", ["n", 16])], [value("y", ["n", 4])], graph.model().graph.initializer
    )
    quantized = quantization.to_qdq(graph, [feed], target=target, method="max")
    assert off(apart, quantized, feed)["y"] < 0.03 and quantization.layers(graph) == ("same_2",)


@pytest.mark.parametrize("target", quantization.TARGETS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 8), (8,), (32, 1), (32, 8)])
def test_a_bias_of_any_shape_is_added(tmp_path, target, shape):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one", beta=2.0),
        helper.make_node("MatMul", ["h", "v"], ["y"], "two"),
    ]
    weights = [weight("w", 16, 8), weight("v", 8, 4), weight("b", *shape)]
    graph = saved(tmp_path, nodes, [value("x", [32, 16])], [value("y", [32, 4])], weights)
    feed = {"x": rows()}
    quantized = quantization.to_qdq(graph, [feed], target=target, method="max")
    assert off(graph, quantized, feed)["y"] < 0.03
    assert quantization.placement(quantized).quantized == (("two",) if shape[:1] == (32,) else ("one", "two"))


@pytest.mark.parametrize("borders", [("one", "three"), ("minus", "minus_half"), ("", "most"), ("minus", "three")])
def test_a_clip_is_kept_where_codes_do_not_clip(tmp_path, borders):
    numbers = {"one": 1, "three": 3, "minus": -1, "minus_half": -0.5}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "one"),
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Mul", ["top", "half"], ["most"], "most"),
        helper.make_node("Clip", ["h", *borders], ["r"], "clip"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "two"),
        helper.make_node("Neg", ["most"], ["z"], "neg"),
    ]
    weights = [weight("w", 16, 8), weight("v", 8, 4), numpy_helper.from_array(np.float32(0.25), "half")]
    weights += [numpy_helper.from_array(np.float32(number), name) for name, number in numbers.items()]
    graph = saved(tmp_path, nodes, [value("x", ["n", 16])], [value("y", ["n", 4]), value("z", [])], weights)
    small, large = {"x": rows() / 4}, {"x": rows()}
    quantized = quantization.to_qdq(graph, [small, large], target="onnxruntime", method="max")
    assert off(graph, quantized, small)["y"] < 0.05 and off(graph, quantized, large)["y"] < 0.05
