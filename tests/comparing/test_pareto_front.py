"""The front holds exactly what nothing else beats, the gate is arithmetic, and the drawing says in words what it shows."""

from __future__ import annotations

import re

import pytest

from labsupport import comparing
from labsupport.benchmarking.measurements import Latency
from labsupport.errors import BadInput


def row(name, accuracy, ms, *, clock="host", batch=32, machine="here"):
    samples = tuple(ms * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02))
    return {"latency": Latency(name, clock, samples, batch, machine), "accuracy": accuracy}


ROWS = [
    row("teacher", 0.95, 4.0),
    row("student", 0.80, 1.0),
    row("taught", 0.90, 1.0),
    row("slow", 0.90, 2.0),
    row("int8", 0.89, 0.5),
]


def test_the_front_is_what_nothing_beats_fastest_first():
    assert comparing.front(ROWS) == ("int8", "taught", "teacher")
    assert comparing.front(ROWS[:1]) == ("teacher",)
    twins = [row("a", 0.9, 1.0), row("b", 0.9, 1.0)]
    assert comparing.front(twins) == ("a", "b")  # equals do not beat each other


def test_the_gate_beside_its_reference():
    gate = comparing.Gate(accuracy_share=0.9, latency_share=0.5)
    limits = gate.beside(ROWS[0])
    assert limits.accuracy == pytest.approx(0.855) and limits.latency_ms == pytest.approx(2.0)
    assert [limits.passes(each) for each in ROWS] == [False, False, True, True, True]
    assert limits.misses(ROWS[0]) == ("latency",) and limits.misses(ROWS[1]) == ("accuracy",)
    assert limits.misses(row("worst", 0.1, 9.0)) == ("accuracy", "latency")
    assert repr(gate) == "Gate(at least 90% of the reference's accuracy in at most 50% of its latency)"
    assert repr(limits) == "Limits(accuracy ≥ 0.855, latency ≤ 2 ms; reference teacher)"


def test_the_drawing_says_what_it_shows():
    limits = comparing.Gate(0.9, 0.5).beside(ROWS[0])
    drawing = comparing.pareto(ROWS, limits=limits, title="As deployed")
    assert drawing.text.startswith(
        "As deployed: accuracy against latency. teacher: accuracy 0.950 in 4 ms, on the front, misses the "
        "gate by latency; student: accuracy 0.800 in 1 ms, misses the gate by accuracy; taught: "
    )
    assert "int8: accuracy 0.890 in 0.5 ms, on the front, passes the gate." in drawing.text
    assert drawing.text.endswith("The gate: accuracy at least 0.855 in at most 2 ms.")
    axes = drawing.figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["teacher (front)", "student", "taught (front)", "slow", "int8 (front)"]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "median ms, host clock, batch 32 (logarithmic)"
    assert 1000 < len(drawing._repr_png_()) < 95_000


def test_without_a_gate_nothing_passes_or_misses():
    assert "gate" not in comparing.pareto(ROWS).text


@pytest.mark.parametrize("given", [0, -0.5, 1.5, True, "0.9", None])
def test_a_gate_that_is_no_share_is_refused(given):
    with pytest.raises(BadInput, match="accuracy_share=.*wanted a (share of the reference's|number)"):
        comparing.Gate(given, 0.5)
    with pytest.raises(BadInput, match="latency_share="):
        comparing.Gate(0.9, given)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            [{"latency": 1.0, "accuracy": 0.9}],
            "row 0 has float as its latency; wanted the result of benchmarking.latency",
        ),
        ([ROWS[0], "row"], "row 1 is a str; a row is a mapping"),
        ([{"latency": ROWS[0]["latency"]}], "shows a speed but has no error or accuracy"),
        ([ROWS[0] | {"accuracy": 95.0}], r"has the accuracy 95\.0; wanted a share from 0 to 1"),
        ([ROWS[0] | {"accuracy": True}], "accuracy"),
        ([row("still", 0.9, 0.0)], "row 0 .still. took 0 ms by the clock"),
        ([ROWS[0], row("b", 0.9, 1.0, machine="there")], "row 0 ran on here, row 1 on there"),
        ([ROWS[0], row("b", 0.9, 1.0, clock="device")], r"measured at different clocks \(device, host\)"),
        ([ROWS[0], row("b", 0.9, 1.0, batch=1)], r"measured at different batch sizes \(1, 32\)"),
        ([ROWS[0], ROWS[0]], "two rows are called 'teacher'"),
        ([], "no rows to show"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows, sentence):
    with pytest.raises(BadInput, match=sentence):
        comparing.front(rows)
    with pytest.raises(BadInput):
        comparing.pareto(rows)


def test_markers_tell_points_apart_without_color():
    from labsupport.comparing import pareto_front as pareto

    assert len(set(pareto.MARKERS)) == len(pareto.MARKERS) >= 8 and re.fullmatch(r"\S+", "".join(pareto.MARKERS))


def test_a_gate_may_ask_for_all_of_the_reference():
    limits = comparing.Gate(1, 1.0).beside(ROWS[0])
    assert limits.passes(ROWS[0]) and limits.accuracy == ROWS[0]["accuracy"]
    assert limits.latency_ms == ROWS[0]["latency"].median_ms
