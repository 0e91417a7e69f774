"""Time per kernel of ONNX Runtime: of nodes without names, of branches and loops, in the right unit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import value
from plan_samples import onnx_file

from labsupport import benchmarking, export, fusion, runtimes
from labsupport.errors import BadInput
from labsupport.fusion import layer_times

draw = np.random.default_rng(3)


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """An If with three products in the branch that is taken, and a product behind it, all of one size."""
    shape = [160, 160]
    steps = [
        helper.make_node("MatMul", [f"h{k}" if k else "x", "w"], [f"h{k + 1}"], ("after", "p", "q")[k])
        for k in range(3)
    ]
    bodies = {
        "then_branch": helper.make_graph(steps, "then", [], [value("h3", shape)]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "else", [], [value("n", shape)]),
    }
    nodes = [
        ("sum", "ReduceSum", ["x"], ["s"], {"keepdims": 0}),
        ("", "Greater", ["s", "low"], ["c"], {}),
        ("if", "If", ["c"], ["b"], bodies),
        ("after", "MatMul", ["b", "w"], ["y"], {}),
    ]
    weights = {"w": (draw.standard_normal(shape) / 16).astype(np.float32), "low": np.array(-1e9, np.float32)}
    path = tmp_path_factory.mktemp("branched") / "if.onnx"
    return onnx_file(path, nodes, [("x", shape)], [("y", shape)], weights)


def test_a_branch_is_counted_once(branched):
    run = runtimes.OnnxRuntime(branched)
    feed = {"x": draw.standard_normal((160, 160)).astype(np.float32)}
    times = fusion.profile(run, feed, runs=9, warmup=3)
    assert set(times) == {"sum", "node_of_c", "if", "after"}
    # a node of the branch bears the name of the one behind it: three products against one
    assert 1.8 < times["if"] / times["after"] < 6
    plan = fusion.xray(run, profile=times)
    assert sum(kernel.share for kernel in plan.kernels) == pytest.approx(1)
    latency = benchmarking.latency(run, feed, runs=9).median_ms
    assert latency / 20 < sum(times.values()) < latency * 20  # microseconds are not milliseconds


def test_nodes_without_names_keep_their_times(tmp_path):
    nodes = [("", op, [f"t{k}"], [f"t{k + 1}"], {}) for k, op in enumerate(("Exp", "Neg", "Exp", "Sin"))]
    graph = onnx_file(tmp_path / "u.onnx", nodes, [("t0", [64, 64])], [("t4", [64, 64])])
    run = runtimes.OnnxRuntime(graph)
    times = fusion.profile(run, np.ones((64, 64), np.float32), runs=3, warmup=1)
    assert list(times) == [f"node_of_t{k}" for k in range(1, 5)]
    plan = fusion.xray(run, profile=times)
    assert all(k.time_ms is not None for k in plan.kernels) and sum(k.share for k in plan.kernels) == pytest.approx(1)


def test_a_profile_is_of_what_is_executed_and_warm_ups_do_not_count(tmp_path, monkeypatch):
    nodes = [("s", "Sigmoid", ["x"], ["g"], {}), ("m", "Mul", ["x", "g"], ["y"], {})]
    run = runtimes.OnnxRuntime(onnx_file(tmp_path / "s.onnx", nodes, [("x", [32])], [("y", [32])]))
    times = fusion.profile(run, np.ones(32, np.float32), runs=2, warmup=1)
    assert len(times) == len(onnx.load(str(run.executed.path)).graph.node)
    rounds = layer_times._onnxruntime_rounds(run, np.ones(32, np.float32), 2, 3)
    assert len(rounds) == 2 and all(set(each) == set(times) for each in rounds)


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), -1.0, 10**400, 1e12, True, None, "3"])
def test_times_that_are_none_are_refused(ms):
    with pytest.raises(BadInput, match="gives 'a' the time .* expected milliseconds, 0 or more and below"):
        layer_times.times_of({"a": ms})


def test_branches_of_nodes_without_names_can_be_timed(tmp_path):
    bodies = {
        branch: helper.make_graph([helper.make_node(op, ["x", "x"], [branch])], branch, [], [value(branch, [32, 32])])
        for branch, op in (("then_branch", "MatMul"), ("else_branch", "Add"))
    }
    nodes = [helper.make_node("If", ["c"], ["y"], "if", **bodies)]
    inputs = [value("x", [32, 32]), value("c", [], TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", [32, 32])])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(tmp_path / "c.onnx"))
    run = runtimes.OnnxRuntime(export.load(tmp_path / "c.onnx"))
    feed = {"x": np.ones((32, 32), np.float32), "c": np.array(True)}
    assert list(fusion.profile(run, feed, runs=2, warmup=1)) == ["if"]
