"""The common protocol of the roads, MXNet's file, and what each road says to a bad input."""

from __future__ import annotations

import hashlib
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from labsupport import environment, export, roads, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.exercises import lab13
from labsupport.quiet import natively, quietly
from labsupport.roads import mxnet_file

IMAGES = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
WEIGHTS = {"w": np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)}
EXPECTED = IMAGES @ WEIGHTS["w"]


def by_numpy(weights, example):
    return roads.Function(lambda x: x @ weights["w"], example, name="NumPy")


def closed(weights, example):
    raise NotAvailable("nobody is at home; knock again")


# --- the protocol ---------------------------------------------------------------------------------------------


def test_every_road_gets_a_row_and_a_closed_one_says_why():
    wrong = lambda weights, example: roads.Function(lambda x: x @ weights["w"] * 1.5, example, name="off")  # noqa: E731
    rows = roads.travel({"a": by_numpy, "b": closed, "c": wrong}, WEIGHTS, IMAGES, EXPECTED, runs=3)
    assert [row["road"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["relative error"] == 0 and rows[0]["latency"].median_ms > 0
    assert rows[1] == {"road": "b", "closed": "nobody is at home; knock again"}
    assert rows[2]["relative error"] == pytest.approx(0.5, rel=1e-3)


def test_an_error_of_a_road_is_not_a_closed_road():
    def broken(weights, example):
        raise BadInput("a wrong layer; mend it")

    with pytest.raises(BadInput, match="a wrong layer"):
        roads.travel({"broken": broken}, WEIGHTS, IMAGES, EXPECTED)


def test_a_road_that_answers_another_shape_is_an_error():
    short = lambda weights, example: roads.Function(lambda x: (x @ weights["w"])[:, :2], example, name="short")  # noqa: E731
    with pytest.raises(BadInput, match=r"shape \(4, 3\).*\(4, 2\)"):
        roads.travel({"short": short}, WEIGHTS, IMAGES, EXPECTED)


def test_two_outputs_are_refused():
    class Two:
        inputs, name = {"x": None}, "two"

        def __call__(self, feed):
            return {"a": EXPECTED, "b": EXPECTED}

    with pytest.raises(BadInput, match="the road gave the outputs"):
        roads.travel({"two": lambda weights, example: Two()}, WEIGHTS, IMAGES, EXPECTED)


def test_a_runtime_is_closed_after_its_road():
    runs = []

    def kept(weights, example):
        runs.append(by_numpy(weights, example))
        return runs[-1]

    roads.travel({"kept": kept}, WEIGHTS, IMAGES, EXPECTED, runs=2)
    assert runs[0].closed


def test_a_function_is_a_runtime_and_checks_what_it_is_fed():
    run = by_numpy(WEIGHTS, IMAGES)
    assert isinstance(run, runtimes.Runtime) and run.inputs["images"].shape == (None, 6)
    assert np.array_equal(run(IMAGES[:2])["logits"], EXPECTED[:2])
    for feed, why in (
        (IMAGES[:, :5], "shape"),
        (IMAGES.astype(np.float64), "float64"),
        ({"x": IMAGES}, "was fed"),
        (IMAGES[:0], "is empty"),
    ):
        with pytest.raises(BadInput, match=why):
            run(feed)


@pytest.mark.parametrize("call", [lambda x: 1.0, lambda x: x[:2], lambda x: x.sum()])
def test_a_function_without_a_row_for_each_input_is_refused(call):
    with pytest.raises(BadInput, match="a road gives one row an input"):
        roads.Function(call, IMAGES, name="wrong")


# --- MXNet's file ---------------------------------------------------------------------------------------------


def test_mxnets_file_answers_as_mxnet_did():
    images, logits = roads.mxnet_reference()
    assert images.shape == (32, 1, 28, 28) and images.min() >= -1 and images.max() <= 1 and logits.shape == (32, 10)
    with runtimes.OnnxRuntime(roads.mxnet_graph()) as run:
        (answer,) = run(images).values()
    assert np.abs(answer - logits).max() < roads.CLOSE


def test_the_readme_names_the_checksums_and_the_commands():
    text = (roads.MXNET / "README.md").read_text(encoding="utf-8")
    for name, checksum in roads.SHA256.items():
        assert f"| `{name}` | `{checksum}` |" in text
        assert hashlib.sha256((roads.MXNET / name).read_bytes()).hexdigest() == checksum
    assert "mxnet==1.9.1" in text and "train_and_export.py" in text


def test_a_changed_or_missing_file_says_how_to_restore_it(monkeypatch, tmp_path):
    monkeypatch.setattr(mxnet_file, "MXNET", tmp_path)
    with pytest.raises(NotAvailable, match="git checkout -- data/mxnet/digits.onnx"):
        roads.mxnet_graph()
    (tmp_path / "digits.onnx").write_bytes(b"something else")
    with pytest.raises(BadInput, match=r"not the file it should be.*git checkout"):
        roads.mxnet_graph()


def test_the_script_imports_nothing_of_the_workbook():
    script = (roads.MXNET / "train_and_export.py").read_text(encoding="utf-8")
    assert "labsupport" not in script and re.search(r"^import mxnet as mx$", script, re.MULTILINE)


# --- bad inputs -----------------------------------------------------------------------------------------------


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x).real


def test_an_operator_that_one_exporter_lacks_is_named():
    with pytest.raises(LabError, match=r"aten::fft_fft2.*exporter='dynamo'"), quietly(), natively(1, 2):
        export.to_onnx(Fourier(), torch.randn(1, 2, 4, 4))


def test_an_operator_that_tensorrt_lacks_is_named_by_its_parser():
    if not environment.has("engine building"):
        pytest.skip(environment.why_not("engine building"))
    from labsupport import build

    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Det", ["x"], ["y"], name="det")], "det",
        [onnx.helper.make_tensor_value_info("x", 1, [2, 3, 3])], [onnx.helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(LabError, match="(?i)det|plugin"):
        build.parse(export.save(model, export.fresh_folder() / "det.onnx"))


def test_a_traced_branch_is_refused_by_one_exporter_and_found_by_the_check_of_both_sides():
    gate, above = lab13.Gate(), torch.full((1, 4), 2.0)
    with pytest.raises(LabError, match="data-dependent"), quietly(), natively(1, 2):
        export.to_onnx(gate, above, exporter="dynamo")
    with runtimes.OnnxRuntime(export.to_onnx(gate, above, dynamic=False)) as run:
        (answer,) = run((-above).numpy()).values()
    assert answer[0, 0] == -4 and gate(-above)[0, 0] == 2  # the silent error that the lab shows


@pytest.mark.parametrize("change", ["opset", "ir"])
def test_a_file_from_the_future_is_refused_by_name(change):
    model = roads.mxnet_graph().model()
    if change == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    file = export.fresh_folder() / "future.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="future.onnx"):
        runtimes.OnnxRuntime(file)


def test_a_graph_without_its_external_data_is_refused():
    place = export.fresh_folder()
    graph = export.to_onnx(nn.Linear(4, 4).eval(), torch.zeros(1, 4))
    onnx.save_model(
        graph.model(), str(place / "net.onnx"), save_as_external_data=True, size_threshold=0, location="net.data"
    )
    alone = shutil.copy(place / "net.onnx", export.fresh_folder() / "alone.onnx")
    with pytest.raises(BadInput, match="net.data"):
        runtimes.OnnxRuntime(alone)


def test_the_terminal_is_silent_inside_and_as_before_afterward(capfd):
    import os

    with natively(1, 2):
        os.write(1, b"native noise")
        os.write(2, b"native noise")
    os.write(1, b"heard")
    out, err = capfd.readouterr()
    assert (out, err) == ("heard", "")
