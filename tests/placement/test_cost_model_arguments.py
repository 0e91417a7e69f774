"""Cost models asked for with what does not fit: other networks' runtimes and cuts, orders, times that are none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import helper
from onnx_files import saved, value

from labsupport import fusion, runtimes
from labsupport.errors import BadInput
from labsupport.placement import cuts

RNG = np.random.default_rng(2)


def chain(folder, name, size, first="first"):
    """MatMul, Tanh, MatMul, Exp on (4, size)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], first),
        helper.make_node("Tanh", ["a"], ["b"], f"{first} tanh"),
        helper.make_node("MatMul", ["b", "w"], ["c"], f"{first} again"),
        helper.make_node("Exp", ["c"], ["y"], f"{first} exp"),
    ]
    weights = {"w": RNG.standard_normal((size, size)).astype(np.float32)}
    return saved(folder, nodes, [value("x", [4, size])], [value("y", [4, size])], weights, name=name)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    ours, other, named = chain(folder, "ours", 8), chain(folder, "other", 6), chain(folder, "named", 8, "else")
    return ours, other, named, [runtimes.OnnxRuntime(graph) for graph in (ours, other, named)]


def priced(networks, **changes):
    ours, _, _, runs = networks
    options = {"graph": ours, "first": runs[0], "second": runs[0], "cross_ms": lambda mib: 0.1, "runs": 2}
    options |= {name: change(networks) if callable(change) else change for name, change in changes.items()}
    x = {"x": np.ones((4, 8), np.float32)}
    return cuts.cost_model(
        options["graph"],
        options["first"],
        options["second"],
        x,
        options["cross_ms"],
        cuts=options.get("cuts"),
        runs=options["runs"],
    )


def test_a_path_and_names_will_do(networks):
    ours = networks[0]
    model = priced(networks, graph=str(ours.path), cuts=["x", "b", "y"])
    assert [cut.name for cut in model.cuts] == ["x", "b", "y"] and min(model.first_ms) > 0
    assert [cut.name for cut in cuts.natural(str(ours.path))] == ["x", "a", "b", "c", "y"]
    head, tail = cuts.split(ours.path, "b")
    assert (head.nodes, tail.nodes) == (2, 2)


def swapped(found):
    return [found[0], found[2], found[1], found[-1]]


WRONG = {  # what changes → what is said
    "no runtime": ({"first": None}, "first is a NoneType; give a runtime of the whole graph"),
    "a function": ({"second": lambda n: len}, "second is a builtin_function_or_method; give a runtime"),
    "another network's runtime": (
        {"second": lambda n: n[3][1]},
        r"second \(ort/all\) runs another network: ours.onnx has 'x' as \(4, 8\), the runtime as \(4, 6\)",
    ),
    "another network's cuts": ({"cuts": lambda n: cuts.natural(n[1])}, r"x 4×6, .* is no cut of ours.onnx"),
    "a name that is none": ({"cuts": ["x", "nobody", "y"]}, "'nobody' is no cut of ours.onnx; choose from"),
    "a cut out of place": (
        {"cuts": lambda n: [c if c.name != "b" else dataclasses.replace(c, after=1) for c in cuts.natural(n[0])]},
        "is no cut of ours.onnx",
    ),
    "another order": ({"cuts": lambda n: swapped(cuts.natural(n[0]))}, "'a' stands behind 'b'; give each cut once"),
    "a cut twice": ({"cuts": ["x", "a", "a", "y"]}, "'a' stands behind 'a'; give each cut once"),
    "no crossing": ({"cross_ms": None}, "cross_ms=None; wanted a function"),
    "a crossing that is no time": ({"cross_ms": lambda n: lambda mib: "1"}, "'1' ms is no time of a segment"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case, networks):
    changes, said = WRONG[case]
    with pytest.raises(BadInput, match=said):
        priced(networks, **changes)


@pytest.mark.parametrize("factors", [("2", 1), (None, 1), (1, "2"), (1, float("nan")), (float("inf"), 1), (0, 1)])
def test_only_numbers_slow_a_device(factors):
    model = cuts.CostModel((cuts.Cut("x", (1,), 0, 0), cuts.Cut("y", (1,), 0, 1)), (1.0,), (2.0,), (0.0, 0.5))
    with pytest.raises(BadInput, match="give factors above 0|(first|second)=.*; wanted a number"):
        model.slowed(*factors)
    assert model.slowed(3, 2).first_ms == (3.0,) and model.slowed(3, 2).second_ms == (4.0,)


def test_a_maker_that_is_none_is_named_before_anything_is_loaded(networks):
    loaded = []
    with pytest.raises(BadInput, match="make_second=None; wanted a function"):
        cuts.placed(networks[0], "b", loaded.append, None)
    assert not loaded


def test_a_runtime_s_x_ray_takes_its_own_graph_alone(networks):
    ours, _, named, runs = networks
    with pytest.raises(BadInput, match="ort/all runs ours.onnx, in which no node is named like 'else' of graph="):
        fusion.xray(runs[0], graph=named)
    assert fusion.xray(runs[0], graph=str(ours.path)).accounts().complete
    for call in (fusion.table, fusion.draw, fusion.time_bar):
        with pytest.raises(BadInput, match="a NoneType came; wanted is a plan"):
            call(None)
