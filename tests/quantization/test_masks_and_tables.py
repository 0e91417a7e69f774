"""Masks of finite numbers, embeddings that a product shares, weights read along two axes, and layers inside branches."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_files import node, off, saved, value, weight

from labsupport import export, quantization, runtimes
from labsupport.errors import BadInput
from labsupport.export import qdq_nodes
from labsupport.quantization import kept_wide

TARGETS = quantization.TARGETS
RNG = np.random.default_rng(5)
TRIANGLE = np.tril(np.ones((5, 5), np.float32))
LOWS = {"-1e9": -1e9, "-1e4": -1e4, "Swin's -100": -100.0, "the least FP32": float(np.finfo(np.float32).min)}
X = RNG.standard_normal((4, 5, 8)).astype(np.float32)


def run(graph, feed):
    with runtimes.OnnxRuntime(graph, optimization="off") as session:
        return session(feed)["y"]


def attention(folder, how: str, low: float):
    """Attention whose mask is chosen by true and false, added as a constant, given, or computed from zeros and ones."""
    nodes = [node("Transpose", ["x"], "t", "turn", perm=[0, 2, 1]), node("MatMul", ["x", "t"], "s", "scores")]
    inputs, feed, low = [value("x", ["n", 5, 8])], {"x": X}, np.float32(low)
    if how == "chosen":
        nodes, weights = [*nodes, node("Where", ["keep", "s", "low"], "m", "mask")], {"keep": TRIANGLE > 0, "low": low}
    elif how == "constant":
        nodes, weights = [*nodes, node("Add", ["s", "c"], "m", "mask")], {"c": (1 - TRIANGLE) * low}
    elif how == "given":
        nodes, weights = [*nodes, node("Add", ["s", "given"], "m", "mask")], {}
        inputs, feed = [*inputs, value("given", [5, 5])], {**feed, "given": (1 - TRIANGLE) * low}
    else:
        nodes += [node("Sub", ["one", "keep"], "lost", "sub"), node("Mul", ["lost", "low"], "added", "mul")]
        nodes, weights = [*nodes, node("Add", ["s", "added"], "m", "mask")], {"one": np.float32(1), "low": low}
        inputs, feed = [*inputs, value("keep", ["n", 1, 5])], {**feed, "keep": np.ones((4, 1, 5), np.float32)}
        feed["keep"][1:, :, 3:] = 0
    nodes += [node("Softmax", ["m"], "p", "soft"), node("MatMul", ["p", "x"], "y", "mix")]
    made = [weight(name, values) for name, values in weights.items()]
    return saved(folder, nodes, inputs, [value("y", ["n", 5, 8])], made), feed


@pytest.mark.parametrize("target, residual", [("onnxruntime", "convolutions"), ("tensorrt", "both")])
@pytest.mark.parametrize("low", LOWS)
@pytest.mark.parametrize("how", ["chosen", "constant", "given", "computed"])
def test_a_finite_mask_does_not_set_the_scale_of_the_scores(how, low, target, residual, tmp_path):
    graph, feed = attention(tmp_path, how, LOWS[low])
    made = quantization.to_qdq(graph, [feed], target=target, method="max", residual=residual)
    assert off(run(graph, feed), run(made, feed)) < 0.012  # 0.72 and more with one scale for scores and mask
    assert quantization.placement(made).quantized == ("scores", "mix")
    read = {name for n in made.model().graph.node if n.op_type == "QuantizeLinear" for name in n.input[:1]}
    assert not read & {"m", "added", "given", "low"}


def test_a_mask_that_no_calibration_item_used_is_one_all_the_same(tmp_path):
    graph, feed = attention(tmp_path, "computed", -1e9)
    seen = {**feed, "keep": np.ones_like(feed["keep"])}
    made = quantization.to_qdq(graph, [seen], target="onnxruntime", method="max")
    assert off(run(graph, feed), run(made, feed)) < 0.02


def test_an_infinite_mask_beside_a_residual_product_stays_wide(tmp_path):
    graph, feed = attention(tmp_path, "computed", -1e9)
    model = graph.model()
    choose = node("Where", ["some", "zero", "none"], "added", "mul")
    model.graph.node[3].CopyFrom(choose)
    model.graph.node[2].CopyFrom(node("Greater", ["keep", "half"], "some", "sub"))
    numbers = {"zero": np.float32(0), "none": np.float32(-np.inf), "half": np.float32(0.5)}
    model.graph.initializer.extend(weight(name, number) for name, number in numbers.items())
    graph = export.save(model, tmp_path / "infinite.onnx")
    made = quantization.to_qdq(graph, [feed], residual="both", method="max")
    assert off(run(graph, feed), run(made, feed)) < 0.012


@pytest.mark.parametrize("values, far", [([0.5, -1, 1, 30], 1), ([0.5, -1, 1, -1e9], 400), ([], 1), ([2, 2], 1)])
def test_the_gap_of_a_histogram_is_beyond_all_other_values(values, far):
    ramp = np.linspace(-2, 2, 2000)
    histogram = quantization.histogram(np.concatenate([ramp, values, [-6e8] * (far > 1)]))
    assert histogram.gap() >= far if far > 1 else histogram.gap() == pytest.approx(14.6 if 30 in values else 1, abs=0.6)


@pytest.mark.parametrize(("inner", "gap"), [(100, 100 / 3), (99, 4.0)])
def test_outliers_span_a_factor_of_four_at_most(inner, gap):
    """Values in bins 0 to 2, some in bin ``inner``, the farthest in 400: below a quarter of it they are no mask."""
    magnitudes = np.zeros(512, int)
    magnitudes[[0, 1, 2, inner, 400]] = 5
    counts = np.concatenate([np.zeros(512, int), magnitudes])
    assert quantization.Histogram(counts, 512.0, 0.0, 400.5).gap() == pytest.approx(gap)


def test_outliers_of_activations_are_clipped_as_before(tmp_path):
    """Some transformers have values of a thousand among ones: they are data, and their layer is quantized."""
    w = RNG.standard_normal((8, 6)).astype(np.float32)
    product = node("MatMul", ["x", "w"], "y", "product")
    graph = saved(tmp_path, [product], [value("x", ["n", 8])], [value("y", ["n", 6])], [weight("w", w)])
    x = RNG.standard_normal((64, 8)).astype(np.float32)
    x[3, 2] = 1000
    for target in TARGETS:
        assert quantization.placement(quantization.to_qdq(graph, [x], target=target)).quantized == ("product",)


def test_a_percentile_keeps_the_bin_in_which_it_lies():
    histogram = quantization.histogram(np.array([0.5] * 999 + [10.0], np.float32))
    width = histogram.reach / (len(histogram.counts) // 2)
    assert 0.5 <= histogram.threshold("percentile", percentile=99) <= 0.5 + width


@pytest.mark.parametrize("others", [[], ["a node"], ["the caller"]])
def test_only_what_a_relu_alone_reads_is_clipped_early(others):
    nodes = [node("MatMul", ["x", "w"], "h", "product"), node("Relu", ["h"], "y", "relu")]
    nodes += [node("Neg", ["h"], "z", "also")] * ("a node" in others)
    outputs = [value("y", [1, 2]), *([value("h", [1, 2])] if "the caller" in others else [])]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 2])], outputs, [weight("w", np.eye(2, dtype=np.float32))])
    ranges = {"h": (-8.0, 3.0), "y": (0.0, 3.0)}
    qdq_nodes.clip_early(helper.make_model(graph), ranges)
    assert ranges["h"] == ((-8.0, 3.0) if others else (0.0, 3.0))


VOCABULARY, WIDTH = 40, 16
TABLE = (RNG.standard_normal((VOCABULARY, WIDTH)) * np.logspace(-2, 1, VOCABULARY)[:, None]).astype(np.float32)
IDS = RNG.integers(0, VOCABULARY, (16, 6))


def tied(folder, how: str, table=TABLE):
    """An embedding whose table is the last layer's weight as well."""
    nodes = [node("Gather", ["E", "ids"], "h", "look up"), node("Tanh", ["h"], "t", "tanh")]
    flat = [node("Reshape", ["t", "rows"], "r", "flat"), node("Gemm", ["r", "E"], "z", "head", transB=1)]
    turned = [node("Transpose", ["E"], "T", "turn", perm=[1, 0]), node("MatMul", ["t", "T"], "z", "head")]
    nodes += {"Gemm": flat, "Transpose": turned}[how]
    weights = [weight("E", table), weight("rows", np.array([-1, WIDTH])), weight("even", 1 / np.abs(table).max(1))]
    nodes += [node("Mul", ["z", "even"], "y", "scale")]
    shape = ["m", VOCABULARY] if how == "Gemm" else ["n", 6, VOCABULARY]
    return saved(folder, nodes, [value("ids", ["n", 6], T.INT64)], [value("y", shape)], weights)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("how", ["Gemm", "Transpose"])
