"""Number formats from their bits: held against torch.finfo, ml_dtypes, and rounding done in other ways."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from labsupport.errors import BadInput
from labsupport.precision import number_formats
from labsupport.precision.number_formats import FORMATS, Format

TYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp32": np.float32,
}


def samples() -> np.ndarray:
    """Values of every magnitude, with the places where rounding changes its mind."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(20_000) * 10.0 ** rng.integers(-46, 39, 20_000)
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        65504,
        65519.99,
        65520,
        -65520,
        448,
        464,
        465,
        480,
        57344,
        61439,
        61440,
        5,
        6,
        7,
        0.25,
        0.75,
        1.25,
        2**-24,
        2**-25,
    ]
    return np.concatenate([spread, edges]).astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_a_format_has_the_numbers_of_ml_dtypes(name):
    info, ours = ml_dtypes.finfo(TYPES[name]), FORMATS[name]
    theirs = [float(getattr(info, fact)) for fact in ("max", "smallest_normal", "smallest_subnormal", "eps")]
    assert [ours.max, ours.smallest_normal, ours.smallest_subnormal, ours.epsilon] == theirs
    assert ours.bits == info.bits


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("fp8_e5m2", torch.float8_e5m2),
        ("fp8_e4m3", torch.float8_e4m3fn),
    ],
)
def test_a_format_has_the_numbers_of_torch(name, dtype):
    info, ours = torch.finfo(dtype), FORMATS[name]
    assert (ours.max, ours.smallest_normal, ours.epsilon) == (info.max, info.smallest_normal, info.eps)


@pytest.mark.parametrize("name", TYPES)
def test_rounding_is_that_of_a_cast(name):
    with np.errstate(over="ignore"):
        wanted = samples().astype(TYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(number_formats.rounded(samples(), name), wanted)


def test_rounding_to_tf32_is_rounding_of_the_bits():
    x = samples()
    bits = x.view(np.uint32).astype(np.uint64)
    wanted = ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(number_formats.rounded(x, "tf32"), wanted)


def test_rounding_keeps_nan_and_takes_tensors():
    assert np.isnan(number_formats.rounded([np.nan], "fp16"))[0]
    assert (
        number_formats.rounded(torch.tensor([0.1], dtype=torch.bfloat16), "bf16")[0]
        == torch.tensor(0.1).bfloat16().item()
    )


def test_a_mark_may_be_a_number_of_numpy():
    assert "here: 3" in str(number_formats.draw(["fp16"], marks={"here": np.float32(3)}))


def test_rounding_takes_the_arrays_of_ml_dtypes():
    assert number_formats.rounded(np.array([1.5, 448], ml_dtypes.float8_e4m3fn), "fp16").tolist() == [1.5, 448]


def test_steps_double_and_do_not_shrink_below_the_smallest_subnormal():
    fp16 = FORMATS["fp16"]
    assert [fp16.step(v) for v in (1, 2, 2047, 2048)] == [2**-10, 2**-9, 1, 2]
    assert fp16.step(1e-6) == fp16.step(0.0) == fp16.smallest_subnormal


@pytest.mark.parametrize(
    "name, low, high, within, holds",
    [
        ("fp16", 1e-3, 3e4, 1e-3, True),
        ("fp16", 1e-5, 1, 1, False),
        ("fp16", 1, 7e4, 1, False),
        ("fp16", 1, 2, 1e-4, False),
        ("bf16", 1e-20, 1e4, 0.01, True),
        ("bf16", 1, 2, 1e-3, False),
        ("fp8_e4m3", 0.02, 400, 0.07, True),
    ],
)
def test_what_a_format_holds(name, low, high, within, holds):
    assert FORMATS[name].holds(low, high, within=within) is holds


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: number_formats.named("fp12"), r"'fp12' is not a format; choose one of \['fp32', 'tf32'"),
        (lambda: number_formats.rounded([1.0], "half"), "'half' is not a format"),
        (lambda: number_formats.rounded(["a"], "fp16"), "rounded wants numbers; <U1 came"),
        (lambda: Format("odd", 5, 30), "odd was given 5 exponent and 30 mantissa bits; 2 to 8 and 1 to 23 fit"),
        (lambda: Format("odd", 5, 3, "round"), r"ending='round' is not known; choose one of \['ieee'"),
        (lambda: FORMATS["fp16"].holds(2, 1), "magnitudes from 2 to 1 within 1.0; wanted 0 < smallest <= largest"),
        (lambda: number_formats.draw([]), r"formats \[\] and marks \{\} came; name one of"),
        (lambda: number_formats.draw(marks={"zero": 0.0}), "mark magnitudes above 0"),
        (lambda: number_formats.draw(marks={"text": "1"}), "mark magnitudes above 0"),
        (lambda: number_formats.named(["fp16"]), r"\['fp16'\] is not a format"),
        (lambda: number_formats.rounded([[1], [1, 2]], "fp16"), "rows of different lengths came"),
        (
            lambda: FORMATS["fp16"].step(np.inf),
            "fp16 has no step at inf; give one number of magnitude 6.55e.04 at most",
        ),
        (lambda: FORMATS["fp16"].step([1, 2]), r"value=\[1, 2\]; wanted a number"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_a_format_reads_aloud():
    assert (
        repr(FORMATS["fp16"])
        == "fp16: 16 bits (1 + 5 + 10), 6.1e-05 to 6.55e+04, down to 6e-08 with fewer digits, epsilon 0.00098"
    )


def test_the_largest_number_has_a_step_and_the_next_one_none():
    half = FORMATS["fp16"]
    assert half.step(65504.0) == half.step(-65504.0) == 32.0
    with pytest.raises(BadInput, match="fp16 has no step at 65505"):
        half.step(65505.0)


def test_the_drawing_says_what_it_shows():
    drawing = number_formats.draw(["fp16", "bf16"], marks={"energy": 9e6})
    assert "fp16 6.1e-05 to 6.6e+04" in drawing.text and "energy: 9e+06" in drawing.text
    assert len(drawing._repr_png_()) < 60_000
    (axes,) = drawing.figure.axes
    # from a power of ten below the smallest subnormal of all, bf16's 2^-133, to eight above the largest number
    low, high = math.log10(2.0**-133) - 1, math.log10((2 - 2.0**-7) * 2.0**127) + 8
    assert axes.get_xlim() == pytest.approx((low, high))
    normal, hatched = axes.patches[:2]  # fp16's: normal numbers, then subnormal ones left of them
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in (normal, hatched)]
    assert ends[0] == pytest.approx((math.log10(2.0**-14), math.log10(65504)))
    assert ends[1] == pytest.approx((math.log10(2.0**-24), math.log10(2.0**-14)))
    assert axes.lines[0].get_xdata()[0] == pytest.approx(math.log10(9e6))
