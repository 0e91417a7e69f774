"""The operator nobody knows: in graphs, as layers, examined, and on the clock. What needs a GPU is in test_plugin_kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from operators_stand_ins import needs_rtx

from labsupport import export, plugins, runtimes
from labsupport.build import network
from labsupport.errors import BadInput, BuildError


@pytest.fixture
def expected(block):
    return block(block.example_input()).detach().numpy()


def answer(graph, block) -> np.ndarray:
    with runtimes.OnnxRuntime(graph) as run:
        return run(block.example_input().numpy())["mixed"]


def decomposed(surgeon, node):
    x, gate, weight = node.inputs

    def add(operator, *inputs, **attributes):
        name = f"{node.name}/{operator}_{len(surgeon.nodes)}"
        return surgeon.layer(op=operator, name=name, inputs=list(inputs), outputs=[name], attrs=attributes)[0]

    v = add("Mul", x, add("Mul", gate, add("Sigmoid", gate)))
    mean = add("ReduceMean", add("Mul", v, v), axes=[-1], keepdims=1)
    return add(
        "Mul", weight, add("Div", v, add("Sqrt", add("Add", mean, np.array([node.attrs["epsilon"]], weight.dtype))))
    )


# --- the operator ---------------------------------------------------------------------------------------------------


def test_the_formula_is_what_the_paper_says():
    x, gate, weight = (array.numpy().astype(np.float64) for array in plugins.example(2, 5))
    row = [x[0, i] * gate[0, i] / (1 + np.exp(-gate[0, i])) for i in range(5)]
    rms = (sum(v * v for v in row) / 5 + 1e-5) ** 0.5
    assert plugins.reference(x, gate, weight)[0] == pytest.approx([w * v / rms for w, v in zip(weight, row)])


def test_the_chain_is_the_formula_in_both_types():
    assert plugins.examine(plugins.chain, columns=(1, 33, 256)).passed


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4, 8), (3, 8), (8,)), r"x has shape \(4, 8\) and gate \(3, 8\)"),
        (((), (), ()), "of one axis or more"),
        (((4, 8), (4, 8), (4,)), r"weight has shape \(4,\); wanted is one value a column, \(8,\)"),
        (((4, 8), (4, 8), (1, 8)), "one value a column"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(BadInput, match=message):
        plugins.output_shape(*shapes)


def test_shapes_may_have_names():
    assert plugins.output_shape(("batch", 64), ("batch", 64), (64,)) == ("batch", 64)


def test_the_block_answers_alike_as_a_node_and_as_a_chain(block):
    plain = plugins.GatedBlock(hidden=8, inner=16, as_node=False)
    tokens = block.example_input(5)
    assert torch.equal(block(tokens), plain(tokens))
    assert export.to_onnx(plain, tokens).ops["GatedRmsNorm"] == 0
    with pytest.raises(BadInput, match="whole numbers of 1 or more"):
        plugins.GatedBlock(hidden=0)
    with pytest.raises(BadInput, match="dtype='int8'"):
        plugins.example(2, 2, dtype="int8")


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_an_unknown_operator_is_found(graph):
    (unknown,) = plugins.unknown_operators(graph)
    assert (unknown.op_type, unknown.domain, unknown.has_body) == ("GatedRmsNorm", "workbook", False)
    assert "nobody says what it computes" in repr(unknown)


def test_a_misspelled_standard_operator_is_unknown(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="right")], "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path / "g.onnx"
    onnx.save(model, path)
    graph = export.load(path)
    assert plugins.unknown_operators(graph) == ()
    model.graph.node[0].op_type = "ReLu"
    onnx.save(model, path)  # not through export.save, which refuses it
    assert plugins.unknown_operators(graph)[0].op_type == "ReLu"


def nested(tmp_path, nodes, functions=(), *, kind="Loop"):
    """A graph whose nodes stand in the body of a Loop or Scan, or in a branch of an If."""
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y", "a", "b")}
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    inner = [
        helper.make_node("Identity", ["x" if kind == "If" else "a"], ["a" if kind == "If" else "c"], name="same"),
        *nodes,
    ]
    if kind == "If":
        branch = helper.make_graph(inner, "branch", [], [value["b"]])
        outer = helper.make_node("If", ["flag"], ["y"], name="outer", then_branch=branch, else_branch=branch)
    elif kind == "Loop":
        keep = helper.make_node("Identity", ["go"], ["gone"])
        flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "gone")]
        turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
        outer = helper.make_node(
            "Loop",
            ["count", "flag", "x"],
            ["y"],
            name="outer",
            body=helper.make_graph([*inner, keep], "body", [turn, flags[0], value["a"]], [flags[1], value["b"]]),
        )
    else:
        outer = helper.make_node(
            "Scan",
            ["x"],
            ["y"],
            name="outer",
            num_scan_inputs=1,
            body=helper.make_graph(
                inner,
                "body",
                [helper.make_tensor_value_info("a", TensorProto.FLOAT, [])],
                [helper.make_tensor_value_info("b", TensorProto.FLOAT, [])],
            ),
        )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("workbook", 1)]
    model = helper.make_model(
        helper.make_graph([outer], "g", [value["x"], flag, count], [value["y"]]),
        opset_imports=opsets,
        ir_version=8,
        functions=list(functions),
    )
    path = tmp_path / f"{kind}.onnx"
    onnx.save(model, path)
    return export.load(path)


STRANGE = helper.make_node("Strange", ["a"], ["b"], name="norm", domain="workbook")


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_an_unknown_operator_in_a_body_is_found(tmp_path, kind):
    assert plugins.unknown_operators(nested(tmp_path, [helper.make_node("Relu", ["a"], ["b"])], kind=kind)) == ()
    found = plugins.unknown_operators(graph := nested(tmp_path, [STRANGE], kind=kind))
    assert {(each.node, each.op_type, each.inside, each.has_body) for each in found} == {
        ("norm", "Strange", "outer", False)
    }
    assert len(found) == (2 if kind == "If" else 1) and "norm (in the body of outer): workbook::Strange" in repr(
        found[0]
    )
    with pytest.raises(
        BadInput,
        match="has 'Strange' in the body of an If, Loop or Scan, where this does not reach; onnx.inliner does",
    ):
        plugins.rewritten(graph, "Strange", decomposed)


def test_an_unknown_operator_in_a_function_is_found_once(tmp_path):
    def function(name, operator):
        node = helper.make_node(operator, ["p"], ["q"], name="inner", domain="workbook")
        return helper.make_function(
            "workbook", name, ["p"], ["q"], [node], [helper.make_opsetid("", 17), helper.make_opsetid("workbook", 1)]
        )

    calls = [
        helper.make_node("Outer", ["a"], ["m"], name="one", domain="workbook"),
        helper.make_node("Outer", ["m"], ["b"], name="two", domain="workbook"),
    ]
    graph = nested(
        tmp_path, calls, [function("Outer", "Inner"), function("Inner", "Strange"), function("Unused", "Other")]
    )
    unknown = plugins.unknown_operators(graph)
    told = [(each.op_type, each.inside, each.has_body) for each in unknown]
    assert "brings a body" in repr(unknown[0])
    assert told == [
        ("Outer", "outer", True),
        ("Inner", "function Outer", True),
        ("Strange", "function Inner", False),
        ("Outer", "outer", True),
    ]


def test_onnx_runtime_refuses_the_node_by_its_name(graph):
    with pytest.raises(BadInput, match="GatedRmsNorm"):
        runtimes.OnnxRuntime(graph)


@needs_rtx
def test_the_parser_refuses_the_node(graph):
    with pytest.raises(BuildError, match="has no operator GatedRmsNorm"):
        network.parse(graph)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_rewrite_is_right_at_odd_sizes_in_both_types_and_on_views(dtype):
    graph = plugins.operator_graph("columns", dtype=dtype)
    run = runtimes.OnnxRuntime(plugins.rewritten(graph, "GatedRmsNorm", decomposed))

    def call(x, gate, weight):
        return run({"x": x.numpy(), "gate": gate.numpy(), "weight": weight.numpy()})["y"]

    seen = plugins.examine(
        call, rows=(1, 3), dtypes=[dtype], layouts=plugins.LAYOUTS, columns=(1, 7, 33, 256, 1000, 1025)
    )
    assert seen.passed, seen.wrong[:3]


def test_columns_may_be_free():
    graph = plugins.operator_graph("columns", epsilon=0.5)
    assert [shape for shape, _ in graph.inputs.values()][2] and graph.model().graph.node[0].attribute[0].f == 0.5
    shaped = (
        plugins.with_shapes(graph, "GatedRmsNorm", plugins.output_shape)
        .model()
        .graph.output[0]
        .type.tensor_type.shape.dim
    )
    assert [axis.dim_param for axis in shaped] == ["rows", "columns"]


def test_rewritten_it_answers_as_the_module(graph, block, expected):
    before = graph.sha256
    known = plugins.rewritten(graph, "GatedRmsNorm", decomposed)
    assert np.abs(answer(known, block) - expected).max() < 1e-5
    assert plugins.unknown_operators(known) == () and graph.sha256 == before


def test_the_attribute_goes_along(graph, block, expected):
    model = graph.model()
    next(node for node in model.graph.node if node.op_type == "GatedRmsNorm").attribute[0].f = 10.0
    other = export.save(model, export.scratch_folder() / "epsilon.onnx")
    assert np.abs(answer(plugins.rewritten(other, "GatedRmsNorm", decomposed), block) - expected).max() > 1e-5


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda g: plugins.rewritten(g, "GatedNorm", decomposed),
            r"has no node 'GatedNorm'; it has \['Add', .*'GatedRmsNorm'",
        ),
        (lambda g: plugins.with_shapes(g, "GatedNorm", plugins.output_shape), "has no node 'GatedNorm'"),
        (lambda g: plugins.with_layers(g, "GatedNorm", print), "has no node 'GatedNorm'"),
        (lambda g: plugins.around(g, "GatedNorm"), "has no node 'GatedNorm'"),
        (
            lambda g: plugins.rewritten(g, "GatedRmsNorm", lambda surgeon, node: None),
            r"make\(\) gave 1 value\(s\) of \['NoneType'\]",
        ),
        (
            lambda g: plugins.rewritten(g, "GatedRmsNorm", lambda surgeon, node: node.inputs),
            r"make\(\) gave 3 value\(s\)",
        ),
        (
            lambda g: plugins.rewritten(g, "GatedRmsNorm", lambda surgeon, node: node.inputs[2]),
            "which no node computes.*Identity",
        ),
        (lambda g: plugins.part(g, inputs=["tokens"], outputs=["nothing"]), "has no tensor 'nothing' of known shape"),
        (lambda g: plugins.operator_graph(0), "columns=0"),
        (lambda g: plugins.operator_graph("rows"), "or a name for a free axis"),
        (lambda g: plugins.operator_graph("4 6"), "columns='4 6'"),
        (lambda g: plugins.operator_graph(8, dtype="int8"), "dtype='int8'"),
        (lambda g: plugins.unknown_operators("nothing.onnx"), "no such file"),
    ],
)
def test_what_cannot_be_done_to_a_graph_is_said(graph, call, message):
    with pytest.raises(BadInput, match=message):
        call(graph)


def test_shapes_are_inferred_through_the_node(graph):
    seen = {
        value.name: value
        for value in plugins.with_shapes(graph, "GatedRmsNorm", plugins.output_shape).model().graph.value_info
    }
    node = next(node for node in graph.model().graph.node if node.op_type == "GatedRmsNorm")
    axes = seen[node.output[0]].type.tensor_type.shape.dim
    assert axes[0].dim_param and axes[1].dim_value == 16


def test_a_rule_that_refuses_the_shapes_is_heard(graph):
    def rule(*shapes):
        raise BadInput("no fit")

    with pytest.raises(BadInput, match="no fit"):
        plugins.with_shapes(graph, "GatedRmsNorm", rule)


def test_the_graph_is_cut_before_the_split_and_behind_the_node(graph, block, expected):
    before, after = plugins.around(graph, "GatedRmsNorm", read="projected", written="y")
    assert list(before.outputs) == ["projected"] and set(after.inputs) == {"tokens", "y"}
    tokens = block.example_input()
    projected = torch.from_numpy(runtimes.OnnxRuntime(before)(tokens.numpy())["projected"])
    y = plugins.chain(*projected.split(block.inner, -1), block.scale.detach()).numpy()
    assert np.abs(runtimes.OnnxRuntime(after)({"tokens": tokens.numpy(), "y": y})["mixed"] - expected).max() < 1e-5


def test_a_cut_needs_one_source():
    with pytest.raises(BadInput, match=r"reading \['gate', 'weight', 'x'\]"):
        plugins.around(plugins.operator_graph(4), "GatedRmsNorm")


def test_a_sweep_has_every_run_at_every_size_with_its_error():
    graph = plugins.rewritten(plugins.operator_graph(32), "GatedRmsNorm", decomposed)
    run = runtimes.OnnxRuntime(graph, name="rewritten")
    points = plugins.sweep([run], rows=(1, 4), columns=32, samples=2)
    assert [round(point.mb * 1e6) for point in points] == [3 * 32 * 4, 4 * 3 * 32 * 4]
    assert all(point.error < 1e-5 and point.gb_per_s == pytest.approx(point.mb / point.ms) for point in points)
    feed = dict(zip(("x", "gate", "weight"), plugins.example(4, 32)))
    peak = np.abs(plugins.reference(*feed.values())).max()

    def short(feed):
        return {"y": run(feed)["y"] - np.float32(peak / 4)}

    short.name = "a quarter of the peak short everywhere"
    assert plugins.sweep([short], rows=[4], columns=32, samples=2)[0].error == pytest.approx(0.25, rel=1e-4)
    for rows in ([], [0], [1.5]):
        with pytest.raises(BadInput, match="whole numbers"):
            plugins.sweep([run], rows=rows, columns=32)


def test_the_fastest_is_an_answer_and_never_the_copy():
    points = [
        plugins.Point("a", 1.0, 2.0, 0.0),
        plugins.Point("b", 1.0, 1.0, 0.0),
        plugins.Point("copy", 1.0, 0.1, None),
        plugins.Point("a", 9.0, 1.0, 0.0),
        plugins.Point("b", 9.0, 3.0, 0.0),
    ]
    assert {mb: point.name for mb, point in plugins.fastest(points).items()} == {1.0: "b", 9.0: "a"}
    drawing = plugins.draw_sweep(points, title="T")
    assert repr(drawing) == "T: GB/s over MB. Fastest: b at 1 MB, up to 1 GB/s; a at 9 MB, up to 9 GB/s."
    assert len(drawing._repr_png_()) < 60_000 and "GB/s" in repr(points[0])
    with pytest.raises(BadInput, match="no points to draw"):
        plugins.draw_sweep([])
