"""Layer by layer: a fault is found where it is, told by its cause, and not where it is only inherited."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import saved, value
from torch import nn

from labsupport import export, precision, runtimes
from labsupport.errors import BadInput
from labsupport.precision import layerwise, number_formats


class Faulty(nn.Module):
    """An overflow, then an underflow, with sound layers between; in FP32 all is well."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        energy = (y * y).sum(1, keepdim=True)  # about 1e6: beyond FP16
        y = torch.tanh(y / torch.sqrt(energy))
        small = y * 1e-4
        length = torch.sqrt((small * small).sum(1, keepdim=True))  # squares of 1e-9: below FP16
        return self.last(small / length)


def exported(model, example, **options):
    return export.to_onnx(model.eval(), example, dynamic=False, **options)


@pytest.fixture(scope="module")
def faulty():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Faulty()
    example = torch.randn(16, 8, generator=generator) * 400
    return exported(model, example), example.numpy()


def test_faults_are_found_behind_the_first_with_their_causes(faulty):
    scan = layerwise.scan(*faulty)
    causes = {row.node: row.cause for row in scan.faults}
    assert causes["/ReduceSum"] == "overflow" and causes["/Sqrt"] == "overflow"
    assert causes["/Mul_2"] == "underflow" and causes["/ReduceSum_1"] == "underflow"
    assert scan.first_bad.node in ("/Mul", "/ReduceSum")
    assert scan["/Tanh"].cause == "inherited" and scan["/Tanh"].own_error < 1e-3 < scan["/Tanh"].error


def test_keeping_the_faults_wide_mends_the_network(faulty):
    graph, feed = faulty
    before = layerwise.scan(graph, feed)
    after = layerwise.scan(graph, feed, keep_wide=before.keep_wide)
    assert not after.faults and after.first_bad is None
    assert after.keep_wide == before.keep_wide and after[before.faults[0].node].wide
    with (
        runtimes.OnnxRuntime(graph) as exact,
        runtimes.OnnxRuntime(precision.rounded(precision.cast(graph, keep_wide=before.keep_wide))) as low,
    ):
        (expected,), (got,) = exact(feed).values(), low(feed).values()
    assert layerwise.relative(expected, got) < 0.01


def test_the_scan_leaves_the_graph_alone(faulty):
    graph, feed = faulty
    before = graph.sha256
    layerwise.scan(graph, feed)
    assert graph.sha256 == before


def test_bf16_has_the_range_and_needs_no_repair(faulty):
    assert not layerwise.scan(*faulty, to="bf16").faults


def test_cancellation_is_told_from_rounding():
    class Near(nn.Module):
        def forward(self, x):
            return (x + 1000.0) - 999.9

    example = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    scan = layerwise.scan(exported(Near(), example), example.numpy(), roundings=20)
    assert scan["/Sub"].cause == "cancellation" or scan["/Add_1"].cause == "cancellation"


def test_many_small_errors_are_no_fault():
    class Chain(nn.Module):
        def forward(self, x):
            for factor in (1.1, 0.93, 1.07, 0.89, 1.13, 0.97, 1.03, 0.91):
                x = x * factor
            return x

    example = torch.rand(4, 64, generator=torch.Generator().manual_seed(2)) + 1
    scan = layerwise.scan(exported(Chain(), example), example.numpy(), roundings=1.2)
    assert not scan.faults and scan.first_bad.cause == "accumulated"


def test_the_table_and_the_words(faulty):
    scan = layerwise.scan(*faulty)
    assert list(scan.table().columns) == [
        "node",
        "operator",
        "largest",
        "smallest",
        "error so far",
        "own error",
        "cause",
    ]
    assert len(scan.table()) == len(scan) and len(scan.table(worst=3)) == 3
    assert scan.table(worst=3)["own error"].is_monotonic_decreasing
    assert f"{len(scan)} nodes in fp16: {len(scan.faults)} err by themselves; first bad: " in repr(scan)
    assert "/ReduceSum (ReduceSum): own error inf, so far inf, overflow" in repr(scan["/ReduceSum"])