def test_a_tied_embedding_has_a_scale_for_each_word(how, target, tmp_path):
    graph = tied(tmp_path, how)
    made = quantization.to_qdq(graph, [{"ids": IDS}], target=target, method="max")
    scales = [list(w.dims) for w in made.model().graph.initializer if w.name in ("E_scale", "T_scale")]
    assert scales == [[VOCABULARY]] and quantization.placement(made).quantized == ("head",)
    exact, got = run(graph, {"ids": IDS}), run(made, {"ids": IDS})
    assert off(exact, got) < 0.02 or target == "onnxruntime" and np.isfinite(got).all()
    with runtimes.OnnxRuntime(export.exposed(made, ["h"]), optimization="off") as session:
        row = np.abs(TABLE).max(1)[IDS][..., None]  # exact, or in the codes of that word's own scale
        assert (np.abs(session({"ids": IDS})["h"] - TABLE[IDS]) <= row / 127 * 0.51).all()


def test_an_even_table_of_its_own_is_quantized(tmp_path):
    table = RNG.uniform(-1, 1, (VOCABULARY, WIDTH)).astype(np.float32)
    padded = table * (np.arange(VOCABULARY) > 0).astype(np.float32)[:, None]  # a padding word's row is all zero
    for values, narrow in ((table, True), (padded, True), (TABLE, False)):
        nodes = [node("Gather", ["E", "ids"], "h", "look up"), node("MatMul", ["h", "w"], "y", "head")]
        weights = [weight("E", values), weight("w", table.T.copy())]
        inputs, outputs = [value("ids", ["n", 6], T.INT64)], [value("y", ["n", 6, VOCABULARY])]
        graph = saved(tmp_path, nodes, inputs, outputs, weights)
        made = quantization.to_qdq(graph, [{"ids": IDS}], target="onnxruntime", method="max")
        assert ("E_quantized" in {w.name for w in made.model().graph.initializer}) == narrow


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_that_layers_read_along_two_axes_has_scales_along_both(target, tmp_path):
    uneven = np.logspace(-1, 1, 8)
    square = (RNG.standard_normal((8, 8)) * np.outer(uneven, uneven[::-1])).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "w"], "a", "by columns"),
        node("Gemm", ["x", "w"], "b", "by rows", transB=1),
        node("Mul", ["a", "f"], "c", "even a"),
        node("Mul", ["b", "g"], "d", "even b"),
        node("Concat", ["c", "d"], "y", "both", axis=1),
    ]
    factors = [weight("f", 1 / np.abs(square).max(0)), weight("g", 1 / np.abs(square).max(1))]
    outputs = [value("y", ["n", 16])]
    graph = saved(tmp_path, nodes, [value("x", ["n", 8])], outputs, [weight("w", square), *factors])
    x = RNG.standard_normal((32, 8)).astype(np.float32)
    made = quantization.to_qdq(graph, [x], target=target, method="max", exclude=["even a", "even b", "both"])
    axes = {
        (n.input[0], a.i)
        for n in made.model().graph.node
        for a in n.attribute
        if n.op_type == "DequantizeLinear" and a.name == "axis"
    }
    assert sorted(axis for _, axis in axes) == [0, 1] and len({name for name, _ in axes}) == 2
    # ONNX Runtime has the products' results in INT8 as well, with one scale for all columns
    assert off(run(graph, {"x": x}), run(made, {"x": x})) < (0.02 if target == "tensorrt" else 0.5)


