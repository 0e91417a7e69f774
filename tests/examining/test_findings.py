"""The numbers in the sentences of the stages that run nothing, against what was counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import saved, weight
from onnx import helper, numpy_helper
from onnx_files import value

from labsupport import export
from labsupport.examining import memory_peak, smaller
from labsupport.examining.rows import Row


@pytest.fixture
def case(tmp_path):
    """Two convolutions and a product: (1, 3, 64, 64) → (1, 8, 64, 64) → (1, 16, 32, 32) → (1, 40)."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], name="dense"),
    ]
    dense = numpy_helper.from_array(np.where(np.arange(16384 * 40) % 4, np.float32(1), 0).reshape(16384, 40), "w3")
    weights = [weight("w1", 8, 3, 3, 3), weight("w2", 16, 8, 3, 3), dense]
    ends = [value("x", [1, 3, 64, 64])], [value("y", [1, 40])]
    return SimpleNamespace(working=export.load(saved(tmp_path / "net.onnx", nodes, *ends, weights)))


def said(row) -> list[str]:
    return [finding.text.partition(";")[0] for finding in row.findings]


def test_memory_by_hand(case):
    assert said(memory_peak.stage(case)) == [
        "activations: 0.38 MiB if each kept its place, 0.25 MiB alive at most",
        "the fullest step is relu, which holds a 0.12 MiB, b 0.12 MiB",
        "shipped in fp32: weights 2.51, activations 0.25 MiB",
        "shipped in fp16: weights 1.25, activations 0.12 MiB",
    ]


def test_operations_weights_and_places_by_hand(case):
    row = smaller.stage(case)
    assert (
        said(row)
        == [
            "3 layers do 99% of 5.5 million operations",  # 2 · (8·64² · 27 + 16·32² · 72 + 16384 · 40), and 32768 of the ReLU
            "half of all channels gone leaves about 25% of the operations",
            "the heaviest layer is second (Conv), 43%",
            "25% of 656,728 weights are below a hundredth of their tensor's largest",
            "2 places to cut",  # a ReLU and a Flatten stay with what is before them
        ]
    )
    assert row.findings[-1].text.endswith("the narrowest is d with 64.0 KiB, the input has 48.0 KiB")


def test_three_tensors_of_the_fullest_step_are_named_the_largest_first(case, monkeypatch):
    alive = [SimpleNamespace(name=name, mib=mib) for name, mib in (("a", 1), ("b", 3), ("c", 2), ("d", 4))]
    lives = SimpleNamespace(
        total_mib=10, peak_mib=10, peak_step=1, steps=("s", "t"), tensors=[], at=lambda step: alive if step else []
    )
    monkeypatch.setattr(memory_peak.footprint, "lifetimes", lambda graph: lives)
    assert said(memory_peak.stage(case))[1] == "the fullest step is t, which holds d 4.00 MiB, b 3.00 MiB, c 2.00 MiB"


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ([4, 2, 1, 3], "2 places to cut; the narrowest is t2 with 1024.0 KiB, the input has 4096.0 KiB"),
        ([4, 3], "no tensor inside carries the network alone, so it cannot be cut in two"),
        ([4, 2, 3], "1 places to cut; the narrowest is t1 with 2048.0 KiB, the input has 4096.0 KiB"),
    ],
)
def test_places_between_the_ends_are_where_a_network_is_cut(case, monkeypatch, places, text):
    cut = [SimpleNamespace(name=f"t{i}", mib=mib) for i, mib in enumerate(places)]
    monkeypatch.setattr(smaller.cuts, "natural", lambda graph: cut)
    row = Row("less")
    smaller._narrow_places(case, row)
    assert [finding.text for finding in row.findings] == [text]


def test_weights_of_nothing_and_vectors_are_left_out(tmp_path):
    weights = [numpy_helper.from_array(np.float32([[0.0099, 1], [0.01, -2]]), "w"), weight("b", 2)]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense")]
    made = saved(tmp_path / "net.onnx", nodes, [value("x", [1, 2])], [value("y", [1, 2])], weights)
    row = Row("less")
    smaller._weights(SimpleNamespace(working=export.load(made)), row)
    assert row.findings[0].text.startswith("50% of 4 weights are below a hundredth")
    bare = saved(tmp_path / "bare.onnx", [helper.make_node("Neg", ["x"], ["y"])], [value("x", [1])], [value("y", [1])])
    row = Row("less")
    smaller._weights(SimpleNamespace(working=export.load(bare)), row)
    assert not row.findings
