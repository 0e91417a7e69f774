"""Histograms and thresholds, and what is refused as calibration data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labsupport import data, export, models, quantization
from labsupport.errors import BadInput
from labsupport.quantization import calibration_drawing
from labsupport.quantization.calibration import METHODS

RANDOM = np.random.default_rng(0)
LONG_TAIL = np.concatenate([RANDOM.standard_normal(100_000), [-40.0, 25.0]]).astype(np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    model = models.article_cnn()
    return export.to_onnx(model, model.example_input(2), path=tmp_path_factory.mktemp("onnx") / "cnn.onnx")


@pytest.fixture(scope="module")
def images():
    return data.preprocess(data.mnist().train.images[:32])


def test_a_histogram_grown_batch_by_batch_loses_nothing():
    parts = [np.zeros(10), RANDOM.normal(0, 1e-3, 500), LONG_TAIL[:1000], RANDOM.normal(0, 300, 500)]
    grown = quantization.histogram(parts[0])
    for part in parts[1:]:
        grown = grown.add(part)
    values = np.concatenate(parts).astype(np.float32)
    assert grown.counts.sum() == values.size and (grown.lowest, grown.highest) == (values.min(), values.max())
    assert grown.reach < 2 * np.abs(values).max(), "at least half of the bins must be in use"
    assert np.array_equal(grown.counts, np.histogram(values, len(grown.counts), (-grown.reach, grown.reach))[0])


def test_max_keeps_all_and_the_others_cut_the_tail():
    tail = quantization.histogram(LONG_TAIL)
    limits = {method: tail.threshold(method) for method in METHODS}
    assert limits["max"] == 40.0
    assert limits["percentile"] == pytest.approx(np.quantile(np.abs(LONG_TAIL), 0.9999), abs=0.1)
    assert limits["percentile"] < 5 and limits["entropy"] < 12 and limits["mse"] < 35, limits
    assert tail.threshold("percentile", percentile=90) == pytest.approx(np.quantile(np.abs(LONG_TAIL), 0.9), abs=0.1)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_mse_is_the_best_of_the_four_by_its_own_measure(format):
    tail = quantization.histogram(LONG_TAIL)
    noise = {}
    for method in METHODS:
        low, high = tail.range(method, format=format)
        noise[method] = quantization.measured_noise(
            LONG_TAIL, quantization.scale_of(low=low, high=high, format=format)
        ).total
    assert noise["mse"] <= 1.05 * min(noise.values())


def test_mse_of_a_byte_knows_whether_values_below_zero_share_its_steps():
    """A byte has 255 steps from 0 on, and half as many a side where values lie below: coarse steps pay for a clip."""
    values = np.abs(np.random.default_rng(4).standard_t(2, 20_000)).astype(np.float32)
    signed = values * np.where(np.arange(len(values)) % 2, 1, -1)
    above, both = (quantization.histogram(x).threshold("mse", format="uint8") for x in (values, signed))

    def error(limit, low):
        scale = quantization.scale_of(low=low, high=limit, format="uint8")
        return float(np.mean((quantization.fake_quantize(values, scale) - values) ** 2))

    assert error(both, -both) < error(above, -above) and error(above, 0) < error(both, 0)


def test_mse_is_where_a_plain_search_finds_it():
    values = RANDOM.laplace(size=50_000).astype(np.float32)
    found = quantization.histogram(values).threshold("mse")
    limits = np.linspace(2, np.abs(values).max(), 60)
    noise = [quantization.measured_noise(values, quantization.scale_of(low=-t, high=t)).total for t in limits]
    assert quantization.measured_noise(values, quantization.scale_of(low=-found, high=found)).total <= 1.05 * min(noise)


def test_entropy_keeps_a_flat_distribution_whole_and_ignores_the_zeros_of_a_relu():
    flat = RANDOM.uniform(-1, 1, 200_000)
    assert quantization.histogram(flat).threshold("entropy") > 0.9
    relu = np.maximum(LONG_TAIL, 0)
    without = relu[relu > 0.02]  # about one bin
    assert quantization.histogram(relu).threshold("entropy") == pytest.approx(
        quantization.histogram(without).threshold("entropy"), rel=0.2
    )


def test_a_range_is_no_wider_than_the_values():
    relu = quantization.histogram(np.maximum(LONG_TAIL, 0))
    assert relu.range("max") == (0.0, 25.0) and relu.range("percentile")[0] == 0.0
    assert quantization.histogram(np.zeros(4)).range("entropy") == (0.0, 0.0)
    assert quantization.histogram(np.full(4, 3.0)).range("max") == (0.0, 3.0)


def test_collect_sees_what_the_network_computes(graph, images):
    known = quantization.collect(graph, [images[:16], torch.from_numpy(images[16:])])
    assert known.items == 32 and "Calibration(" in repr(known)
    model = models.article_cnn()
    with torch.no_grad():
        conv = torch.relu(model.conv(torch.from_numpy(images)))
    relu = next(node.output[0] for node in graph.model().graph.node if node.op_type == "Relu")
    assert (
        known[relu].highest == pytest.approx(float(conv.max()), rel=1e-5) and known[relu].counts.sum() == conv.numel()
    )
    assert known["images"].highest == images.max()
    with pytest.raises(BadInput, match="'nothing' was not calibrated; choose from"):
        known["nothing"]
    only = quantization.collect(graph, images, tensors=[relu])
    assert list(only.histograms) == [relu]


def bad_batches(images):
    nan = images.copy()
    nan[3, 0, 0, 0] = np.nan
    return {
        "none": ([], "no calibration batches.*a generator is empty once it was read"),
        "empty batch": ([images[:0]], r"batch 0, input 'images' is empty, shape \(0, 1, 28, 28\)"),
        "wrong shape": (
            [images, images[:, :, :27]],
            r"batch 1, input 'images' has shape \(32, 1, 27, 28\); the network wants \(batch, 1, 28, 28\)",
        ),
        "no batch axis": ([images[0, 0]], "has shape .28, 28."),
        "raw images": ([(images * 255).astype(np.uint8)], "is uint8; the network wants float32.*preprocess"),
        "constant": ([np.ones_like(images)] * 2, "constant: every value of 'images' is 1.0; pass real"),
        "NaN": ([images, nan], "batch 1, input 'images' holds NaN or infinity"),
        "infinity": ([np.where(images > 0, np.float32(np.inf), images)], "holds NaN or infinity"),
        "with labels": (
            [(images, np.zeros(32))],
            "batch 0 is a tuple of 2; pass the preprocessed inputs alone, without labels",
        ),
        "other name": ([{"pictures": images}], r"batch 0 has \['pictures'\]; the network wants exactly \['images'\]"),
        "a path": ("images.npz", "the calibration data are a str; pass a list of arrays"),
        "a number": (3, "the calibration data are a int"),
    }


@pytest.mark.parametrize("case", bad_batches(np.ones((32, 1, 28, 28), np.float32)))
def test_bad_calibration_data_are_named_with_the_fix(graph, images, case):
    batches, message = bad_batches(images)[case]
    with pytest.raises(BadInput, match=message):
        quantization.collect(graph, batches)


def test_a_constant_batch_among_others_is_no_fault(graph, images):
    assert quantization.collect(graph, [np.zeros_like(images), np.ones_like(images)]).items == 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda g, x: quantization.histogram([1.0, 2.0]).threshold("median"),
            "'median' is not known; choose one of",
        ),
        (
            lambda g, x: quantization.histogram([1.0, 2.0]).threshold("percentile", percentile=0.9999),
            "percentile=0.9999; give the share",
        ),
        (
            lambda g, x: quantization.histogram([1.0, 2.0]).threshold("percentile", percentile=None),
            "percentile=None; wanted a number such as",
        ),
        (
            lambda g, x: quantization.draw_thresholds(quantization.histogram([1.0, 2.0]), methods=()),
            "methods is empty; name one of",
        ),
        (lambda g, x: quantization.histogram([]), "values is empty, shape .0,."),
        (lambda g, x: quantization.histogram([np.nan]), "values took the value NaN or infinity"),
        (lambda g, x: quantization.histogram([1.0], bins=100), "bins=100; give a multiple of 4, 512 or more"),
        (lambda g, x: quantization.collect(g, x, bins=7), "bins=7; give a multiple of 4"),
        (lambda g, x: quantization.collect(g, x, tensors=["nothing"]), "has no tensor 'nothing'; it has"),
    ],
)
def test_impossible_requests_name_the_choices(graph, images, call, message):
    with pytest.raises(BadInput, match=message):
        call(graph, images)


def test_the_picture_says_in_words_where_each_method_clips():
    values = np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32)
    histogram = quantization.histogram(values, name="tail")
    drawing = quantization.draw_thresholds(histogram, methods=("max", "percentile"), title="A tail")
    assert drawing.text.startswith("A tail: histogram of tail, clipped by max at ") and "percentile at " in drawing.text
    assert f"max at {histogram.threshold('max'):.3g}, 0.0" in drawing.text and drawing._repr_png_()[:4] == b"\x89PNG"
    assert len(drawing._repr_png_()) < 60_000
    axes = drawing.figure.axes[0]
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1  # beside the bars, not over them
    for nothing in (values, quantization.Histogram(np.zeros(4096, np.int64), 1.0, 0.0, 0.0)):
        with pytest.raises(BadInput, match="wants the histogram of a tensor that was seen"):
            quantization.draw_thresholds(nothing)


@pytest.mark.parametrize(("limit", "share"), [(4.0, 0.0), (3.0, 0.1), (2.0, 0.3), (1.0, 0.6), (0.0, 1.0)])
def test_the_share_of_values_beyond_a_limit(limit, share):
    counts = np.array([0, 0, 0, 0, 4, 3, 2, 1])  # magnitudes in [0, 1), [1, 2), [2, 3), [3, 4)
    histogram = quantization.Histogram(counts, 4.0, 0.0, 4.0)
    assert calibration_drawing._share_beyond(histogram, limit) == pytest.approx(share)