def test_a_scale_counts_the_channels_that_a_layer_writes():
    """(layer, attributes, which input) → the axis of its weight; two layers that agree share one copy."""
    shape = (6, 6, 1, 1)
    nodes = [
        node("Conv", ["i", "k"], "a", "conv"),
        node("ConvTranspose", ["i", "k"], "b", "up"),
        node("Conv", ["a", "k"], "c", "again"),
        node("Gemm", ["x", "w"], "d", "columns"),
        node("Gemm", ["x", "w"], "e", "rows", transB=1),
        node("Gemm", ["w", "x"], "f", "left rows"),
        node("Gemm", ["w", "x"], "g", "left columns", transA=1),
        node("MatMul", ["w", "x"], "h", "left"),
        node("MatMul", ["x", "w"], "j", "right"),
    ]
    weights = [weight("k", np.ones(shape, np.float32)), weight("w", np.ones((6, 6), np.float32))]
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x", [6, 6])], [], weights))
    kept_wide.part_weights(model)
    read = {n.name: next(name for name in n.input if name[0] in "kw") for n in model.graph.node}
    assert read["conv"] == read["again"] == "k" and read["up"] == "k_axis1"
    assert read["columns"] == read["left columns"] == read["right"] == "w"
    assert read["rows"] == read["left rows"] == read["left"] == "w_axis0"
    assert sorted(w.name for w in model.graph.initializer) == ["k", "k_axis1", "w", "w_axis0"]


