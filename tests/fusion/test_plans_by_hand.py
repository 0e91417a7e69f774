"""Plans, books, differences, times and rooflines of three kernels or fewer, each number by hand."""

from __future__ import annotations

import pytest

from labsupport import fusion
from labsupport.errors import BadInput
from labsupport.fusion import (
    executed_nodes,
    kernels,
    layer_times,
    node_accounts,
    plan_diff,
    plan_schema,
    plan_text,
    roofline,
)
from labsupport.fusion.kernels import Kernel, Plan, with_times
from labsupport.fusion.onnx_nodes import Node, NodeGraph
from labsupport.fusion.plan_schema import Tensor


def tensor(name, *shape, dtype="fp16"):
    return Tensor(name, shape, dtype)


def node(name, op, reads, *writes):
    return Node(name, op, tuple(reads.split()), writes)


def plan_of(*made, graph=None, **options):
    return Plan("net", tuple(made), options.pop("schema", "10"), options.pop("maker", "TensorRT"), graph, **options)


@pytest.mark.parametrize(
    ("kind", "weights", "inputs", "size"),
    [
        ("pointwise", 0, [tensor("a", 3, 5), tensor("b", 3, dtype="fp32")], 30 + 12 + 8),
        ("convolution", 100, [tensor("a", 3)], 6 + 8 + 100),
        ("convolution", 0, [tensor("a", 3)], None),
        ("matmul", 0, [tensor("a", 3)], None),
        ("matmul", 0, [tensor("a", 3), tensor("b", 1)], 6 + 2 + 8),
        ("region", 100, [tensor("a", 3)], None),
        ("no-op", 0, [tensor("a", 3)], 0),
        ("pointwise", 0, [tensor("a", -1)], None),
        ("pointwise", 0, [tensor("a", 3, dtype="")], None),
        ("pointwise", 0, [tensor("a", 3, dtype="int4")], 2 + 8),
    ],
)
def test_the_bytes_of_a_kernel(kind, weights, inputs, size):
    outputs = (tensor("y", 4),)
    assert Kernel("k", kind, inputs=tuple(inputs), outputs=outputs, weight_bytes=weights).bytes == size
    assert Kernel("k", "pointwise").bytes is None


def test_kernels_and_plans_read_aloud():
    a = Kernel("a", "matmul", ("m", "r"), inputs=(tensor("x"), tensor("i", dtype="int8")), outputs=(tensor("y"),))
    b = Kernel("b", "layout", outputs=(tensor("z", dtype=""),), note="a copy", share=0.25)
    assert repr(a) == "matmul fp16, int8 → fp16: m + r"
    assert repr(b) == "layout ? → ?: no ONNX node (b) (a copy; 25.0% of the time)"
    graph = NodeGraph((node("m", "MatMul", "x", "t"), node("r", "Relu", "t", "y")), ("x",), ("y",))
    plan = plan_of(a, b, Kernel("c", "layout"), Kernel("n", "no-op"), graph=graph, total_ms=1.25)
    assert repr(plan) == "Plan(net: 3 kernels run from 2 ONNX nodes: layout×2, matmul, no-op; 1.25 ms)"
    assert repr(plan_of(a, schema="layer names")).endswith("matmul; layer names only: no types, no tactics)")
    assert plan.kernel_of("m") is a and plan.together("m", "r") and [k.name for k in plan.inserted] == ["b", "c"]
    with pytest.raises(BadInput, match=r"no node '/M/'; close are \['m'\]"):
        plan.kernel_of("/M/")
    assert plan.detailed and not plan_of(Kernel("a", "matmul")).detailed


def test_times_give_shares_and_what_no_kernel_owns_counts():
    plan = plan_of(Kernel("a", "matmul"), Kernel("b", "pointwise"))
    timed = with_times(plan, {"a": 1.0, "else": 3.0})
    assert [(k.time_ms, k.share) for k in timed.kernels] == [(1.0, 0.25), (None, None)] and timed.total_ms == 4
    still = with_times(plan, {"a": 0.0, "b": 0.0})
    assert [k.share for k in still.kernels] == [0.0, 0.0] and still.total_ms == 0
    with pytest.raises(BadInput, match="it times 'z', and the plan has kernels such as 'a'"):
        with_times(plan, {"z": 1.0})


@pytest.mark.parametrize(
    ("maker", "kind", "doubtful", "unowned"),
    [
        ("TensorRT", "layout", False, ()),
        ("TensorRT", "pointwise", False, ("e",)),
        ("TensorRT", "layout", True, ("e",)),
        ("ONNX Runtime", "pointwise", False, ()),
        ("ONNX Runtime", "pointwise", True, ("e",)),
        ("TensorRT", "no-op", False, ()),
    ],
)
def test_a_kernel_that_computes_nobody_knows_what_leaves_the_books_open(maker, kind, doubtful, unowned):
    graph = NodeGraph((node("m", "MatMul", "x", "y"),), ("x",), ("y",))
    books = plan_of(
        Kernel("k", "matmul", ("m",)), Kernel("e", kind, doubtful=doubtful), graph=graph, maker=maker
    ).accounts()
    assert books.unowned == unowned and books.complete is not bool(unowned) and books.balanced


