"""What a cast makes of each kind of operator: narrow where ONNX has it narrow, FP32 elsewhere, and always a valid graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_files
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_files import value

from labsupport import build, environment, precision
from labsupport.errors import BadInput
from labsupport.precision import layerwise

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def node(op, reads, writes, name, **attributes):
    return helper.make_node(op, reads, writes, name, **attributes)


def saved(folder, nodes, weights=(), *, opset=17, shape=(2, 4), outputs=None, kind=T.FLOAT):
    outputs = outputs or [value("y", list(shape), kind)]
    return onnx_files.saved(folder, nodes, [value("x", [2, 4], kind)], outputs, dict(weights), opset=opset)


def plain(graph, x=X):
    """By ONNX Runtime without optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    return ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})


# name → (nodes, weights, opset, operators that stay FP32)
CASES = {
    "Cast of a size": (
        [
            node("Shape", ["x"], ["s"], "a"),
            node("Cast", ["s"], ["f"], "b", to=T.FLOAT),
            node("ReduceSum", ["f"], ["k"], "c", keepdims=0),
            node("Mul", ["x", "k"], ["y"], "d"),
        ],
        {},
        17,
        set(),
    ),
    "a comparison": (
        [
            node("Greater", ["x", "z"], ["g"], "a"),
            node("Cast", ["g"], ["f"], "b", to=T.FLOAT),
            node("Mul", ["x", "f"], ["y"], "c"),
        ],
        {"z": np.float32(0.1)},
        17,
        set(),
    ),
    "ConstantOfShape": (
        [
            node("Shape", ["x"], ["s"], "a"),
            node("ConstantOfShape", ["s"], ["o"], "b"),
            node("Add", ["x", "o"], ["y"], "c"),
        ],
        {},
        17,
        set(),
    ),
    "TopK": (
        [
            node("TopK", ["x", "k"], ["v", "i"], "a"),
            node("Cast", ["i"], ["f"], "b", to=T.FLOAT),
            node("Add", ["v", "f"], ["y"], "c"),
        ],
        {"k": np.array([4])},
        17,
        set(),
    ),
    "value_floats": (
        [node("Constant", [], ["c"], "a", value_floats=[1.0, 2.0, 3.0, 4.0]), node("Add", ["x", "c"], ["y"], "b")],
        {},
        17,
        set(),
    ),
    "FP64 inside": (
        [
            node("Cast", ["x"], ["d"], "a", to=T.DOUBLE),
            node("Mul", ["d", "k"], ["e"], "b"),
            node("Cast", ["e"], ["f"], "c", to=T.FLOAT),
            node("Add", ["x", "f"], ["y"], "d"),
        ],
        {"k": np.float64(1.5)},
        17,
        set(),
    ),
    "EyeLike": (
        [
            node("MatMul", ["x", "w"], ["m"], "a"),
            node("EyeLike", ["m"], ["e"], "b", dtype=T.FLOAT),
            node("MatMul", ["m", "e"], ["t"], "c"),
            node("MatMul", ["t", "u"], ["y"], "d"),
        ],
        {"w": X.T.copy(), "u": X},
        17,
        {"b"},
    ),
    "EyeLike of its input's type": (
        [
            node("EyeLike", ["x"], ["e"], "b"),
            node("Add", ["x", "e"], ["y"], "c"),
        ],
        {},
        17,
        {"b"},
    ),
    "IsInf": (
        [node("IsInf", ["x"], ["i"], "a"), node("Where", ["i", "z", "x"], ["y"], "b")],
        {"z": np.float32(0)},
        17,
        set(),
    ),
    "CumSum before 14": (
        [node("CumSum", ["x", "a"], ["t"], "a"), node("Neg", ["t"], ["y"], "n")],
        {"a": np.int64(1)},
        13,
        {"a"},
    ),
    "CumSum": ([node("CumSum", ["x", "a"], ["t"], "a"), node("Neg", ["t"], ["y"], "n")], {"a": np.int64(1)}, 17, set()),
    "Celu": ([node("Celu", ["x"], ["t"], "a", alpha=2.0), node("Neg", ["t"], ["y"], "n")], {}, 17, {"a"}),
    "HannWindow": (
        [node("HannWindow", ["n"], ["h"], "a", output_datatype=T.FLOAT), node("Mul", ["x", "h"], ["y"], "b")],
        {"n": np.int64(4)},
        17,
        {"a"},
    ),
    "LayerNormalization": (
        [
            node("LayerNormalization", ["x", "g"], ["n", "mean"], "a"),
            node("Add", ["n", "mean"], ["y"], "b"),
        ],
        {"g": np.array([1, 2, 3, 4], np.float32)},
        17,
        set(),
    ),
    "Range": (
        [
            node("Range", ["o", "l", "d"], ["r"], "a"),
            node("Add", ["x", "r"], ["y"], "b"),
        ],
        {"o": np.float32(0), "l": np.float32(4), "d": np.float32(1)},
        17,
        {"a"},
    ),
    "a sequence": (
        [
            node("SplitToSequence", ["x"], ["s"], "a", axis=0),
            node("ConcatFromSequence", ["s"], ["c"], "b", axis=0),
            node("Neg", ["c"], ["y"], "n"),
        ],
        {},
        17,
        {"b"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cast_is_valid_near_and_narrow_where_it_may_be(case, tmp_path):
    nodes, weights, opset, wide = CASES[case]
    graph = saved(tmp_path, nodes, weights, opset=opset)
    low = precision.cast(graph)
    onnx.checker.check_model(low.model(), full_check=True)
    (exact,), (got,) = plain(graph), plain(low)
    np.testing.assert_allclose(got, exact, rtol=4e-3, atol=4e-3)
    kinds = precision.node_types(low)
    assert {name for name, kind in kinds.items() if kind == "fp32"} == wide
    assert "fp16" in kinds.values()
    rounded = precision.rounded(low)
    (again,) = plain(rounded)
    assert 0 < np.abs(again - exact).max() < 2e-2 or case in ("ConstantOfShape", "IsInf")
    if environment.has("rtx") and case not in ("HannWindow", "IsInf", "a sequence", "Celu", "LayerNormalization"):
        assert build.engine(graph, precision="fp16", optimization_level=0, progress=False).precisions["fp16"]


def test_weights_that_a_wide_and_a_narrow_node_read_come_twice(tmp_path):
    """The scales of a Resize stay FP32, and are FP16 where they are multiplied."""
    nodes = [
        node("Unsqueeze", ["x", "axes"], ["image"], "u"),
        node("Resize", ["image", "", "c"], ["large"], "a", mode="nearest"),
        node("Squeeze", ["large", "axes"], ["flat"], "q"),
        node("MatMul", ["flat", "c8"], ["t"], "m"),
        node("Mul", ["x", "c"], ["z"], "b"),
        node("Add", ["t", "z"], ["y"], "s"),
    ]
    weights = {"axes": np.array([0, 1]), "c": np.array([1, 1, 1, 2], np.float32), "c8": np.ones((8, 4), np.float32)}
    graph = saved(tmp_path, nodes, weights)
    low = precision.cast(graph)
    np.testing.assert_allclose(plain(low)[0], plain(graph)[0], rtol=4e-3, atol=4e-3)
    kinds = {w.name: w.data_type for w in low.model().graph.initializer}
    assert kinds["c"] == T.FLOAT and kinds["c.fp16"] == T.FLOAT16 and "c8" not in kinds
    assert precision.node_types(low)["a"] == "fp32" and precision.node_types(low)["b"] == "fp16"


def test_an_output_that_is_read_inside_keeps_its_name_and_type(tmp_path):
    outputs = [value("h", [2, 4]), value("y", [2, 4])]
    nodes = [node("Relu", ["x"], ["h"], "a"), node("Mul", ["h", "c"], ["y"], "b")]
    graph = saved(tmp_path, nodes, {"c": np.float32(3)}, outputs=outputs)
    for keep_io, kind in ((True, "fp32"), (False, "fp16")):
        low = precision.cast(graph, keep_io=keep_io)
        assert {name: spec[1] for name, spec in low.outputs.items()} == {"h": kind, "y": kind}
        x = X.astype(np.float32 if keep_io else np.float16)
        for exact, got in zip(plain(graph), plain(low, x), strict=True):
            np.testing.assert_allclose(got.astype(np.float32), exact, rtol=2e-3)
        assert precision.cast(graph, keep_wide=["b"], keep_io=keep_io).outputs.keys() == low.outputs.keys()


TRAPS = {
    "x.fp16": [("Relu", "x", "x.fp16"), ("Add", "x", "x.fp16", "y")],
    "y.computed": [("Relu", "x", "y.computed"), ("Sigmoid", "y.computed", "y")],
    "a.exact": [("Relu", "x", "a.exact"), ("Sigmoid", "a.exact", "a"), ("Add", "a", "a.exact", "y")],
    "a.own": [("Relu", "x", "a"), ("Sigmoid", "a", "a.own"), ("Add", "a", "a.own", "y")],
    "a.twin": [("Relu", "x", "a"), ("Sigmoid", "a", "a.twin"), ("Add", "a", "a.twin", "y")],
    "a.narrow": [("Relu", "x", "a"), ("Sigmoid", "a", "a.narrow"), ("Add", "a", "a.narrow", "y")],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_names_that_a_cast_would_invent_may_be_taken(trap, tmp_path):
    steps = TRAPS[trap]
    nodes = [node(op, reads[:-1], reads[-1:], f"{op}/Cast" if op == "Relu" else "") for op, *reads in steps]
    graph = saved(tmp_path, nodes)
    low = precision.cast(graph)
    (exact,), (got,), (rounded,) = plain(graph), plain(low), plain(precision.rounded(low))
    np.testing.assert_allclose(got, exact, rtol=2e-3)
    assert 0 < np.abs(rounded - exact).max() < 2e-3
    scan = layerwise.scan(graph, X)
    assert len(scan) == len(nodes) and not scan.faults and all(0 < row.own_error < 1e-3 for row in scan)


def test_graphs_without_anything_to_narrow_are_refused(tmp_path):
    double = saved(tmp_path, [node("Mul", ["x", "c"], ["y"], "m")], {"c": np.full(4, 3.0)}, kind=T.DOUBLE)
    with pytest.raises(BadInput, match="net.onnx computes in FP64; hand in the FP32 graph"):
        precision.cast(double)
    only = saved(tmp_path, [node("Celu", ["x"], ["y"], "c")])
    with pytest.raises(BadInput, match="net.onnx: no operator in it takes fp16 at its opset: Celu"):
        precision.cast(only)
    assert precision.types(precision.cast(only, keep_wide=["c"])) == {"fp32": 1}
    whole = saved(tmp_path, [node("Add", ["x", "x"], ["y"], "c")], kind=T.INT32)
    with pytest.raises(BadInput, match="net.onnx has no FP32 tensor, so there is nothing to cast"):
        precision.cast(whole)


def test_a_tensor_without_a_type_is_named(tmp_path):

    ends = [helper.make_tensor_value_info(name, T.FLOAT, ["N", 4, 5, 5]) for name in "xy"]
    factors = [helper.make_tensor(name, T.FLOAT, [4], [1, 2, 3, 4]) for name in "sb"]
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "b"], ["n"], num_groups=2, name="norm"),
        helper.make_node("Gelu", ["n"], ["y"], name="gelu"),
    ]
    opset = [helper.make_opsetid("", 21)]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], factors)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(tmp_path / "net.onnx"))
    with pytest.raises(BadInput, match="ONNX cannot tell the type of 'n'"):
        precision.cast(tmp_path / "net.onnx")


