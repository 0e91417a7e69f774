"""Profiles: numbers that TensorRT's bindings would take wrongly, inputs whose values are shapes, and parser refusals."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import saved, value

from labsupport import build, environment, export
from labsupport.build import Profile
from labsupport.build import network as network_of
from labsupport.errors import BadInput, BuildError

needs_builder = pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT that builds here")


@pytest.mark.parametrize(
    "profile, field",
    [
        (Profile((1, 1), (2, 2.5), (4, 4)), "opt"),
        (Profile(1, 2, 4), "min"),
        (Profile((1, 1), (2, 2), (2**31, 4)), "max"),
        (Profile(("1", 1), (2, 2), (4, 4)), "min"),
        (Profile((1, 1), (2, 2), None), "max"),
        (Profile((1, True), (2, 2), (4, 4)), "min"),
        (Profile((1, 1), "22", (4, 4)), "opt"),
        (Profile((1, 1), (2, np.nan), (4, 4)), "opt"),
    ],
)
def test_a_profile_of_anything_but_whole_numbers_is_refused(profile, field):
    for given in ({"a": profile}, [{"a": profile}]):
        with pytest.raises(
            BadInput, match=rf"profile of 'a': {field}=.*; wanted is a tuple of whole numbers, one an axis"
        ):
            network_of.listed(given)
    fine = Profile((np.int64(1), 1), (2, 2), (4, 4))
    assert network_of.listed({"a": fine}) == [{"a": fine}] and network_of.listed(None) == []


@needs_builder
@pytest.mark.parametrize("low", [(-1, 1), (1, 0), (2, 1), (1, 1, 1), (1,)])
def test_a_profile_out_of_order_or_of_other_length_is_refused(low, tmp_path):
    nodes = [helper.make_node("Relu", ["a"], ["y"], "r")]
    graph = saved(tmp_path, nodes, [value("a", ["b", 1])], [value("y", ["b", 1])])
    with pytest.raises(
        BadInput, match=r"profile of 'a' is .*the network has \(-1, 1\) .-1 is free., and min ≤ opt ≤ max"
    ):
        build.engine(graph, profiles={"a": Profile(low, (1, 1), (4, 1))}, optimization_level=0, progress=False)


def reshaped(folder):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["h"], "r"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    inputs = [value("x", ["n", 4]), value("s", [2], T.INT64)]
    return saved(folder, nodes, inputs, [value("y", ["p", "q"])])


@needs_builder
def test_an_input_whose_values_are_a_shape_gets_a_range_of_values(tmp_path):
    graph, x = reshaped(tmp_path), Profile((1, 4), (2, 4), (4, 4))
    engine = build.engine(
        graph, profiles={"x": x, "s": Profile((-1, 1), (4, 2), (8, 4))}, optimization_level=0, progress=False
    )
    assert engine.precisions["fp32"] >= 1
    with pytest.raises(BadInput, match=r"the values of \['s'\] are a shape; say their ranges"):
        build.engine(graph, optimization_level=0, progress=False)
    with pytest.raises(
        BadInput, match=r"the inputs with free axes are \['x'\], and those whose values are shapes \['s'\]"
    ):
        build.engine(graph, profiles={"x": x}, optimization_level=0, progress=False)
    for wrong in (Profile((1,), (2,), (4,)), Profile((1, 4), (2, 2), (4, 4))):
        with pytest.raises(BadInput, match=r"profile of 's' is .*the network has 2 value\(s\)"):
            build.engine(graph, profiles={"x": x, "s": wrong}, optimization_level=0, progress=False)


def test_the_range_of_values_reaches_tensorrt_as_values():
    told = []
    profile = SimpleNamespace(
        set_shape=lambda *a: told.append(("shape", *a)), set_shape_input=lambda *a: told.append(("values", *a))
    )
    inputs = [
        SimpleNamespace(name="x", shape=(-1, 4), is_shape_tensor=False),
        SimpleNamespace(name="s", shape=(2,), is_shape_tensor=True),
    ]
    network = SimpleNamespace(num_inputs=2, get_input=inputs.__getitem__)
    builder = SimpleNamespace(create_optimization_profile=lambda: profile)
    config = SimpleNamespace(add_optimization_profile=lambda p: 0)
    ranges = {"x": Profile((1, 4), (2, 4), (3, 4)), "s": Profile((-1, 1), (5, 6), (7, 8))}
    network_of.add_profile(builder, config, network, ranges)
    assert told == [("shape", "x", (1, 4), (2, 4), (3, 4)), ("values", "s", [-1, 1], [5, 6], [7, 8])]


def image(folder, nodes, out, weights=(), opset=18):
    return saved(folder, nodes, [value("x", [1, 4, 8, 8])], [out], weights, opset=opset)


def antialias(folder):
    sizes = numpy_helper.from_array(np.array([1, 4, 5, 5]), "s")
    nodes = [helper.make_node("Resize", ["x", "", "", "s"], ["y"], "r", mode="linear", antialias=1)]
    return image(folder, nodes, value("y", [1, 4, 5, 5]), [sizes])


def text(folder):
    nodes = [helper.make_node("Identity", ["words"], ["y"], "i")]
    return saved(folder, nodes, [value("words", [1], T.STRING)], [value("y", [1], T.STRING)])


def nine_axes(folder):
    nodes = [helper.make_node("Relu", ["deep"], ["y"], "r")]
    return saved(folder, nodes, [value("deep", [1] * 9)], [value("y", [1] * 9)])


@pytest.mark.skipif(not environment.has("rtx"), reason="the words of one release's parser")
@pytest.mark.parametrize(
    "make, said",
    [
        (antialias, r"stopped at node r .Resize.: .*Antialiasing is not supported currently.*; rewrite that place"),
        (text, r"stopped at 'words' .string, 1 axes; TensorRT has tensors of numbers.*: .*data type"),
        (nine_axes, r"stopped at 'deep' .fp32, 9 axes; .*of at most 8 axes.: .*dimensions"),
    ],
)
def test_a_refusal_tells_the_parsers_own_reason_and_no_opset(make, said, tmp_path):
    with pytest.raises(BuildError, match=said) as caught:
        build.engine(make(tmp_path), precision="as-is", optimization_level=0, progress=False)
    assert "opset" not in str(caught.value)


def test_only_a_file_that_is_too_new_is_told_its_opset(tmp_path, monkeypatch):
    errors = [
        SimpleNamespace(desc=lambda: "Invalid Node - r", node=lambda: 0),
        SimpleNamespace(desc=lambda: "no such attribute.", node=lambda: 0),
    ]
    parser = SimpleNamespace(num_errors=2, get_error=errors.__getitem__, supports_operator=lambda op: True)
    graph = antialias(tmp_path)
    for newest, advice in (
        (17, r"the file is opset 18, and TensorRT .* reads opset 17 and below"),
        (18, "rewrite that place"),
    ):
        for generation in list(export.NEWEST_OPSET):
            monkeypatch.setitem(export.NEWEST_OPSET, generation, newest)
        monkeypatch.setattr(network_of.environment, "generation", lambda: "rtx")
        said = network_of._parser_complaint(parser, graph)
        assert re.search(r"net.onnx: the parser stopped at node r .Resize.: no such attribute; " + advice, said), said
    parser.supports_operator = lambda op: False
    assert "TensorRT has no operator Resize, wanted by node r (Resize)" in network_of._parser_complaint(parser, graph)
