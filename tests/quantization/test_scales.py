"""Scales by hand: the arithmetic, and that the error it predicts is the error it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labsupport import quantization
from labsupport.errors import BadInput

NORMAL = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
CASES = {
    "int8": {},
    "uint8": {"format": "uint8"},
    "int8 with a zero point": {"symmetric": False},
    "int4": {"format": "int4"},
    "fp8": {"format": "fp8"},
    "int8, clipped": {"low": -2.0, "high": 2.0},
    "uint8, clipped": {"format": "uint8", "low": -1.0, "high": 2.0},
    "fp8, clipped": {"format": "fp8", "low": -2.0, "high": 2.0},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_error_is_split_into_rounding_and_clipping(options):
    scale = quantization.scale_of(None if "low" in options else NORMAL, **options)
    measured = quantization.measured_noise(NORMAL, scale)
    assert (measured.clipping > 1e-4) == ("low" in options)
    assert measured.total == pytest.approx(
        float(np.mean((quantization.fake_quantize(NORMAL, scale) - NORMAL.astype(float)) ** 2))
    )
    if scale.format != "fp8" and "low" not in options:
        assert measured.rounding == pytest.approx(float(scale.scale) ** 2 / 12, rel=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_symmetric_by_hand(sign):
    scale = quantization.scale_of(sign * np.array([-2.54, 1.0]))
    assert float(scale.scale) == pytest.approx(0.02) and int(scale.zero_point) == 0
    assert (float(scale.lowest), float(scale.highest)) == pytest.approx((-2.54, 2.54))
    codes = quantization.quantize(sign * np.array([-2.54, 0.0, 0.01, 0.031, 1.0, 9.0]), scale)
    wanted = [sign * code for code in (-127, 0, 2, 50, 127)]
    assert codes.dtype == np.int8 and codes.tolist()[:2] + codes.tolist()[3:] == wanted
    assert quantization.dequantize(codes, scale).tolist()[-1] == pytest.approx(sign * 2.54)


def test_affine_by_hand():
    scale = quantization.scale_of(low=-1.0, high=4.1, format="uint8")
    assert float(scale.scale) == pytest.approx(0.02) and int(scale.zero_point) == 50
    assert quantization.quantize([-1.0, 0.0, 4.1, 99.0], scale).tolist() == [0, 50, 255, 255]
    assert quantization.fake_quantize([0.0], scale).tolist() == [0.0]
    positive = quantization.scale_of([1.0, 5.1], format="uint8")
    assert int(positive.zero_point) == 0 and float(positive.highest) == pytest.approx(5.1), "zero must keep a code"


def test_per_channel_has_a_scale_for_each_and_is_closer():
    weights = NORMAL[: 4 * 36].reshape(4, 4, 3, 3) * np.array([0.01, 0.1, 1, 10], np.float32).reshape(4, 1, 1, 1)
    whole, channels = quantization.scale_of(weights), quantization.scale_of(weights, axis=0)
    assert channels.scale.shape == (4,) and np.all(np.diff(channels.scale) > 0)
    assert (
        quantization.measured_noise(weights[:3], quantization.scale_of(weights[:3], axis=0)).total
        < quantization.measured_noise(weights[:3], whole).total / 100
    )
    other = quantization.fake_quantize(
        np.moveaxis(weights, 0, -1), quantization.scale_of(np.moveaxis(weights, 0, -1), axis=-1)
    )
    assert np.array_equal(np.moveaxis(other, -1, 0), quantization.fake_quantize(weights, channels))


def test_fp8_is_e4m3_and_saturates():
    scale = quantization.scale_of(low=-448.0, high=448.0, format="fp8")
    codes = quantization.quantize([448.0, 1000.0, -1000.0, 17.0, 0.0009], scale)
    assert str(codes.dtype) == "float8_e4m3fn"
    assert quantization.dequantize(codes, scale).tolist() == [448.0, 448.0, -448.0, 16.0, 0.0]


def test_tensors_and_all_zeros():
    assert quantization.fake_quantize(
        torch.tensor([1.0, -1.0]), quantization.scale_of(torch.tensor([1.0, -1.0]))
    ).tolist() == [1.0, -1.0]
    zero = quantization.scale_of(np.zeros(3))
    assert float(zero.scale) == 1.0 and quantization.fake_quantize(np.zeros(3), zero).tolist() == [0, 0, 0]
    tiny = quantization.scale_of(np.full(3, 1e-46))
    assert np.isfinite(quantization.fake_quantize(np.full(3, 1e-46), tiny)).all()


def test_one_line_each():
    said = [
        repr(quantization.scale_of([-2.54, 1.0])),
        repr(quantization.scale_of(low=-1.0, high=4.1, format="uint8")),
        repr(quantization.scale_of(np.eye(3), axis=0)),
        repr(quantization.measured_noise(NORMAL, quantization.scale_of(NORMAL))),
    ]
    assert said[0] == "Scale(int8, 0.02 per code, holds -2.54 to 2.54)" and "zero point 50" in said[1]
    assert said[2].startswith("Scale(int8, 3 channels on axis 0") and "rounding + 0 clipping" in said[3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantization.scale_of([1.0], format="int7"), "'int7' is not known; choose one of"),
        (lambda: quantization.scale_of([]), "empty, shape .0,."),
        (lambda: quantization.scale_of([1.0, np.nan]), "NaN or infinity"),
        (lambda: quantization.scale_of(["a"]), "wants real numbers"),
        (lambda: quantization.scale_of(), "wants an array, or both low= and high="),
        (lambda: quantization.scale_of(low=2.0, high=1.0), "low at most high"),
        (lambda: quantization.scale_of(low=0.0, high=np.inf), "must be finite"),
        (lambda: quantization.scale_of(np.eye(2), axis=2), r"axis=2, but the array has the shape \(2, 2\)"),
        (lambda: quantization.scale_of([1.0], format="fp8", symmetric=False), "fp8 has .* no zero point"),
        (lambda: quantization.scale_of([1.0], format="uint8", symmetric=True), "uint8 has no negative codes"),
        (lambda: quantization.quantize([np.inf], quantization.scale_of([1.0])), "NaN or infinity"),
    ],
)
def test_what_cannot_be_quantized_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()