def test_relative_looks_where_fp32_is_finite():
    assert layerwise.relative([1.0, np.inf], [1.0, np.nan]) == 0
    assert layerwise.relative([1.0, 2.0], [1.0, np.nan]) == np.inf
    assert layerwise.relative([0.0], [0.0]) == 0 and layerwise.relative([0.0], [1.0]) == np.inf


def test_a_scan_takes_a_tensor_of_pytorch(faulty):
    graph, feed = faulty
    assert layerwise.scan(graph, torch.from_numpy(feed)).keep_wide == layerwise.scan(graph, feed).keep_wide


def test_compare_takes_two_runtimes(faulty):
    graph, feed = faulty
    low = precision.rounded(precision.cast(graph))
    tensors = ["/Tanh_output_0"]
    with (
        runtimes.OnnxRuntime(layerwise.exposed(graph, tensors)) as a,
        runtimes.OnnxRuntime(layerwise.exposed(low, tensors)) as b,
    ):
        errors = dict(layerwise.compare(a, b, feed))
    assert list(errors) == ["output", "/Tanh_output_0"] and errors["/Tanh_output_0"] > 0.1


def test_bad_input_is_told(faulty):
    graph, feed = faulty
    holes = feed.copy()
    holes[0, 0] = np.nan
    for call, message in [
        (lambda: layerwise.scan(graph, holes), "holds NaN or infinity; look at the preprocessing"),
        (lambda: layerwise.scan(graph, feed[:, :4]), r"has shape \(16, 4\); the network wants \(16, 8\)"),
        (lambda: layerwise.scan(graph, feed, roundings=0), "roundings=0; give a number above 0, such as 40"),
        (lambda: layerwise.scan(graph, feed, roundings=None), "roundings=None; wanted a number"),
        (lambda: layerwise.relative(np.ones(3), np.ones(4)), r"shapes \(3,\) and \(4,\) came"),
        (
            lambda: layerwise.scan(graph, feed, to="fp8"),
            r"to='fp8' is not known; choose one of \['fp16', 'bf16'\]",
        ),
        (
            lambda: layerwise.scan(graph, feed, keep_wide=["/Sqr"]),
            r"keep_wide names '/Sqr'.*did you mean one of \['/Sqrt",
        ),
        (lambda: layerwise.scan(graph, feed)["/Nothing"], "'/Nothing' was not scanned; scanned are"),
        (lambda: layerwise.exposed(graph, ["nowhere"]), "has no tensor 'nowhere' whose shape ONNX can tell"),
    ]:
        with pytest.raises(BadInput, match=message):
            call()


def test_compare_refuses_networks_with_other_inputs(faulty):
    graph, feed = faulty

    class Renamed(nn.Linear):
        input_name = "pixels"

    class Wider(nn.Linear):
        input_name = "input"

    with runtimes.OnnxRuntime(graph) as mine:
        for model, size, message in [
            (Renamed(8, 4), 8, r"the reference takes \['input'\], the other run \['pixels'\]"),
            (Wider(9, 4), 9, r"input 'input' has shape \(16, 8\) in the reference and \(16, 9\)"),
        ]:
            with (
                runtimes.OnnxRuntime(exported(model, torch.zeros(16, size))) as other,
                pytest.raises(BadInput, match=message),
            ):
                layerwise.compare(mine, other, feed)
        other = nn.Linear(8, 4)
        other.output_name = "scores"
        with (
            runtimes.OnnxRuntime(exported(other, torch.zeros(16, 8))) as other,
            pytest.raises(BadInput, match="no output in common"),
        ):
            layerwise.compare(mine, other, feed)


