"""Weights behind other nodes, masks of −inf, batches that are no items, and names that the quantizer would invent."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import off, run, saved, value, weight

from labsupport import quantization
from labsupport.errors import BadInput
from labsupport.export import constant_folding
from labsupport.quantization import qdq

TARGETS = quantization.TARGETS
RNG = np.random.default_rng(3)
SIZES = np.logspace(-2, 1, 24)[:, None]
ROWS = (RNG.standard_normal((24, 16)) * SIZES).astype(np.float32)  # output channels of very different size
IMAGES = RNG.standard_normal((32, 16)).astype(np.float32)


def tensor(name, values):
    return helper.make_node("Constant", [], [name], f"make_{name}", value=numpy_helper.from_array(values))


def node(op, reads, **attributes):
    return helper.make_node(op, reads, ["w"], "behind", **attributes)


BEHIND = {
    "itself": ([], [weight("w", ROWS.T.copy())]),
    "Constant": ([tensor("w", ROWS.T.copy())], []),
    "Transpose": ([node("Transpose", ["v"], perm=[1, 0])], [weight("v", ROWS)]),
    "Identity": ([node("Identity", ["v"])], [weight("v", ROWS.T.copy())]),
    "Reshape": (
        [node("Reshape", ["v", "k"])],
        [weight("v", ROWS.T.reshape(-1).copy()), weight("k", np.array([16, 24]))],
    ),
    "Cast": ([node("Cast", ["v"], to=T.FLOAT)], [weight("v", ROWS.T.astype(np.float16))]),
    "Mul of a scale": ([node("Mul", ["v", "f"])], [weight("v", (ROWS.T / 4).copy()), weight("f", np.float32(4))]),
    "two nodes": (
        [tensor("v", ROWS), helper.make_node("Identity", ["v"], ["u"], "pass"), node("Transpose", ["u"], perm=[1, 0])],
        [],
    ),
}


def product(folder, behind, first=False):
    nodes, weights = BEHIND[behind]
    matmul = helper.make_node("MatMul", ["x", "w"], ["h"], "product")
    scale = helper.make_node("Mul", ["h", "g"], ["y"], "even")
    even = weight("g", (1 / SIZES[:, 0]).astype(np.float32))
    return saved(folder, [*nodes, matmul, scale], [value("x", ["n", 16])], [value("y", ["n", 24])], [*weights, even])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("behind", BEHIND)
def test_a_weight_behind_constants_has_a_scale_for_each_channel(behind, target, tmp_path):
    graph = product(tmp_path, behind)
    made = quantization.to_qdq(graph, [IMAGES], target=target, method="max")
    # One scale for all channels makes it 0.5; ONNX Runtime has INT8 between the nodes as well, with one scale a tensor.
    assert off(run(graph, IMAGES)["y"], run(made, IMAGES)["y"]) < (0.03 if target == "tensorrt" else 1)
    assert [w.dims[0] for w in made.model().graph.initializer if w.name == "w_scale"] == [24]
    assert quantization.placement(made).quantized == ("product",) and "behind" not in qdq.operators(graph)
    assert list(quantization.calibrate(graph, [IMAGES]).histograms) == ["x"], "a weight is no activation"


def test_folding_leaves_what_depends_on_the_input_and_what_others_read(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["v"], ["w"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Add", ["h", "w"], ["y"], "also"),
        helper.make_node("MatMul", ["h", "x"], ["z"], "free"),
    ]
    v = np.arange(9, dtype=np.float32).reshape(3, 3)
    graph = saved(tmp_path, nodes, [value("x", [3, 3])], [value("y", [3, 3]), value("z", [3, 3])], [weight("v", v)])
    made = constant_folding.with_plain_weights(graph.model(), ("MatMul",))
    assert [n.name for n in made.graph.node] == ["product", "also", "free"]
    (only,) = made.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(only), v.T)
    assert only.name == "w"


def test_names_of_folded_nodes_may_still_be_excluded(tmp_path):
    graph = product(tmp_path, "Transpose")
    assert quantization.placement(quantization.to_qdq(graph, [IMAGES], exclude=["behind"])).quantized == ("product",)
    with pytest.raises(BadInput, match="exclude names 'nobody'"):
        quantization.to_qdq(graph, [IMAGES], exclude=["nobody"])


def attention(folder, inside: bool):
    """Causal attention: a mask of −inf given as an input, or made inside from true and false."""
    triangle = np.tril(np.ones((5, 5), bool))
    masked = (
        helper.make_node("Where", ["keep", "s", "low"], ["m"], "mask")
        if inside
        else helper.make_node("Add", ["s", "given"], ["m"], "mask")
    )
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["s"], "scores"),
        masked,
        helper.make_node("Softmax", ["m"], ["p"], "soft"),
        helper.make_node("MatMul", ["p", "x"], ["y"], "mix"),
    ]
    inputs = [value("x", ["n", 5, 8])] + [value("given", [5, 5])] * (not inside)
    weights = [weight("keep", triangle), weight("low", np.float32(-np.inf))] if inside else []
    feed = {"x": np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32)}
    if not inside:
        feed["given"] = np.where(triangle, 0, -np.inf).astype(np.float32)
    return saved(folder, nodes, inputs, [value("y", ["n", 5, 8])], weights), feed


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_of_minus_infinity_is_valid_input(inside, target, tmp_path):
    import onnxruntime as ort

    graph, feed = attention(tmp_path, inside)
    known = quantization.calibrate(graph, [feed, feed], target=target)
    assert "m" not in known.histograms and "p" in known.histograms and known.items == 8
    assert known.masked == (set() if target == "tensorrt" else {"m"} if inside else {"m", "given"})
    made = quantization.to_qdq(graph, known, target=target, method="max")
    exact, got = (
        ort.InferenceSession(str(g.path), providers=["CPUExecutionProvider"]).run(None, feed)[0] for g in (graph, made)
    )
    assert np.isfinite(got).all() and off(exact, got) < 0.03
    assert set(quantization.placement(made).quantized) == {"scores", "mix"}


def test_plus_infinity_and_nan_are_still_refused(tmp_path):
    graph, feed = attention(tmp_path, False)
    for wrong in (np.nan, np.inf):
        with pytest.raises(BadInput, match="input 'given' holds NaN or infinity"):
            quantization.calibrate(graph, [{**feed, "given": np.full((5, 5), wrong, np.float32)}])


def items(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


W = weight("w", items(16, 5))
NO_ITEMS = {
    "pairs of rows": (
        [helper.make_node("Reshape", ["x", "k"], ["h"], "pair"), helper.make_node("MatMul", ["h", "v"], ["y"], "p")],
        [value("x", ["n", 16])],
        [weight("k", np.array([-1, 32])), weight("v", items(32, 5))],
        {"x": items(4, 16)},
    ),
    "a mask (n, n)": (
        [helper.make_node("MatMul", ["k", "x"], ["h"], "m"), helper.make_node("MatMul", ["h", "w"], ["y"], "p")],
        [value("x", ["n", 16]), value("k", ["n", "n"])],
        [W],
        {"x": items(4, 16), "k": items(4, 4)},
    ),
    "two halves": (
        [
            helper.make_node("Split", ["x"], ["a", "b"], "s", axis=0),
            helper.make_node("Sub", ["a", "b"], ["h"], "d"),
            helper.make_node("MatMul", ["h", "w"], ["y"], "p"),
        ],
        [value("x", ["n", 16])],
        [W],
        {"x": items(4, 16)},
    ),
    "a number": (
        [helper.make_node("Mul", ["x", "k"], ["h"], "s"), helper.make_node("MatMul", ["h", "w"], ["y"], "p")],
        [value("k", []), value("x", ["n", 16])],
        [W],
        {"k": np.array(2, np.float32), "x": items(4, 16)},
    ),
    "fp64 beside": (
        [
            helper.make_node("Cast", ["k"], ["c"], "c", to=T.FLOAT),
            helper.make_node("Mul", ["x", "c"], ["h"], "s"),
            helper.make_node("MatMul", ["h", "w"], ["y"], "p"),
        ],
        [value("x", ["n", 16]), value("k", ["n", 1], T.DOUBLE)],
        [W],
        {"x": items(4, 16), "k": items(4, 1).astype(np.float64)},
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", NO_ITEMS)
def test_batches_that_are_no_list_of_items_are_taken_whole(case, target, tmp_path):
    nodes, inputs, weights, feed = NO_ITEMS[case]
    graph = saved(tmp_path, nodes, inputs, [value("y", ["m", 5])], weights)
    known = quantization.calibrate(graph, [feed, feed, feed], target=target)
    assert known.items == 12
    made = quantization.to_qdq(graph, known, target=target, method="max")
    assert off(run(graph, feed)["y"], run(made, feed)["y"]) < 0.03


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trap", ["b0", "x_scale", "x_zero_point", "w_quantized", "x_QuantizeLinear_Output", "<3>"])
def test_names_that_the_quantizer_would_invent_may_be_taken(trap, target, tmp_path):
    """The traps stand as the inner tensor between two convolutions that share one bias."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], [trap], "x_QuantizeLinear", pads=[1] * 4),
        helper.make_node("Conv", [trap, "v", "b"], ["y"], "w_DequantizeLinear", pads=[1] * 4),
    ]
    image = [value(name, ["n", 4, 6, 6]) for name in ("x", "y")]
    weights = [weight("w", items(4, 4, 3, 3)), weight("v", items(4, 4, 3, 3)[::-1].copy()), weight("b", items(4))]
    graph, feed = saved(tmp_path, nodes, image[:1], image[1:], weights), items(3, 4, 6, 6)
    made = quantization.to_qdq(graph, [feed], target=target, method="max")
    assert off(run(graph, feed)["y"], run(made, feed)["y"]) < 0.03
    assert quantization.placement(made).quantized == ("x_QuantizeLinear", "w_DequantizeLinear")
    names = [n.name for n in made.model().graph.node]
    assert list(made.inputs) == ["x"] and list(made.outputs) == ["y"] and len(names) >= 6
    assert not any(
        "<" in n for t in made.model().graph.node for n in t.output if n != "<3>" and not n.startswith("<3>")
    )


def test_a_calibration_for_tensorrt_is_not_enough_for_onnx_runtime(tmp_path):
    """It watched the layers' inputs alone; the other ranges would come from nowhere."""
    graph = product(tmp_path, "itself")
    with pytest.raises(
        BadInput, match=r"did not watch 'h' .and 1 more., .*calibrate.graph, batches, target='onnxruntime'"
    ):
        quantization.to_qdq(graph, quantization.calibrate(graph, [IMAGES]), target="onnxruntime")
    wide = quantization.calibrate(graph, [IMAGES], target="onnxruntime")
    assert quantization.placement(quantization.to_qdq(graph, wide)).quantized == ("product",)
