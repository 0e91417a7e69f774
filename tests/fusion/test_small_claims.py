"""Single claims of the X-ray, each by hand: what stays in doubt, what is handed on, what is drawn, what was compared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_files import model_of, node, value
from plan_samples import onnx_file

from labsupport import fusion, runtimes
from labsupport.fusion import executed_nodes
from labsupport.fusion.executed_nodes import Placement, passes_through, through
from labsupport.fusion.kernels import Kernel
from labsupport.fusion.layer_names import of_profile
from labsupport.fusion.node_accounts import account
from labsupport.fusion.onnx_nodes import Node, NodeGraph, nodes_of
from labsupport.fusion.plan_schema import Tensor

draw = np.random.default_rng(11)


def chain(path):
    nodes = [("a", "Exp", ["x"], ["h"], {}), ("b", "Relu", ["h"], ["k"], {}), ("c", "Sin", ["k"], ["y"], {})]
    return onnx_file(path, nodes, [("x", [4])], [("y", [4])])


def test_what_the_way_leaves_in_doubt_stands_where_it_was_placed_directly(tmp_path):
    original = nodes_of(chain(tmp_path / "c.onnx"))
    upper = Placement({"p": ("a",), "q": ("b", "c")}, {"q.y": "y"}, frozenset({"p"}))
    lower = Placement({"k1": (), "k2": ("q",), "k3": ("p",)}, {"t": "q.y"}, frozenset({"k1"}))
    known = through(upper, lower, Placement({"k1": ("b",), "k2": (), "k3": ("a",)}, {}), original)
    assert known.nodes == {"k1": ("b",), "k2": ("b", "c"), "k3": ("a",)} and not known.doubtful
    assert known.ends == {"t": "y"}
    blind = Placement({"k1": (), "k2": (), "k3": ()}, {}, frozenset({"k1", "k2", "k3"}))
    found = through(upper, lower, blind, original)
    assert found.doubtful == {"k1", "k3"} and found.nodes["k2"] == ("b", "c")  # none of the two is a copy


def test_a_dropout_is_handed_on_unless_it_may_be_training(tmp_path):
    nodes = [
        ("plain", "Dropout", ["x"], ["a"], {}),
        ("rated", "Dropout", ["a", "r"], ["b"], {}),
        ("asked", "Dropout", ["b", "r", "t"], ["y"], {}),
    ]
    weights = {"r": np.float32(0.4), "t": np.array(False)}
    graph = nodes_of(onnx_file(tmp_path / "d.onnx", nodes, [("x", [4])], [("y", [4])], weights))
    assert [passes_through(graph, node) for node in graph.nodes] == [True, True, False]


def test_a_split_is_read_in_place_only_where_nobody_wrote_its_parts(tmp_path):
    nodes = [
        ("split", "Split", ["x"], ["a", "b"], {}),
        ("left", "Exp", ["a"], ["y"], {}),
        ("right", "Sin", ["b"], ["z"], {}),
    ]
    graph = nodes_of(onnx_file(tmp_path / "s.onnx", nodes, [("x", [4])], [("y", [2]), ("z", [2])]))
    claims, readers = {"left": ("k1",), "right": ("k2",)}, {"a": ["k1"], "b": ["k2"]}
    assert account(graph, claims, readers=readers).moved == {"split": "read in place by k1 and k2"}
    half = account(graph, claims, readers=readers, writers={"a": ["k0"]})
    assert half.moved == {"split": "read in place by k2"}
    copied = account(graph, claims, readers=readers, writers={"a": ["k0"], "b": ["k0"]})
    assert copied.unplaced == ("split",) and not copied.moved and copied.balanced


def test_what_is_drawn_hangs_on_no_shape(tmp_path):
    nodes = [
        ("draw", "RandomNormal", [], ["r"], {"shape": [4]}),
        ("noise", "Add", ["x", "r"], ["h"], {}),
        ("size", "Shape", ["h"], ["s"], {}),
        ("fill", "Expand", ["h", "s"], ["y"], {}),
    ]
    graph = nodes_of(onnx_file(tmp_path / "r.onnx", nodes, [("x", [4])], [("y", [4])]))
    assert graph.shape_nodes == {"size"} and not graph.constant_nodes


def test_what_stands_behind_a_tensor_ends_where_it_is_told_to(tmp_path):
    graph = nodes_of(chain(tmp_path / "c.onnx"))
    assert graph.ancestors(["y"], until=["h"]) == {"b", "c"} and graph.ancestors(["y"], until=[]) == {"a", "b", "c"}


def test_bytes_of_a_product_of_two_activations_need_no_weight():
    sides = [Tensor("a", (2, 3), "fp32"), Tensor("b", (3, 5), "fp32")]
    product = Kernel("k", "matmul", inputs=tuple(sides), outputs=(Tensor("y", (2, 5), "fp32"),))
    assert product.bytes == 4 * (6 + 15 + 10)
    alone = Kernel("k", "matmul", inputs=tuple(sides[:1]), outputs=product.outputs)
    assert alone.bytes is None  # its weight is not listed
    assert Kernel("k", "matmul", inputs=alone.inputs, outputs=alone.outputs, weight_bytes=60).bytes == 24 + 40 + 60


def test_kernels_of_the_same_nodes_are_the_same_where_one_plan_took_a_node_out(tmp_path):
    graph = chain(tmp_path / "c.onnx")
    whole = fusion.xray({"Layers": ["a + b", "c"]}, graph=graph, name="whole")
    less = fusion.xray({"Layers": ["a", "c"]}, graph=graph, name="less")
    for before, after in ((whole, less), (less, whole)):
        found = fusion.diff(before, after)
        assert [pair[0].nodes[0] for pair in found.same] == ["a", "c"] and not found.regrouped
    assert fusion.diff(whole, less).only_before == ("b",) and fusion.diff(less, whole).only_after == ("b",)
    other = fusion.xray({"Layers": ["a", "b + c"]}, graph=graph, name="other")
    (group,) = fusion.diff(whole, other).regrouped
    assert [[k.nodes for k in side] for side in group] == [[("a", "b"), ("c",)], [("a",), ("b", "c")]]


def test_a_difference_that_was_timed_adds_up_each_side(tmp_path):
    graph = chain(tmp_path / "c.onnx")
    times = {"a": 0.25, "b + c": 0.5, "a + b": 1.0, "c": 2.0}
    one, two = (
        dataclasses.replace(
            plan, kernels=tuple(dataclasses.replace(k, time_ms=times[k.name]) for k in plan.kernels), total_ms=1.0
        )
        for plan in (fusion.xray({"Layers": layers}, graph=graph) for layers in (["a", "b + c"], ["a + b", "c"]))
    )
    (row,) = fusion.diff(one, two).table().to_dict("records")
    assert (row["ms before"], row["ms after"]) == (0.75, 3.0)


def test_a_name_that_the_runtime_could_have_invented_is_the_graphs_own(tmp_path):
    """ONNX Runtime calls its FP32 copy of a tensor h so; a network may have a tensor of that name itself."""
    own = "InsertedPrecisionFreeCast_h"
    nodes = [("a", "Exp", ["x"], ["h"], {}), ("b", "Sin", ["h"], [own], {}), ("c", "Neg", [own], ["y"], {})]
    graph = onnx_file(tmp_path / "n.onnx", nodes, [("x", [4])], [("y", [4])])
    plan = fusion.xray(runtimes.OnnxRuntime(graph, optimization="off"))
    assert [(k.nodes, dict(k.ends)) for k in plan.kernels] == [
        (("a",), {"h": "h"}),
        (("b",), {own: own}),
        (("c",), {"y": "y"}),
    ]


def test_what_the_runtime_runs_once_for_each_reader_counts_for_its_node(tmp_path):
    """A Dequantize node of several readers is doubled when a session is made: here the parts of a normalization, which
    are one reader until the runtime writes it out.
    """
    weights = {"s": np.float32(0.05), "z": np.array(128, np.uint8)}
    weights |= {"scale": np.full(6, 1.5, np.float32), "shift": np.full(6, 0.25, np.float32)}
    nodes = [
        ("q", "QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
        ("d", "DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
        ("norm", "GroupNormalization", ["xd", "scale", "shift"], ["n"], {"num_groups": 2}),
        ("r", "QuantizeLinear", ["n", "s", "z"], ["nq"], {}),
        ("e", "DequantizeLinear", ["nq", "s", "z"], ["y"], {}),
    ]
    graph = onnx_file(tmp_path / "q.onnx", nodes, [("x", [2, 6, 4, 5])], [("y", [2, 6, 4, 5])], weights, opset=21)
    for level in ("off", "all"):
        run = runtimes.OnnxRuntime(graph, optimization=level)
        times = fusion.profile(run, {"x": draw.standard_normal((2, 6, 4, 5)).astype(np.float32)}, runs=3, warmup=1)
        plan = fusion.xray(run, profile=times)
        assert set(times) <= {kernel.name for kernel in plan.kernels}, level
        assert sum(kernel.share for kernel in plan.kernels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "profiles"),
    [
        ([("a", "x"), ("a [profile 1]",), ("b", "y [profile 1]"), ("c",)], [0, 1, 1, 1]),  # they stand together
        ([("k_myl3_1",), ("a [profile 1]", "x"), ("k_myl3_2", "y [profile 2]")], [2, 1, 2]),  # by the region's number
        ([("a", "t_myl3_1"), ("k_myl3_2 [profile 1]",)], [0, 1]),  # a tensor's number is not its reader's
        ([("a [profile 12]",)], [12]),
    ],
)
def test_a_layer_belongs_to_the_profile_that_it_or_its_region_bears(names, profiles):
    assert of_profile(names) == profiles


@pytest.mark.parametrize(("activation", "end"), [("Relu", "b"), ("Sigmoid", "a"), (None, "a")])
def test_a_fused_kernel_ends_in_its_activation_where_two_tensors_have_the_same_values(activation, end):
    """Without one that it ends in, the nearest to what is read is taken."""
    original = NodeGraph((Node("conv", "Conv", ("x",), ("a",)), Node("act", "Relu", ("a",), ("b",))), ("x",), ("b",))
    told = {} if activation is None else {"k": activation}
    kernel = Node("k", "FusedConv", ("x",), ("new",))
    search = executed_nodes._Search(original, NodeGraph((kernel,), ("x",), ("new",), activations=told))
    search.by_value(SimpleNamespace(like=lambda _: {"a": False, "b": False}, weak=lambda _: False))
    assert search.ends["new"] == end


def test_what_a_fused_node_ends_in_is_read_from_its_file():
    nodes = [node("FusedConv", ["x"], "h", "a", activation="Tanh", group=1), node("Relu", ["h"], "y", "b")]
    assert nodes_of(model_of(nodes, [value("x", [4])], [value("y", [4])])).activations == {"a": "Tanh"}
