"""A fixed batch with the shapes that follow from it, inner tensors shown, and graphs made plain."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import saved, value

from labsupport import export, footprint, quantization, runtimes
from labsupport.errors import BadInput
from labsupport.export import surgery


@pytest.fixture
def pairs(tmp_path):
    """Rows in pairs: (n, 3) → (n/2, 6), declared as "m"; beside it a mask (n, n), a number, and what doubles the rows."""
    nodes = [
        helper.make_node("MatMul", ["mask", "x"], ["h"], "mix"),
        helper.make_node("Mul", ["h", "k"], ["s"], "scale"),
        helper.make_node("Reshape", ["s", "two"], ["y"], "pair"),
        helper.make_node("Concat", ["s", "s"], ["z"], "double", axis=0),
    ]
    inputs = [value("x", ["n", 3]), value("mask", ["n", "n"]), value("k", [])]
    outputs = [value("y", ["m", 6]), value("z", ["n2", 3])]
    return saved(tmp_path, nodes, inputs, outputs, [numpy_helper.from_array(np.array([-1, 6]), "two")])


def test_the_shapes_that_follow_from_a_batch_are_declared(pairs):
    fixed = export.at_batch(pairs, 4)
    assert fixed.inputs == {"x": ((4, 3), "fp32"), "mask": ((4, 4), "fp32"), "k": ((), "fp32")}
    assert fixed.outputs == {"y": ((2, 6), "fp32"), "z": ((8, 3), "fp32")}
    feed = {"x": np.eye(4, 3, dtype=np.float32), "mask": np.eye(4, dtype=np.float32), "k": np.array(2, np.float32)}
    with runtimes.OnnxRuntime(fixed) as run:
        assert run(feed)["y"].shape == (2, 6)
    assert pairs.inputs["x"][0] == ("n", 3) and fixed.path.name == "net.b4.onnx"


def test_one_function_fixes_the_batch_for_every_room(pairs):
    assert footprint.at_batch is quantization.at_batch is export.at_batch
    for batch in (0, -1, True, 2.0, "2", None):
        with pytest.raises(BadInput, match="batch=.*; wanted a whole number"):
            export.at_batch(pairs, batch)
    fixed = export.at_batch(pairs, 4)
    assert export.at_batch(fixed, 4).outputs == fixed.outputs
    with pytest.raises(
        BadInput, match="net.b4.onnx has its batch fixed at 4; export it with dynamic=True, then choose 2"
    ):
        export.at_batch(fixed, 2)


def test_a_declared_shape_that_nothing_tells_stays(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["y"], "places")]
    graph = saved(tmp_path, nodes, [value("x", ["n", 3])], [value("y", [2, "found"], T.INT64)])
    assert export.at_batch(graph, 5).outputs["y"] == ((2, "found"), "int64")


def test_weights_among_the_inputs_are_no_inputs(tmp_path):
    w = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    inputs = [value("x", ["n", 3]), value("w", [3, 2])]
    graph = saved(tmp_path, nodes, inputs, [value("y", ["n", 2])], [w], opset=13, ir=3)
    assert list(graph.inputs) == ["x"] and export.at_batch(graph, 7).outputs["y"][0] == (7, 2)
    assert [v.name for v in surgery.plain(graph.model()).graph.input] == ["x"]
    assert export.float_type(export.cast(graph)) == "fp16"
    feed = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    assert len(quantization.placement(quantization.to_qdq(graph, [feed], method="max")).quantized) == 1


def test_functions_are_written_out_and_nodes_keep_their_names(tmp_path):
    twice = [helper.make_node("Relu", ["p"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["q"])]
    function = helper.make_function("own", "Layer", ["p", "v"], ["q"], twice, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["a"], "first", domain="own"),
        helper.make_node("Layer", ["a", "w"], ["y"], "second", domain="own"),
    ]
    w = np.array([[2, -1], [0.5, 3]], np.float32)
    ends = [value("x", ["n", 2])], [value("y", ["n", 2])]
    called = saved(tmp_path, nodes, *ends, {"w": w}, domains=[("own", 1)], functions=[function], name="called")
    x = np.array([[1, -2], [3, 0.5]], np.float32)
    want = np.maximum(np.maximum(x, 0) @ w, 0) @ w
    low = export.cast(called)
    assert low.ops["MatMul"] == 2 and not low.model().functions
    with runtimes.OnnxRuntime(low) as run:
        np.testing.assert_allclose(run(x)["y"], want, rtol=5e-3)
    made = surgery.plain(called.model())
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == 4 and all(names)
    unnamed = surgery.named(surgery.plain(model_without_names()))
    assert [node.name for node in unnamed.graph.node] == ["Relu_0_2", "Relu_0"]


def model_without_names():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"], "Relu_0")]
    return helper.make_model(helper.make_graph(nodes, "g", [value("x", [2])], [value("y", [2])]), ir_version=8)


def test_inner_tensors_are_shown_with_their_values(pairs):
    shown = export.exposed(pairs, ["s", "h", "s", "y"])
    assert list(shown.outputs) == ["y", "z", "s", "h"] and shown.outputs["h"] == (("n", 3), "fp32")
    feed = {"x": np.ones((2, 3), np.float32), "mask": np.eye(2, dtype=np.float32), "k": np.array(3, np.float32)}
    with runtimes.OnnxRuntime(shown, optimization="off") as run:
        answers = run(feed)
    assert (answers["h"] == 1).all() and (answers["s"] == 3).all()
    with pytest.raises(BadInput, match="net.onnx has no tensor 'nobody' whose shape ONNX can tell"):
        export.exposed(pairs, ["h", "nobody"])
    with pytest.raises(BadInput, match="is the graph that came in"):
        export.exposed(pairs, ["h"], path=pairs.path)


def test_a_batch_that_a_constant_shape_froze_is_refused_by_the_name_of_its_node(tmp_path):
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"], "tanh"),
        helper.make_node("Reshape", ["h", "rows"], ["y"], "frozen"),
    ]
    rows = numpy_helper.from_array(np.array([4, 6]), "rows")
    graph = saved(tmp_path, nodes, [value("x", ["n", 2, 3])], [value("y", ["n", 6])], [rows])
    assert export.at_batch(graph, 4).outputs["y"][0] == (4, 6)
    for call in (lambda: export.at_batch(graph, 3), lambda: footprint.lifetimes(graph, batch=3)):
        with pytest.raises(BadInput, match=r"batch of 3: frozen that writes 'y' makes \[4, 6\] of \[3, 2, 3\]"):
            call()


def test_nodes_of_one_name_get_names_of_their_own(tmp_path):
    nodes = [helper.make_node("Tanh", [a], [b], "same") for a, b in ("xa", "ab", "by")]
    graph = saved(tmp_path, nodes, [value("x", ["n"])], [value("y", ["n"])])
    assert [node.name for node in surgery.named(graph.model()).graph.node] == ["same", "same_2", "same_3"]
    assert np.isfinite(runtimes.OnnxRuntime(export.cast(graph))(np.ones(3, np.float32))["y"]).all()


def one_number(folder, kind):
    """A network with a free batch in which a node has a number of its own: 5 where nothing else is said."""
    x, y, ones = [value("x", ["n", 3])], [value("y", ["n", "m"])], np.ones((5, 3), np.float32)
    inner = helper.make_graph(
        [helper.make_node("Concat", ["x", "c"], ["q"], "join", axis=1)], "t", [], [value("q", ["n", 6])]
    )
    other = helper.make_graph(
        [helper.make_node("Concat", ["x", "x"], ["r"], "pass", axis=1)], "e", [], [value("r", ["n", 6])]
    )
    if kind == "a branch":
        x = [*x, value("k", [], T.BOOL)]
    nodes, weights = {
        "a Concat": ([("Concat", ["x", "c"], ["y"], "node", {"axis": 1})], {"c": ones}),
        "a Concat inside": (
            [
                ("Relu", ["x"], ["r"], "one", {}),
                ("Concat", ["r", "c"], ["z"], "node", {"axis": 1}),
                ("Neg", ["z"], ["y"], "n", {}),
            ],
            {"c": ones},
        ),
        "an Add": ([("Add", ["x", "c"], ["y"], "node", {})], {"c": ones}),
        "a Where": ([("Where", ["k", "x", "z"], ["y"], "node", {})], {"k": ones > 0, "z": np.float32(0)}),
        "a Split": ([("Split", ["x", "s"], ["y", "z"], "node", {"axis": 0})], {"s": np.array([2, 3])}),
        "an Expand": ([("Expand", ["x", "s"], ["y"], "node", {})], {"s": np.array([5, 3])}),
        "a Gemm": ([("Gemm", ["x", "w", "c"], ["y"], "node", {})], {"w": ones[:3], "c": ones}),
        "a branch": ([("If", ["k"], ["y"], "node", {"then_branch": inner, "else_branch": other})], {"c": ones}),
    }[kind]
    made = [helper.make_node(op, reads, writes, name, **more) for op, reads, writes, name, more in nodes]
    return saved(folder, made, x, y, [numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()])


@pytest.mark.parametrize(
    "kind", ["a Concat", "a Concat inside", "an Add", "a Where", "a Split", "an Expand", "a Gemm", "a branch"]
)
def test_a_batch_that_meets_another_number_writes_nothing(kind, tmp_path):
    graph = one_number(tmp_path, kind)
    with pytest.raises(BadInput, match="the network does not run with a batch of 4: .*node"):
        export.at_batch(graph, 4, path=tmp_path / "fixed.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(BadInput, match="the network does not run with a batch of 4"):
        footprint.lifetimes(graph, batch=4)
    fixed = export.at_batch(graph, 5)
    feed = {"x": np.ones((5, 3), np.float32)} | ({"k": np.array(True)} if kind == "a branch" else {})
    with runtimes.OnnxRuntime(fixed, optimization="off") as run:
        assert run(feed)["y"].shape == fixed.outputs["y"][0] or kind == "a branch"


def test_what_was_wrong_before_is_no_matter_of_the_batch(tmp_path):
    """ONNX's strict inference refuses some networks that run; a batch is then no worse."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], "r"), helper.make_node("Own", ["x"], ["z"], "o", domain="mine")]
    outputs = [value("y", ["n", 3]), value("z", ["n", 3])]
    made = saved(tmp_path, nodes, [value("x", ["n", 3])], outputs, domains=[("mine", 1)])
    fixed = export.at_batch(made, 4)
    assert fixed.inputs["x"][0] == (4, 3) and fixed.outputs["z"][0] == (4, 3), "declared, for nothing infers it"
