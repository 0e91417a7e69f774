"""Files as strangers have them: weights beside the graph, damaged, special, too new; and more than one file holds."""

from __future__ import annotations

import hashlib
import os
import re
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import model_of, value

from labsupport import export, files
from labsupport.errors import BadInput, NotAvailable
from labsupport.export import onnx_graph, surgery


def beside(name, values, file):
    """A weight whose values lie in a file, at its end."""
    offset = file.stat().st_size if file.exists() else 0
    with file.open("ab") as opened:
        opened.write(values.tobytes())
    tensor = onnx.TensorProto(name=name, data_type=T.FLOAT, dims=values.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (("location", file.name), ("offset", str(offset)), ("length", str(values.nbytes))):
        tensor.external_data.add(key=key, value=entry)
    return tensor


def kept_beside(folder, where):
    """A network whose one weight lies in w.bin, held by an initializer, a Constant node, a branch or a function."""
    w = beside("w", np.arange(12, dtype=np.float32).reshape(3, 4), folder / "w.bin")
    x, y, nodes, weights, functions = value("x", ["n", 3]), value("y", ["n", 4]), [], [], []
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    if where == "initializer":
        nodes, weights = [product], [w]
    elif where == "constant":
        nodes = [helper.make_node("Constant", [], ["w"], "c", value=w), product]
    elif where == "branch":
        then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"])], "t", [], [value("a", ["n", 4])], [w])
        other = helper.make_graph([helper.make_node("MatMul", ["x", "v"], ["b"])], "e", [], [value("b", ["n", 4])])
        nodes = [helper.make_node("If", ["k"], ["y"], "if", then_branch=then, else_branch=other)]
        weights = [
            numpy_helper.from_array(np.array(True), "k"),
            numpy_helper.from_array(np.ones((3, 4), np.float32), "v"),
        ]
    else:
        inner = [helper.make_node("Constant", [], ["w"], value=w), helper.make_node("MatMul", ["p", "w"], ["q"])]
        functions = [helper.make_function("own", "F", ["p"], ["q"], inner, [helper.make_opsetid("", 17)])]
        nodes = [helper.make_node("F", ["x"], ["y"], "f", domain="own")]
    model = model_of(nodes, [x], [y], weights)
    if functions:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function"])
def test_weights_beside_the_graph_count_wherever_they_stand(tmp_path, where):
    graph = export.load(kept_beside(tmp_path, where))
    weights = tmp_path / "w.bin"
    whole = graph.path.read_bytes() + weights.read_bytes()
    assert graph.sha256 == hashlib.sha256(whole).hexdigest() and graph.size_mib == len(whole) / 2**20
    weights.write_bytes(weights.read_bytes()[::-1])
    assert graph.sha256 != hashlib.sha256(whole).hexdigest(), "the cache would serve the old engine"
    weights.write_bytes(b"short")
    with pytest.raises(BadInput, match=r"net.onnx keeps the weight 'w' in w.bin, which is too short"):
        export.load(graph.path)
    weights.unlink()
    with pytest.raises(BadInput, match=r"'w' in w.bin, which is not there; copy that file beside it"):
        export.load(graph.path)


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_every_change_keeps_weights_that_lie_beside(tmp_path, where):
    from labsupport import precision, quantization, runtimes

    graph = export.load(kept_beside(tmp_path, where))
    feed = np.array([[1, 0, 2], [0.5, -1, 3]], np.float32)
    want = feed @ np.arange(12, dtype=np.float32).reshape(3, 4)
    for changed, near in (
        (export.at_batch(graph, 2), 1e-6),
        (export.exposed(graph, ["y"]), 1e-6),
        (precision.rounded(precision.cast(graph)), 1e-2),
        (quantization.to_qdq(graph, [feed], method="max"), 0.3),
    ):
        assert changed.path.parent != tmp_path
        with runtimes.OnnxRuntime(changed, optimization="off") as run:
            np.testing.assert_allclose(run(feed)["y"], want, atol=near * 20)


def test_more_weights_than_a_file_holds_go_beside_it(tmp_path, monkeypatch):
    """A stand-in for networks over 2 GB: the limit is lowered to 64 bytes."""
    monkeypatch.setattr(onnx_graph, "LARGEST_INSIDE", 64)
    w = np.arange(4096, dtype=np.float32).reshape(64, 64)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        [value("x", ["n", 64])],
        [value("y", ["n", 64])],
        [numpy_helper.from_array(w, "w")],
    )
    graph = export.save(model, tmp_path / "big.onnx")
    assert sorted(os.listdir(tmp_path)) == ["big.onnx", "big.onnx.data"] and graph.path.stat().st_size < 1000
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), w)  # the caller's stays whole
    again = export.at_batch(graph, 3, path=tmp_path / "sub" / "fixed.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(again.model().graph.initializer[0]), w)
    assert sorted(os.listdir(tmp_path / "sub")) == ["fixed.onnx", "fixed.onnx.data"]


def test_shapes_are_inferred_without_the_weights(tmp_path):
    w = numpy_helper.from_array(np.ones((2000, 3), np.float32), "w")
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("Relu", ["h"], ["y"], "r")],
        [value("x", ["n", 2000])],
        [value("y", ["n", 3])],
        [w],
    )
    inferred = surgery.inferred(model)
    assert not inferred.graph.initializer[0].raw_data and w.raw_data
    assert [d.dim_value for d in surgery.values_of(model)["h"].type.tensor_type.shape.dim] == [0, 3]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_devices_and_folders_are_told_apart(tmp_path):
    from labsupport import footprint

    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for ask in (export.load, footprint.lifetimes, export.at_batch):
        more = (2,) if ask is export.at_batch else ()
        with pytest.raises(BadInput, match="pipe.onnx is a pipe, a socket or a device, no ordinary file"):
            ask(tmp_path / "pipe.onnx", *more)
        with pytest.raises(BadInput, match="folder.onnx is a folder, no ordinary file"):
            ask(tmp_path / "folder.onnx", *more)
    with pytest.raises(BadInput, match="null is a pipe, a socket or a device"):
        export.load(os.devnull)


