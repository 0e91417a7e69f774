"""Casts, folds, batches and exports at their edges: which nodes narrow, what is folded, what is refused by name."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import model_of, node, saved, value

from labsupport import export, precision
from labsupport.errors import BadInput, LabError
from labsupport.export import (
    casting,
    constant_folding,
    exporters,
    foreign_nodes,
    frozen_values,
    onnx_graph,
    surgery,
)

W = np.eye(4, dtype=np.float32)
X, Y = [value("x", [1, 4])], [value("y", [1, 4])]


def kinds(graph):
    """The type of every tensor that shape inference knows."""
    return {n: v.type.tensor_type.elem_type for n, v in surgery.values_of(graph.model()).items()}


def test_nodes_that_read_or_write_no_floats_narrow_on_one_side(tmp_path):
    compares = [node("Less", ["x", "w"], "y", "less")]
    graph = saved(tmp_path, compares, X, [value("y", [1, 4], TensorProto.BOOL)], {"w": W[:1]})
    walk = casting.Typed(graph, "fp16", ())
    (less,) = walk.model.graph.node
    assert walk.narrow_places(less) == ({0, 1}, set()) and walk.narrows(less)
    fills = [node("ConstantOfShape", ["s"], "f", "fill"), node("Mul", ["x", "f"], "y", "m")]
    graph = saved(tmp_path, fills, X, Y, {"s": np.array([1, 4])}, name="fill")
    walk = casting.Typed(graph, "fp16", ())
    assert walk.narrow_places(walk.model.graph.node[0]) == (set(), {0}) and walk.narrows(walk.model.graph.node[0])
    made = kinds(precision.cast(graph))
    assert made["f"] == TensorProto.FLOAT16 and made["y"] == TensorProto.FLOAT


def test_an_operator_of_somebodys_own_narrows_whole(tmp_path):
    nodes = [node("Wonder", ["x"], "h", "w", domain="acme"), node("Neg", ["h"], "y", "n")]
    model = model_of(nodes, X, Y, domains=[("acme", 1)])
    model.graph.value_info.append(value("h", [1, 4]))
    graph = export.save(model, tmp_path / "net.onnx")
    walk = casting.Typed(graph, "fp16", ())
    assert walk._schema(walk.model.graph.node[0]) is None
    assert walk.narrow_places(walk.model.graph.node[0]) == ({0}, {0})


def test_what_is_to_stay_wide_is_a_list_of_names_that_are_there(tmp_path):
    graph = saved(tmp_path, [node("Neg", ["x"], "h", "first"), node("Abs", ["h"], "y", "last")], X, Y)
    with pytest.raises(BadInput, match=r"keep_wide names 'frist'.*one of \['first', 'last'\]"):
        precision.cast(graph, keep_wide=["frist"])
    with pytest.raises(BadInput, match=r"one of \['first', 'last'\]"):
        precision.cast(graph, keep_wide=["zzz"])


@pytest.mark.parametrize(("opset", "wanted", "made"), [(19, 19, 19), (20, 19, 20), (17, 19, 19)])
def test_a_model_is_lifted_to_an_operator_set_and_never_lowered(opset, wanted, made):
    model = model_of([node("Relu", ["x"], "y", "n")], X, Y, opset=opset)
    assert casting._at_opset(model, wanted, "net").opset_import[0].version == made


@pytest.mark.parametrize("many", [1, 2])
def test_nodes_that_stay_wide_for_their_constants_are_counted(tmp_path, many):
    nodes = [node("Mul", [f"t{i}", "c"], f"t{i + 1}", f"m{i}") for i in range(many)]
    ends = [value("t0", [1, 4])], [value(f"t{many}", [1, 4])]
    graph = saved(tmp_path, nodes, *ends, {"c": np.float32(1e6)})
    more = r" \(and 1 more\)" if many == 2 else ""
    with pytest.warns(UserWarning, match=rf"m0 \(Mul\) stays FP32{more}, because fp16 does not hold 1e\+06 in 'c'"):
        precision.cast(graph)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        precision.cast(graph, keep_wide=["m0"])
    assert len(heard) == many - 1  # what the caller keeps wide needs no word


def test_a_graph_whose_types_nobody_can_tell_is_named_by_its_first_tensor(tmp_path):
    nodes = [
        node("Normalizer", ["x"], "h", "n", domain="ai.onnx.ml"),
        node("Normalizer", ["h"], "a", "m", domain="ai.onnx.ml"),
    ]
    nodes.append(node("Cast", ["a"], "y", "c", to=1))
    graph = saved(tmp_path, nodes, X, Y, domains=[("ai.onnx.ml", 3)])
    with pytest.raises(BadInput, match="net.onnx: ONNX cannot tell the type of 'a', so it stays as it is"):
        precision.cast(graph)


def test_what_the_evaluator_lacks_stays_as_it_is():
    nodes = [node("Normalizer", ["w"], "v", "n"), node("MatMul", ["x", "v"], "y", "m")]
    made = constant_folding.with_plain_weights(model_of(nodes, X, Y, {"w": W}), ("MatMul",))
    assert [each.name for each in made.graph.node] == ["n", "m"]  # no such operator in ONNX's own domain
    twice = [node("Neg", ["w"], "v", "n"), node("Neg", ["v"], "u", "m"), node("MatMul", ["x", "u"], "y", "p")]
    made = constant_folding.with_plain_weights(model_of(twice, X, Y, {"w": 2 * W, "idle": W}), ("MatMul",))
    assert [each.name for each in made.graph.node] == ["p"]
    assert {w.name: numpy_helper.to_array(w).tolist() for w in made.graph.initializer} == {"u": (2 * W).tolist()}


@pytest.mark.parametrize(
    ("op", "domain", "foldable"),
    [
        ("Neg", "", True),
        ("Neg", "acme", False),
        ("RandomNormal", "", False),
        ("Dropout", "", False),
        ("Neg", "ai.onnx", True),
    ],
)
def test_what_draws_or_is_not_onnxs_own_is_not_folded(op, domain, foldable):
    assert constant_folding._is_foldable(node(op, ["x"], "y", "n", domain=domain)) is foldable


def test_a_branch_is_not_folded():
    body = helper.make_graph([node("Neg", ["w"], "t", "n")], "b", [], [value("t", [4, 4])])
    chosen = helper.make_node("If", ["c"], ["v"], "if", then_branch=body, else_branch=body)
    assert not constant_folding._is_foldable(chosen)


def test_a_file_of_no_nodes_is_no_network(tmp_path):
    (tmp_path / "net.onnx").write_bytes(model_of([], X, X).SerializeToString())
    with pytest.raises(BadInput, match="net.onnx holds no operator nodes"):
        export.load(tmp_path / "net.onnx")


def test_shapes_that_contradict_each_other_are_named(monkeypatch):
    def infer(*_, **__):
        raise RuntimeError("Inferred shape and existing shape differ\nmore")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer)
    with pytest.raises(
        BadInput, match="do not follow from its inputs: Inferred shape and existing shape differ; export"
    ):
        surgery.inferred(model_of([], X, Y))


@pytest.mark.parametrize(
    ("shapes", "batch", "said"),
    [
        ({"x": [2, 4]}, 3, r"batch fixed at 2; export it"),
        ({"x": [2, "n"]}, 3, r"batch fixed at 2 \(x has another axis free; the batch is the first\)"),
        ({"x": [2, "n"], "z": ["m", "n"]}, 3, None),  # one is free
        ({"x": [3, 4]}, 3, None),
        ({"x": [2, "n"], "z": [3, 4]}, 3, None),  # one of them has it
    ],
)
def test_a_batch_that_is_fixed_elsewhere_is_refused(tmp_path, shapes, batch, said):
    nodes = [node("Neg", [name], f"y{name}", name) for name in shapes]
    outputs = [value(f"y{name}", shape) for name, shape in shapes.items()]
    graph = saved(tmp_path, nodes, [value(*each) for each in shapes.items()], outputs)
    if said is None:
        made = export.at_batch(graph, batch)
        assert made.path.name == "net.b3.onnx"
        assert made.inputs["z" if "z" in shapes else "x"][0][0] == 3
    else:
        with pytest.raises(BadInput, match=said):
            export.at_batch(graph, batch)


def test_a_function_that_is_named_twice_is_looked_into_once(tmp_path):
    def made(name, *body):
        return helper.make_function(
            "own", name, ["a"], ["b"], list(body), [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
        )

    inner = made("Inner", node("Odd", ["a"], "b", "odd"))
    outer = made(
        "Outer",
        helper.make_node("Inner", ["a"], ["t"], "one", domain="own"),
        helper.make_node("Inner", ["t"], ["b"], "two", domain="own"),
    )
    calls = [helper.make_node("Outer", [f"t{i}"], [f"t{i + 1}"], f"call{i}", domain="own") for i in range(2)]
    model = model_of(
        [*calls, node("Lost", ["t2"], "y", "")],
        [value("t0", [1])],
        [value("y", [1])],
        domains=[("own", 1)],
        functions=[inner, outer],
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    graph = SimpleNamespace(model=lambda: model)
    found = [(each.node, each.inside, each.has_body) for each in _unknown(graph)]
    assert found == [
        ("call0", "", True),
        ("one", "function Outer", True),
        ("odd", "function Inner", False),
        ("two", "function Outer", True),
        ("call1", "", True),
        ("y", "", False),
    ]


def _unknown(graph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign_nodes.onnx_graph, "load", lambda given: given)
        return foreign_nodes.unknown_operators(graph)


def test_an_unknown_operator_reads_aloud():
    one = foreign_nodes.Unknown("n", "Odd", "", False)
    assert repr(one) == "n: ai.onnx::Odd, nobody says what it computes"
    inside = foreign_nodes.Unknown("n", "Odd", "acme", True, "if")
    assert repr(inside) == "n (in the body of if): acme::Odd, the graph brings a body for it"


class Kinds(torch.nn.Module):
    def forward(self, x):
        return x, {"b": x + 1, "n": 3}


def test_answers_are_flattened_to_tensors_and_compared_within_a_percent():
    (a, b) = frozen_values._flat(Kinds(), (torch.ones(2),))
    assert a.tolist() == [1, 1] and b.tolist() == [2, 2]
    near = frozen_values._near
    assert near(torch.tensor([100.0, 0.0]), torch.tensor([101.0, 0.1]))
    assert not near(torch.tensor([100.0]), torch.tensor([101.2])) and not near(
        torch.tensor([100.0, 0.0]), torch.tensor([100.0, 0.12])
    )
    assert near(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize(
    ("x", "larger", "other"),
    [
        (torch.tensor([1.0, 2.0]), True, [0.75, 1.5, 0.75]),
        (torch.tensor([1.0, 2.0]), False, [1.5, 0.75]),
        (torch.tensor([1, 2]), True, [1, 2, 1]),
        (torch.tensor(4.0), True, 3.0),
    ],
)
def test_the_other_input_has_another_order_and_size(x, larger, other):
    assert frozen_values._other(x, larger).tolist() == other


@pytest.mark.parametrize("answers", [[[1.0, 2.0]], [[1.0], [9.0]], [[9.0], [2.0]], []])
def test_each_answer_of_a_graph_must_follow_the_input(monkeypatch, answers):
    """The network answers x and x + 1; of two answers one that is off is enough."""

    class Two(torch.nn.Module):
        def forward(self, x):
            return x, x + 1

    warning = warnings.WarningMessage(torch.jit.TracerWarning("froze. more"), torch.jit.TracerWarning, "net.py", 7)
    graph = SimpleNamespace(inputs={"x": ((1,), "fp32")})
    monkeypatch.setattr(frozen_values, "_numbers", lambda *_: {})
    monkeypatch.setattr(frozen_values, "_answers", lambda *_: [torch.tensor(each) for each in answers])
    with pytest.raises(BadInput, match=r"'froze' \(line 7 of net.py\) became a constant.*\)$"):
        frozen_values.demand_live(Two(), (torch.tensor([4 / 3]),), graph, {}, [warning])
    with pytest.raises(BadInput, match="; for one batch size, export with dynamic=False"):
        frozen_values.demand_live(Two(), (torch.tensor([4 / 3]),), graph, {"y": {1: "n"}}, [warning])
    right = [torch.tensor([1.0]), torch.tensor([2.0])]
    monkeypatch.setattr(frozen_values, "_answers", lambda *_: right)
    frozen_values.demand_live(Two(), (torch.tensor([4 / 3]),), graph, {}, [warning])


def test_what_nobody_can_run_here_passes_the_tracers_warning_on(monkeypatch, tmp_path):
    warning = warnings.WarningMessage(torch.jit.TracerWarning("froze"), torch.jit.TracerWarning, "net.py", 7)
    monkeypatch.setattr(frozen_values, "_numbers", lambda *_: {})
    model = model_of([node("Wonder", ["x"], "y", "n", domain="acme")], X, Y, domains=[("acme", 1)])
    onnx.save(model, str(tmp_path / "net.onnx"))
    graph = SimpleNamespace(inputs={"x": ((1, 4), "fp32")}, path=tmp_path / "net.onnx")
    with pytest.warns(torch.jit.TracerWarning, match="froze") as heard:
        frozen_values.demand_live(Kinds(), (torch.ones(1, 4),), graph, {}, [warning])
    assert [(each.lineno, each.filename) for each in heard] == [(7, "net.py")]
    with pytest.raises(Exception, match="(?i)no such file|doesn't exist|NoSuchFile"):
        frozen_values._answers(SimpleNamespace(path=tmp_path / "none.onnx"), ())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(""), "ValueError"),
        (ValueError("a\n  b\n\nadvice"), "a b"),
        (ValueError("x" * 400), "x" * 300),
        (ValueError("stopped."), "stopped"),
        (ValueError("x" * 301), "x" * 300),
        (ValueError("\x1b[31mred\x1b[0m"), "red"),
        (
            ValueError("Could not guard on data-dependent"),
            "a condition or a size depends on a tensor's value: Could not guard on data-dependent",
        ),
        (
            ValueError("inferred a static shape of 3 for dimension x."),
            "the network fixes x at 3, and it was to be free; say which axes are: dynamic={...}",
        ),
    ],
)
def test_what_went_wrong_first(error, said):
    assert exporters._cause(error) == said


def test_the_cause_comes_before_the_steps_that_wrap_it():
    inner, middle, outer = (
        ValueError("no kernel"),
        ValueError("Error when translating node %odd : call"),
        ValueError("Failed to export"),
    )
    middle.__cause__, outer.__cause__ = inner, middle
    assert exporters._cause(outer) == "no kernel (error when translating node %odd)"
    middle.args = ("Error when translating node %" + "o" * 200 + " : call",)
    assert exporters._cause(outer).endswith(f" ({('error when translating node %' + 'o' * 200)[:120]}")
    ring = ValueError("a")
    ring.__cause__ = ValueError("b")
    ring.__cause__.__cause__ = ring
    assert exporters._cause(ring) == "b"


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 1, ["input"]),
        (None, 2, ["input_0", "input_1"]),
        ("a", 1, ["a"]),
        ("a", 2, ["input_0", "input_1"]),
        (("a", "b"), 2, ["a", "b"]),
        ([], 1, ["input"]),
    ],
)
def test_names_are_the_networks_own_where_there_are_as_many(given, count, names):
    assert exporters._names(SimpleNamespace(name=given), "name", "input", count) == names


@pytest.mark.parametrize(
    ("dynamic", "axes"),
    [(True, {"x": {0: "batch"}, "y": {0: "batch"}}), (False, {}), (None, {}), ({"y": {1: "n"}}, {"y": {1: "n"}})],
)
def test_axes_that_are_left_free(dynamic, axes):
    assert exporters._axes(dynamic, ["x"], ["y"]) == axes


def test_norms_are_credited_where_the_graph_has_fewer(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm2d(2))
    reads = [["x", *"sbmv"], ["a", *"sbmv"]]
    for kept, told in ((0, {"BatchNorm": 2}), (1, {"BatchNorm": 1}), (2, {}), (3, {})):
        nodes = [node("BatchNormalization", reads[0], "a", f"n{i}") for i in range(kept)]
        onnx.save(model_of([*nodes, node("Neg", ["a"], "y", "z")], X, Y), str(tmp_path / "net.onnx"))
        assert exporters._folded(model, tmp_path / "net.onnx") == told


def test_weights_beside_a_file_must_reach_their_end(tmp_path):
    graph = saved(tmp_path, [node("Add", ["x", "w"], "y", "n")], X, Y, {"w": W[:1]})
    apart = tmp_path / "apart.onnx"
    onnx.save(graph.model(), str(apart), save_as_external_data=True, location="w.bin", size_threshold=0)
    length = (tmp_path / "w.bin").stat().st_size
    assert export.load(apart).ops["Add"] == 1
    (tmp_path / "w.bin").write_bytes(bytes(length - 1))
    with pytest.raises(BadInput, match="keeps the weight 'w' in w.bin, which is too short; copy that file"):
        export.load(apart)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(LabError, match="w.bin, which is not there"):
        export.load(apart)


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ({"location": "w.bin", "offset": "8", "length": "4"}, {"location": "w.bin", "end": 12}),
        ({"location": "w.bin", "length": "4"}, {"location": "w.bin", "end": 4}),
        ({"location": "w.bin", "offset": "8"}, {"location": "w.bin", "end": 8}),
        ({"offset": "8"}, {}),
    ],
)
def test_where_a_weight_lies_beside_its_file(entries, place):
    tensor = onnx.TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    assert onnx_graph.external(tensor) == place
    tensor.data_location = TensorProto.DEFAULT
    assert onnx_graph.external(tensor) == {}


@pytest.mark.parametrize(
    ("rows", "fits"),
    [([3, 4], True), ([1, 4], True), ([4], True), ([2, 4], False), ([3, 1], True), ([1], True), ([3], False)],
)
def test_a_bias_is_added_where_each_axis_is_one_or_the_same(rows, fits):
    nodes = [node("Gemm", ["x", "w", "b"], "y", "")]
    model = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], {"w": W, "b": np.ones(rows, np.float32)})
    if fits:
        surgery.fix_batch(model, 3)
    else:
        with pytest.raises(BadInput, match="batch of 3"):
            surgery.fix_batch(model, 3)


@pytest.mark.parametrize(("axis", "free"), [("n", True), (-1, True), (0, True), (1, False), (5, False)])
def test_a_first_axis_is_free_where_it_is_no_length(axis, free):
    model = model_of([node("Neg", ["x"], "y", "n")], [value("x", [axis, 4])], [value("y", [axis, 4])])
    assert surgery.fix_batch(model, 2) == ((["x"], []) if free else ([], [axis]))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == (2 if free else axis)


def test_inner_tensors_are_shown_once_and_borders_not_again(tmp_path):
    nodes = [node("Neg", ["x"], "a", "n"), node("Abs", ["a"], "y", "m")]
    graph = saved(tmp_path, nodes, X, Y)
    assert list(export.exposed(graph, ["a", "a", "x", "y"]).outputs) == ["y", "a"]
    with pytest.raises(BadInput, match="net.onnx has no tensor 'z' whose shape ONNX can tell"):
        export.exposed(graph, ["a", "z"])


def test_names_of_branches_that_come_again_are_new():
    def branch(name):
        return helper.make_graph(
            [node("Neg", ["x"], "h", "n"), node("Abs", ["h"], name, "m")], name, [], [value(name, [1, 4])]
        )

    chosen = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e"))
    model = model_of([node("Neg", ["x"], "h", "first"), chosen], X, Y, {"c": np.array(True)})
    made = surgery.apart(model).graph
    inner = [[list(each.output) for each in body.node] for body in onnx_graph.bodies(made.node[1])]
    assert inner == [[["h_2"], ["e"]], [["h_3"], ["t"]]] and made.node[0].output[0] == "h"
    assert [body.node[1].input[0] for body in onnx_graph.bodies(made.node[1])] == ["h_2", "h_3"]
