"""Files as other tools write them: sparse constants, -1 for a free axis, shapes kept apart, weights behind any node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from labsupport import export, footprint, pruning, quantization, runtimes
from labsupport.errors import BadInput
from labsupport.export import constant_folding, sparse_weights, surgery
from labsupport.footprint.shipped import shipped
from labsupport.fusion import roofline

RNG = np.random.default_rng(5)
X = RNG.standard_normal((3, 4)).astype(np.float32)
W = RNG.standard_normal((4, 8)).astype(np.float32)


def value(name, shape, kind=T.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def node(op, reads, writes, **attributes):
    return helper.make_node(op, reads, writes if isinstance(writes, list) else [writes], **attributes)


def model_of(nodes, inputs, outputs, weights, *, opset=17, domains=()):
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def product(folder, *, shape=("n", 4), **options):
    model = model_of([node("MatMul", ["x", "w"], "y")], [value("x", shape)], [value("y", [None, 8])], {"w": W})
    return export.save(model, folder / "net.onnx")


def run(graph, feed=None):
    with runtimes.OnnxRuntime(graph, optimization="off") as session:
        return session({"x": X} if feed is None else feed)


def test_sparse_values_of_constant_nodes_and_branches_are_weights(tmp_path):
    places = np.array([0, 9, 17, 30])
    whole = np.zeros(32, np.float32)
    whole[places] = [1, -2, 3, 4]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(whole[places], "w"), numpy_helper.from_array(places, ""), [4, 8]
    )
    constant = node("Constant", [], "w")
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    nodes = [constant, node("MatMul", ["x", "w"], "y")]
    graph = export.save(model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 8])], {}), tmp_path / "a.onnx")
    for made in (export.cast(graph), quantization.to_qdq(graph, [X], method="max"), export.at_batch(graph, 3)):
        assert np.abs(run(made)["y"] - X @ whole.reshape(4, 8)).max() < 0.05
    assert shipped(graph).weights_mib * 2**20 == 4 * 32

    branch = helper.make_graph([node("MatMul", ["x", "w"], "b")], "branch", [], [value("b", ["n", 8])])
    branch.sparse_initializer.append(sparse)
    other = helper.make_graph([node("MatMul", ["x", "v"], "c")], "other", [], [value("c", ["n", 8])])
    nodes = [node("If", ["yes"], "y", then_branch=branch, else_branch=other)]
    model = model_of(nodes, [value("x", ["n", 4]), value("yes", [], T.BOOL)], [value("y", ["n", 8])], {"v": W})
    written = export.save(model, tmp_path / "b.onnx").model().graph.node[0].attribute
    (body,) = [attribute.g for attribute in written if attribute.name == "then_branch"]
    assert not body.sparse_initializer and numpy_helper.to_array(body.initializer[0]).ravel().tolist() == whole.tolist()


def test_a_sparse_value_that_a_function_is_handed_is_left_to_its_caller():
    inside = node("Constant", [], "w")
    kind = onnx.AttributeProto.SPARSE_TENSOR
    inside.attribute.add(name="sparse_value", ref_attr_name="table", type=kind)
    function = helper.make_function("own", "F", [], ["w"], [inside], [helper.make_opsetid("", 17)], ["table"])
    model = model_of([node("F", [], "y", domain="own")], [], [value("y", [4, 8])], {}, domains=["own"])
    model.functions.append(function)
    (kept,) = sparse_weights.written_out(model).functions[0].node[0].attribute
    assert (kept.name, kept.ref_attr_name) == ("sparse_value", "table")


def test_a_free_axis_written_as_minus_one_is_free(tmp_path):
    model = product(tmp_path).model()
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = -1
    graph = export.save(model, tmp_path / "minus.onnx")
    fixed = export.at_batch(graph, 3)
    assert fixed.inputs["x"][0] == (3, 4) and fixed.outputs["y"][0] == (3, 8)
    assert roofline.work(graph, batch=5).flops == 2 * 5 * 4 * 8
    assert footprint.lifetimes(graph, batch=5).total_mib == 0  # its only tensors are the caller's


def test_operations_are_counted_for_the_batch_alone(tmp_path):
    weights = {"w": W, "end": np.array([1, 8])}
    nodes = [node("MatMul", ["x", "w"], "h"), node("Concat", ["h", "h"], "y", axis=0)]
    twice = model_of(nodes, [value("x", ["n", 4])], [value("y", ["2*n", 8])], weights)
    found = roofline.work(export.save(twice, tmp_path / "twice.onnx"), batch=3)
    assert [step.flops for step in found.steps] == [2 * 3 * 4 * 8, 6 * 8]
    assert found.steps[1].bytes == 4 * (3 * 8 + 6 * 8)
    words = model_of(nodes[:1], [value("x", ["n", "t", 4])], [value("h", ["n", "t", 8])], weights)
    with pytest.raises(BadInput, match="shape of 'x' at MatMul, .*only the first of each input, the batch, is known"):
        roofline.work(export.save(words, tmp_path / "words.onnx"), batch=3)
    idle = model_of(nodes[:1], [value("x", [3, 4]), value("z", [3, "t"])], [value("h", [3, 8])], weights)
    with pytest.raises(BadInput, match="ONNX cannot tell the shape of 'z', so its bytes"):
        roofline.work(export.save(idle, tmp_path / "idle.onnx"))


@pytest.mark.parametrize("precision, width", [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_whole_numbers_keep_their_size_whatever_the_precision(precision, width, tmp_path):
    nodes = [node("Gather", ["w", "ids"], "h"), node("Cast", ["h"], "y", to=T.DOUBLE)]
    model = model_of(nodes, [value("ids", ["n"], T.INT64)], [value("y", ["n", 8], T.DOUBLE)], {"w": W})
    found = roofline.work(export.save(model, tmp_path / "net.onnx"), batch=3, precision=precision)
    assert [step.bytes for step in found.steps] == [3 * 8 + width * (32 + 24), width * 48]
    assert found.bytes_together == 3 * 8 + width * (24 + 32)


def test_a_border_without_a_shape_and_a_spelled_domain_are_named(tmp_path):
    model = product(tmp_path).model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(BadInput, match="'y' declares no shape, not even how many axes.*infer_shapes"):
        export.load(tmp_path / "bare.onnx")
    model = product(tmp_path).model()
    model.graph.node[0].domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, str(tmp_path / "spelled.onnx"))
    with pytest.raises(BadInput, match="spells the domain of ONNX's own operators 'ai.onnx'.*write '' there"):
        export.load(tmp_path / "spelled.onnx")


def test_a_shape_that_lies_beside_the_graph_is_read(tmp_path):
    weights = {"shape": np.array([-1, 4]), "w": W}
    nodes = [node("Reshape", ["x", "shape"], "f"), node("MatMul", ["f", "w"], "y")]
    model = model_of(nodes, [value("x", ["n", 2, 2])], [value("y", ["n", 8])], weights)
    onnx.save(model, str(tmp_path / "apart.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    x = X.reshape(3, 2, 2)
    for level in ("off", "all"):
        with runtimes.OnnxRuntime(tmp_path / "apart.onnx", optimization=level) as session:
            assert np.abs(session(x)["y"] - X @ W).max() < 1e-5
            assert "MatMul" in " ".join(session.executed.ops) or "Gemm" in " ".join(session.executed.ops)


def test_text_goes_in_however_numpy_holds_it(tmp_path):
    words = helper.make_node(
        "LabelEncoder", ["s"], ["f"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_floats=[1.0, 2.0]
    )
    nodes = [words, node("MatMul", ["f", "w"], "y")]
    model = model_of(nodes, [value("s", ["n", 4], T.STRING)], [value("y", ["n", 8])], {"w": W}, domains=["ai.onnx.ml"])
    model.opset_import[1].version = 3
    graph = export.save(model, tmp_path / "net.onnx")
    exact = np.array([[1, 2, 2, 1]], np.float32) @ W
    for kind in (object, str):
        text = np.array([["a", "b", "b", "a"]], kind)
        np.testing.assert_allclose(run(graph, {"s": text})["y"], exact, rtol=1e-5)
        made = quantization.to_qdq(graph, [text], method="max")
        assert np.abs(run(made, {"s": text})["y"] - exact).max() < 0.1
    with pytest.raises(BadInput, match="input 's' is float32; the network wants string: give an array of text"):
        run(graph, {"s": X})


def test_what_only_a_branch_reads_is_shipped(tmp_path):
    then = helper.make_graph([node("MatMul", ["h", "v"], "b")], "t", [], [value("b", ["n", 8])])
    other = helper.make_graph([node("Relu", ["h"], "c")], "e", [], [value("c", ["n", 8])])
    nodes = [node("MatMul", ["x", "w"], "h"), node("If", ["yes"], "y", then_branch=then, else_branch=other)]
    inputs = [value("x", ["n", 4]), value("yes", [], T.BOOL)]
    weights = {"w": W, "v": RNG.standard_normal((8, 8)).astype(np.float32)}
    model = model_of(nodes, inputs, [value("y", ["n", 8]), value("v", [8, 8])], weights)
    graph = export.save(model, tmp_path / "net.onnx")
    made = quantization.to_qdq(graph, [{"x": X, "yes": np.array(True)}], method="max")
    scales = 8 * 5 + 1 * 5  # of each column, and of the input: a scale of four bytes, a zero point of one
    assert shipped(made).weights_mib * 2**20 == 32 + 64 * 4 + scales
    assert shipped(made, batch=6).activations_mib * 2**20 == 6 * 8  # h, one byte a number


def test_sizes_that_nobody_can_tell_are_told_with_their_reason(tmp_path):
    nodes = [node("BiasGelu", ["x", "b"], "g", domain="com.microsoft"), node("MatMul", ["g", "w"], "y")]
    weights = {"b": np.ones(4, np.float32), "w": W}
    model = model_of(nodes, [value("x", [3, 4])], [value("y", [3, 8])], weights, domains=["com.microsoft"])
    graph = export.save(model, tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="com.microsoft::BiasGelu is an operator that ONNX does not define.*sizes_of="):
        footprint.lifetimes(graph)
    double = model_of(
        [node("MatMul", ["x", "w"], "y")], [value("x", [3, 4], T.DOUBLE)], [value("y", [3, 8], T.DOUBLE)],
        {"w": W.astype(np.float64)},
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"double.onnx has fp64 weights, which nothing counts in; give precision="):
        shipped(export.save(double, tmp_path / "double.onnx"))


BEHIND = {  # how a weight (4, 8) may come about → (nodes, constants, its values)
    "a mask": ([node("Where", ["m", "a", "z"], "w")], {"m": W > 0, "a": W, "z": np.float32(0)}, np.where(W > 0, W, 0)),
    "a triangle": ([node("Trilu", ["a"], "w", upper=0)], {"a": W}, np.tril(W)),
    "low rank": (
        [node("MatMul", ["p", "q"], "d"), node("Add", ["a", "d"], "w")],
        {"a": W, "p": W[:, :2], "q": W[:2]},
        W + W[:, :2] @ W[:2],
    ),
    "copies": ([node("Tile", ["a", "r"], "w")], {"a": W[:, :2], "r": np.array([1, 4])}, np.tile(W[:, :2], 4)),
    "an exponential": ([node("Exp", ["a"], "w")], {"a": W}, np.exp(W)),
}


@pytest.mark.parametrize("case", BEHIND)
def test_a_weight_behind_any_node_of_constants_has_a_scale_for_each_column(case, tmp_path):
    nodes, constants, exact = BEHIND[case]
    nodes = [*nodes, node("MatMul", ["x", "w"], "y", name="layer")]
    graph = export.save(model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 8])], constants), tmp_path / "n.onnx")
    made = quantization.to_qdq(graph, [X], method="max")
    assert quantization.layers(graph) == ("layer",) and quantization.placement(made).quantized == ("layer",)
    scales = {w.name: list(w.dims) for w in made.model().graph.initializer}
    assert scales["w_scale"] == [8]
    assert np.abs(run(made)["y"] - X @ exact).max() < 0.05 * np.abs(X @ exact).max()


def test_a_part_that_is_a_weight_leaves_the_other_to_its_reader(tmp_path):
    nodes = [
        node("Split", ["both"], ["w", "rest"], axis=1),
        node("MatMul", ["x", "w"], "h"),
        node("Add", ["h", "rest"], "y"),
    ]
    both = np.concatenate([W[:, :4], W[:, 4:]], 1)
    model = model_of(nodes, [value("x", [4, 4])], [value("y", [4, 4])], {"both": both}, opset=13)
    x = RNG.standard_normal((4, 4)).astype(np.float32)
    graph = export.save(model, tmp_path / "net.onnx")
    made = quantization.to_qdq(graph, [x], method="max")
    assert np.abs(run(made, {"x": x})["y"] - (x @ W[:, :4] + W[:, 4:])).max() < 0.1
    nodes = [node("RandomNormalLike", ["w"], "r"), node("MatMul", ["x", "r"], "y")]
    drawn = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 8])], {"w": W})
    kept = constant_folding.with_plain_weights(drawn, ("MatMul",)).graph
    assert [each.op_type for each in kept.node] == ["RandomNormalLike", "MatMul"]  # what draws is no constant


def test_a_report_of_two_of_four_reads_weights_of_any_type_behind_any_node(tmp_path):
    import ml_dtypes

    weight = W.copy()
    weight[:2] = 0  # two of the four inputs of each output
    plain = {"w": weight}
    turned = [node("Transpose", ["v"], "w"), node("MatMul", ["x", "w"], "y", name="layer")]
    narrow = [node("Cast", ["v"], "w", to=T.FLOAT), node("MatMul", ["x", "w"], "y", name="layer")]
    half = weight.astype(ml_dtypes.bfloat16)
    for nodes, weights in (
        ([node("MatMul", ["x", "w"], "y", name="layer")], plain),
        (turned, {"v": np.ascontiguousarray(weight.T)}),
        (narrow, {"v": half}),
    ):
        graph = export.save(
            model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 8])], weights), tmp_path / "n.onnx"
        )
        (line,) = pruning.report24(graph)
        assert (line.name, line.shape, line.zeros, line.obeys) == ("layer", (8, 4), 0.5, True)
    quantized = quantization.to_qdq(graph, [X], method="max")
    assert [line.obeys for line in pruning.report24(quantized)] == [True]
    bf16 = model_of(
        [node("MatMul", ["x", "w"], "y", name="layer")], [value("x", [3, 4], T.BFLOAT16)],
        [value("y", [3, 8], T.BFLOAT16)], {"w": half},
    )  # fmt: skip
    assert [line.obeys for line in pruning.report24(export.save(bf16, tmp_path / "bf16.onnx"))] == [True]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1), (3, 1), (3, 8)])
def test_a_bias_fits_the_batch_or_is_refused_by_name(shape, tmp_path):
    bias = RNG.standard_normal(shape).astype(np.float32)
    nodes = [node("Gemm", ["x", "w", "b"], "y", name="head")]
    weights = {"w": W, "b": bias}
    model = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 8])], weights)
    graph = export.save(model, tmp_path / "net.onnx")
    assert np.abs(run(export.at_batch(graph, 3))["y"] - (X @ W + bias)).max() < 1e-5
    if shape[0] == 3:
        with pytest.raises(BadInput, match=r"batch of 2: .*head"):
            export.at_batch(graph, 2)
    else:
        assert export.at_batch(graph, 2).outputs["y"][0] == (2, 8)


def test_a_weight_that_ends_behind_its_file_is_found_whatever_its_length(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")]
    weights = {"w": W, "v": RNG.standard_normal((8, 2)).astype(np.float32)}
    model = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 2])], weights)
    file = tmp_path / "w.bin"
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert export.load(tmp_path / "net.onnx").nodes == 2
    file.write_bytes(file.read_bytes()[:-1])  # the first is whole, the second is longer than nothing
    with pytest.raises(BadInput, match="keeps the weight 'v' in w.bin, which is too short"):
        export.load(tmp_path / "net.onnx")


def test_nodes_are_sorted_behind_what_their_branches_read():
    then = helper.make_graph([node("Relu", ["late"], "b")], "t", [], [value("b", [3, 4])])
    other = helper.make_graph([node("Neg", ["x"], "c")], "e", [], [value("c", [3, 4])])
    nodes = [
        node("If", ["yes"], "y", name="if", then_branch=then, else_branch=other),
        node("Exp", ["early"], "late", name="second"),
        node("Sin", ["x"], "early", name="first"),
    ]
    inputs = [value("x", [3, 4]), value("yes", [], T.BOOL)]
    model = surgery.sort_nodes(model_of(nodes, inputs, [value("y", [3, 4])], {}))
    assert [each.name for each in model.graph.node] == ["first", "second", "if"]


def test_a_batch_on_another_axis_is_not_taken_for_the_first(tmp_path):
    nodes = [node("Transpose", ["x"], "t", perm=[1, 0, 2]), node("MatMul", ["t", "w"], "y")]
    model = model_of(nodes, [value("x", [3, "batch", 4])], [value("y", ["batch", 3, 8])], {"w": W})
    graph = export.save(model, tmp_path / "net.onnx")
    with pytest.raises(BadInput, match=r"batch fixed at 3 \(x has another axis free; the batch is the first\); export"):
        export.at_batch(graph, 5)
    with pytest.raises(BadInput, match=r"has its batch fixed at 3; export it with dynamic=True, then choose 5"):
        export.at_batch(product(tmp_path, shape=(3, 4)), 5)
