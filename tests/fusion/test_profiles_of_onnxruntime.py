"""Time per kernel of ONNX Runtime: of nodes without names, of branches and loops, in the right unit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_files import value
from plan_samples import onnx_file

from labsupport import benchmarking, export, fusion, runtimes
from labsupport.errors import BadInput, LabError
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


def test_data_that_the_network_does_not_take_are_told_as_by_the_runtime(tmp_path):
    nodes = [("join", "MatMul", ["x", "z"], ["y"], {})]
    graph = onnx_file(tmp_path / "j.onnx", nodes, [("x", [2, "k"]), ("z", ["k", 3])], [("y", [2, 3])])
    run = runtimes.OnnxRuntime(graph)
    with pytest.raises(
        LabError, match="ort/all: ONNX Runtime could not run j.onnx: .*compare the feed with run.inputs"
    ):
        fusion.profile(run, {"x": np.ones((2, 4), np.float32), "z": np.ones((5, 3), np.float32)})


def test_a_branch_in_which_the_runtime_blocks_channels_is_timed(tmp_path):
    """The runtime calls blocked tensors alike in a branch and around it, and does not load such a graph again."""
    shape = [1, 16, 6, 6]
    inner = [helper.make_node("Conv", ["h", "v"], ["b"], "inner", pads=[1] * 4), helper.make_node("Relu", ["b"], ["c"])]
    bodies = {
        "then_branch": helper.make_graph(inner, "then", [], [value("c", shape)]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["h"], ["n"])], "else", [], [value("n", shape)]),
    }
    pads = {"pads": [1] * 4}
    nodes = [
        ("before", "Conv", ["x", "w"], ["h"], pads),
        ("if", "If", ["yes"], ["i"], bodies),
        ("after", "Conv", ["i", "v"], ["y"], pads),
    ]
    weights = {k: draw.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for k in "wv"}
    ends = [("x", shape), ("yes", [], TensorProto.BOOL)]
    graph = onnx_file(tmp_path / "b.onnx", nodes, ends, [("y", shape)], weights)
    run = runtimes.OnnxRuntime(graph, optimization="all")
    feed = {"x": draw.standard_normal(shape).astype(np.float32), "yes": np.array(True)}
    plan = fusion.xray(run, profile=fusion.profile(run, feed, runs=3, warmup=1))
    assert sum(kernel.share for kernel in plan.kernels) == pytest.approx(1) and plan.accounts().complete
    exact = run(feed)["y"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(run.executed.path), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, feed)[0], exact)  # other names, the same network