def test_footprint_reads_files_through_the_checked_loader(tmp_path):
    from labsupport import footprint

    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x08\x12\x40net")
    with pytest.raises(BadInput, match="empty.onnx is empty"):
        footprint.lifetimes(tmp_path / "empty.onnx")
    with pytest.raises(BadInput, match="cut.onnx is not an ONNX file or is cut off"):
        footprint.lifetimes(tmp_path / "cut.onnx")


def test_a_missing_package_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = kept_beside(tmp_path, "initializer")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NotAvailable, match="cannot be read here: .*onnx.*doctor` says what is missing"):
        export.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in its folders")
def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(BadInput, match="wanted a path .no pipe, no device"):
        export.save(onnx.ModelProto(), tmp_path / "pipe.onnx")
    with pytest.raises(OSError, match="a device, a pipe or a socket stands there"):
        files.replace(tmp_path / "pipe.onnx", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.onnx"] and (tmp_path / "pipe.onnx").is_fifo()


def relu(kind=T.FLOAT, **options):
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"], "r")], [value("x", [2], kind)], [value("y", [2])], **options
    )


def test_an_opset_of_the_future_and_an_unknown_type_are_named(tmp_path):
    path = tmp_path / "odd.onnx"
    path.write_bytes(relu(opset=99).SerializeToString())
    with pytest.raises(BadInput, match=r"odd.onnx says that it is opset 99, and onnx .* knows \d+ at most"):
        export.load(path)
    newest = onnx.defs.onnx_opset_version()
    path.write_bytes(relu(opset=newest, ir=10).SerializeToString())
    assert export.load(path).opset == newest  # the newest one is known
    path.write_bytes(relu(kind=99).SerializeToString())
    with pytest.raises(BadInput, match="odd.onnx: 'x' has element type 99, which ONNX does not know"):
        export.load(path)


def test_sequences_text_and_single_numbers_have_a_type_and_no_shape(tmp_path):
    many = helper.make_tensor_sequence_value_info("y", T.FLOAT, None)
    split = helper.make_node("SplitToSequence", ["x"], ["y"], "s", axis=0, keepdims=0)
    graph = export.save(model_of([split], [value("x", [4, 2])], [many]), tmp_path / "many.onnx")
    assert graph.outputs == {"y": ((), "sequence")} and graph.inputs == {"x": ((4, 2), "fp32")}
    text = helper.make_node("Identity", ["x"], ["y"], "i")
    graph = export.save(model_of([text], [value("x", [], T.STRING)], [value("y", [], T.STRING)]), tmp_path / "t.onnx")
    assert graph.inputs == {"x": ((), "string")}


@pytest.mark.parametrize(
    "kinds, inputs, said",
    [
        ({"w": T.DOUBLE}, T.DOUBLE, "fp64"),
        ({"w": T.FLOAT, "d": T.DOUBLE}, T.FLOAT, "fp32"),
        ({"w": T.BFLOAT16}, T.BFLOAT16, "bf16"),
        ({"w": T.FLOAT16, "v": T.FLOAT}, T.FLOAT, "mixed"),
        ({}, T.DOUBLE, "fp64"),
        ({}, T.FLOAT16, "fp16"),
        ({"i": T.INT64}, T.INT64, "fp32"),
    ],
)
def test_the_type_of_the_weights(kinds, inputs, said):
    weights = [helper.make_tensor(name, kind, [2], [1, 2]) for name, kind in kinds.items()]
    short = {T.DOUBLE: "double", T.FLOAT: "fp32", T.FLOAT16: "fp16", T.BFLOAT16: "bf16", T.INT64: "int64"}[inputs]
    assert onnx_graph.weight_type(model_of([], [], [], weights), {"x": ((2,), short)}) == said


