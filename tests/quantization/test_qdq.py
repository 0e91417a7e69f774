"""Q/DQ graphs that ONNX Runtime runs and TensorRT builds, the layers they cost, and the calibrator of older releases."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from labsupport import build, comparing, environment, export, models, quantization, runtimes
from labsupport.errors import BadInput, BuildError, LabError

NETWORKS = ("article CNN", "ResNet-18", "MobileNetV2", "encoder")
LAYERS = dict(zip(NETWORKS, (3, 21, 53, 16)))
needs_builder = pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT that builds here")


def answers(graph, feed):
    with runtimes.OnnxRuntime(graph) as run:
        return run(feed)


@pytest.mark.parametrize("method", quantization.METHODS)
@pytest.mark.parametrize("target", quantization.TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_quantized_and_the_answer_stays(bench, name, target, method):
    graph, batches, feed = bench[name]
    before = graph.sha256
    made = quantization.to_qdq(graph, batches, target=target, method=method)
    placed = quantization.placement(made)
    assert placed.nodes == made.ops["QuantizeLinear"] + made.ops["DequantizeLinear"] > 2 * LAYERS[name]
    assert len(placed.quantized) == LAYERS[name] and not placed.wide
    assert made.opset == 17 and made.inputs == graph.inputs and made.path != graph.path and graph.sha256 == before
    error = comparing.relative_error(answers(graph, feed), answers(made, feed))
    assert 1e-5 < error < 0.1, f"{name}, {target}, {method}: {error}"
    assert answers(made, feed[:3])  # the batch stayed free


@needs_builder
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_builds_it_in_int8(bench, name):
    graph, batches, _ = bench[name]
    made = quantization.to_qdq(graph, batches)
    engine = build.engine(made, precision="int8", batch=(1, 4, 8), progress=False)
    assert engine.precisions["int8"] > 0, engine.precisions
    if (
        engine.evidence == "typed network"
    ):  # each layer has a QuantizeLinear for its data or shares one, and one for its weights
        assert engine.precisions["int8"] == made.ops["QuantizeLinear"]


@pytest.mark.skipif(environment.generation() != "rtx", reason="the answer of the strongly typed parser")
def test_tensorrt_refuses_the_file_that_is_fast_on_the_cpu(cnn):
    made = quantization.to_qdq(*cnn[:2], target="onnxruntime")
    with pytest.raises(BuildError, match="DequantizeLinear.*has type Int32"):
        build.engine(made, precision="int8", batch=4, progress=False)


def test_onnx_runtime_runs_u8s8_on_integer_kernels_and_s8s8_not(bench):
    graph, batches, _ = bench["ResNet-18"]
    ops = {
        target: runtimes.OnnxRuntime(quantization.to_qdq(graph, batches, target=target)).executed.ops
        for target in quantization.TARGETS
    }
    assert ops["onnxruntime"]["QLinearConv"] == 20 and ops["onnxruntime"]["QLinearAdd"] == 8
    assert not ops["tensorrt"]["QLinearConv"]


def test_for_tensorrt_all_is_signed_symmetric_and_biases_stay_wide(cnn):
    from onnx import numpy_helper

    made = quantization.to_qdq(*cnn[:2])
    values = {w.name: numpy_helper.to_array(w) for w in made.model().graph.initializer}
    zeros = [
        values[node.input[2]]
        for node in made.model().graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert all(z.dtype == np.int8 and not z.any() for z in zeros)
    assert values["conv.bias"].dtype == np.float32
    scales = [values[node.input[1]].shape for node in made.model().graph.node if node.op_type == "QuantizeLinear"]
    assert (32,) in scales and () in scales, "weights per channel, activations per tensor"
    per_tensor = quantization.to_qdq(*cnn[:2], per_channel=False).model().graph
    flat = {w.name: w for w in per_tensor.initializer}
    assert all(not flat[node.input[1]].dims for node in per_tensor.node if node.op_type == "QuantizeLinear")


def test_residual_adds_have_one_narrow_side_and_pooling_one_pair(bench):
    made = quantization.to_qdq(*bench["ResNet-18"][:2])
    nodes = made.model().graph.node
    maker = {name: node.op_type for node in nodes for name in node.output}
    adds = [sorted(maker[name] for name in node.input) for node in nodes if node.op_type == "Add"]
    assert adds == [["Conv", "DequantizeLinear"]] * 8 and quantization.placement(made).residual_adds == 8
    pool = next(node for node in nodes if node.op_type == "MaxPool")
    assert maker[pool.input[0]] == "Relu", "no Q/DQ before pooling"
    assert sum(node.input[0] == pool.output[0] for node in nodes if node.op_type == "QuantizeLinear") == 1
    assert next(node for node in nodes if node.op_type == "GlobalAveragePool").input[0] in maker


def test_a_transformers_residual_stream_is_not_rounded(bench):
    made = quantization.to_qdq(*bench["encoder"][:2])
    nodes = made.model().graph.node
    maker = {name: node.op_type for node in nodes for name in node.output}
    narrow = {node.op_type for node in nodes if any(maker.get(name) == "DequantizeLinear" for name in node.input)}
    assert narrow == {"MatMul"} and quantization.placement(made).residual_adds == 0


def test_by_hand_is_what_the_graph_computes(cnn):
    """The network with every layer's input and weights fake-quantized in NumPy, beside the Q/DQ graph."""
    graph, batches, feed = cnn
    known = quantization.calibrate(graph, batches)
    made = quantization.to_qdq(graph, known, method="percentile")
    from onnx import numpy_helper

    weights = {w.name: numpy_helper.to_array(w) for w in graph.model().graph.initializer}
    nodes = [node for node in graph.model().graph.node if node.op_type in ("Conv", "Gemm")]

    def through(node, x):
        low, high = known[node.input[0]].range("percentile")
        limit = max(-low, high)
        x = quantization.fake_quantize(x, quantization.scale_of(low=-limit, high=limit))
        w = weights[node.input[1]]
        w, b = (
            quantization.fake_quantize(w, quantization.scale_of(w, axis=0)),
            torch.from_numpy(weights[node.input[2]].copy()),
        )
        apply = torch.nn.functional.conv2d if node.op_type == "Conv" else torch.nn.functional.linear
        return apply(torch.from_numpy(x), torch.from_numpy(w), b)

    x = torch.nn.functional.max_pool2d(torch.relu(through(nodes[0], feed)), 2).flatten(1)
    logits = through(nodes[2], torch.relu(through(nodes[1], x.numpy())).numpy()).numpy()
    assert comparing.relative_error(answers(made, feed)["logits"], logits) < 0.004
    assert comparing.relative_error(answers(graph, feed)["logits"], logits) > 0.004


