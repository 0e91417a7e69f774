"""Residual adds of a transformer behind Q/DQ: on no side, on the side round the product, on both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labsupport import comparing, data, export, models, quantization, runtimes
from labsupport.errors import BadInput


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(graph, its calibration, tokens, FP32 answer) of a small encoder with two layers."""
    tokens = data.token_ids(2, 16, 64, seed=0)
    graph = export.to_onnx(
        models.encoder(2, 32, 4, 64),
        torch.as_tensor(tokens),
        path=tmp_path_factory.mktemp("encoder") / "encoder.onnx",
        dynamic=False,
    )
    return graph, quantization.calibrate(graph, [tokens]), tokens, runtimes.OnnxRuntime(graph)(tokens)


def narrow_sides(graph) -> list[int]:
    """For each add of two computed tensors: how many of its sides come from DequantizeLinear."""
    model = graph.model()
    weights = {w.name for w in model.graph.initializer}
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    adds = [node for node in model.graph.node if node.op_type == "Add" and not weights & set(node.input)]
    return [
        sum(maker[name] == "DequantizeLinear" for name in node.input)
        for node in adds
        if "Constant" not in map(maker.get, node.input)
    ]


@pytest.mark.parametrize(("residual", "sides"), [("convolutions", 0), ("shortcut", 1), ("both", 2)])
def test_each_choice_rounds_its_sides_of_the_four_residual_adds(bench, residual, sides):
    graph, known, tokens, answer = bench
    made = quantization.to_qdq(graph, known, method="max", residual=residual)
    assert [n for n in narrow_sides(made) if n or sides == 0][:4] == [sides] * 4
    assert quantization.placement(made).residual_adds == (4 if sides else 0)
    assert comparing.relative_error(answer, runtimes.OnnxRuntime(made)(tokens)) < 0.1


def test_more_roundings_cost_more_nodes(bench):
    graph, known, _, _ = bench
    nodes = [
        quantization.placement(quantization.to_qdq(graph, known, method="max", residual=r)).nodes
        for r in ("convolutions", "shortcut", "both")
    ]
    # The shortcut of a layer is what the next products read, so it shares their pair; the product's side needs one of its own.
    assert nodes[0] == nodes[1]
    assert nodes[2] == nodes[0] + 2 * 4


def test_an_excluded_product_leaves_its_add_wide(bench):
    graph, known, _, _ = bench
    biased = {node.input[0] for node in graph.model().graph.node if node.op_type == "Add"} | {
        node.input[1] for node in graph.model().graph.node if node.op_type == "Add"
    }
    products = [
        node.name for node in graph.model().graph.node if node.op_type == "MatMul" and set(node.output) & biased
    ]
    down = products[-1]
    made = quantization.to_qdq(graph, known, method="max", residual="both", exclude=[down])
    assert quantization.placement(made).residual_adds == 3


def test_tensorrt_builds_a_transformer_rounded_on_both_sides(bench):
    pytest.importorskip("tensorrt_rtx")
    from labsupport import build, environment

    if environment.generation() != "rtx":
        pytest.skip("the builder that needs no GPU is TensorRT-RTX's")
    graph, known, _, _ = bench
    engine = build.engine(
        quantization.to_qdq(graph, known, method="max", residual="both"), precision="int8", progress=False
    )
    assert engine.precisions["int8"] > 0


def test_an_unknown_choice_is_refused_with_the_choices(bench):
    graph, known, _, _ = bench
    with pytest.raises(BadInput, match="residual='all' is not known; choose one of"):
        quantization.to_qdq(graph, known, residual="all")


def test_the_network_that_came_in_keeps_its_answer(bench):
    graph, known, tokens, answer = bench
    quantization.to_qdq(graph, known, method="max", residual="both")
    again = runtimes.OnnxRuntime(graph)(tokens)
    assert all(np.array_equal(answer[name], again[name]) for name in answer)
