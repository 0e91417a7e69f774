"""Odd data, odd layers and odd answers: what each is refused with or changed to, every threshold at its edge."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx_files import model_of, node, saved, value

from labsupport import quantization
from labsupport.errors import BadInput, LabError
from labsupport.export import large_constants, qdq_nodes
from labsupport.quantization import (
    calibration,
    calibration_drawing,
    fit_graphs,
    int8_calibrator,
    kept_wide,
    layer_costs,
    modelopt_road,
    qdq,
)
from labsupport.quantization.calibration import Calibration, Histogram

W = np.eye(4, dtype=np.float32)


def chain(*made, inputs=(("x", [1, 4]),), outputs=(("y", [1, 4]),), **weights):
    return model_of(list(made), [value(*v) for v in inputs], [value(*v) for v in outputs], weights)


def test_a_calibration_reads_aloud_and_names_what_it_has():
    known = Calibration("sha", {f"t{i}": calibration.histogram([1.0, -2.0], name="x") for i in range(9)}, 5)
    assert repr(known) == "Calibration(9 tensors on 5 items)" and repr(known["t1"]) == "Histogram(x: 2 values, -2 to 1)"
    with pytest.raises(BadInput, match=r"'z' was not calibrated; choose from \['t0', .*'t7'\]…"):
        known["z"]


@pytest.mark.parametrize("method", calibration.METHODS)
def test_nothing_but_zeros_keeps_no_range(method):
    assert calibration.histogram([0.0, 0.0]).range(method) == (0.0, 0.0)
    ones = calibration.histogram([1.0, 0.5] * 50)
    assert 0.5 <= ones.threshold(method) <= 1.0


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_a_tail_is_cut_where_the_largest_value_is_one(method):
    values = np.concatenate([np.random.default_rng(0).normal(0, 0.01, 100_000), [1.0]])
    assert calibration.histogram(values).threshold(method) < 0.9


def test_a_calibration_takes_one_array_for_one_input_and_names_what_does_not_run(tmp_path):
    graph = saved(
        tmp_path, [node("Add", ["a", "b"], "y", "sum")], [value("a", [1]), value("b", [1])], [value("y", [1])]
    )
    with pytest.raises(BadInput, match=r"batch 0 is one array, but the network has the inputs \['a', 'b'\]; pass"):
        calibration.collect(graph, [np.ones(1, np.float32)])
    weights = {"s": np.array([2, 2])}
    shaped = saved(
        tmp_path, [node("Reshape", ["x", "s"], "y", "r")], [value("x", ["n"])], [value("y", [2, 2])], weights
    )
    assert calibration.collect(shaped, [np.arange(4, dtype=np.float32)])["y"].highest == 3
    with pytest.raises(LabError, match="could not run net.onnx on a calibration batch: .*compare it with graph.inputs"):
        calibration.collect(shaped, [np.arange(3, dtype=np.float32)])


def test_a_graph_that_shows_no_inner_tensors_is_named(tmp_path, monkeypatch):
    import onnxruntime

    def session(*_, **__):
        raise RuntimeError("no kernel for node n")

    graph = saved(tmp_path, [node("Neg", ["x"], "y", "n")], [value("x", [1])], [value("y", [1])])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(LabError, match="cannot load net.onnx with its inner tensors shown: no kernel for node n; look"):
        calibration.collect(graph, [np.ones(1, np.float32)])


@pytest.mark.parametrize(
    ("tensors", "watched"),
    [(None, {"x", "h", "y"}), (["h"], {"h"}), (["x"], {"x"}), (["y", "x"], {"x", "y"}), ([], set())],
)
def test_the_tensors_that_were_named_are_watched(tmp_path, tensors, watched):
    nodes = [node("Neg", ["x"], "h", "n"), node("Abs", ["h"], "y", "a")]
    graph = saved(tmp_path, nodes, [value("x", ["n", 2])], [value("y", ["n", 2])])
    made = calibration.collect(graph, [np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]])], tensors=tensors)
    assert set(made.histograms) == watched and made.items == 3
    with pytest.raises(BadInput, match=r"has no tensor 'z'; it has \['h', 'y'\]…"):
        calibration.collect(graph, [np.ones((1, 2), np.float32)], tensors=["z"])


def test_items_are_counted_by_the_first_input_with_an_axis(tmp_path):
    nodes = [node("Mul", ["s", "x"], "y", "m")]
    graph = saved(tmp_path, nodes, [value("s", []), value("x", ["n"])], [value("y", ["n"])])
    assert calibration.collect(graph, [{"s": np.float32(2), "x": np.float32([1, 2, 3])}]).items == 3
    alone = saved(tmp_path, [node("Neg", ["s"], "y", "n")], [value("s", [])], [value("y", [])])
    assert calibration.collect(alone, [np.float32(1), np.float32(2)]).items == 2


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (np.zeros((0, 4), np.float32), "fp32", "is empty"),
        (np.zeros((1, 3), np.float32), "fp32", r"has shape \(1, 3\); the network wants \(n, 4\)"),
        (np.zeros(4, np.float32), "fp32", r"has shape \(4,\)"),
        (np.zeros((1, 4)), "fp32", "is float64; the network wants float32"),
        (np.zeros((1, 4), np.int32), "int64", "is int32; the network wants int64"),
        (np.full((1, 4), "a"), "string", None),
        (np.full((1, 4), b"a"), "string", None),
        (np.full((1, 4), "a"), "fp32", "is <U1"),
        (np.zeros((1, 4), np.float32), "string", "is float32; the network wants string"),
        (np.full((1, 4), -np.inf, np.float32), "fp32", None),
        (np.full((1, 4), np.inf, np.float16), "fp16", "holds NaN or infinity"),
        (np.zeros((7, 4)), "double", None),
    ],
)
def test_what_a_calibration_batch_may_hold(array, kind, said):
    if said is None:
        assert calibration._checked("x", 2, array, ("n", 4), kind) is array
    else:
        with pytest.raises(BadInput, match=f"calibration batch 2, input 'x' {said}"):
            calibration._checked("x", 2, array, ("n", 4), kind)


def test_two_inputs_of_which_one_varies_are_no_constant_data():
    graph = SimpleNamespace(inputs={"a": ((1,), "fp32"), "b": ((1,), "fp32")})
    batches = [{"a": np.float32([0]), "b": np.float32([i])} for i in range(2)]
    assert len(list(calibration.feeds(graph, batches))) == 2
    with pytest.raises(BadInput, match="are constant: every value of 'a' is 0.0"):
        list(calibration.feeds(graph, batches[:1] * 2))


@pytest.mark.parametrize(
    ("most", "masked"), [(9e3, False), (9.1e3, True), (-9.1e3, True), (-np.inf, False), (5, False)]
)
def test_a_constant_before_a_softmax_is_a_mask_where_it_is_large_and_finite(most, masked):
    nodes = [node("Add", ["x", "c"], "s", "add"), node("Softmax", ["s"], "y", "soft")]
    found = large_constants.masks(chain(*nodes, c=np.float32([0, most, 0, 0]), e=np.zeros(0, np.float32)), 9e3)
    assert {name: [each.name for each in nodes] for name, nodes in found.items()} == (
        {"c": ["add", "soft"]} if masked else {}
    )


@pytest.mark.parametrize(
    ("bounds", "values", "kept"),
    [((0.0, 4.0), [9, -9, 1, 0], [4, -4, 1, 0]), ((2.0, 4.0), [1, -1, 0, np.inf], [2, -2, 0, np.inf])],
)
def test_constants_are_clamped_by_size(bounds, values, kept):
    assert large_constants.clamped(np.float32(values), bounds).tolist() == kept


def test_four_wide_layers_are_named_by_three(tmp_path, monkeypatch):
    nodes = [node("MatMul", [f"t{i}", "w"], f"t{i + 1}", f"m{i}") for i in range(4)]
    graph = saved(tmp_path, nodes, [value("t0", [1, 4])], [value("t4", [1, 4])], {"w": W})
    monkeypatch.setattr(kept_wide, "masked", lambda *_: {f"m{i}" for i in range(4)})
    said = "placed 0 Q/DQ nodes and quantized no layer, because m0, m1, m2 must stay wide"
    with pytest.raises(LabError, match=said):
        quantization.to_qdq(graph, [np.float32([[1, 2, 3, 4]])], method="max")


@pytest.mark.parametrize(
    ("watched", "infinite", "said"),
    [(["a", "y"], [], ""), (["y"], ["a"], ""), (["y"], [], r"'a' \(and 0 more\)"), ([], [], r"'a' \(and 1 more\)")],
)
def test_a_calibration_must_have_watched_every_float(watched, infinite, said):
    nodes = [node("Neg", ["x"], "a", "n"), node("Shape", ["a"], "s", "size"), node("Abs", ["a"], "y", "b")]
    known = Calibration("", {name: None for name in watched}, 1, frozenset(infinite))
    qdq._check_complete(chain(*nodes), known, "tensorrt")
    if said:
        with pytest.raises(BadInput, match=f"did not watch {said}, which target='onnxruntime' quantizes"):
            qdq._check_complete(chain(*nodes), known, "onnxruntime")
    else:
        qdq._check_complete(chain(*nodes), known, "onnxruntime")


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [("a", {"a"}), (["a"], {"a"}), (["folded"], set()), ([], set()), (iter(["n"]), {"n"})],
)
def test_names_that_are_left_out_of_a_change(exclude, kept):
    model = chain(
        node("MatMul", ["x", "w"], "h", "a"), node("MatMul", ["h", "w"], "k", "b"), node("Neg", ["k"], "y", "n"), w=W
    )
    assert qdq._kept_wide(model, exclude, {"folded"}) == kept
    for odd, said in (
        (7, "exclude=.7.; give the names"),
        (["q"], "'q', which is no node .* one of .'a', 'b', 'n'"),
        ("ab", "every layer|'ab'"),
    ):
        with pytest.raises(BadInput, match=said):
            qdq._kept_wide(model, odd)
    with pytest.raises(BadInput, match="exclude names every layer"):
        qdq._kept_wide(model, ["a", "b"])


def test_placements_are_counted_and_read_aloud():
    made = qdq.Placement(3, 4, ("a",), ("b", "c"), 1)
    assert made.nodes == 7 and repr(made) == (
        "Placement(3 QuantizeLinear and 4 DequantizeLinear: 1 of 3 layers quantized, 1 residual add)"
    )
    assert repr(qdq.Placement(0, 0, (), (), 2)).endswith("0 of 0 layers quantized, 2 residual adds)")
    assert "residual" not in repr(qdq.Placement(0, 0, (), (), 0))


def decoded(*layers):
    """x and w, each behind a DequantizeLinear, read by the layers."""
    pairs = [node("DequantizeLinear", [f"{name}q", "s"], name, f"d{name}") for name in ("x", "w")]
    return [*pairs, node("Transpose", ["w"], "wt", "t", perm=[1, 0]), *layers]


@pytest.mark.parametrize(
    ("layer", "narrow", "adds"),
    [
        (node("MatMul", ["x", "w"], "y", "m"), True, 0),
        (node("MatMul", ["x", "wt"], "y", "m"), True, 0),  # torch turns it so
        (node("MatMul", ["x", "v"], "y", "m"), False, 0),
        (node("MatMul", ["v", "w"], "y", "m"), False, 0),
        (node("Gemm", ["x", "w", "v"], "y", ""), True, 0),  # the bias may be wide; without a name its output names it
        (node("Add", ["v", "x"], "y", "m"), None, 1),
        (node("Add", ["v", "u"], "y", "m"), None, 0),
    ],
)
def test_a_layer_is_quantized_where_data_and_weight_are_codes(layer, narrow, adds):
    placed = qdq._placement(chain(*decoded(layer)))
    name = (layer.name or "y",)
    assert (placed.quantize, placed.dequantize, placed.residual_adds) == (0, 2, adds)
    assert (placed.quantized, placed.wide) == {True: (name, ()), False: ((), name), None: ((), ())}[narrow]


@pytest.mark.parametrize(
    ("op", "settings", "reads", "ranks", "found"),
    [
        ("BatchNormalization", {}, ["x"], {}, True),
        ("LayerNormalization", {}, ["x", "s"], {"s": 1}, False),
        ("LayerNormalization", {}, ["x", "s"], {"s": 2}, True),
        ("LayerNormalization", {}, ["s", "x"], {"s": 2}, False),  # what it normalizes may have any
        ("ConvTranspose", {"group": 2}, ["x", "s", "b"], {"s": 4}, True),
        ("ConvTranspose", {"group": 1}, ["x", "s", "b"], {"s": 4}, False),
        ("ConvTranspose", {"group": 2}, ["x", "s"], {"s": 4}, False),
        ("MatMul", {}, ["x", "s"], {"s": 2}, False),
        ("MatMul", {}, ["s", "x"], {"s": 3}, True),
    ],
)
def test_what_the_quantizer_of_onnx_runtime_does_not_take(op, settings, reads, ranks, found):
    weights = {name: np.ones([2] * rank, np.float32) for name, rank in ranks.items()}
    model = chain(node(op, reads, "y", "n", **settings), **weights)
    assert kept_wide.untaken(model) == ({"n"} if found else set())


@pytest.mark.parametrize(
    ("op", "known"), [("QLinearConv", True), ("ConvInteger", True), ("DynamicQuantizeLinear", True), ("Conv", False)]
)
def test_operators_of_codes_are_known(op, known):
    assert fit_graphs._is_quantized(op) is known


def test_a_branch_reads_what_a_convolution_wrote_and_its_norm_cannot_be_folded():
    conv, norm = node("Conv", ["x", "w"], "c", "conv"), node("BatchNormalization", ["c", *"sbmv"], "y", "norm")
    assert fit_graphs._unfolded(chain(conv, norm)) == ["norm"]
    assert fit_graphs._unfolded(chain(conv, norm, outputs=(("y", [1]), ("c", [1])))) == []
    assert fit_graphs._unfolded(chain(conv, norm, node("Neg", ["c"], "z", "n"))) == []
    assert fit_graphs._unfolded(chain(node("Neg", ["x"], "c", "conv"), norm)) == []


def residual(*made, **weights):
    """(add, [(input, its layer)]) for every residual add, with names."""
    return [
        (a.name, [(name, layer and layer.name) for name, layer in m])
        for a, m in qdq_nodes._residual_adds(chain(*made, **weights))
    ]


def test_of_two_layers_the_deeper_one_takes_the_sum():
    short, deep = node("Conv", ["x", "w"], "a", "short"), node("Conv", ["x", "w"], "b", "first")
    rest = [node("Conv", ["b", "w"], "c", "deep"), node("Add", ["a", "c"], "y", "sum")]
    assert residual(short, deep, *rest, w=W) == [("sum", [("c", "deep"), ("a", "short")])]
    model = chain(short, deep, *rest, w=W)
    assert qdq_nodes.shortcuts(model, set()) == [("sum", "a")] and qdq_nodes.shortcuts(model, {"deep"}) == [
        ("sum", "c")
    ]
    assert qdq_nodes.shortcuts(model, {"sum"}) == [] and qdq_nodes.shortcuts(model, {"deep", "short"}) == []
    assert qdq_nodes.activations(model) == ["x", "b", "c", "a"]
    assert residual(node("Conv", ["x", "w"], "a", "c"), node("Add", ["a", "w"], "y", "bias"), w=W) == []
    assert residual(node("Neg", ["x"], "a", "n"), node("Add", ["a", "a"], "y", "s")) == []
    assert residual(node("Conv", ["x", "w"], "a", "c"), node("Add", ["a", "x"], "y", "s"), w=W) == []  # an input
    twice = chain(node("Conv", ["x", "w"], "a", "c"), node("Add", ["a", "a"], "y", "s"), w=W)
    assert qdq_nodes.shortcuts(twice, set()) == []


@pytest.mark.parametrize(
    ("way", "pairs"), [("convolutions", []), ("shortcut", [("s", "n")]), ("both", [("s", "n"), ("s", "h")])]
)
def test_after_a_product_the_caller_decides(way, pairs):
    made = [
        node("Neg", ["x"], "n", "neg"),
        node("MatMul", ["n", "w"], "m", "product"),
        node("Add", ["b", "m"], "h", "bias"),
        node("Add", ["n", "h"], "y", "s"),
    ]
    assert qdq_nodes.shortcuts(chain(*made, w=W, b=W[0]), set(), way) == pairs
    conv = [node("Conv", ["n", "w"], "m", "product") if each.name == "product" else each for each in made]
    assert qdq_nodes.shortcuts(chain(*conv, w=W, b=W[0]), set(), "both") == []  # the bias of a convolution is inside


def test_the_shortcut_of_an_input_stands_first_and_shares_the_pair_that_is_there():
    model = chain(node("Neg", ["x"], "h", "n"), node("Add", ["h", "x"], "y", "s"), node("Add", ["y", "x"], "z", "t"))
    qdq_nodes.quantize_shortcuts(model, [("s", "x"), ("t", "x")], {"x": (-2.54, 1.27)})
    assert [each.op_type for each in model.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Neg", "Add", "Add"]
    made = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    assert made["x_shortcut_scale"] == np.float32(0.02) and made["x_shortcut_zero_point"] == 0
    assert [list(each.input) for each in model.graph.node[2:]] == [
        ["x"], ["h", "x_shortcut_dequantized"], ["y", "x_shortcut_dequantized"],
    ]  # fmt: skip
    still = chain(node("Neg", ["x"], "h", "n"), node("Add", ["h", "x"], "y", "s"))
    qdq_nodes.quantize_shortcuts(still, [("s", "h")], {"h": (0.0, 0.0)})
    assert [each.name for each in still.graph.node][:2] == ["n", "h_shortcut_QuantizeLinear"]
    assert onnx.numpy_helper.to_array(still.graph.initializer[0]) == 1


def test_batches_of_a_calibrator_have_one_size(monkeypatch, tmp_path):
    graph = saved(tmp_path, [node("Neg", ["x"], "y", "n")], [value("x", ["n", 1])], [value("y", ["n", 1])])
    batches = [np.float32([[1], [2]]), np.float32([[3], [4]])]
    feeds, size = int8_calibrator._checked(graph, batches, "entropy")
    assert size == 2 and len(feeds) == 2
    with pytest.raises(BadInput, match=r"have \[1, 2\] items"):
        int8_calibrator._checked(graph, [*batches, batches[0][:1]], "entropy")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (0.5, None),
        (np.float32(2), None),
        ("a", "gave a str"),
        (None, "gave a NoneType"),
        (np.nan, "gave nan for net.onnx"),
    ],
)
def test_an_evaluation_gives_one_finite_number(answer, said):
    from pathlib import Path

    graph = SimpleNamespace(path=Path("a/net.onnx"))
    if said is None:
        assert layer_costs._value(lambda _: answer, graph) == answer
    else:
        with pytest.raises(BadInput, match=said):
            layer_costs._value(lambda _: answer, graph)


def test_costs_read_aloud():
    rows = (layer_costs.LayerCost("b", "Conv", 0.5, 0.25), layer_costs.LayerCost("a", "Gemm", 0.75, 0.0))
    found = layer_costs.Sensitivity(rows, 0.75, "accuracy")
    assert repr(found) == "Sensitivity(2 layers, FP32 accuracy 0.75; worst b: costs 0.25)"
    assert found.worst is rows[0] and found[1] is rows[1] and list(found) == list(rows) and len(found) == 2
    assert list(found.table().columns) == ["layer", "operator", "accuracy", "accuracy drop"]
    assert list(layer_costs.Sensitivity(rows, 0.0, "error").table().columns)[2:] == ["error", "added error"]


@pytest.mark.parametrize(("opset", "label"), [(17, 17), (19, 19), (21, 20)])
def test_an_operator_set_is_lowered_and_never_raised(opset, label):
    model = model_of(
        [node("Relu", ["x"], "y", "n")], [value("x", [1])], [value("y", [1])], opset=20 if opset > 19 else opset
    )
    made = modelopt_road._at_opset(model, opset)
    assert made.opset_import[0].version == label


def test_a_histogram_of_a_name():
    assert Histogram(np.ones(8, int), 2.0, -1.0, 2.0).edges.tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]


def divergence(magnitudes, kept):
    """KL divergence of the clipped histogram from its 128 levels, step by step."""
    inside = [0.0, *map(float, magnitudes[1:kept])]
    p = [*inside[:-1], inside[-1] + sum(magnitudes[kept:])]
    groups = [i * 128 // kept for i in range(kept)]
    level = {g: [x for x, h in zip(inside, groups) if h == g and x] for g in groups}
    q = [sum(level[g]) / len(level[g]) if x else 0.0 for x, g in zip(inside, groups)]
    whole = [sum(p), sum(q)]
    return sum(a / whole[0] * np.log((a / whole[0]) / max(b / whole[1], 1e-10)) for a, b in zip(p, q) if a)


@pytest.mark.parametrize("kept", [128, 129, 200, 256])
def test_the_divergence_of_a_clipped_histogram_step_by_step(kept):
    draw = np.random.default_rng(kept)
    magnitudes = draw.integers(0, 9, 256)
    counts = np.concatenate([magnitudes[::-1] // 2, magnitudes - magnitudes // 2])
    tail = Histogram(counts, 1.0, -1.0, 1.0)
    assert tail.magnitudes.tolist() == magnitudes.tolist()
    assert tail._divergence(kept, 256, "int8") == pytest.approx(divergence(magnitudes.tolist(), kept))
    assert Histogram(np.zeros(512, int), 1.0, 0.0, 0.0)._divergence(kept, 256, "int8") == np.inf


def test_the_widest_threshold_is_in_the_picture():
    seen = calibration.histogram(np.concatenate([np.linspace(0, 1, 90_000), [-4.0]]), name="t")
    axes = calibration_drawing.draw_thresholds(seen, methods=("max", "percentile")).figure.axes[0]
    assert seen.threshold("percentile") < 1.1 and axes.get_xlim() == pytest.approx((0, 1.05 * 4))


@pytest.mark.parametrize(("bins", "bars"), [(4096, 128), (1024, 128), (516, 258)])
def test_a_picture_of_thresholds_in_numbers(bins, bars):
    values = np.concatenate([np.linspace(0, 1, 900), [-4.0]])
    seen = calibration.histogram(values, name="t", bins=bins)
    axes = calibration_drawing.draw_thresholds(seen, methods=("max", "percentile"), title="net").figure.axes[0]
    limits = [seen.threshold("max"), seen.threshold("percentile")]
    assert [line.get_xdata()[0] for line in axes.lines] == limits and limits[0] == 4
    assert axes.get_xlim() == pytest.approx((0, 1.05 * 4)) and axes.get_yscale() == "log"
    (steps,) = axes.patches
    assert len(steps.get_data().values) == bars and steps.get_data().edges[-1] == seen.reach == 4
    assert steps.get_data().values.sum() == 901 + 0.5 * sum(steps.get_data().values == 0.5)
    assert [text.get_text() for text in axes.get_legend().get_texts()][0] == "max: 4"
    with pytest.raises(BadInput, match="methods is empty"):
        calibration_drawing.draw_thresholds(seen, methods=())
