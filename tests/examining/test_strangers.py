"""Files that strangers bring: broken ones are told apart, odd ones go as far as they can, and no stage falls."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from conftest import convnet, saved, value, weight
from onnx import TensorProto, helper

from labsupport import examining, export, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.examining import working_copy
from labsupport.export import keras_models

LIGHT = ["identity", "sixteen bits", "eight bits", "memory", "pruning and cuts"]
NODE = helper.make_node("Relu", ["x"], ["y"], name="relu")
X, Y = value("x", [1, 4]), value("y", [1, 4])


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is empty"),
        (b"\x08\x08\x12\x04", "not an ONNX file or is cut off|holds no operator nodes"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"{}", "JSON text"),
        (b"ftrt", "a TensorRT engine"),
    ],
)
def test_a_file_that_is_no_network(tmp_path, content, told):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(BadInput, match=told):
        examining.examine(tmp_path / "net.onnx", progress=False)


def test_a_file_cut_off_in_the_middle(network):
    network.write_bytes(network.read_bytes()[:77])
    with pytest.raises(BadInput):
        examining.examine(network, progress=False)


def test_no_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        examining.examine(tmp_path / "none.onnx")
    with pytest.raises(BadInput, match="is a folder"):
        examining.examine(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.onnx")
        with pytest.raises(BadInput, match="no pipe"):
            examining.examine(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("options, told", [({"opset": 99}, "says that it is opset 99"), ({}, "element type 99")])
def test_what_nobody_knows_yet(tmp_path, options, told):
    kind = 1 if options else 99
    path = saved(tmp_path / "odd.onnx", [NODE], [value("x", [1, 4], kind)], [Y], **options)
    with pytest.raises(BadInput, match=told):
        examining.examine(path, progress=False)


def test_weights_that_are_missing(tmp_path, network):
    model = onnx.load(str(network))
    onnx.save(model, str(tmp_path / "apart.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(BadInput, match="which is not there; copy that file beside it"):
        examining.examine(tmp_path / "apart.onnx", progress=False)


def branched(path):
    """An If whose branches are two products."""

    def branch(name):
        return helper.make_graph([helper.make_node("Mul", ["x", "x"], [name])], name, [], [value(name, [1, 4])])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"), name="if")
    test = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    return saved(path, [*test, node], [X], [Y], [zero])


def old(path):
    """IR 3, opset 9, the weight among the inputs."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    return saved(path, nodes, [X, value("w", [4, 4])], [Y], [weight("w", 4, 4)], opset=9, ir=3)


def unnamed(path):
    model = onnx.load(str(convnet(path)))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(path))
    return path


def function(path):
    """A function of two operators, called twice."""
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "r"], ["b"])]
    twice = helper.make_function("ours", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Twice", [a], [b], domain="ours") for a, b in (("x", "h"), ("h", "y"))]
    return saved(path, nodes, [X], [Y], functions=[twice])


def scalar(path):
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    return saved(path, nodes, [X, value("s", [])], [Y])


def ids(path):
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("MatMul", ["f", "w"], ["y"])]
    return saved(path, nodes, [value("x", [1, 4], TensorProto.INT64)], [Y], [weight("w", 4, 4)])


def one_layer(path):
    """A convolution whose channels differ so much that eight bits err."""
    weights = weight("w", 8, 3, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    return saved(path, nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 6, 6])], [weights])


def free_minus_one(path):
    return convnet(path, batch=-1)


@pytest.mark.parametrize(
    "build", [branched, old, unnamed, function, scalar, ids, one_layer, free_minus_one], ids=lambda f: f.__name__
)
def test_odd_networks_go_as_far_as_they_can(tmp_path, build):
    made = examining.examine(build(tmp_path / "odd.onnx"), stages=LIGHT, progress=False)
    assert not [row.left_out for row in made.rows.values() if row.failed]
    assert made.rows["identity"].findings
    for why in made.left_out.values():
        assert len(why) > 30, why


def test_a_sequence_is_named(tmp_path):
    nodes = [helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)]
    kind = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    made = examining.examine(saved(tmp_path / "s.onnx", nodes, [X], [kind]), stages=LIGHT, progress=False)
    assert "'y' is sequence" in made.left_out["memory"] and made.rows["identity"].findings


