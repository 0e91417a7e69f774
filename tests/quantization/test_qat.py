"""Training with rounding: prepared networks answer as Q/DQ graphs do, slopes come through, and the export loses nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import build, comparing, data, environment, export, models, quantization, runtimes, training
from labsupport.errors import BadInput, LabError
from labsupport.models import depthwise
from labsupport.quantization import qat


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return data.mnist()


@pytest.fixture(scope="module")
def trained(digits):
    """A depthwise network after one epoch, and images to calibrate on."""
    return training.fit(
        depthwise.network(), digits.train.take(1500), epochs=2, learning_rate=1e-2, progress=False
    ).model, data.preprocess(digits.train.images[:64])


@pytest.fixture(scope="module")
def prepared(trained):
    return qat.prepare(*trained)


def as_written(graph, feed):
    with runtimes.OnnxRuntime(graph, optimization="off") as run:
        return run(feed)["logits"]


def test_the_depthwise_network_has_channels_of_very_different_range():
    def ratio(model):
        weight = export.to_onnx(model, model.example_input(2)).model()
        from onnx import numpy_helper

        found = [numpy_helper.to_array(w) for w in weight.graph.initializer]
        ranges = [np.abs(w).reshape(len(w), -1).max(1) for w in found if w.ndim == 4 and w.shape[1] == 1]
        return max(r.max() / np.median(r) for r in ranges)

    wide, narrow = depthwise.network(), depthwise.network(spread=0)
    assert ratio(wide) > 8 > 4 > ratio(narrow)
    assert torch.equal(depthwise.network().stem[0].weight, wide.stem[0].weight) and wide(
        wide.example_input(3)
    ).shape == (3, 10)
    with pytest.raises(BadInput, match="spread=9; give the deviation"):
        depthwise.network(spread=9)


@pytest.mark.parametrize("per_channel", [True, False])
def test_before_training_it_answers_as_the_quantized_graph_does(trained, per_channel):
    model, images = trained
    prepared = qat.prepare(model, images, per_channel=per_channel)
    graph = qat.to_onnx(prepared, model.example_input(2))
    by_calibration = quantization.to_qdq(
        export.to_onnx(model, model.example_input(2)), [images], method="max", per_channel=per_channel
    )
    assert comparing.relative_error(as_written(by_calibration, images), as_written(graph, images)) < 1e-5
    assert (
        comparing.relative_error(prepared(torch.from_numpy(images)).detach(), as_written(graph, images)) < 0.02
    )  # ties round to either side
    assert (
        quantization.placement(graph).quantize
        == quantization.placement(by_calibration).quantize
        == sum(qat.quantizers(prepared))
    )
    assert quantization.placement(graph).residual_adds == 2 and graph.opset == 17 and not graph.ops["Cast"]


def test_the_network_that_came_in_stays_as_it_was(trained):
    model, images = trained
    before = copy.deepcopy(model.state_dict())
    qat.prepare(model, images)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()) and not any(
        qat.quantizers(model)
    )


def test_training_moves_weights_and_scales_and_brings_accuracy_back(prepared, digits):
    part = digits.train.take(1500)
    before = training.accuracy(prepared, digits.test)
    after = training.fit(prepared, part, epochs=2, learning_rate=3e-3, progress=False).model
    assert training.accuracy(after, digits.test) > before + 0.02, before
    graph = qat.to_onnx(after, torch.zeros(2, 1, 28, 28))
    agreement = comparing.top1_agreement(
        after(torch.from_numpy(data.preprocess(digits.test.images))).detach(),
        as_written(graph, data.preprocess(digits.test.images)),
    )
    assert agreement > 0.98
    old, new = prepared.body.quantizer_0.scale.item(), after.body.quantizer_0.scale.item()
    assert old != new and new == pytest.approx(after.body.quantizer_0.log_scale.exp().item())


def test_slopes_pass_inside_the_range_and_stop_outside():
    quantizer = qat.ActivationQuantizer(2.0).train()
    x = torch.tensor([-3.0, -1.0, 0.31, 1.9, 2.5], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0] and quantizer.log_scale.grad.item() != 0
    values = x.detach().numpy()
    expected = quantization.fake_quantize(values, quantization.scale_of(low=-2, high=2))
    assert np.abs(quantizer.eval()(x.detach()).numpy() - expected)[1:].max() < 1e-6 and "holds ±2" in repr(quantizer)


@pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT that builds here")
def test_tensorrt_builds_it(prepared, trained):
    graph = qat.to_onnx(prepared, trained[0].example_input(2))
    engine = build.engine(quantization.at_batch(graph, 4), precision="int8", optimization_level=0, progress=False)
    assert engine.precisions["int8"] >= 10


def test_a_resnet_is_prepared_with_its_shortcuts():
    model = models.resnet18(5, width=8, size=32)
    prepared = qat.prepare(model, model.example_input(8))
    found = quantization.placement(qat.to_onnx(prepared, model.example_input(2)))
    assert found.residual_adds == 8 and len(found.quantized) == 21 and prepared.input_name == "images"


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.dense(x) if x.sum() > 0 else x


class AddedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(input=x).relu()
        y = self.second(x)
        y += x
        return y


def test_a_shortcut_added_in_place_and_an_input_by_name_are_quantized_as_any(trained):
    images = torch.from_numpy(np.asarray(trained[1]))[:8]
    torch.manual_seed(0)
    prepared = qat.prepare(AddedInPlace(), images)
    assert qdq_of(prepared, images).residual_adds == 1


def qdq_of(prepared, images):
    return quantization.placement(qat.to_onnx(prepared, images[:2]))


def test_bad_input_is_named(trained, prepared):
    model, images = trained
    for wrong, message in [
        (images[:0], r"torch.float32 \(0, 1, 28, 28\); wanted float"),
        (images[:, 0], "wanted float .N, C, H, W."),
        (np.zeros_like(images), "constant: every value is 0"),
        (np.ones((1, 1, 1, 1), np.float32), "constant: every value is 1"),
        (np.full_like(images, np.nan), "NaN or infinity"),
        (np.repeat(images, 3, 1), "images of 3 channels came, the network takes 1"),
        (np.zeros((2, 1, 28, 28), np.uint8), "torch.uint8"),
    ]:
        with pytest.raises(BadInput, match=message):
            qat.prepare(model, wrong)
    for wrong, message in [
        (None, "calibration images are a NoneType; wanted one float array"),
        ("images", "calibration images are a str"),
    ]:
        with pytest.raises(BadInput, match=message):
            qat.prepare(model, wrong)
    for wrong, message in [
        (type(model), "model=the class DepthwiseNet; wanted a torch.nn.Module"),
        (None, "model=None; wanted a torch.nn.Module"),
    ]:
        for call in (qat.prepare, qat.to_onnx):
            with pytest.raises(BadInput, match=message):
                call(wrong, model.example_input(2))
    with pytest.raises(BadInput, match="is quantized already .* quantizers.; prepare the FP32 network"):
        qat.prepare(prepared, images)
    with pytest.raises(BadInput, match="method='median' is not known; choose"):
        qat.prepare(model, images, method="median")
    with pytest.raises(BadInput, match="has no layer with an INT8 kernel"):
        qat.prepare(nn.Sequential(nn.ReLU()), images)
    with pytest.raises(LabError, match="Conditional cannot be traced.*quantization.to_qdq"):
        qat.prepare(Conditional(), images)
    with pytest.raises(BadInput, match="has no quantizers; prepare it first"):
        qat.to_onnx(model, model.example_input(2))


def test_an_exporter_that_drops_a_quantizer_is_caught(prepared, trained, monkeypatch):
    plain = export.to_onnx(trained[0], trained[0].example_input(2))
    monkeypatch.setattr(export, "to_onnx", lambda *_, **__: plain)
    with pytest.raises(LabError, match="activation and .* weight quantizers, and its graph Placement"):
        qat.to_onnx(prepared, trained[0].example_input(2))
