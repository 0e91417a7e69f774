"""Constants that FP16 or BF16 does not hold: masks are clamped, other nodes stay FP32 and are named."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import numpy_helper
from onnx_files import node, saved, value

from labsupport import export, precision
from labsupport.errors import BadInput
from labsupport.export import large_constants, surgery

RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 4, 8)).astype(np.float32)
KEEP = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)[:, None]  # the last item is all padding
LOWS = {"-1e9": -1e9, "the least FP32": float(np.finfo(np.float32).min)}


def run(graph, feed):
    """With every narrow tensor really rounded, and nothing optimized away."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def attention(folder, how, low, twice=False):
    """Attention masked by (1 − keep)·low, by a choice, by a filled tensor, or by a mask that the caller gives."""
    nodes = [node("Transpose", ["x"], "t", "turn", perm=[0, 2, 1]), node("MatMul", ["x", "t"], "s", "scores")]
    weights, inputs, feed = {"low": np.float32(low)}, [value("x", [3, 4, 8])], {"x": X, "keep": KEEP}
    if how == "computed":
        weights["one"] = np.float32(1)
        nodes += [node("Sub", ["one", "keep"], "lost", "sub"), node("Mul", ["lost", "low"], "added", "mul")]
    elif how == "filled":
        weights |= {"size": np.array([1]), "half": np.float32(0.5), "zero": np.float32(0)}
        filler = numpy_helper.from_array(np.array([low], np.float32))
        nodes += [node("ConstantOfShape", ["size"], "fill", "fill", value=filler)]
        nodes += [
            node("Greater", ["keep", "half"], "kept", "more"),
            node("Where", ["kept", "zero", "fill"], "added", "w"),
        ]
    inputs.append(value("keep", [3, 1, 4]) if how != "given" else value("added", [3, 1, 4]))
    feed = feed if how != "given" else {"x": X, "added": ((1 - KEEP) * np.float32(low)).astype(np.float32)}
    nodes.append(node("Add", ["s", "added"], "m" if not twice else "m0", "mask"))
    nodes += [node("Add", ["m0", "added"], "m", "again")] if twice else []
    nodes += [node("Softmax", ["m"], "p", "soft"), node("MatMul", ["p", "x"], "y", "mix")]
    used = {name for each in nodes for name in each.input}
    return saved(folder, nodes, inputs, [value("y", [3, 4, 8])], {k: v for k, v in weights.items() if k in used}), feed


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("low", LOWS)
@pytest.mark.parametrize("how", ["computed", "filled", "given"])
def test_a_mask_is_finite_in_the_narrow_type(how, low, to, twice, tmp_path):
    if twice and low == "the least FP32":
        low = "-1e9"  # the sum of two least numbers is no FP32 number either
    graph, feed = attention(tmp_path, how, LOWS[low], twice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mask is no reason to warn
        made = precision.rounded(precision.cast(graph, to))
    exact, got = run(graph, feed), run(made, feed)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got[:2] - exact[:2]) < 0.01 * np.linalg.norm(exact[:2])


