"""Cuts of networks nobody here wrote: branches, weights among the inputs, types of other sizes, single numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import run, saved, value

from labsupport.errors import BadInput
from labsupport.placement import cuts

RNG = np.random.default_rng(7)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def joined(graph, feed):
    """The answers of both parts, one after the other, for every cut."""
    for cut in cuts.natural(graph):
        head, tail = cuts.split(graph, cut)
        between = run(head, feed) if head else feed
        yield run(tail, between) if tail else between


def test_what_only_a_branch_reads_goes_into_its_part(tmp_path):
    then = helper.make_graph([helper.make_node("MatMul", ["h", "w"], ["t"], "then")], "then", [], [value("t", [3, 5])])
    other = helper.make_graph([helper.make_node("MatMul", ["h", "v"], ["e"], "else")], "else", [], [value("e", [3, 5])])
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"], "tanh"),
        helper.make_node("ReduceSum", ["h"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "low"], ["c"], "greater"),
        helper.make_node("If", ["c"], ["k"], "if", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["k", "u"], ["y"], "last"),
    ]
    weights = [weight("w", 8, 5), weight("v", 8, 5), weight("u", 5, 2), weight("low")]
    graph = saved(tmp_path, nodes, [value("x", [3, 8])], [value("y", [3, 2])], weights)
    assert [cut.name for cut in cuts.natural(graph)] == ["x", "h", "k", "y"]
    for sign in (1, -1):
        feed = {"x": sign * np.abs(RNG.standard_normal((3, 8))).astype(np.float32)}
        for answer in joined(graph, feed):
            np.testing.assert_allclose(answer["y"], run(graph, feed)["y"], rtol=1e-5)


@pytest.mark.parametrize(("opset", "ir"), [(9, 3), (17, 3)])
def test_weights_that_stand_among_the_inputs_are_weights(tmp_path, opset, ir):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "a"),
        helper.make_node("Tanh", ["h"], ["t"], "b"),
        helper.make_node("MatMul", ["t", "v"], ["y"], "c"),
    ]
    inputs = [value("x", [3, 8]), value("w", [8, 5]), value("v", [5, 2])]
    weights = [weight("w", 8, 5), weight("v", 5, 2)]
    graph = saved(tmp_path, nodes, inputs, [value("y", [3, 2])], weights, opset=opset, ir=ir)
    feed = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    answers = list(joined(graph, feed))
    assert len(answers) == 4
    for answer in answers:
        np.testing.assert_allclose(answer["y"], run(graph, feed)["y"], rtol=1e-5)
    head, tail = cuts.split(graph, "t")
    assert list(head.inputs) == ["x"] and list(tail.inputs) == ["t"]


@pytest.mark.parametrize(("kind", "size"), [(T.INT16, 2), (T.UINT16, 2), (T.UINT32, 4), (T.UINT64, 8), (T.DOUBLE, 8)])
def test_every_type_has_its_own_size(tmp_path, kind, size):
    nodes = [helper.make_node("Cast", ["x"], ["h"], "to", to=kind), helper.make_node("Shape", ["h"], ["y"], "shape")]
    graph = saved(tmp_path, nodes, [value("x", [4, 256])], [value("y", [2], T.INT64)])
    assert {cut.name: cut.mib * 2**20 for cut in cuts.natural(graph)} == {"x": 4096, "h": 1024 * size, "y": 16}


def test_one_number_is_a_cut_and_a_tensor_of_no_known_size_is_none(tmp_path):
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Exp", ["s"], ["y"], "exp"),
    ]
    graph = saved(tmp_path, nodes, [value("x", [4, 8])], [value("y", [])])
    assert [(cut.name, cut.shape, cut.mib * 2**20) for cut in cuts.natural(graph)][1:] == [("s", (), 4), ("y", (), 4)]
    words = saved(
        tmp_path, [helper.make_node("Identity", ["x"], ["y"], "i")], *[[value(n, [3], T.STRING)] for n in "xy"]
    )
    with pytest.raises(BadInput, match="'x' holds string, so its bytes are unknown; cuts are found in networks of num"):
        cuts.natural(words)