def test_excluded_layers_stay_wide_also_beside_a_residual_add(bench):
    graph, batches, feed = bench["ResNet-18"]
    names = quantization.layers(graph)
    some = quantization.placement(quantization.to_qdq(graph, batches, exclude=names[:5]))
    assert some.wide == names[:5] and len(some.quantized) == 16
    assert some.residual_adds == 6, "an add whose convolution is wide has nothing to be narrow for"
    assert quantization.placement(quantization.to_qdq(graph, batches, exclude=names[0])).wide == names[:1]
    assert repr(some).startswith("Placement(") and "16 of 21 layers quantized, 6 residual adds" in repr(some)


def test_when_the_deeper_convolution_stays_wide_the_other_side_of_the_add_is_narrow(bench):
    graph, batches, feed = bench["ResNet-18"]
    kept = [
        name for name in quantization.layers(graph) if name.endswith(("layer2.0/conv2/Conv", "layer3.0/conv1/Conv"))
    ]
    made = quantization.to_qdq(graph, batches, exclude=kept)
    assert quantization.placement(made).residual_adds == 8 and set(quantization.placement(made).wide) == set(kept)
    assert comparing.relative_error(answers(graph, feed), answers(made, feed)) < 0.1


def test_a_batch_is_fixed_for_a_builder_that_tells_types_of_fixed_shapes_only(bench):
    graph, batches, feed = bench["ResNet-18"]
    fixed = quantization.at_batch(quantization.to_qdq(graph, batches), 8)
    assert (
        fixed.inputs["images"][0][0] == 8
        and fixed.outputs["logits"][0][0] == 8
        and graph.inputs["images"][0][0] == "batch"
    )
    assert answers(fixed, feed[:8])["logits"].shape[0] == 8 and quantization.at_batch(fixed, 8).inputs == fixed.inputs
    for batch, message in (
        (0, "batch=0; wanted a whole number"),
        (True, "batch=True"),
        (4, "has its batch fixed at 8; export it with dynamic=True, then choose 4"),
    ):
        with pytest.raises(BadInput, match=message):
            quantization.at_batch(fixed, batch)


