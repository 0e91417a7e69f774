"""The checkers of lab 16: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport import export, precision, runtimes
from labsupport.exercises import lab16
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.precision import layerwise

NAMES = {"np": np, "precision": precision, "layerwise": layerwise}


def test_the_lab_holds_five_exercises_with_hints_and_solutions():
    assert_complete(lab16, ["fastest_change", "choose", "broken_node", "calibration_data", "objection"])


def test_the_prediction():
    lab16.fastest_change.predict(1.2)
    assert lab16.fastest_change.compare(1.1).right


def good(changes, budget_ms, keep):
    return [c for c in changes if not c["unproven"] and c["median_ms"] <= budget_ms and c["error"] <= 1 - keep]


def cheapest(changes, budget_ms, keep):
    return min(good(changes, budget_ms, keep), key=lambda c: c["effort"], default={"name": None})["name"]


def in_order(changes, budget_ms, keep):
    for each in sorted(changes, key=lambda c: c["effort"]):
        if each["median_ms"] > budget_ms or each["error"] > 1 - keep or each["unproven"]:
            continue
        return each["name"]


def fastest(changes, budget_ms, keep):
    return min(good(changes, budget_ms, keep), key=lambda c: c["median_ms"], default={"name": None})["name"]


def careless(changes, budget_ms, keep):
    fits = [c for c in changes if c["median_ms"] <= budget_ms]
    return min(fits, key=lambda c: c["effort"])["name"] if fits else None


def believing(changes, budget_ms, keep):
    fits = [c for c in changes if c["median_ms"] <= budget_ms and c["error"] <= 1 - keep]
    return min(fits, key=lambda c: c["effort"])["name"] if fits else None


def slow(changes, budget_ms, keep):
    return min((c for c in changes if c["error"] <= 1 - keep and not c["unproven"]), key=lambda c: c["effort"])["name"]


def test_choose():
    assert_checker(
        lab16.choose,
        wrong=[
            (fastest, "is good enough, too, and takes less effort"),
            (careless, "It errs by"),
            (believing, "Its time is not its own: computed in FP32 here"),
            (slow, "It takes 10 ms"),
            (lambda changes, budget_ms, keep: None, "is good enough"),
            (lambda changes, budget_ms, keep: "pruning", "That is no name of these changes"),
            (lambda changes, budget_ms, keep: changes[0], "That is no name of these changes"),
            (lambda changes: "INT8", "argument"),
            ("do nothing", "hand in the function itself"),
            (lambda changes, budget_ms, keep: 1 / 0, "ZeroDivisionError"),
        ],
        right=[cheapest, in_order],
        namespace=NAMES,
    )


@pytest.fixture(scope="module")
def notes():
    return lab16.notes_graph()


def test_broken_node(notes):
    graph, feed = notes
    nodes = graph.model().graph.node
    names, kinds = [node.name for node in nodes], [node.op_type for node in nodes]
    last = kinds.index("Log")
    needed, ancestors = {nodes[last].name}, set(nodes[last].input)
    for node in reversed(nodes):
        if ancestors & set(node.output):
            needed.add(node.name)
            ancestors |= set(node.input)
    assert_checker(
        lab16.broken_node,
        wrong=[
            (precision.cast(graph), "Where were the digits lost"),
            (precision.cast(graph, keep_wide=[names[last]]), "on new chords it errs by .*; 1% is allowed"),
            (precision.cast(graph, keep_wide=layerwise.scan(graph, feed).keep_wide), "on new chords it errs by"),
            (graph, "no node computes in FP16; cast the graph first"),
            (precision.cast(graph, keep_wide=names[:-10]), "nodes are FP16; 15 can be"),
            (precision.cast(lab16.text_graph()), "this is another network"),
            (precision.cast(graph, keep_io=False), "this is another network"),
            (names[: last + 1], "hand in the graph that precision.cast returns"),
            (None, "graph is None"),
        ],
        right=[precision.cast(graph, keep_wide=names[: last + 1]), precision.cast(graph, keep_wide=needed)],
        namespace=NAMES,
    )


def test_calibration_data():
    lines, directions = lab16.text_lines(32, seed=1)
    rng = np.random.default_rng(0)
    assert_checker(
        lab16.calibration_data,
        wrong=[
            (rng.standard_normal(lines.shape).astype(np.float32), "the quantized network errs by .*; 0.16 is allowed"),
            ((lines + 1) * 127.5, "in the same range of values"),
            ((lines + 1) / 2, "in the same range of values"),
            (lines * np.float32(0.05), "in the same range of values"),
            (rng.random(lines.shape).astype(np.float32), "what it reads in service"),
            (np.zeros_like(lines), "the calibration data are constant"),
            (np.concatenate([lines[:15], lines[:1]]), "only 15 of 16 samples differ; 16 different ones are wanted"),
            (lines[:4], "4 samples came; 16 to 128 are wanted"),
            (lines.transpose(0, 2, 3, 1).copy(), r"that is float32 \(32, 48, 192, 3\)"),
            (lines.astype(np.float64), "that is float64"),
            (lines * np.float32("nan"), "NaN"),
            (list(lines), "wanted is an array float32"),
            (directions, "that is int64"),
        ],
        right=[lines, lab16.text_lines(48, seed=9)[0]],
        namespace=NAMES,
    )


def asked(change, given, keep):
    if not change["rounds"]:
        return "estimate"
    if change["error"] > 1 - keep:
        return "answers"
    if change["unproven"]:
        return "not its time"
    beyond = np.percentile(change["rounds"], 25) > np.percentile(given["rounds"], 75)
    return "" if beyond else "noise"


def nested(change, given, keep):
    """The same as one expression."""
    rounds = change["rounds"]
    faults = {
        "estimate": not rounds,
        "answers": change["error"] > 1 - keep,
        "not its time": bool(change["unproven"]),
        "noise": bool(rounds) and np.quantile(rounds, 0.25) <= np.quantile(given["rounds"], 0.75),
    }
    return next((name for name, holds in faults.items() if holds), "")


def by_median(change, given, keep):
    answer = asked(change, given, keep)
    return ("" if np.median(change["rounds"]) > 1 else "noise") if answer in ("", "noise") else answer


def other_order(change, given, keep):
    return "not its time" if change["unproven"] else asked(change, given, keep)


def answers_first(change, given, keep):
    return "answers" if change["error"] > 1 - keep else asked(change, given, keep)


def not_its_time_first(change, given, keep):
    answer = asked(change, given, keep)
    return "not its time" if change["unproven"] and answer == "estimate" else answer


def test_objection():
    assert_checker(
        lab16.objection,
        wrong=[
            (by_median, "you say '', and 'noise' is right"),
            (other_order, "you say 'not its time', and '(answers|estimate)' is right"),
            (answers_first, "you say 'answers', and 'estimate' is right"),
            (not_its_time_first, "you say 'not its time', and 'estimate' is right"),
            (lambda change, given, keep: "", "is right"),
            (lambda change, given, keep: "noise", "is right"),
            (lambda change, given, keep: None, "wanted is one of"),
            (lambda change, given, keep: "too slow", "wanted is one of"),
            (lambda change, given: "", "argument"),
            (lambda change, given, keep: np.percentile(change["rounds"], 25) and "", "IndexError|is right"),
            ("noise", "hand in the function itself"),
        ],
        right=[asked, nested],
        namespace=NAMES,
    )


def test_the_drawn_changes_hold_every_objection_and_every_choice():
    drawn = [(rows[0], row) for rows in map(lab16.changes, range(80)) for row in rows[1:]]
    assert {asked(row, given, 0.99) for given, row in drawn} == set(lab16.OBJECTIONS)
    chosen = {cheapest(lab16.changes(seed), (3.5, 7.0, 11.0)[seed % 3], (0.9, 0.99)[seed % 2]) for seed in range(60)}
    assert {None, "do nothing", "two threads", "FP16", "INT8"} <= chosen


def test_the_networks_do_their_work_on_the_material():
    lines, directions = lab16.text_lines(32, seed=8)
    with runtimes.OnnxRuntime(lab16.TEXT) as run:
        (scores,) = run(lines).values()
    assert (scores.argmax(axis=1) == directions).mean() >= 0.9
    assert lines.dtype == np.float32 and -1 <= lines.min() < lines.max() <= 1
    with runtimes.OnnxRuntime(lab16.NOTES) as run:
        for wave, keys in zip(lab16.chords(2, seed=6), lab16.keys_of(2, seed=6), strict=True):
            heard = run(wave)[lab16.PITCHES][0].mean(axis=0)
            assert set(np.argsort(-heard)[:3] + lab16.LOWEST) == set(keys)


def test_the_files_are_those_whose_checksums_stand_in_the_readme():
    readme = (lab16.NETWORKS.parent / "README.md").read_text(encoding="utf-8")
    for path in (lab16.TEXT, lab16.NOTES):
        assert export.load(path).sha256 in readme
    assert (lab16.NETWORKS / "LICENSE-Apache-2.0.txt").is_file()