LARGE = {  # operator, its constant, whether the constant comes first, a bound or a node that stays wide
    "a quotient": ("Div", 3e5, "wide"),
    "a factor": ("Mul", -7e4, "wide"),
    "a small factor": ("Mul", 1e-9, "wide"),
    "a sum": ("Add", 1e5, "wide"),
    "an upper limit": ("Min", 1e6, "clamped"),
    "a lower limit": ("Max", -1e6, "clamped"),
    "a floor": ("Max", 1e-12, "clamped"),
    "a small term": ("Add", 1e-12, "clamped"),
    "the largest that fits": ("Mul", 65504.0, ""),
    "the smallest that fits": ("Mul", 6e-8, ""),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_constant_that_fp16_does_not_hold(case, tmp_path):
    op, number, what = LARGE[case]
    inner = node(op, ["h", "c"], "k", "with the constant")
    nodes = [node("Exp", ["x"], "h", "before"), inner, node("Sqrt", ["k"], "y", "after")]
    constants = {"c": np.array(number, np.float32)}
    graph = saved(tmp_path, nodes, [value("x", [3, 4, 8])], [value("y", [3, 4, 8])], constants)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        made = export.cast(graph)
    types = precision.node_types(made)
    assert types["with the constant"] == ("fp32" if what == "wide" else "fp16") and types["before"] == "fp16"
    said = [str(w.message) for w in heard]
    assert len(said) == (what == "wide")
    if said:
        assert "with the constant" in said[0] and f"{abs(number):.3g} in 'c'" in said[0] and "keep_wide" in said[0]
        assert heard[0].filename == __file__
    stored = [numpy_helper.to_array(w) for w in made.model().graph.initializer]
    (kept,) = (float(v) for v in stored)
    assert np.isfinite(kept) and kept != 0 and (what != "wide" or kept == np.float32(number))


def test_a_mask_that_also_goes_elsewhere_is_no_mask(tmp_path):
    nodes = [node("Mul", ["x", "c"], "m", "mul"), node("Softmax", ["m"], "y", "soft"), node("Tanh", ["m"], "z", "too")]
    outputs = [value("y", [3, 4, 8]), value("z", [3, 4, 8])]
    graph = saved(tmp_path, nodes, [value("x", [3, 4, 8])], outputs, {"c": np.float32(-1e9)})
    with pytest.warns(UserWarning, match=r"mul \(Mul\) stays FP32, because fp16 does not hold 1e\+09 in 'c'"):
        assert precision.node_types(export.cast(graph))["mul"] == "fp32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.cast(graph, keep_wide=["mul"])  # named by the caller: nothing to say
        export.cast(graph, "bf16")


def test_what_moves_a_large_constant_stays_wide_too(tmp_path):
    nodes = [
        node("Expand", ["c", "size"], "e", "spread"),
        node("Unsqueeze", ["e", "axis"], "u", "raise"),
        node("Div", ["x", "u"], "d", "divide"),
        node("Tanh", ["d"], "y", "after"),
    ]
    weights = {"c": np.float32(1e6), "size": np.array([4, 8]), "axis": np.array([0])}
    graph = saved(tmp_path, nodes, [value("x", [3, 4, 8])], [value("y", [3, 4, 8])], weights)
    with pytest.warns(UserWarning, match=r"and 2 more"):
        made = export.cast(graph)
    kinds = {name: v.type.tensor_type.elem_type for name, v in surgery.values_of(made.model()).items()}
    assert [kinds[name] for name in ("e", "u", "d")] == [T.FLOAT] * 3
    assert precision.node_types(made) == {"divide": "fp32", "after": "fp16"}


def test_data_on_its_way_to_a_softmax_is_no_mask(tmp_path):
    nodes = [node("Add", ["x", "b"], "a", "bias"), node("Softmax", ["a"], "y", "soft")]
    graph = saved(tmp_path, nodes, [value("x", [3, 4, 8])], [value("y", [3, 4, 8])], {"b": np.ones(8, np.float32)})
    assert "Clip" not in export.cast(graph).ops


def test_infinite_and_zero_values_stay_what_they_are():
    values = np.array([-np.inf, -1e9, -2, 0, 1e-30, 3, np.inf], np.float32)
    with np.errstate(over="raise"):
        got = large_constants.clamped(values, (1e-7, 100.0))
    np.testing.assert_array_equal(got, np.array([-np.inf, -100, -2, 0, 1e-7, 3, np.inf], np.float32))
    assert large_constants.most(np.float16) == 65504 and large_constants.most(ml_dtypes.bfloat16) > 3.38e38


def test_scales_are_refused_as_before(tmp_path):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q", "q"),
        node("DequantizeLinear", ["q", "s", "z"], "y", "d"),
    ]
    weights = {"s": np.float32(1e-9), "z": np.int8(0)}
    graph = saved(tmp_path, nodes, [value("x", [3, 4, 8])], [value("y", [3, 4, 8])], weights)
    with pytest.raises(BadInput, match="which fp16 does not hold"):
        export.cast(graph)
