"""What the network is fed: arrays that fit, each kind that does not, and values made where none are given."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import convnet, saved, value
from onnx import TensorProto, helper

from labsupport import examining, export, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.examining import inputs

X = np.ones((6, 3, 16, 16), np.float32)


def file_of(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_rows_become_calls(tmp_path, network):
    samples = inputs.from_file(file_of(tmp_path, x=X, labels=np.arange(6)), export.load(network))
    assert len(samples.feeds) == 6 and samples.feeds[0]["x"].shape == (1, 3, 16, 16)
    assert list(samples.labels) == [0, 1, 2, 3, 4, 5] and samples.origin == "6 samples from data.npz"


def test_a_fixed_batch_takes_that_many_rows(tmp_path):
    graph = export.load(convnet(tmp_path / "two.onnx", batch=2))
    samples = inputs.from_file(file_of(tmp_path, x=X), graph)
    assert [feed["x"].shape[0] for feed in samples.feeds] == [2, 2, 2]
    with pytest.raises(BadInput, match="has 5 rows; one call takes 2: give a multiple of that"):
        inputs.from_file(file_of(tmp_path, x=X[:5]), graph)


def test_an_axis_more_is_a_sample_a_row_and_one_array_may_come_alone(tmp_path, network):
    graph = export.load(network)
    samples = inputs.from_file(file_of(tmp_path, x=X.reshape(3, 2, 3, 16, 16)), graph)
    assert [feed["x"].shape for feed in samples.feeds] == [(2, 3, 16, 16)] * 3
    np.save(tmp_path / "alone.npy", X)
    assert len(inputs.from_file(tmp_path / "alone.npy", graph).feeds) == 6


@pytest.mark.parametrize(
    "arrays, told",
    [
        ({}, r"has []; the network wants exactly ['x']"),
        ({"y": X}, r"has ['y']; the network wants exactly ['x']"),
        ({"x": X, "z": X}, "the network wants exactly ['x']"),
        ({"x": X.astype(np.float64)}, "is float64 in the file; the network wants float32"),
        ({"x": X.astype(np.uint8)}, "is uint8 in the file"),
        ({"x": X[:, :2]}, "has shape (6, 2, 16, 16) in the file; the network wants (batch, 3, 16, 16)"),
        ({"x": X[0]}, "has shape (3, 16, 16)"),
        ({"x": X[:0]}, "has 0 rows"),
        ({"x": np.float32(1)}, "has shape ()"),
        ({"x": X * np.nan}, "holds NaN"),
        ({"x": np.array(["a"] * 6)}, "in the file; the network wants float32"),
        ({"x": X, "labels": np.arange(5)}, "there are 5 labels for 6 samples"),
    ],
    ids=lambda case: None,
)
def test_arrays_that_do_not_fit(tmp_path, network, arrays, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        examining.examine(network, inputs=file_of(tmp_path, **arrays), progress=False)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive", b"\x93NUMPY\x01"])
def test_files_that_hold_no_arrays(tmp_path, network, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(BadInput, match="data.npz (holds no plain arrays|is damaged)"):
        inputs.from_file(tmp_path / "data.npz", export.load(network))


def test_objects_are_not_unpickled(tmp_path, network):
    np.savez(tmp_path / "data.npz", x=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match="holds no plain arrays"):
        inputs.from_file(tmp_path / "data.npz", export.load(network))


def test_a_file_that_is_not_there(tmp_path, network):
    with pytest.raises(BadInput, match="no such file of inputs; save one with np.savez"):
        inputs.from_file(tmp_path / "data.npz", export.load(network))


def test_inputs_of_unequal_number(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    graph = export.load(
        saved(tmp_path / "add.onnx", nodes, [value("a", [1, 4]), value("b", [1, 4])], [value("y", [1, 4])])
    )
    rows = np.ones((3, 4), np.float32)
    assert len(inputs.from_file(file_of(tmp_path, a=rows, b=rows[:1]), graph).feeds) == 3
    with pytest.raises(BadInput, match="'b' holds 2 samples, another input 3"):
        inputs.from_file(file_of(tmp_path, a=rows, b=rows[:2]), graph)
    np.save(tmp_path / "alone.npy", rows)
    with pytest.raises(BadInput, match="is one array, and the network has the inputs"):
        inputs.from_file(tmp_path / "alone.npy", graph)


def made_for(path):
    graph = export.load(path)
    with runtimes.OnnxRuntime(graph) as run:
        return inputs.made(graph, run)


def test_made_samples_differ_and_say_that_they_are_made(network):
    samples = made_for(network)
    assert not samples.given and len(samples.feeds) == inputs.MADE
    assert not np.array_equal(samples.feeds[0]["x"], samples.feeds[1]["x"])
    assert "made from the graph's own shapes (x (1, 3, 16, 16)), random values" in samples.origin


def test_sizes_are_tried_until_one_runs(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 3072])
    path = saved(tmp_path / "size.onnx", nodes, [value("x", [1, 3, "h", "w"])], [value("y", [1, 3072])], [shape])
    assert made_for(path).feeds[0]["x"].shape == (1, 3, 32, 32)


def test_an_axis_of_the_batchs_name_has_one_row_and_lengths_are_those_of_the_sequence(tmp_path):
    """A network of 4.8 MB took 20 GiB when the lengths of its lines had 512 rows beside a batch of one."""
    ids, lines, half = ["rows", "seq"], ["rows"], ["rows", 2]
    inputs = [
        value("words", ids, TensorProto.INT64),
        value("input_lengths", lines, TensorProto.INT64),
        value("silence", lines),
        value("places", ["seq"]),  # one axis is no batch by itself
    ]
    nodes = [helper.make_node("Add", ["words", "words"], ["y"])]
    path = saved(
        tmp_path / "net.onnx", nodes, [*inputs, value("state", [2, *half])], [value("y", ids, TensorProto.INT64)]
    )
    feed = made_for(path).feeds[0]
    assert {name: x.shape for name, x in feed.items()} == {
        "words": (1, 512), "input_lengths": (1,), "silence": (1,), "places": (512,), "state": (2, 1, 2),
    }  # fmt: skip
    assert feed["input_lengths"].tolist() == [512] and feed["silence"].dtype == np.float32


def test_masks_are_ones_and_bytes_are_bytes(tmp_path):
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["m", "f"], ["y"]),
    ]
    takes = [value("mask", [1, 4], TensorProto.INT64), value("x", [1, 4], TensorProto.UINT8)]
    feed = made_for(saved(tmp_path / "m.onnx", nodes, takes, [value("y", [1, 4])])).feeds[0]
    assert feed["mask"].tolist() == [[1, 1, 1, 1]] and feed["x"].dtype == np.uint8


def test_where_nothing_fits_the_owner_is_asked(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [7919])
    path = saved(tmp_path / "odd.onnx", nodes, [value("x", ["n"])], [value("y", [7919])], [shape])
    with pytest.raises(BadInput, match="no inputs could be made that this network accepts .*--inputs data.npz"):
        made_for(path)
    made = examining.examine(path, progress=False)
    assert made.rows["identity"].findings and "--inputs data.npz" in made.left_out["baseline"]
    given = file_of(tmp_path, x=np.ones((1, 7919), np.float32))
    assert "baseline" not in examining.examine(path, inputs=given, progress=False).left_out


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        ([("n", 3)], {"n"}),
        ([("n",)], set()),  # one axis has no batch
        ([(2, "n"), ("m", "n")], {"m"}),
        ([("?", 3), ("n", 3)], {"n"}),
        ([("n", 3), ("n", "n")], set()),  # a square of the sequence's length: n is no batch anywhere
        ([("n", "m"), ("m", "m"), ()], {"n"}),
    ],
)
def test_the_batch_is_a_first_axis_that_is_no_later_one_beside_itself(shapes, names):
    graph = SimpleNamespace(inputs={str(i): (shape, "fp32") for i, shape in enumerate(shapes)})
    assert inputs._batch_names(graph) == names


@pytest.mark.parametrize(
    ("shape", "state", "sizes"),
    [
        (("b", "s", "h"), False, [1, 9, 9]),
        (("b", "s", "h"), True, [1, 1, 9]),
        (("b", "s"), True, [1, 9]),
        (("s",), False, [9]),
        ((2, "n"), False, [2, 9]),
        (("b", "c", "h", "w"), True, [1, 7, 7, 7]),  # four axes are a picture
    ],
)
def test_free_axes_get_the_sizes_that_are_tried(monkeypatch, shape, state, sizes):
    monkeypatch.setattr(inputs, "PICTURES", (0, 7))
    monkeypatch.setattr(inputs, "SEQUENCES", (0, 9))
    graph = SimpleNamespace(inputs={"x": (shape, "fp32")})
    assert inputs._drawn(graph, 1, state, "ids", 0)["x"].shape == tuple(sizes)


@pytest.mark.parametrize(
    ("name", "sizes", "dtype", "meaning", "wanted"),
    [
        ("x", [2, 3], "bool", "ids", [[True] * 3] * 2),
        ("Attention_Mask", [3], "int64", "ids", [1, 1, 1]),
        ("x", [2], "int32", "ones", [1, 1]),
        ("x_lengths", [1], "int64", "ids", [50]),
        ("len", [2], "int64", "ids", [50, 50]),
        ("rate", [1], "int64", "rate", [16000]),
        ("rate", [], "int64", "length", 50),
    ],
)
def test_what_whole_numbers_may_mean(name, sizes, dtype, meaning, wanted):
    made = inputs._values(np.random.default_rng(0), name, sizes, dtype, meaning, 50)
    assert made.tolist() == wanted and made.dtype == dtype


@pytest.mark.parametrize(
    ("name", "sizes", "dtype", "least", "below"),
    [
        ("length", [40, 40], "int64", 0, 10),  # two axes are no lengths
        ("slender", [400], "int64", 0, 10),
        ("x", [1], "int64", 0, 10),
        ("x", [400], "uint8", 200, 256),
        ("x", [2, 200], "int8", 0, 10),
    ],
)
def test_other_whole_numbers_are_rows_of_a_table_or_bytes(name, sizes, dtype, least, below):
    made = inputs._values(np.random.default_rng(3), name, sizes, dtype, "ids", 512)
    assert made.dtype == dtype and list(made.shape) == sizes and least <= made.max() < below


def test_one_number_may_stand_alone_in_a_file(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    graph = export.load(saved(tmp_path / "m.onnx", nodes, [value("x", [4]), value("s", [])], [value("y", [4])]))
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4), np.float32), s=np.float32(2))
    feeds = inputs.from_file(tmp_path / "d.npz", graph).feeds
    assert len(feeds) == 3 and feeds[2]["s"].shape == () and feeds[2]["s"] == 2


@pytest.mark.parametrize("kind", ["int16", "uint64", "float16", "double", "bool"])
def test_networks_from_numbers_to_numbers_are_taken(kind):
    inputs.numbers_only(SimpleNamespace(inputs={"x": ((1,), kind)}, outputs={"y": ((1,), "fp16")}))
    for sides in ({"inputs": {"x": ((1,), "string")}, "outputs": {}}, {"inputs": {}, "outputs": {"x": ((), "map")}}):
        with pytest.raises(BadInput, match="'x' is (string|map), and what runs here"):
            inputs.numbers_only(SimpleNamespace(**sides))


@pytest.mark.parametrize(
    ("free", "whole", "tried"), [(False, False, 2), (False, True, 8), (True, False, 12), (True, True, 48)]
)
def test_every_size_and_meaning_is_tried_once(free, whole, tried):
    graph = SimpleNamespace(inputs={"x": (("n" if free else 2, 3), "int64" if whole else "fp32")})
    seen = []

    def runs(feed):
        seen.append(feed)
        raise LabError("odd shape")

    with pytest.raises(BadInput, match=r"no inputs could be made that this network accepts \(odd shape\); give some"):
        inputs.made(graph, runs)
    assert len(seen) == tried