# --- what a border costs ----------------------------------------------------------------------------------------


def test_conversions_are_kernels_without_a_layer():
    from labsupport import fusion, recordings

    for name, count in (("resnet18_b32.int8", 1), ("resnet18_b32.fp16", 2)):
        plan = fusion.xray(recordings.load_plan(name))
        found = quantization.conversions(plan)
        assert len(found) == count and all(kernel.launches and not kernel.nodes for kernel in found)


def test_a_quantize_node_that_runs_alone_is_a_conversion(cnn):
    from labsupport import fusion

    graph = quantization.to_qdq(*cnn[:2])
    nodes = graph.model().graph.node
    conv = next(node.name for node in nodes if node.name == "/conv/Conv")
    first = next(node.name for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] == "images")
    tensor = {"Name": "t", "Dimensions": [4, 32, 26, 26], "Format/Datatype": "Row major linear FP32"}
    layers = [
        {"Name": first, "LayerType": "Reformat", "Inputs": [tensor], "Outputs": [tensor]},
        {"Name": conv, "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]},
    ]
    plan = fusion.xray({"Layers": layers}, graph=graph)
    assert [kernel.nodes for kernel in quantization.conversions(plan)] == [(first,)]
    with pytest.raises(BadInput, match="read without its ONNX graph, so a conversion cannot be told"):
        quantization.conversions(fusion.xray({"Layers": layers}))
    with pytest.raises(BadInput, match="wants a plan, and a OnnxGraph came"):
        quantization.conversions(graph)


def test_nothing_is_printed_or_logged(cnn, capfd, caplog):
    level = logging.getLogger().level
    with caplog.at_level(logging.WARNING):
        quantization.to_qdq(*cnn[:2])
    assert not caplog.records and capfd.readouterr() == ("", "") and logging.getLogger().level == level


def test_reduced_range_leaves_seven_bits_to_the_weights(cnn):
    from onnx import numpy_helper

    made = quantization.to_qdq(*cnn[:2], target="onnxruntime", reduce_range=True).model()
    stored = [numpy_helper.to_array(w) for w in made.graph.initializer if w.name.endswith("weight_quantized")]
    assert stored and all(np.abs(w.astype(int)).max() <= 64 for w in stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "target='gpu' is not known; choose one of"),
        ({"method": "median"}, "method='median' is not known; choose"),
        ({"exclude": ["/conv/Konv"]}, "exclude names '/conv/Konv', which is no node.*did you mean"),
        ({"percentile": 1, "method": "percentile"}, "percentile=1; give the share"),
    ],
)
def test_impossible_options_name_the_choices(cnn, options, message):
    with pytest.raises(BadInput, match=message):
        quantization.to_qdq(*cnn[:2], **options)


def test_graphs_that_cannot_be_quantized_are_named(cnn, bench, tmp_path):
    graph, batches, feed = cnn
    made = quantization.to_qdq(graph, batches)
    with pytest.raises(BadInput, match="quantized already .QuantizeLinear×6, DequantizeLinear×6.*two roundings"):
        quantization.to_qdq(made, batches)
    with pytest.raises(BadInput, match="exclude names every layer"):
        quantization.to_qdq(graph, batches, exclude=quantization.layers(graph))
    with pytest.raises(BadInput, match="calibration was made on another graph"):
        quantization.to_qdq(graph, quantization.calibrate(*bench["encoder"][:2]))
    with pytest.raises(BadInput, match="is the graph that came in"):
        quantization.at_batch(graph, 2, path=graph.path)
    for exclude in (None, 3, [None]):
        with pytest.raises(BadInput, match="give the names of the layers that stay wide"):
            quantization.to_qdq(graph, batches, exclude=exclude)
    with pytest.raises(BadInput, match="is the graph being quantized"):
        quantization.to_qdq(graph, batches, path=graph.path)
    with pytest.raises(BadInput, match="the calibration data are constant"):
        quantization.to_qdq(graph, [np.zeros_like(feed)])
    with pytest.raises(BadInput, match="fp16 weights; quantize the FP32 graph"):
        quantization.to_qdq(export.cast(graph, path=tmp_path / "half.onnx"), batches)
    with pytest.raises(BadInput, match="no layer with an INT8 kernel: it is made of"):
        quantization.to_qdq(export.to_onnx(torch.nn.Softmax(1), torch.zeros(1, 4), path=tmp_path / "s.onnx"), batches)
    model = models.resnet18(4, width=8, size=32)
    with pytest.raises(BadInput, match="BatchNormalization×20.*fold_batchnorm=True"):
        quantization.to_qdq(
            export.to_onnx(model, model.example_input(), fold_batchnorm=False, path=tmp_path / "bn.onnx"), batches
        )
    with pytest.raises(BadInput, match="opset 12, and scales per channel came with 13"):
        quantization.to_qdq(
            export.to_onnx(models.article_cnn(), feed_tensor(), opset=12, path=tmp_path / "o.onnx"), batches
        )


