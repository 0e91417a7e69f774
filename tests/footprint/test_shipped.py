"""What a version takes to the device: by hand for FP32, half for FP16, about a quarter for INT8 of either placement."""

from __future__ import annotations

import pytest
import torch
from onnx import numpy_helper
from torch import nn

from labsupport import export, footprint, precision, quantization
from labsupport.errors import BadInput
from labsupport.footprint import shipped


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 25, 10),
    )
    return export.to_onnx(model, torch.zeros(1, 3, 16, 16))


def test_fp32_is_weights_and_the_peak_of_lab_04(graph):
    weights = sum(numpy_helper.to_array(weight).nbytes for weight in graph.model().graph.initializer) / 2**20
    found = shipped.shipped(graph)
    assert found.weights_mib == pytest.approx(weights)
    assert found.activations_mib == pytest.approx(footprint.lifetimes(graph).peak_mib)
    assert found.total_mib == pytest.approx(found.weights_mib + found.activations_mib)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_sixteen_bits_are_half_whether_the_file_is_cast_or_the_builder_will(graph, kind):
    whole, cast = shipped.shipped(graph), precision.cast(graph, to=kind)
    assert shipped.shipped(graph, kind).total_mib == pytest.approx(whole.total_mib / 2)
    assert shipped.shipped(cast).weights_mib == pytest.approx(whole.weights_mib / 2)
    assert shipped.shipped(cast, kind).weights_mib == pytest.approx(whole.weights_mib / 2)  # narrow is not halved again


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_int8_holds_a_quarter_of_the_activations_and_no_pair_of_its_own(graph, target):
    feeds = [torch.randn(4, 3, 16, 16).numpy() for _ in range(2)]
    small = shipped.shipped(quantization.to_qdq(graph, feeds, target=target))
    whole = shipped.shipped(graph)
    assert 0 < small.activations_mib <= whole.activations_mib / 4 + 1e-9  # ONNX Runtime drops the ReLU as well
    assert small.weights_mib < 0.32 * whole.weights_mib


def test_an_unknown_type_is_refused(graph):
    with pytest.raises(BadInput, match="precision='fp3' is not known"):
        shipped.shipped(graph, "fp3")
