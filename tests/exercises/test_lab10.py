"""The checkers of lab 10: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from labsupport import export, plugins, runtimes
from labsupport.errors import BadInput
from labsupport.exercises import lab10, lab10_puzzles
from labsupport.exercises.base import assert_checker, assert_complete, of, run_solution
from labsupport.plugins import examination


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab10, ["gain", "shapes", "types", "rewrite", "odd_size", "road"])


@pytest.mark.parametrize(
    "exercise", [each for each in of(lab10).values() if each.solution_source], ids=lambda each: each.name
)
def test_the_solution_runs_as_a_cell(exercise):
    assert run_solution(exercise, {}).right


def right_shape(x, gate, weight):
    if len(x) < 1 or tuple(gate) != tuple(x) or tuple(weight) != tuple(x)[-1:]:
        raise ValueError("no fit")
    return tuple(x)


def broadcasting(x, gate, weight):
    return np.broadcast_shapes(x, gate, weight)


def no_look_at_weight(x, gate, weight):
    if tuple(x) != tuple(gate):
        raise ValueError("gate")
    return x


def asks_axis_by_axis(x, gate, weight):
    (*rows, columns), checks = x, []
    checks += [a == b for a, b in zip(x, gate)] + [len(x) == len(gate), list(weight) == [columns]]
    if not all(checks):
        raise BadInput("no fit")  # a LabError that is a ValueError, as labsupport raises
    return [*rows, columns]


def test_shapes():
    assert_checker(
        lab10.shapes,
        wrong=[
            ((4, 8), "hand in the function itself"),
            (lambda x, gate, weight: None, "forget its `return`"),
            (lambda x, gate, weight: (*weight,), "y is shaped as x"),
            (lambda x, gate, weight: itertools.cycle(x), "goes on"),
            (lambda x, gate, weight: tuple(x), "gate has other rows"),
            (no_look_at_weight, "weight is too short"),
            (broadcasting, "raised|gave|shaped"),
            (lambda x, gate, weight: right_shape(x, gate, (x[-1],)), "weight is too short"),
        ],
        right=[right_shape, asks_axis_by_axis],
        namespace={},
    )


def right_types(position, types, layouts):
    if layouts[position] != "linear":
        return False
    return types[position] == types[0] if position else types[0] in ("float32", "float16")


def twin(position, types, layouts):
    seen, kinds = set(types[: position + 1]), {"float32", "float16"}
    return (
        layouts[position] == "linear"
        and len({types[0], types[position]}) == 1
        and bool(seen & kinds)
        and types[0] in kinds
    )


def test_types():
    assert_checker(
        lab10.types,
        wrong=[
            (True, "hand in the function itself"),
            (lambda p, t, f: "yes" if right_types(p, t, f) else "no", "wanted is True or False"),
            (lambda p, t, f: str(right_types(p, t, f)), "wanted is True or False"),
            (lambda p, t, f: None, "`return`"),
            (lambda p, t, f: len(set(t)) == 1 and f[p] == "linear", "not settled yet"),
            (lambda p, t, f: t[p] == t[0] and t[0] in ("float32", "float16"), "accepted as chw4"),
            (lambda p, t, f: f[p] == "linear" and t[p] in ("float32", "float16"), "beside an x of"),
            (lambda p, t, f: f[p] == "linear" and t[p] == t[0], "for which there is no kernel"),
            (lambda p, t, f: f[p] == "linear" and t[p] == t[0] == "float32", "was refused, and the kernel takes it"),
        ],
        right=[right_types, twin, lambda p, t, f: np.bool_(twin(p, t, f))],
        namespace={},
    )


def rewritten(attributes=None, *, swap=False, factor_only=False, linear=False):
    def make(surgeon, node):
        x, gate = node.inputs[::-1] if swap else node.inputs
        attrs = dict(node.attrs) if attributes is None else attributes
        if linear:

            def constant(name):
                return np.array(attrs[name], np.float32)

            slope = surgeon.layer(op="Mul", inputs=[gate, constant("alpha")], outputs=["slope"])[0]
            factor = surgeon.layer(op="Add", inputs=[slope, constant("beta")], outputs=["factor"])[0]
            if linear == "cut":
                factor = surgeon.layer(
                    op="Clip", inputs=[factor, np.array(0, np.float32), np.array(1, np.float32)], outputs=["cut"]
                )[0]
        else:
            factor = surgeon.layer(op="HardSigmoid", inputs=[gate], outputs=["factor"], attrs=attrs)[0]
        return factor if factor_only else surgeon.layer(op="Mul", inputs=[x, factor], outputs=["product"])[0]

    return plugins.rewritten(lab10_puzzles.puzzle(), "HardGate", make)


def fixed_rows():
    model = rewritten().model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    return export.save(model, export.scratch_folder() / "fixed.onnx")


def of_three_rows():
    """The number of rows stands in a node, where no check of the feed finds it."""
    from onnx import helper, numpy_helper

    model = rewritten().model()
    last = model.graph.node[-1]
    last.output[0] = "narrow"
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 8], np.int64), "three"))
    model.graph.node.append(helper.make_node("Reshape", ["narrow", "three"], ["y"]))
    return export.save(model, export.scratch_folder() / "three.onnx")


def other_names():
    model = rewritten().model()
    model.graph.input[0].name = "a"
    for node in model.graph.node:
        node.input[:] = ["a" if name == "x" else name for name in node.input]
    return export.save(model, export.scratch_folder() / "named.onnx")


def test_rewrite():
    assert_checker(
        lab10.rewrite,
        wrong=[
            (lab10_puzzles.puzzle(), "HardGate is still in the graph"),
            (7, "hand in a graph"),
            ("nothing.onnx", "no such file"),
            (rewritten({}), "HardSigmoid's own default"),
            (rewritten({"alpha": 1 / 6, "beta": 0.5}), "alpha 1/6"),
            (rewritten(swap=True), "changed places"),
            (rewritten(factor_only=True), "the factor alone"),
            (rewritten(linear=True), "not cut at 0 and 1"),
            (rewritten({"alpha": 3.0, "beta": 0.1}), "computes something else"),
            (fixed_rows(), "does not take [0-9]+ rows"),
            (of_three_rows(), "does not take [0-9]+ rows; .* ONNX Runtime says"),
            (other_names(), "callers know x and gate"),
        ],
        right=[rewritten(), rewritten(linear="cut"), rewritten().path],
        namespace={},
    )


def test_the_puzzle_is_what_the_question_says():
    assert plugins.unknown_operators(lab10_puzzles.puzzle())[0].op_type == "HardGate"
    with pytest.raises(BadInput, match="HardGate"):
        runtimes.OnnxRuntime(lab10_puzzles.puzzle())


def test_odd_size():
    assert_checker(
        lab10.odd_size,
        wrong=[
            (1024, "Every power of two passes"),
            (1000, "at 1000 columns it is right"),
            (2048, "at 2048 columns it is right"),
            (1026, "there is a smaller number"),
            (0, "is no row length"),
            (2**40, "is no row length"),
            ("1025", "a number is wanted"),
        ],
        right=[1025, np.int64(1025)],
        namespace={},
    )


def test_the_mystery_is_right_up_to_1024_and_at_its_multiples():
    right = examination.examine(lab10_puzzles.mystery, columns=[1, 33, 1000, 1023, 1024, 2048, 3072])
    assert right.passed, right.wrong
    assert examination.examine(lab10_puzzles.mystery, columns=[1025, 1500, 2049]).wrong_columns == (1025, 1500, 2049)


def roads(**changes):
    return {"laptop": "rewrite", "parser": "layers", "tryout": "kernel between engines", "server": "plugin", **changes}


def test_road():
    wrong = [
        ({}, "lacks"),
        (roads(cloud="plugin"), "are no situations"),
        (roads(laptop="magic"), "is no road"),
        ("plugin", "dict"),
    ]
    for situation, right in roads().items():
        wrong += [(roads(**{situation: road}), f"^{situation}: ") for road in lab10.ROADS if road != right]
    assert_checker(lab10.road, wrong=wrong, right=[roads(), dict(reversed(roads().items()))], namespace={})