def test_a_quantizer_that_places_nothing_is_caught(cnn, monkeypatch):
    from labsupport.quantization import qdq

    monkeypatch.setattr(
        qdq, "_quantized", lambda model, *_: model
    )  # as modelopt's FP8 did, with a return code of success
    with pytest.raises(LabError, match="placed 0 Q/DQ nodes and quantized no layer"):
        quantization.to_qdq(*cnn[:2])


def feed_tensor():
    return models.article_cnn().example_input(2)


def test_a_fixed_batch_and_unnamed_nodes_are_taken(tmp_path):
    model = models.article_cnn()
    fixed = export.to_onnx(model, feed_tensor(), dynamic=False, path=tmp_path / "fixed.onnx")
    proto = fixed.model()
    for node in proto.graph.node:
        node.name = ""
    graph = export.save(proto, tmp_path / "unnamed.onnx")
    feed = feed_tensor().numpy()
    made = quantization.to_qdq(graph, [feed], exclude=quantization.layers(graph)[:1])
    assert quantization.placement(made).wide == quantization.layers(graph)[:1]
    assert comparing.relative_error(answers(graph, feed), answers(made, feed)) < 0.1


# --- sensitivity ----------------------------------------------------------------------------------------------


def test_sensitivity_finds_the_layer_that_was_made_sensitive(cnn):
    graph, batches, feed = cnn
    proto = graph.model()
    spoilt = next(w for w in proto.graph.initializer if w.name == "dense.weight")
    from onnx import numpy_helper

    values = numpy_helper.to_array(spoilt).copy()
    values[:, 0] = 40.0  # one outlier a row takes the codes of all others
    spoilt.CopyFrom(numpy_helper.from_array(values, spoilt.name))
    graph = export.save(proto, graph.path.with_name("spoilt.onnx"))
    reference = answers(graph, feed)

    def error(candidate):
        return comparing.relative_error(reference, answers(candidate, feed))

    ranking = quantization.sensitivity(graph, batches, error, measure="error", progress=False)
    assert len(ranking) == 3 and ranking.worst.op == "Gemm" and "dense" in ranking.worst.layer and ranking.baseline == 0
    assert [row.cost for row in ranking] == sorted((row.cost for row in ranking), reverse=True) and ranking[2].cost > 0
    assert ranking.worst.layer in repr(ranking) and list(ranking.table().columns) == [
        "layer",
        "operator",
        "error",
        "added error",
    ]
    only = quantization.sensitivity(graph, batches, error, layers=[ranking[2].layer], measure="error", progress=False)
    assert len(only) == 1 and only[0] == ranking[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "speed"}, "measure='speed' is not known; choose"),
        ({"layers": ["/conv/Konv"]}, "'/conv/Konv', which cannot be quantized or is not there; did you mean"),
        ({"layers": []}, "layers is empty; leave it out"),
        ({"evaluate": lambda g: "good"}, "gave a str; it must give one number"),
        ({"evaluate": lambda g: float("nan")}, "gave nan for"),
    ],
)
def test_impossible_scans_are_named(cnn, options, message):
    options = {"evaluate": lambda graph: 1.0, **options}
    with pytest.raises(BadInput, match=message):
        quantization.sensitivity(*cnn[:2], progress=False, **options)
