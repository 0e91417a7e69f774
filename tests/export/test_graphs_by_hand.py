"""Small graphs whose answer fits on a line: types, sizes, names, orders and the first bytes of files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import value

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export import exporters, large_constants, onnx_graph, surgery


def node(op, reads, writes, name="", **given):
    return helper.make_node(op, reads.split(), writes.split(), name=name, **given)


def model_of(*nodes, inputs=(("x", [1, 4]),), outputs=(("y", [1, 4]),), **weights):
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "g", [value(*v) for v in inputs], [value(*v) for v in outputs], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("FLOAT", 8), ("DOUBLE", 8), ("BFLOAT16", 8), ("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT8", 8),
     ("BOOL", 8), ("INT64", 64), ("UINT16", 16), ("FLOAT8E4M3FN", 8), ("STRING", 0), ("UNDEFINED", 0)],
)  # fmt: skip
def test_the_bits_of_one_value(kind, bits):
    assert onnx_graph.bits(TensorProto.DataType.Value(kind), of_floats=8) == bits


@pytest.mark.parametrize(("kind", "bits"), [("INT2", 2), ("UINT2", 2)])
def test_four_values_of_the_newest_types_share_a_byte(kind, bits):
    if kind not in TensorProto.DataType.keys():
        pytest.skip("this release of onnx does not have it")
    assert onnx_graph.bits(TensorProto.DataType.Value(kind), of_floats=8) == bits


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"  \n<!doctype html>", "an HTML page"),
        (b"<HTML>", "an HTML page"),
        (b"version https://git-lfs.github.com", "a Git LFS pointer"),
        (b"\x89PNG\r\n", "a PNG"),
        (b"PK\x03\x04", "a zip"),
        (b'{"a": 1}', "JSON"),
        (b"ftrt", "a TensorRT engine"),
        (b"\x80\x02", "a Python pickle"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x08\x08", ""),
    ],
)
def test_other_files_are_known_by_their_first_bytes(head, what):
    said = onnx_graph._what_is(head)
    assert said.startswith(what) and bool(said) == bool(what)


def test_borders_in_shape_and_type():
    made = value("x", ["batch", None, 3, -1], TensorProto.FLOAT16)
    assert onnx_graph.spec_of(made) == (("batch", "?", 3, "?"), "fp16")
    assert onnx_graph.spec_of(value("x", [0], TensorProto.INT64)) == ((0,), "int64")
    listed = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    assert onnx_graph.spec_of(listed) == ((), "sequence")


def test_the_type_of_the_weights_is_that_of_those_with_an_axis():
    half, wide = np.ones((2, 2), np.float16), np.ones((2, 2), np.float32)
    scalar, double = np.ones((1, 1), np.float32), np.ones((2, 2), np.float64)

    def told(inputs=(), **weights):
        given = {f"i{n}": ((1,), kind) for n, kind in enumerate(inputs)}
        return onnx_graph.weight_type(model_of(node("Neg", "x", "y"), **weights), given)

    assert told(a=half, b=scalar) == "fp16" and told(a=half, b=wide) == "mixed" and told(a=wide, b=double) == "fp32"
    assert told(a=double) == "fp64" and told(["fp32"], a=double) == "fp32" and told(["double"]) == "fp64"
    assert told(["fp16", "int64"]) == "fp16" and told(["int64"]) == "fp32" and told(["fp16", "fp32"]) == "mixed"
    assert told(a=np.ones(2, np.float16)) == "fp16"


def test_two_tensors_of_one_name_are_named_with_their_writers(tmp_path):
    def refused(said, *nodes, **weights):
        onnx.save(model_of(*nodes, **weights), str(tmp_path / "net.onnx"))
        with pytest.raises(BadInput, match=said):
            export.load(tmp_path / "net.onnx")

    neg, last = node("Neg", "x", "a", "one"), node("Abs", "a", "y", "three")
    refused("two tensors named 'a' in 'g', written by Neg 'one' and Exp 'two'", neg, node("Exp", "x", "a", "two"), last)
    refused("two tensors named 'a' in 'g', written by Neg 'one'; give", neg, last, a=np.ones(4, np.float32))
    refused("two tensors named 'x' in 'g', written by Neg 'back'", node("Neg", "x", "x", "back"), node("Abs", "x", "y"))


def test_free_names_are_counted_from_two():
    inner = helper.make_graph([node("Neg", "x", "deep", "bodied")], "b", [], [value("deep", [1, 4])])
    chosen = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    names = surgery.Names(model_of(chosen, c=np.array(True)))
    assert [names.free(n) for n in ("n", "n", "n", "x", "deep", "bodied", "c", "n_2")] == [
        "n", "n_2", "n_3", "x_2", "deep_2", "bodied_2", "c_2", "n_2_2",
    ]  # fmt: skip


def test_numbers_for_names_and_the_way_back():
    numbers, back = surgery.numbered(model_of(node("Neg", "x", "a", "n"), node("Abs", "a", "y", "m")))
    assert numbers == {"a": "<0>", "m": "<1>", "n": "<2>", "x": "<3>", "y": "<4>"}
    assert [back(n) for n in ("<0>", "<3>_Q", "<3>_Q", "new", "a", "<3>x")] == ["a", "x_Q", "x_Q", "new", "a_2", "xx"]


def test_names_are_given_to_nodes_that_lack_one_or_share_one():
    nodes = [
        node("Neg", "x", "a"),
        node("Neg", "a", "b", "n"),
        node("Abs", "b", "c", "n"),
        node("Abs", "c", "y", "Neg_0"),
    ]
    assert [each.name for each in surgery.named(model_of(*nodes)).graph.node] == ["Neg_0_2", "n", "n_2", "Neg_0"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
def test_nodes_are_sorted_whatever_their_order(order):
    nodes = [
        node("Neg", "x", "a", "0"),
        node("Exp", "a", "b", "1"),
        node("Abs", "a", "c", "2"),
        node("Add", "b c", "y", "3"),
    ]
    names = [each.name for each in surgery.sort_nodes(model_of(*(nodes[i] for i in order))).graph.node]
    assert names[0] == "0" and names[3] == "3" and sorted(names) == ["0", "1", "2", "3"]
    if order == (0, 1, 2, 3):
        assert names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("count", "small"), [(1024, True), (1025, False)])
def test_small_weights_are_read_by_shape_inference_and_large_ones_are_not(count, small):
    model = model_of(node("Neg", "x", "y"), w=np.zeros(count, np.int64))
    (light,) = surgery._light(model).graph.initializer
    assert bool(light.raw_data) is small and list(light.dims) == [count] and light.data_type == TensorProto.INT64


def test_a_batch_is_written_into_every_axis_of_its_name():
    nodes = [node("Add", "x z", "a"), node("MatMul", "a t", "y")]
    ends = (("x", ["n", 4]), ("z", ["n", 4]), ("t", [4, "n"])), (("y", ["n", "n"]),)
    model = model_of(*nodes, inputs=ends[0], outputs=ends[1])
    assert surgery.fix_batch(model, 3) == (["x", "z"], [4])
    shapes = {v.name: [axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == {"x": [3, 4], "z": [3, 4], "t": [4, 3]}
    assert [axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim] == [3, 3]


@pytest.mark.parametrize(("frozen", "fits"), [([3, 4], True), ([1, 4], True), ([2, 4], False), ([4], True)])
def test_a_frozen_bias_meets_the_batch_or_is_named(frozen, fits):
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.ones(frozen, np.float32)}
    model = model_of(
        node("Gemm", "x w b", "y", "dense"), inputs=(("x", ["n", 4]),), outputs=(("y", ["n", 4]),), **weights
    )
    if fits:
        assert surgery.fix_batch(model, 3) == (["x"], [])
    else:
        with pytest.raises(BadInput, match=r"batch of 3: dense that writes .y. adds \[2, 4\] to \[3, 4\]"):
            surgery.fix_batch(model, 3)


def test_a_graph_in_one_line(tmp_path):
    graph = export.save(model_of(node("Neg", "x", "a"), node("Neg", "a", "y")), tmp_path / "net.onnx")
    assert repr(graph) == "OnnxGraph(2 nodes: Neg×2; opset 17)" and graph.nodes == 2
    one = export.save(model_of(node("Abs", "x", "y")), tmp_path / "one.onnx")
    assert repr(one) == "OnnxGraph(1 node: Abs; opset 17)"
    assert one.size_mib == (tmp_path / "one.onnx").stat().st_size / 2**20
    folded = export.load(tmp_path / "one.onnx", folded={"Add": 2})
    assert repr(folded) == "OnnxGraph(1 node: Abs; opset 17; exporter folded Add×2)"


def test_a_limit_may_be_read_by_every_kind_of_limit_and_a_floor_by_every_kind_of_floor():
    """FP16 ends at 65504 and begins at 2⁻²⁴; a product with either constant must stay wide."""
    limits = [node("Min", "x c", "a"), node("Max", "x c", "b"), node("Clip", "x f c", "d")]
    weights = {"c": np.float32(1e6), "f": np.float32(0)}
    assert large_constants.outside(model_of(*limits, **weights), np.float16) == ({"c": (0.0, 65504.0)}, {})
    wide = large_constants.outside(model_of(*limits, node("Mul", "x c", "e", "product"), **weights), np.float16)
    assert wide[0] == {} and wide[1]["product"] == "1e+06 in 'c'"
    floors = [node("Add", "x c", "e"), *limits]
    tiny = {"c": np.float32(1e-9), "f": np.float32(0)}
    assert large_constants.outside(model_of(*floors, **tiny), np.float16) == ({"c": (2.0**-24, 65504.0)}, {})


def test_what_a_file_takes_in_leaves_room_below_its_two_gigabytes():
    assert 64 * 2**20 < onnx_graph.LARGEST_INSIDE < 2**31 - 64 * 2**20


@pytest.mark.parametrize(
    ("target", "opset", "taken"),
    [
        (None, 9, 9), (None, 25, 25), (None, 8, "from 9 to 25"), (None, 26, "from 9 to 25"), (None, "17", "from 9 to 25"),
        ("8.6", None, 17), ("8.6", 17, 17), ("8.6", 18, "8.6 reads 17 and below"), ("rtx", 20, 20),
        ("rtx", 21, "rtx reads 20 and below"), (None, None, 17),
    ],
)  # fmt: skip
def test_an_operator_set_is_one_that_is_written_and_read(target, opset, taken):
    if isinstance(taken, int):
        assert exporters._opset_for(target, "torchscript", opset) == taken
    else:
        with pytest.raises(BadInput, match=taken):
            exporters._opset_for(target, "torchscript", opset)


def test_the_dynamo_exporter_writes_no_opset_below_its_own():
    assert exporters._opset_for(None, "dynamo", None) == exporters._opset_for("10", "dynamo", None) == 18
    with pytest.raises(BadInput, match="TensorRT 8.6 reads opset 17 and below, but the dynamo exporter writes 18"):
        exporters._opset_for("8.6", "dynamo", None)