def test_an_answer_of_nan_asks_for_real_inputs(tmp_path):
    nodes = [helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("Div", ["z", "z"], ["y"])]
    made = examining.examine(saved(tmp_path / "nan.onnx", nodes, [X], [Y]), stages=["memory"], progress=False)
    assert "the network itself answers NaN or infinity in 'y'" in made.left_out["memory"]


def test_an_operator_of_strangers_is_named_with_its_lab(tmp_path):
    nodes = [helper.make_node("Wonder", ["x"], ["y"], domain="acme", name="w")]
    path = tmp_path / "w.onnx"
    saved(path, nodes, [X], [Y])
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, str(path))
    made = examining.examine(path, stages=LIGHT, progress=False)
    assert [f for f in made.rows["identity"].findings if "acme::Wonder" in f.text and f.lab == "10"]
    assert "ONNX Runtime cannot load" in made.left_out["memory"] and made.verdict is None


def test_an_exported_program_brings_its_own_inputs(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (torch.ones(1, 3, 8, 8),)), str(tmp_path / "net.pt2"))
    (tmp_path / "net.pt2").rename(tmp_path / "net.PT2")  # as some systems write endings
    made = examining.examine(tmp_path / "net.PT2", stages=["identity", "memory"], progress=False)
    assert made.left_out == {}
    assert any("example inputs stored in the model's file" in f.text for f in made.rows["identity"].findings)


def test_what_is_no_exported_program(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="is no exported program"):
        examining.examine(tmp_path / "net.pt2")
    (tmp_path / "net.pt").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="may hold weights without a network"):
        examining.examine(tmp_path / "net.pt")
    with pytest.raises(BadInput, match="no such file"):
        examining.examine(tmp_path / "none.pt2")


def test_a_keras_file_where_keras_is_missing_or_cannot_read_it(tmp_path):
    (tmp_path / "net.keras").write_bytes(b"nothing")
    wanted = (NotAvailable, "Keras is not installed") if keras_models.missing() else (LabError, "Keras cannot load")
    with pytest.raises(wanted[0], match=wanted[1]):
        examining.examine(tmp_path / "net.keras")


def test_with_labels_the_table_has_an_accuracy(tmp_path, network):
    images = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images, labels=np.zeros(12, int))
    made = examining.examine(network, inputs=tmp_path / "data.npz", stages=["baseline"], progress=False)
    assert all(0 <= each.accuracy <= 1 for each in made.candidates)


@pytest.mark.parametrize(
    "copy_off, alone_off, said",
    [
        (0.9, 0.78, r"the answer of net.onnx is mostly rounding: .* the same file is off by 78%, .*--inputs data.npz"),
        (0.9, 0.0, r"net.onnx answers differently once shapes fixed to those of the first sample \(off by 90.0%\)"),
    ],
)
def test_a_copy_that_answers_otherwise_is_told_from_an_answer_that_is_rounding(
    network, tmp_path, monkeypatch, copy_off, alone_off, said
):
    """A text detector on random pixels answers 1e-8 everywhere, and any other order of sums another 1e-8."""
    graph, feed = export.load(network), {"x": np.ones((1, 3, 16, 16), np.float32)}
    with runtimes.OnnxRuntime(graph) as run:
        answer = run(feed)
    assert working_copy.working(graph, feed, answer, tmp_path)[0].inputs["x"][0] == (1, 3, 16, 16)
    monkeypatch.setattr(working_copy, "_off", lambda *_, **options: alone_off if options else copy_off)
    with pytest.raises(LabError, match=said):
        working_copy.working(graph, feed, answer, tmp_path)


def test_a_copy_that_does_not_run_is_named_after_the_owners_file(network, tmp_path, monkeypatch):
    graph, feed = export.load(network), {"x": np.ones((1, 3, 16, 16), np.float32)}
    monkeypatch.setattr(working_copy.export, "save", lambda model, path: graph)
    with pytest.raises(LabError, match="net.onnx does not run once shapes fixed"):
        working_copy.working(graph, {"x": feed["x"][:, :2]}, {"y": np.ones((1, 5), np.float32)}, tmp_path)