@pytest.mark.parametrize("kind, narrow", [(T.FLOAT16, np.float16), (T.BFLOAT16, ml_dtypes.bfloat16)])
def test_a_result_that_names_its_type_is_rounded_to_it(kind, narrow, tmp_path):
    """DequantizeLinear of opset 23 says in an attribute what it writes; a processor has a kernel for FP32."""
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "code"),
        node("DequantizeLinear", ["q", "s", "z"], ["h"], "decode", output_dtype=kind),
        node("Cast", ["h"], ["y"], "widen", to=T.FLOAT),
    ]
    step = np.float32(0.01003)
    graph = saved(tmp_path, nodes, {"s": step, "z": np.int8(0)}, opset=23)
    made = precision.rounded(graph)
    exact = np.clip(np.rint(X / step), -128, 127) * step
    answer = plain(made)[0]
    np.testing.assert_array_equal(answer, exact.astype(narrow).astype(np.float32))
    assert (answer != exact).any()  # FP32 would not have rounded
    told = [a.i for each in made.model().graph.node for a in each.attribute if a.name == "output_dtype"]
    assert told == [T.FLOAT]


def test_autocast_keeps_the_node_that_is_named_and_none_whose_name_begins_alike(tmp_path):
    pytest.importorskip("modelopt")
    nodes = [node("MatMul", ["x", "w"], ["h"], "layer1"), node("MatMul", ["h", "w"], ["y"], "layer10")]
    graph = saved(tmp_path, nodes, {"w": np.eye(4, dtype=np.float32) + 0.5})
    made = precision.autocast(graph, X, keep_wide=["layer1"])
    assert {name: kind for name, kind in precision.node_types(made).items() if name.startswith("layer")} == {
        "layer1": "fp32",
        "layer10": "fp16",
    }


def test_weights_kept_narrow_and_widened_by_a_cast_are_cast(tmp_path):
    nodes = [node("Cast", ["n"], ["w"], "widen", to=T.FLOAT), node("MatMul", ["x", "w"], ["y"], "layer")]
    weight = np.random.default_rng(2).standard_normal((4, 4)).astype(np.float16)
    graph = saved(tmp_path, nodes, {"n": weight}, shape=(2, 4))
    for to in ("fp16", "bf16"):
        made = precision.cast(graph, to)
        assert precision.node_types(made)["layer"] == to
        error = plain(precision.rounded(made))[0] - X @ weight.astype(np.float32)
        assert np.abs(error).max() < (0.01 if to == "fp16" else 0.1)
