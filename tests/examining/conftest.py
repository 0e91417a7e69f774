"""Small networks to examine, made by hand, and one whole examination that several tests read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import model_of, value

from labsupport import examining

FLOAT = TensorProto.FLOAT


def weight(name, *shape, seed=0, scale=0.3):
    numbers = np.random.default_rng(seed).standard_normal(shape) * scale
    return numpy_helper.from_array(numbers.astype(np.float32), name)


def saved(path, *parts, functions=(), **options):
    """An ONNX file of these parts, unchecked, as strangers' files are."""
    domains = [(each.domain, 1) for each in functions]
    onnx.save(model_of(*parts, functions=functions, domains=domains, **options), str(path))
    return path


def convnet(path, *, batch="batch", opset=17):
    """Convolution, ReLU, convolution, mean, dense: (batch, 3, 16, 16) → (batch, 5)."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="mean"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"], name="dense"),
    ]
    weights = [weight("w1", 8, 3, 3, 3), weight("w2", 8, 8, 3, 3, seed=1), weight("w3", 8, 5, seed=2), weight("b3", 5)]
    return saved(path, nodes, [value("x", [batch, 3, 16, 16])], [value("y", [batch, 5])], weights, opset=opset)


@pytest.fixture
def network(tmp_path):
    return convnet(tmp_path / "net.onnx")


@pytest.fixture(scope="session")
def examined(tmp_path_factory):
    """(model's path, its bytes before, the examination) with 40 samples of the owner's."""
    folder = tmp_path_factory.mktemp("examined")
    path = convnet(folder / "net.onnx")
    before = path.read_bytes()
    images = np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=images)
    limits = examining.Limits(keep_accuracy=0.9, minutes=4)
    return path, before, examining.examine(path, inputs=folder / "data.npz", limits=limits, progress=False)
