"""Networks nobody here wrote, through the rooms: sparse weights, untyped tensors, functions, sequences, NaN."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import model_of, off, value, weight

from labsupport import export, footprint, fusion, precision, quantization, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.footprint.shipped import shipped
from labsupport.fusion import onnx_nodes, roofline
from labsupport.precision import layerwise

RNG = np.random.default_rng(13)
X = RNG.standard_normal((3, 4)).astype(np.float32)
W = RNG.standard_normal((4, 5)).astype(np.float32)


def run(graph, feed=None):
    with runtimes.OnnxRuntime(graph, optimization="off") as session:
        return session({"x": X} if feed is None else feed)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_sparse_weight_is_a_weight_in_every_room(rank, tmp_path):
    places = np.array([0, 7, 8, 19])
    values = np.array([2, -1, 0.5, 3], np.float32)
    whole = np.zeros(20, np.float32)
    whole[places] = values
    whole = whole.reshape(4, 5)
    indices = places if rank == 1 else np.stack([places // 5, places % 5], 1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    model = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 5])])
    sparse = helper.make_sparse_tensor(weight("w", values), weight("", indices), [4, 5])
    model.graph.sparse_initializer.append(sparse)
    graph = export.save(model, tmp_path / "net.onnx")
    (dense,) = graph.model().graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(dense), whole)
    assert export.load(tmp_path / "net.onnx").model().graph.initializer[0].name == "w"
    for made in (export.cast(graph), export.at_batch(graph, 3), quantization.to_qdq(graph, [X], method="max")):
        assert off(X @ whole, run(made)["y"]) < 0.02
    assert shipped(graph).weights_mib * 2**20 == 80 and roofline.work(graph, batch=3).flops == 2 * 3 * 4 * 5
    with runtimes.OnnxRuntime(graph, optimization="off") as session:
        assert fusion.xray(session).accounts().complete


def untyped(folder):
    """Normalizer of ai.onnx.ml, of whose result ONNX tells neither type nor shape."""
    nodes = [
        helper.make_node("Normalizer", ["x"], ["h"], "norm", domain="ai.onnx.ml", norm="L2"),
        helper.make_node("MatMul", ["h", "w"], ["k"], "unknown"),
        helper.make_node("MatMul", ["k", "v"], ["y"], "known"),
    ]
    outputs = [value("y", ["n", 2])]
    weights = [weight("w", W), weight("v", RNG.standard_normal((5, 2)).astype(np.float32))]
    model = model_of(nodes, [value("x", ["n", 4])], outputs, weights, domains=[("ai.onnx.ml", 3)])
    model.graph.value_info.append(value("k", ["n", 5]))
    return export.save(model, folder / "net.onnx")


def test_beside_a_tensor_of_unknown_type_a_node_stays_wide(tmp_path):
    graph = untyped(tmp_path)
    made = export.cast(graph)
    assert precision.node_types(made)["known"] == "fp16"
    (wide,) = (node for node in made.model().graph.node if node.name == "unknown")
    assert list(wide.input) == ["h", "w"]
    assert off(run(graph)["y"], run(made)["y"]) < 5e-3
    assert {row.node for row in layerwise.scan(graph, X)} >= {"unknown", "known"}


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_a_tensor_of_unknown_type_is_quantized_by_what_the_runtime_saw(target, tmp_path):
    graph = untyped(tmp_path)
    made = quantization.to_qdq(graph, [X], target=target, method="max")
    assert quantization.placement(made).quantized == ("unknown", "known")
    assert off(run(graph)["y"], run(made)["y"]) < 0.05


def gated(folder, bn=False):
    inner = [helper.make_node("MatMul", ["a", "b"], ["t"], "inner"), helper.make_node("Tanh", ["t"], ["c"], "tanh")]
    function = helper.make_function("own", "Layer", ["a", "b"], ["c"], inner, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Layer", ["x", "w"], ["y"], "one", domain="own")]
    inputs, outputs = [value("x", ["n", 4])], [value("y", ["n", 5])]
    model = model_of(nodes, inputs, outputs, [weight("w", W)], domains=[("own", 1)], functions=[function])
    return export.save(model, folder / "net.onnx")


def test_layers_inside_a_function_are_quantized_and_counted(tmp_path):
    graph = gated(tmp_path)
    made = quantization.to_qdq(graph, [X], method="max")
    assert len(quantization.placement(made).quantized) == 1 and off(run(graph)["y"], run(made)["y"]) < 0.03
    assert roofline.work(graph, batch=3).flops == 2 * 3 * 4 * 5 + 15
    assert quantization.placement(graph).wide == ("inner",)


def test_layers_inside_a_loop_are_not_and_that_is_said(tmp_path):
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["g"], "step"), helper.make_node("Identity", ["c"], ["d"], "keep")],
        "body",
        [value("i", [], T.INT64), value("c", [], T.BOOL), value("h", [3, 4])],
        [value("d", [], T.BOOL), value("g", [3, 4])],
    )
    weights = [weight("w", W[:, :4].copy()), weight("n", np.int64(2)), weight("go", np.array(True))]
    nodes = [helper.make_node("Loop", ["n", "go", "x"], ["y"], "again", body=body)]
    model = model_of(nodes, [value("x", [3, 4])], [value("y", [3, 4])], weights)
    graph = export.save(model, tmp_path / "net.onnx")
    with pytest.raises(
        BadInput, match="no layer with an INT8 kernel: .* into the bodies of again quantization does not"
    ):
        quantization.to_qdq(graph, [X])
    with pytest.raises(BadInput, match=r"the operations of again \(Loop\) do not follow from its tensors' shapes"):
        roofline.work(graph)
    assert quantization.placement(graph).wide == ("step",)


def test_a_weight_of_nan_is_named_and_nothing_is_written(tmp_path):
    broken = W.copy()
    broken[1, 2] = np.nan
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    model = model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 5])], [weight("w", broken)])
    graph = export.save(model, tmp_path / "net.onnx")
    for target in quantization.TARGETS:
        with pytest.raises(BadInput, match=r"net.onnx: the weight 'w' of product \(MatMul\) holds NaN"):
            quantization.to_qdq(graph, [X], target=target, path=tmp_path / "made.onnx")
    model.graph.initializer[0].CopyFrom(weight("w", np.where(np.isnan(broken), -np.inf, broken)))
    graph = export.save(model, tmp_path / "net.onnx")
    with pytest.raises(LabError, match="quantized no layer, because product must stay wide"):
        quantization.to_qdq(graph, [X], path=tmp_path / "made.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_network_without_inputs_has_nothing_to_calibrate(tmp_path):
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"], "product")]
    model = model_of(nodes, [], [value("y", [3, 5])], [weight("a", X), weight("w", W)])
    with pytest.raises(BadInput, match="net.onnx has no inputs: all of it is constant"):
        quantization.to_qdq(export.save(model, tmp_path / "net.onnx"), [{}])


def test_sequences_and_text_come_out_of_a_runtime_as_they_are(tmp_path):
    import torch

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("SplitToSequence", ["h"], ["s"], "split", axis=0),
        helper.make_node("ArgMax", ["h"], ["i"], "largest", axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "i"], ["t"], "name"),
    ]
    names = helper.make_tensor("names", T.STRING, [5], [b"a", b"b", b"c", b"d", b"e"])
    outputs = [
        helper.make_tensor_sequence_value_info("s", T.FLOAT, None),
        value("t", ["n"], T.STRING),
        value("h", ["n", 5]),
    ]
    graph = export.save(
        model_of(nodes, [value("x", ["n", 4])], outputs, [weight("w", W), names]), tmp_path / "net.onnx"
    )
    for feed in (X, torch.from_numpy(X)):
        with runtimes.OnnxRuntime(graph) as session:
            answer = session({"x": feed})
        assert [part.shape for part in answer["s"]] == [(1, 5)] * 3 and isinstance(answer["s"], list)
        assert list(answer["t"]) == ["abcde"[i] for i in (X @ W).argmax(1)]
        assert isinstance(answer["h"], type(feed))


def test_two_nodes_of_one_name_are_the_advice(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"], "same"), helper.make_node("Neg", ["a"], ["y"], "same")]
    graph = export.save(model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])]), tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="Give each node a name of its own"):
        runtimes.OnnxRuntime(graph)


def test_weights_in_constant_nodes_are_shipped_too(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["w"], "weights", value=weight("", W)),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    graph = export.save(model_of(nodes, [value("x", ["n", 4])], [value("y", ["n", 5])]), tmp_path / "net.onnx")
    assert shipped(graph).weights_mib * 2**20 == 4 * 4 * 5
    assert shipped(graph, "fp16").weights_mib * 2**20 == 2 * 4 * 5


def test_operations_of_turned_and_transposed_layers(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], "turned", transA=1, transB=1),
        helper.make_node("ConvTranspose", ["i", "k"], ["z"], "up", strides=[3, 3]),
        helper.make_node("GRU", ["s", "W", "R"], ["", "h"], "gru", hidden_size=2),
    ]
    inputs = [value("x", [4, 3]), value("i", [1, 2, 5, 5]), value("s", [6, 1, 4])]
    outputs = [value("y", [3, 5]), value("z", [1, 7, 15, 15]), value("h", [1, 1, 2])]
    ones = [np.ones(shape, np.float32) for shape in ((5, 4), (2, 7, 3, 3), (1, 6, 4), (1, 6, 2))]
    model = model_of(nodes, inputs, outputs, [weight(n, v) for n, v in zip(["w", "k", "W", "R"], ones)])
    with pytest.raises(BadInput, match=r"the operations of gru \(GRU\) do not follow"):
        roofline.work(export.save(model, tmp_path / "net.onnx"))
    del model.graph.node[2], model.graph.input[2], model.graph.output[2]
    found = {step.name: step.flops for step in roofline.work(export.save(model, tmp_path / "net.onnx")).steps}
    # each of 25 × 2 inputs meets 7 × 9 weights; a product of (3, 4) and (4, 5)
    assert found == {"turned": 2 * 3 * 4 * 5, "up": 2 * 2 * 25 * 7 * 9}


def test_a_list_or_none_for_inner_tensors(tmp_path):
    graph = gated(tmp_path)
    assert list(export.exposed(graph, ["y"]).outputs) == ["y"]
    with pytest.raises(BadInput, match="tensors=None; wanted a list of names"):
        export.exposed(graph, None)
    for model, path in ((None, tmp_path / "a.onnx"), (graph.model(), 3), (onnx.GraphProto(), tmp_path / "a.onnx")):
        with pytest.raises(BadInput, match="wanted are an onnx.ModelProto|path=3; wanted a path"):
            export.save(model, path)
    for call in (lambda: footprint.arena(None, {}), lambda: footprint.draw_lifetimes(None)):
        with pytest.raises(BadInput, match="wanted are lifetimes"):
            call()


def test_a_weight_that_is_an_output_moves_once_and_random_numbers_are_no_shape(tmp_path):
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], "draw", shape=[3, 4]),
        helper.make_node("Add", ["x", "r"], ["h"], "noise"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
        helper.make_node("Shape", ["h"], ["s"], "size"),
    ]
    outputs = [value("y", [3, 5]), value("w", [4, 5]), value("s", [2], T.INT64)]
    graph = export.save(model_of(nodes, [value("x", [3, 4])], outputs, [weight("w", W)]), tmp_path / "net.onnx")
    assert roofline.work(graph).bytes_together == 4 * (12 + 15 + 20) + 8 * 2  # two lengths of 64 bits
    read = onnx_nodes.nodes_of(graph)
    assert read.shape_nodes == {"size"} and not read.constant_nodes
