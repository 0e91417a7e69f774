"""What one node's error is called, and formats drawn to scale: every number by hand, every threshold at its edge."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper

from labsupport.errors import BadInput
from labsupport.precision import layerwise, number_formats
from labsupport.precision.layerwise import LayerError, Scan, _cause, _row, relative

FP16 = number_formats.FORMATS["fp16"]  # largest 65504, smallest normal 2⁻¹⁴


def node(op="Add", reads="a b", writes="y"):
    return helper.make_node(op, reads.split(), writes.split(), name="n")


def test_an_error_is_relative_and_over_the_places_that_are_finite():
    assert relative([3.0, 4.0], [3.0, 5.0]) == 0.2 and relative([0.0, 0.0], [0.0, 0.0]) == 0
    assert relative([0.0], [1e-9]) == np.inf and relative([1.0], [np.nan]) == np.inf
    assert relative([np.inf, 2.0], [0.0, 3.0]) == 0.5
    with pytest.raises(BadInput, match=r"shapes \(1,\) and \(2,\) came"):
        relative([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("op", "largest", "lost", "result", "cause"),
    [
        ("Add", 65504.0, 0, 1e5, "rounding"),
        ("Add", 65505.0, 0, 1e5, "overflow"),
        ("Add", 2.0, 1, 2.0, "rounding"),  # one in a hundred is too small
        ("Add", 2.0, 2, 2.0, "underflow"),
        ("Add", 64.0, 0, 2.0, "rounding"),  # a thirty-second
        ("Add", 64.0, 0, 1.99, "cancellation"),
        ("Sub", 64.0, 0, 1.0, "cancellation"),
        ("Sum", 64.0, 0, 1.0, "cancellation"),
        ("Mul", 64.0, 0, 1.0, "rounding"),
    ],
)
def test_why_a_node_errs(op, largest, lost, result, cause):
    a = np.full(100, 1.0)
    a[:lost] = 2.0**-17 * 0.99
    exact = {"a": a, "b": np.array([largest, 0.0]), "y": np.array([result])}
    assert _cause(node(op), exact, ["y"], np.array([1.0, largest]), FP16) == cause


def test_a_number_at_an_eighth_of_the_smallest_is_not_lost():
    exact = {"a": np.full(4, 2.0**-17), "y": np.array([2.0**-17, 0.0])}
    assert _cause(node("Mul", "a"), exact, ["y"], np.array([1.0]), FP16) == "rounding"
    zeros = {"a": np.zeros(4), "y": np.zeros(0)}
    assert _cause(node("Add", "a"), zeros, ["y"], np.zeros(1), FP16) == "rounding"
    assert _cause(node("Add", ""), {"y": np.ones(1)}, ["y"], np.ones(1), FP16) == "rounding"


def test_a_row_takes_the_worst_result_and_the_range_of_all_that_is_touched():
    made = node("Split", "x i", "y z")
    exact = {
        "x": np.array([-8.0, 0.0, np.inf]), "i": np.array([1000]), "y": np.array([2.0]), "z": np.array([0.5]),
        "y.own": np.array([2.5]), "z.own": np.array([0.5]),
    }  # fmt: skip
    low = {"y": np.array([3.0]), "z": np.array([1.0])}
    own = {"y": "y.own", "z": "z.own"}
    at = _row(made, exact, low, FP16, 0.25, own)
    assert at == LayerError("n", "Split", 8.0, 0.5, 1.0, 0.25, "", False)
    assert _row(made, exact, low, FP16, 0.249, own).cause == "rounding"
    wide = _row(made, exact, {}, FP16, 0.1, {})
    assert (wide.error, wide.own_error, wide.cause, wide.wide) == (0.0, 0.0, "", True)
    nothing = _row(made, {"y": np.zeros(3), "z": np.zeros(0)}, {}, FP16, 0.1, {})
    assert (nothing.largest, nothing.smallest) == (0.0, 0.0)


def test_a_scan_reads_aloud_and_names_what_to_keep():
    rows = [
        LayerError("a", "Exp", 9.0, 0.1, 0.2, 0.0, "", True),
        LayerError("b", "Mul", 8.0, 0.2, 0.1, 0.3, "overflow"),
    ]
    rows += [
        LayerError("c", "Add", 7.0, 0.3, 0.4, 0.1, "inherited"),
        LayerError("d", "Add", 6, 0.4, np.inf, 0.2, "rounding"),
    ]
    seen = Scan(tuple(rows), "fp16", 0.2)
    assert [row.node for row in seen.faults] == ["b", "d"] and seen.keep_wide == ["a", "b", "d"]
    assert seen.first_bad.node == "c" and Scan((rows[3],), "fp16", 0.2).first_bad is rows[3]
    assert Scan((rows[0],), "fp16", 0.2).first_bad is None  # exactly at the tolerance
    assert repr(seen) == "Scan(4 nodes in fp16: 2 err by themselves; first bad: c)"
    assert repr(Scan((rows[0],), "bf16", 0.2)) == "Scan(1 nodes in bf16: 0 err by themselves)"
    assert repr(rows[1]) == "b (Mul): own error 3.0e-01, so far 1.0e-01, overflow"
    assert list(seen.table(worst=2)["node"]) == ["b", "d"]
    assert seen.table().iloc[0].to_dict() == {
        "node": "a", "operator": "Exp", "largest": 9.0, "smallest": 0.1, "error so far": 0.2, "own error": 0.0,
        "cause": "kept wide",
    }  # fmt: skip
    assert seen["c"] is rows[2]


def test_two_runs_of_other_shapes_are_not_compared():
    def run(shape, **outputs):
        def call(feed):
            return outputs

        call.inputs, call.outputs = {"x": SimpleNamespace(shape=shape)}, outputs
        return call

    mine = run((0, 4), y=np.array([2.0]), z=np.array([1.0]))
    assert layerwise.compare(mine, run((8, 4), z=np.array([3.0]), y=np.array([1.0])), None) == [("y", 0.5), ("z", 2.0)]
    for other in ((0, 5), (0, 4, 1)):
        with pytest.raises(BadInput, match="input 'x' has shape"):
            layerwise.compare(mine, run(other, y=np.array([1.0])), None)
    with pytest.raises(BadInput, match="no output in common"):
        layerwise.compare(mine, run((8, 4), w=np.array([1.0])), None)


def test_a_drawing_of_formats_is_to_scale():
    figure = number_formats.draw(["fp16", "fp8_e4m3"], marks={"loss": 1e-3, "peak": 100.0}).figure
    (axes,) = figure.axes
    assert figure.get_size_inches().tolist() == pytest.approx([7.5, 1.4 + 0.84 + 0.36])
    spans = [(box.get_x(), box.get_x() + box.get_width(), box.get_y() + box.get_height() / 2) for box in axes.patches]
    ends = [(2**-14, 65504, 0), (2**-24, 2**-14, 0), (2**-6, 448, 1), (2**-9, 2**-6, 1)]
    assert np.array(spans) == pytest.approx(np.array([(np.log10(a), np.log10(b), row) for a, b, row in ends]))
    said = [(mark.get_text(), *(mark.xy if hasattr(mark, "xy") else mark.get_position())) for mark in axes.texts]
    assert [text for text, *_ in said] == ["ε = 0.00098", "ε = 0.12", "loss", "peak"]
    wanted = [(np.log10(65504) + 0.4, 0), (np.log10(448) + 0.4, 1), (-3, 1.55), (2, 2.0)]
    assert np.array([place for _, *place in said]) == pytest.approx(np.array(wanted))
    assert axes.get_ylim() == pytest.approx((2 - 0.5 + 0.9, -0.6))
    assert axes.get_xlim() == pytest.approx((np.log10(2**-24) - 1, np.log10(65504) + 8))
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([-3, 2])
    assert [mark.get_text() for mark in axes.get_yticklabels()] == ["fp16 (16 bits)", "fp8_e4m3 (8 bits)"]


@pytest.mark.parametrize(
    ("exponent", "mantissa", "fits"), [(2, 1, 1), (8, 23, 1), (1, 1, 0), (9, 1, 0), (2, 0, 0), (2, 24, 0)]
)
def test_a_format_has_bits_that_fit_into_fp32(exponent, mantissa, fits):
    if fits:
        assert number_formats.Format("f", exponent, mantissa).bits == 1 + exponent + mantissa
    else:
        with pytest.raises(BadInput, match="2 to 8 and 1 to 23 fit into FP32"):
            number_formats.Format("f", exponent, mantissa)


def test_formats_at_their_ends():
    assert FP16.step(65504) == 32 and FP16.step(-1.0) == 2**-10 and FP16.step(0.0) == 2**-24
    for beyond in (65505, np.nan, [1.0]):
        with pytest.raises(BadInput, match="has no step at|wanted"):
            FP16.step(beyond)
    assert FP16.holds(2**-14, 65504, within=2**-11) and not FP16.holds(2**-14, 65504, within=2**-11.1)
    assert not FP16.holds(2**-14.1, 1) and not FP16.holds(1, 65505) and FP16.holds(1, 1)
    ends = number_formats.rounded([65519.9, 65520, -1e9, 2**-25, 2**-24 * 1.5], "fp16")
    assert ends.tolist() == [65504, np.inf, -np.inf, 0, 2**-23]
    assert number_formats.rounded([7.0, -9.0, 0.25], "fp4_e2m1").tolist() == [6, -6, 0]
    assert np.isnan(number_formats.rounded([465.0, np.nan], "fp8_e4m3")).all()
    assert number_formats.rounded([464.0], "fp8_e4m3").tolist() == [448]
