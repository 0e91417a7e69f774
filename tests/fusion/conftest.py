"""Networks and plans that the X-ray is tried on."""

from __future__ import annotations

import numpy as np
import pytest
from plan_samples import REAL, onnx_file

from labsupport import export, fusion, models, recordings


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """The network that the synthetic plans are of: siblings, a concat, a residual add, SiLU, a head, shapes."""
    w = lambda *shape: np.full(shape, 0.1, np.float32)  # noqa: E731
    out = lambda name: f"{name}_output_0"  # noqa: E731
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        ("/const/Constant", "Constant", [], ["width"], {"value_ints": [8]}),
        ("/conv1/Conv", "Conv", ["x", "w1", "b1"], [out("/conv1/Conv")], pads),
        ("/relu1/Relu", "Relu", [out("/conv1/Conv")], [out("/relu1/Relu")], {}),
        ("/left/Conv", "Conv", [out("/relu1/Relu"), "w2"], [out("/left/Conv")], pads),
        ("/right/Conv", "Conv", [out("/relu1/Relu"), "w3"], [out("/right/Conv")], pads),
        ("/cat/Concat", "Concat", [out("/left/Conv"), out("/right/Conv")], [out("/cat/Concat")], {"axis": 1}),
        ("/tail/Conv", "Conv", [out("/cat/Concat"), "w4"], [out("/tail/Conv")], pads),
        ("/add/Add", "Add", [out("/tail/Conv"), out("/relu1/Relu")], [out("/add/Add")], {}),
        ("/act/Sigmoid", "Sigmoid", [out("/add/Add")], [out("/act/Sigmoid")], {}),
        ("/act/Mul", "Mul", [out("/act/Sigmoid"), out("/add/Add")], [out("/act/Mul")], {}),
        ("/pool/GlobalAveragePool", "GlobalAveragePool", [out("/act/Mul")], [out("/pool/GlobalAveragePool")], {}),
        ("/shape/Shape", "Shape", [out("/pool/GlobalAveragePool")], ["dims"], {}),
        ("/shape/Gather", "Gather", ["dims", "zeroth"], ["batch"], {}),
        ("/shape/Concat", "Concat", ["batch", "width"], ["flat"], {"axis": 0}),
        ("/pass/Identity", "Identity", [out("/pool/GlobalAveragePool")], ["same"], {}),
        ("/flat/Reshape", "Reshape", ["same", "flat"], [out("/flat/Reshape")], {}),
        ("/fc/MatMul", "MatMul", [out("/flat/Reshape"), "w5"], [out("/fc/MatMul")], {}),
        ("/fc/Add", "Add", [out("/fc/MatMul"), "b5"], [out("/fc/Add")], {}),
        ("/soft/Softmax", "Softmax", [out("/fc/Add")], ["probabilities"], {}),
    ]
    weights = {
        "w1": w(8, 3, 3, 3),
        "b1": w(8),
        "w2": w(8, 8, 3, 3),
        "w3": w(8, 8, 3, 3),
        "w4": w(8, 16, 3, 3),
        "w5": w(8, 10),
        "b5": w(10),
        "zeroth": np.array([0]),
    }
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    return onnx_file(path, nodes, [("x", [2, 3, 16, 16])], [("probabilities", [2, 10])], weights)


@pytest.fixture(scope="module")
def real():
    return fusion.xray(recordings.load_plan(REAL))


@pytest.fixture(scope="module")
def workpieces(tmp_path_factory):
    """The workbook's networks, small, exported for 8.6."""
    folder = tmp_path_factory.mktemp("workpieces")
    made = {
        "resnet18": models.resnet18(width=16, size=32),
        "article": models.article_cnn(),
        "mobilenet": models.mobilenet_v2(width=0.25, size=32),
        "encoder": models.encoder(layers=2, hidden=32, heads=4, vocabulary=64),
    }
    return {
        name: export.to_onnx(m, m.example_input(), target="8.6", path=folder / f"{name}.onnx")
        for name, m in made.items()
    }