def test_every_fate_of_a_node_has_its_account():
    nodes = [
        node("conv", "Conv", "x w", "a"), node("both", "Relu", "a", "b"), node("view", "Reshape", "b s", "c"),
        node("q", "QuantizeLinear", "c k", "d"), node("join", "Concat", "d c", "e"), node("part", "Split", "e", "f", "g"),
        node("lost", "Exp", "f", "h"), node("dead", "Exp", "g", "i"), node("twin", "Relu", "a", "b2"),
        node("sum", "Add", "h b2", "y"),
    ]  # fmt: skip
    graph = NodeGraph(tuple(nodes), ("x",), ("y",), frozenset({"w", "s", "k"}))
    made = [
        Kernel("k1", "convolution", ("conv", "both"), {"both": "why"}, outputs=(tensor("b"),)),
        Kernel("k2", "pointwise", ("both", "nowhere"), inputs=(tensor("b"),), outputs=(tensor("e"),)),
        Kernel("k3", "pointwise", ("sum",), inputs=(tensor("f"), tensor("f")), outputs=(tensor("y"),)),
        Kernel("k4", "pointwise", ("conv",), inputs=(tensor("f"),), outputs=(tensor("a"),)),
    ]
    books = plan_of(*made, graph=graph).accounts()
    assert {each.name: books.where(each.name) for each in nodes} == {
        "conv": ("split", "k1 and k4"),
        "both": ("inferred", "k1 and k2"),
        "view": ("removed", "the same bytes in another shape"),
        "q": ("moved", "its scale went into the kernels beside it"),
        "join": ("moved", "written in place by k2"),
        "part": ("moved", "read in place by k3 and k4"),
        "lost": ("unplaced", "no kernel names it and no rule covers it"),
        "dead": ("removed", "nobody reads its result"),
        "twin": ("removed", "computes the same as both"),
        "sum": ("kernel", "k3"),
    }
    assert repr(books) == (
        "10 ONNX nodes = 3 in 2 kernels (1 of them inferred) + 3 removed + 3 moved + unplaced; 1 UNPLACED: lost; "
        "the plan names 1 nodes that the graph lacks: nowhere"
    )
    assert books.balanced and not books.complete
    assert books.table().iloc[1].to_dict() == {
        "node": "both", "operator": "Relu", "account": "inferred", "where": "k1 and k2", "evidence": "why",
    }  # fmt: skip


@pytest.mark.parametrize(("many", "said"), [(3, "a, b, c"), (4, "a, b, c and 1 more")])
def test_three_names_are_said(many, said):
    assert node_accounts._few(list("abcdef"[:many])) == said


def test_two_plans_beside_each_other_by_hand():
    def kernel(name, nodes, dtype="fp16", tactic="", ms=None):
        ends = {"inputs": (tensor("i", dtype=dtype),), "outputs": (tensor("o", dtype=dtype),)} if dtype else {}
        return Kernel(name, "pointwise", tuple(nodes), tactic=tactic, time_ms=ms, **ends)

    before = [
        kernel("1", "ab", tactic="t", ms=1.0),
        kernel("2", "c", ms=2.0),
        kernel("3", "de", ms=4.0),
        kernel("4", "x"),
    ]
    after = [
        kernel("5", "ab", "int8", "u", 8.0),
        kernel("6", "c", ""),
        kernel("7", "d", ms=16.0),
        kernel("8", "ez", ms=32.0),
    ]
    found = fusion.diff(plan_of(*before, Kernel("copy", "layout"), total_ms=7.0), plan_of(*after, total_ms=56.0))
    assert [(a.name, b.name) for a, b in found.same] == [("1", "5"), ("2", "6")]
    assert [([k.name for k in a], [k.name for k in b]) for a, b in found.regrouped] == [(["3"], ["7", "8"])]
    assert [a.name for a, _ in found.retyped] == ["1"] and [a.name for a, _ in found.retuned] == ["1"]
    assert (found.only_before, found.only_after) == (("x",), ("z",))
    assert repr(found) == (
        "Diff(net → net: 2 kernels of the same nodes, 1 groups fused differently, 1 in other types, 1 by another tactic, "
        "inserted copies 1 → 0, nodes in no kernel of the other: 1 and 1)"
    )
    rows = found.table().to_dict("records")
    assert [(r["what"], r["before"], r["after"], r["ms before"], r["ms after"]) for r in rows] == [
        ("fused differently", "d + e", "d | e + z", 4.0, 48.0),
        ("types and tactic", "a + b", "a + b", 1.0, 8.0),
    ]
    assert rows[0]["tactic after"] == "– | –" and rows[1]["types after"] == "int8 → int8"
    assert plan_diff._typed(Kernel("k", "matmul")) == ""


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({"a": 1, "b": 0}, {"a": 1.0, "b": 0.0}),
        ([{"count": 9}, {"name": "a", "medianMs": 2, "averageMs": 3}, {"name": "b", "averageMs": 3, "timeMs": 9}], {"a": 2, "b": 3}),
        ('[{"name": "a", "timeMs": 9}]', {"a": 9}),
        ({"a": 1e9 - 1}, {"a": 1e9 - 1}),
    ],
)  # fmt: skip
def test_times_are_read_from_every_form(given, times):
    assert layer_times.times_of(given) == times


