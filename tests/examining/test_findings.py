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