@pytest.mark.parametrize("op, more", [("Add", ()), ("Sub", ()), ("Sum", ()), ("Sum", ("tiny",))])
def test_what_cancels_is_told_for_each_operator_that_can(op, more, tmp_path):

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Mul", ["x", "hundred"], ["a"], "large"),
        helper.make_node("Mul", ["x", "nearly"], ["b"], "near"),
        helper.make_node("Mul", ["x", "hundredth"], ["tiny"], "tiny"),  # a third term may be small
        helper.make_node(op, ["a", "b", *more], ["y"], "difference"),
    ]
    nearly = 99.9 if op == "Sub" else -99.9
    numbers = {"hundred": 100.0, "nearly": nearly, "hundredth": 0.01}
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [], [number]) for name, number in numbers.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = np.random.default_rng(1).random((4, 8), np.float32) + 1
    scan = layerwise.scan(export.save(model, tmp_path / "net.onnx"), feed)
    assert scan["difference"].cause == "cancellation" and not scan["large"].cause


def test_each_result_of_a_node_is_held_against_its_own_twin(tmp_path):
    nodes = [helper.make_node("LayerNormalization", ["x", "w"], ["y", "mean", "root"], "norm")]
    ends = [value("y", [4, 8]), value("mean", [4, 1]), value("root", [4, 1])]
    weights = {"w": np.linspace(0.1, 3, 8, dtype=np.float32)}
    graph = saved(tmp_path, nodes, [value("x", [4, 8])], ends, weights)
    feed = np.random.default_rng(1).random((4, 8), np.float32)
    row = layerwise.scan(graph, feed)["norm"]
    assert 0 < row.own_error < 1e-3 and not row.cause  # the mean stays FP32, of inputs that were rounded


def test_without_names_all_that_computes_is_shown(tmp_path):
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "n"),
        helper.make_node("Reshape", ["a", "s"], ["b"], "r"),
        helper.make_node("Cast", ["b"], ["c"], "c", to=TensorProto.FLOAT16),
        helper.make_node("Abs", ["c"], ["d"], "h"),
        helper.make_node("Greater", ["d", "d"], ["e"], "g"),
        helper.make_node("Not", ["e"], ["y"], "o"),
    ]
    ends = [value("x", [1, 4])], [value("y", [2, 2], TensorProto.BOOL)]
    graph = saved(tmp_path, nodes, *ends, {"s": np.array([2, 2])})
    assert list(layerwise.exposed(graph).outputs) == ["y", "a", "d"]  # floats of nodes that compute


def test_a_limit_beyond_the_format_is_no_error_of_its_node(tmp_path):
    """Clip at 1e9, which no value reaches, is as good as Clip at the largest number that there is."""
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["a"], "clip"),
        helper.make_node("Abs", ["a"], ["y"], "abs"),
    ]
    weights = {"low": np.float32(-1e9), "high": np.float32(1e9)}
    graph = saved(tmp_path, nodes, [value("x", [1, 4])], [value("y", [1, 4])], weights)
    found = layerwise.scan(graph, np.float32([[1, -2, 3, 0.5]]))
    assert [(row.node, row.own_error, row.wide) for row in found] == [("clip", 0, False), ("abs", 0, False)]


def test_a_format_goes_by_its_name_or_as_it_is():
    fp16 = number_formats.FORMATS["fp16"]
    assert number_formats.named(fp16) is fp16 and number_formats.named("fp16") is fp16
    for odd in (7, "fp17"):
        with pytest.raises(BadInput, match=f"{odd!r} is not a format; choose one of"):
            number_formats.named(odd)


def test_raw_pixels_are_one_item_of_seed_zero():
    from labsupport.precision.raw_pixels import RawPixels

    model = RawPixels()
    usual = model.example_input()
    assert usual.shape == (1, 1, 28, 28) and torch.equal(usual, model.example_input(1, 0))
    assert not torch.equal(usual, model.example_input(1, 1)) and 0 <= usual.min() and usual.max() <= 255


def test_one_text_is_no_list_of_nodes(faulty):
    with pytest.raises(
        BadInput, match=r"keep_wide='/Tanh' is one text; give a list of node names, such as \['/Tanh'\]"
    ):
        layerwise.scan(*faulty, keep_wide="/Tanh")