@pytest.mark.parametrize("ms", [-0.1, 1e9, True, None, "1", float("nan")])
def test_no_time_is_taken_that_is_none(ms):
    with pytest.raises(BadInput, match="the profile gives 'b' the time"):
        layer_times.times_of({"a": 1.0, "b": ms})


def test_the_work_and_the_floor_by_hand():
    steps = (roofline.Step("a", "Conv", 4_000_000, 1_000_000), roofline.Step("b", "Relu", 1_000_000, 3_000_000))
    work = roofline.Work(steps, 2_000_000)
    ceiling = roofline.Ceiling("cpu", 1.0, 2.0)
    assert (work.flops, work.bytes_apart) == (5_000_000, 4_000_000)
    assert ceiling.floor_ms(work) == 2.5 and ceiling.floor_ms(work, together=False) == 2.0 + 3.0
    assert ceiling.most_gain(work) == 2.0
    assert repr(work) == "Work(2 nodes: 0.005 GFLOP, 3.8 MiB moved apart, 1.9 MiB together)"
    assert repr(ceiling) == "Ceiling(cpu: 1 GB/s from memory, 2 GFLOP/s in fp32)"


def test_the_best_round_counts_but_never_the_first():
    clock = iter([0, 4, 100, 180, 200, 240, 300, 360])  # four calls a round: 1, 20, 10 and 15 ns
    calls = []
    assert roofline._best(lambda: calls.append(1), lambda: None, 3, lambda: next(clock)) == 10 and len(calls) == 16
    assert roofline._best(lambda: None, lambda: None, 1, lambda: 0) == 1e-3


@pytest.mark.parametrize(
    ("layer_type", "name", "tactic", "kind"),
    [
        ("kgen", "k", "", "generated"),
        ("kgen", "k_MHA", "", "attention"),
        ("fusion", "k", "gemm_x", "matmul"),
        ("Fusion", "k", "", "generated"),
        ("Whatever", "k", "", "other"),
    ],
)
def test_kernels_of_myelin_are_told_by_name_and_tactic(layer_type, name, tactic, kind):
    assert plan_schema.Layer(name, layer_type, tactic=tactic).kind == kind


@pytest.mark.parametrize(("profile", "ok"), [(0, True), (1, False), (-1, False)])
def test_a_profile_that_is_not_there_is_refused(profile, ok):
    if ok:
        assert plan_schema.inspected({"Layers": ["a", "b"]}, "p", profile).profiles == 1
    else:
        with pytest.raises(
            BadInput, match=f"p has 1 optimization profile; optimization_profile={profile} is none of 0 to 0"
        ):
            plan_schema.inspected({"Layers": ["a", "b"]}, "p", profile)


def test_types_are_said_once():
    assert kernels._types((tensor("a"), tensor("b"), tensor("c", dtype=""), tensor("d", dtype="int8"))) == "fp16, int8"


def test_a_number_beyond_all_is_said_in_forty_letters():
    with pytest.raises(BadInput, match=f"holds the number {'9' * 38}e9, and an inspector"):
        plan_text.parse(f'{{"a": {"9" * 38}e999}}')
    with pytest.raises(BadInput, match="holds the number -1e999, and"):
        plan_text.parse('{"a": -1e999}')


@pytest.mark.parametrize(
    ("name", "before", "after", "handed_on"),
    [
        ("cast", "fp32", "fp16", True),
        ("cast", "bf16", "double", True),
        ("cast", "fp32", "int32", False),
        ("cast", "int64", "fp32", False),
        ("cast", "fp32", None, False),
        ("InsertedPrecisionFreeCast_1", "int32", "fp32", True),  # the runtime's own
    ],
)
def test_a_cast_between_floats_hands_its_tensor_on(name, before, after, handed_on):
    original = NodeGraph((node("n", "Neg", "x", "y"),), ("x",), ("y",))
    types = {tensor: (kind, (1,)) for tensor, kind in (("x", before), ("q", after)) if kind}
    cast, kernel = node(name, "Cast", "x", "q"), node("k", "Neg", "q", "y")
    placed = executed_nodes.placement(original, NodeGraph((cast, kernel), ("x",), ("y",), types=types))
    assert placed.ends.get("q") == ("x" if handed_on else None)