@pytest.mark.parametrize("low, far", [(-2000.0, False), (-2e4, True)])
def test_far_values_are_a_mask_only_where_no_activation_goes(low, far):
    nodes = [node("MatMul", ["x", "w"], "y", "product")]
    weights = [weight("w", np.eye(4, dtype=np.float32))]
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x", [9, 4])], [value("y", [9, 4])], weights))
    for values in (np.append(np.linspace(-3, 3, 99), low), np.linspace(low, 3, 99)):  # apart, and in one stretch
        histograms = {"x": quantization.histogram(values.astype(np.float32))}
        assert kept_wide.masked(model, histograms, ()) == ({"product"} if far and values[1] > -4 else set())


def coded(reads, scale, writes, prefix):
    names = [f"{prefix}_codes", scale, "zero"]
    return [
        node("QuantizeLinear", [reads, *names[1:]], names[0], ""),
        node("DequantizeLinear", names, writes, ""),
    ]


def test_layers_inside_a_branch_are_counted(tmp_path):
    then = helper.make_graph(
        [*coded("x", "s", "xd", "x"), *coded("w", "s", "wd", "w"), node("MatMul", ["xd", "wd"], "p", "")],
        "then",
        [],
        [value("p", [2, 3])],
    )
    # the same names, and another maker: what the other branch calls xd is no decoded tensor
    other = helper.make_graph(
        [node("Relu", ["x"], "xd", ""), *coded("w", "s", "wd", "w"), node("MatMul", ["xd", "wd"], "q", "plain")],
        "else",
        [],
        [value("q", [2, 3])],
    )
    nodes = [node("If", ["k"], "y", "choose", then_branch=then, else_branch=other)]
    weights = [
        weight("w", np.eye(3, dtype=np.float32)),
        weight("s", np.float32(0.1)),
        weight("zero", np.int8(0)),
    ]
    inputs = [value("x", [2, 3]), value("k", [], T.BOOL)]
    graph = saved(tmp_path, nodes, inputs, [value("y", [2, 3])], weights)
    found = quantization.placement(graph)
    assert (found.quantize, found.dequantize) == (3, 3) and (found.quantized, found.wide) == (("p",), ("plain",))
    with pytest.raises(BadInput, match="quantized already"):
        quantization.to_qdq(graph, [np.ones((2, 3), np.float32)])
