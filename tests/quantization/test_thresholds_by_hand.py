"""Ranges, masks, tables and axes by hand, with each threshold at its edge."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_files import value

from labsupport import export, quantization
from labsupport.errors import BadInput
from labsupport.quantization import kept_wide, layer_costs, qdq, scales
from labsupport.quantization.calibration import Histogram, histogram


def counted(*magnitudes, lowest=0.0, highest=4.0):
    """A histogram of four bins a side, the upper side alone."""
    return Histogram(np.array([0] * len(magnitudes) + list(magnitudes)), 4.0, lowest, highest, "x")


def test_a_histogram_by_hand():
    counts = Histogram(np.array([1, 2, 3, 4, 10, 20, 30, 40]), 4.0, -4.0, 4.0, "x")
    assert counts.magnitudes.tolist() == [14, 23, 32, 41]
    assert counts.edges.tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert repr(counts) == "Histogram(x: 110 values, -4 to 4)"
    grown = counts.add([7.5, -5.0, 0.5])  # the reach doubles once, and bins merge in pairs
    assert (grown.reach, grown.lowest, grown.highest) == (8.0, -5.0, 7.5)
    assert grown.counts.tolist() == [0, 1, 3, 7, 31, 70, 0, 1]
    assert counts.add([4.0]).reach == 4.0 and counts.add([]) is counts
    with pytest.raises(BadInput, match="x took the value NaN or infinity"):
        counts.add([np.inf])


@pytest.mark.parametrize(
    ("magnitudes", "gap"),
    [
        ((1, 0, 0, 1), 3.0),  # bin 3 over the upper end of bin 0
        ((1, 1, 1, 1), 1.0),
        ((0, 0, 0, 1), 1.0),
        ((0, 0, 0, 0), 1.0),
        ((1, *[0] * 3, 1, *[0] * 11, 1), 4.0),  # 4/1, as 4 is a fourth of 16; and 16/5
        ((1, *[0] * 3, 1, *[0] * 12, 1), 3.4),  # 17/5 alone, as 4 lies below a fourth of 17
    ],
)
def test_the_gap_is_looked_for_in_the_outermost_fourth(magnitudes, gap):
    assert counted(*magnitudes).gap() == pytest.approx(gap)


@pytest.mark.parametrize(("percentile", "limit"), [(60, 1.0), (60.1, 2.0), (90, 2.0), (95, 3.0), (100, 3.5)])
def test_a_percentile_ends_with_the_bin_that_reaches_it(percentile, limit):
    spread = counted(60, 30, 5, 5, highest=3.5)
    assert spread.threshold("percentile", percentile=percentile) == limit
    assert spread.range("percentile", percentile=percentile) == (0.0, limit)
    assert counted(1, lowest=-9.0, highest=-1.0).range() == (-9.0, 0.0)


@pytest.mark.parametrize("percentile", [50, 100.1])
def test_a_percentile_is_above_half_and_at_most_all(percentile):
    with pytest.raises(BadInput, match="percentile="):
        counted(1).threshold("percentile", percentile=percentile)


@pytest.mark.parametrize(("bins", "taken"), [(512, True), (516, True), (508, False), (514, False)])
def test_bins_come_in_fours(bins, taken):
    if taken:
        assert len(histogram([1.0, -2.0], bins=bins).counts) == bins and histogram([1.0], bins=bins).reach == 1
    else:
        with pytest.raises(BadInput, match="give a multiple of 4, 512 or more"):
            histogram([1.0], bins=bins)


@pytest.mark.parametrize(("highest", "limit"), [(127.5, 127.5), (128.0, 128.0), (128.5, 128.0), (900.0, 128.0)])
def test_few_bins_are_kept_whole(monkeypatch, highest, limit):
    """Of 128 bins nothing is cut; of more the method decides, here for the least that it may keep."""
    monkeypatch.setattr(Histogram, "_divergence", lambda self, kept, bins, format: kept)
    assert Histogram(np.ones(2048, int), 1024.0, 0.0, highest).threshold("entropy") == limit


def test_scales_in_one_line_and_at_their_ends():
    odd = scales.scale_of(low=-1.0, high=3.0, format="uint8", symmetric=False)
    assert repr(odd) == "Scale(uint8, 0.0157 per code, zero point 64, holds -1 to 3)"
    each = scales.scale_of(np.array([[1.0, -127.0], [2.0, 254.0]]), axis=-1)
    assert repr(each) == "Scale(int8, 2 channels on axis -1, scales 0.0157 to 2)"
    assert each.highest.tolist() == pytest.approx([2.0, 254.0]) and each.lowest.tolist() == pytest.approx(
        [-2.0, -254.0]
    )
    assert scales.dequantize(np.array([[127, 127]], np.int8), each) == pytest.approx(np.array([[2.0, 254.0]]))
    for axis in (2, -3):
        with pytest.raises(BadInput, match=f"axis={axis}, but the array has the shape"):
            scales.scale_of(np.ones((2, 2)), axis=axis)
    assert scales.scale_of(low=1.0, high=1.0).scale == np.float32(1 / 127)  # an end may meet the other
    with pytest.raises(BadInput, match="is not one"):
        scales.scale_of(low=1.0, high=0.5)
    assert repr(scales.Noise(1.0, 2.0)) == "Noise(3 mean square: 1 rounding + 2 clipping)"


def node(op, reads, writes, name, **given):
    return helper.make_node(op, reads.split(), writes.split(), name=name, **given)


def model_of(*nodes, **weights):
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [value("x", [1, 4])], [value("y", [1, 4])], made),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize(
    ("op", "place", "rank", "given", "axis"),
    [
        ("Gemm", 1, 2, {}, 1),
        ("Gemm", 1, 2, {"transB": 1}, 0),
        ("Gemm", 1, 2, {"transB": 0, "transA": 1}, 1),
        ("Gemm", 0, 2, {}, 0),
        ("Gemm", 0, 2, {"transA": 1}, 1),
        ("Conv", 1, 4, {}, 0),
        ("ConvTranspose", 1, 4, {}, 1),
        ("MatMul", 1, 2, {}, 1),
        ("MatMul", 1, 3, {}, 2),
        ("MatMul", 0, 3, {}, 1),
        ("MatMul", 0, 1, {}, 0),
    ],
)
def test_the_axis_of_the_output_channels(op, place, rank, given, axis):
    assert kept_wide.axis_of(node(op, "x w", "y", "n", **given), place, rank) == axis


@pytest.mark.parametrize(
    ("rows", "axis", "apart"),
    [
        ([[16.0, 0], [-1, 0.5]], 0, False),  # exactly sixteen times
        ([[16.1, 0], [1, 0.5]], 0, True),
        ([[16.1, 0], [0, 0]], 0, False),  # a row of zeros has no size
        ([[16.1, 16.1], [1, 1]], 1, False),
        ([[0.0, 0], [0, 0]], 0, False),
    ],
)
def test_a_table_of_uneven_rows_is_left_wide(rows, axis, apart):
    model = model_of(node("Gather", "t x", "y", "look", axis=axis), t=np.float32(rows))
    assert kept_wide.lookups(model) == ({"look"} if apart else set())


def test_who_reads_a_layer_s_weight_beside_it_is_left_wide():
    w = np.eye(4, dtype=np.float32)
    model = model_of(node("MatMul", "x w", "a", "layer"), node("Add", "a w", "y", "other"), w=w)
    assert kept_wide.lookups(model) == {"other"}
    assert kept_wide.lookups(model_of(node("Gather", "w x", "y", "look"), node("MatMul", "x w", "a", "m"), w=w)) == {
        "look"
    }


def test_what_a_quantizer_gets_wrong():
    weights = {"v": np.ones(4, np.float32), "m": np.ones((4, 4), np.float32), "s": np.ones((2, 4, 4), np.float32)}
    nodes = [node("BatchNormalization", "x v v v v", "a", "bn")]
    nodes += [node("LayerNormalization", "x v", "b", "ln1"), node("LayerNormalization", "x m", "c", "ln2")]
    for groups, reads in ((1, "x m v"), (2, "x m"), (2, "x m v")):
        nodes.append(node("ConvTranspose", reads, f"d{len(nodes)}", f"ct{groups}{len(reads)}", group=groups))
    nodes += [node("MatMul", "x m", "e", "mm2"), node("MatMul", "x s", "f", "mm3"), node("MatMul", "s x", "g", "mm3b")]
    assert kept_wide.untaken(model_of(*nodes, **weights)) == {"bn", "ln2", "ct25", "mm3", "mm3b"}


def test_a_weight_read_along_two_axes_becomes_two():
    nodes = [
        node("MatMul", "x w", "a", "one"),
        node("Gemm", "a w", "b", "two", transB=1),
        node("MatMul", "b w", "y", "three"),
    ]
    model = model_of(*nodes, w=np.arange(16, dtype=np.float32).reshape(4, 4))
    kept_wide.part_weights(model)
    assert [each.input[1] for each in model.graph.node] == ["w", "w_axis0", "w"]
    assert [w.name for w in model.graph.initializer] == ["w", "w_axis0"]
    assert numpy_helper.to_array(model.graph.initializer[1]).tolist() == np.arange(16).reshape(4, 4).tolist()


@pytest.mark.parametrize(
    ("outer", "far", "softmax", "apart"),
    [
        (-50.0, 4.0, True, True),
        (-49.9, 9.0, True, False),
        (-50.0, 3.9, True, False),
        (-50.0, 9.0, False, False),
        (50.0, 9.0, True, False),  # a mask lies below
        (9e3, 64.0, False, True),
        (8.9e3, 99.0, False, False),
        (9e3, 63.0, False, False),
    ],
)
def test_a_mask_is_far_and_large(outer, far, softmax, apart):
    class Seen(Histogram):
        def gap(self):
            return far

    seen = Seen(np.zeros(8), 1.0, min(outer, -1.0), max(outer, 1.0))
    nodes = [node("Neg", "x", "s", "before"), node("Softmax" if softmax else "Neg", "s", "y", "after")]
    assert kept_wide.masked(model_of(*nodes), {"s": seen}, ()) == ({"before", "after"} if apart else set())
    assert kept_wide.masked(model_of(*nodes), {}, ["y"]) == {"after"}


def test_a_weight_of_nan_is_named_by_its_layer():
    broken = np.array([[1, np.nan]], np.float32)
    kept_wide.check_weights(model_of(node("Add", "x w", "y", "sum"), w=broken), "net")
    with pytest.raises(BadInput, match="net: the weight 'w' of mul .MatMul. holds NaN"):
        kept_wide.check_weights(model_of(node("MatMul", "x w", "y", "mul"), w=broken), "net")


@pytest.mark.parametrize(("measure", "cost"), [("accuracy", 0.25), ("error", -0.25)])
def test_the_cost_of_a_layer_has_the_sign_of_its_measure(measure, cost):
    assert layer_costs._cost(measure, 0.75, 0.5) == cost
    rows = (layer_costs.LayerCost("a", "Conv", 0.5, cost),)
    seen = quantization.Sensitivity(rows, 0.75, measure)
    assert (len(seen), seen[0], seen.worst) == (1, rows[0], rows[0])
    named = "accuracy drop" if measure == "accuracy" else "added error"
    assert seen.table().to_dict("records") == [{"layer": "a", "operator": "Conv", measure: 0.5, named: cost}]


def test_layers_are_chosen_by_name():
    assert layer_costs._chosen(["a", "b"], None) == ["a", "b"] and layer_costs._chosen(["a", "b"], "b") == ["b"]
    with pytest.raises(BadInput, match=r"did you mean one of \['conv2', 'conv1'\]"):
        layer_costs._chosen(["conv1", "conv2", "zzz"], ["conv22"])
    for bad in ([], ()):
        with pytest.raises(BadInput, match="layers is empty"):
            layer_costs._chosen(["a"], bad)


@pytest.mark.parametrize(("target", "format"), [("tensorrt", "int8"), ("onnxruntime", "uint8")])
def test_ranges_are_those_of_the_codes_that_a_target_takes(monkeypatch, tmp_path, target, format):
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    graph = export.save(model_of(node("MatMul", "x w", "y", "layer"), w=w), tmp_path / "net.onnx")
    asked = set()

    def seen(self, method, *, percentile, format):
        asked.add((method, percentile, format))
        return -2.0, 2.0

    monkeypatch.setattr(Histogram, "range", seen)
    batches = [np.float32([[1, 2, 3, 4]]), np.float32([[4, 3, 2, 0]])]
    quantization.to_qdq(graph, batches, target=target, method="mse", percentile=99.0)
    assert asked == {("mse", 99.0, format)}


@pytest.mark.parametrize(
    ("pair", "symmetric", "kept"),
    [((-2.0, 1.0), True, (-2, 2)), ((-1.0, 2.0), True, (-2, 2)), ((-2.0, 1.0), False, (-2, 1))],
)
def test_a_symmetric_range_reaches_as_far_on_both_sides(pair, symmetric, kept):
    assert tuple(qdq._override(pair, symmetric).values()) == kept