def branch(name, weights=(), reads=("x", "q")):
    nodes = [helper.make_node("Add", list(reads), [name], "inner")]
    return helper.make_graph(nodes, f"branch {name}", [], [value(name, [2, 3])], list(weights))


def of_two_names(kind):
    """A network in which two tensors share a name."""
    x, y = [value("x", [2, 3])], [value("y", [2, 3])]
    one, two = (numpy_helper.from_array(np.full(3, n, np.float32), "w") for n in (1, 2))
    relu, add = helper.make_node("Relu", ["x"], ["a"], "first"), helper.make_node("Add", ["a", "w"], ["y"], "last")
    twin, weights, inputs, ir = helper.make_node("Neg", ["x"], ["a"], "second"), [one], x, 8
    nodes, functions = [relu, add], []
    if kind == "two nodes":
        nodes = [relu, twin, add]
    elif kind == "one node":
        nodes = [helper.make_node("Split", ["x"], ["a", "a"], "first", axis=0), add]
    elif kind == "a node and a weight":
        nodes = [helper.make_node("Relu", ["x"], ["w"], "first"), helper.make_node("Add", ["x", "w"], ["y"], "last")]
    elif kind == "a node and an input":
        nodes = [helper.make_node("Relu", ["x"], ["x"], "first"), helper.make_node("Add", ["x", "w"], ["y"], "last")]
    elif kind == "two weights":
        weights = [one, two]
    elif kind == "two weights of IR 3":
        weights, inputs, ir = [one, two], [*x, value("w", [3])], 3
    elif kind == "two inputs":
        inputs = x * 2
    elif kind == "two weights of a branch":
        inner = [numpy_helper.from_array(np.full(3, n, np.float32), "q") for n in (1, 2)]
        choice = helper.make_node(
            "If", ["k"], ["a"], "choose", then_branch=branch("t", inner), else_branch=branch("e", inner[:1])
        )
        nodes, weights = [choice, add], [one, numpy_helper.from_array(np.array(True), "k")]
    else:
        body = [helper.make_node("Relu", ["p"], ["r"], "f1"), helper.make_node("Neg", ["p"], ["r"], "f2")]
        functions = [helper.make_function("own", "F", ["p"], ["r"], body, [helper.make_opsetid("", 17)])]
        nodes = [helper.make_node("F", ["x"], ["a"], "first", domain="own"), add]
    model = model_of(nodes, inputs, y, weights, ir=ir)
    if functions:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
    return model


SHARED = {  # kind → (the shared name, where, who writes it)
    "two nodes": ("a", "g", ", written by Relu 'first' and Neg 'second'"),
    "one node": ("a", "g", ", written by Split 'first'"),
    "a node and a weight": ("w", "g", ", written by Relu 'first'"),
    "a node and an input": ("x", "g", ", written by Relu 'first'"),
    "two weights": ("w", "g", ""),
    "two weights of IR 3": ("w", "g", ""),
    "two inputs": ("x", "g", ""),
    "two weights of a branch": ("q", "branch t", ""),
    "a function": ("r", "F", ", written by Relu 'f1' and Neg 'f2'"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_two_tensors_of_one_name_are_refused(kind, tmp_path):
    name, where, makers = SHARED[kind]
    path = tmp_path / "net.onnx"
    path.write_bytes(of_two_names(kind).SerializeToString())
    said = f"net.onnx has two tensors named {name!r} in {where!r}{makers}; give each a name of its own"
    with pytest.raises(BadInput, match=re.escape(said)):
        export.load(path)
    with pytest.raises(BadInput, match=re.escape(repr(name))):
        export.save(of_two_names(kind), tmp_path / "saved.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_one_name_in_two_branches_or_for_an_unused_output_is_no_fault(tmp_path):
    q = numpy_helper.from_array(np.ones(3, np.float32), "q")
    same = [branch("b", [q]), branch("b", [q])]
    nodes = [
        helper.make_node("If", ["k"], ["a"], "choose", then_branch=same[0], else_branch=same[1]),
        helper.make_node("Dropout", ["a"], ["y", ""], "one"),
        helper.make_node("Dropout", ["a"], ["z", ""], "two"),
    ]
    outputs = [value("y", [2, 3]), value("z", [2, 3])]
    model = model_of(nodes, [value("x", [2, 3])], outputs, [numpy_helper.from_array(np.array(True), "k")])
    assert export.save(model, tmp_path / "net.onnx").ops["If"] == 1


def test_the_checker_s_words_reach_to_the_name(tmp_path):
    nodes = [helper.make_node("Abs", ["a"], ["y"], "early"), helper.make_node("Relu", ["x"], ["a"], "late")]
    (tmp_path / "net.onnx").write_bytes(model_of(nodes, [value("x", [2])], [value("y", [2])]).SerializeToString())
    with pytest.raises(BadInput, match="input 'a' of node: name: early OpType: Abs is not output of any previous"):
        export.load(tmp_path / "net.onnx")
