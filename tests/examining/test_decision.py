"""The decision by code: the cheapest change that is enough, and doing nothing where none is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labsupport import examining
from labsupport.errors import BadInput
from labsupport.examining import Candidate, Finding, Limits, Row, page


def change(name, effort, ms, *, error=0.0, spread=0.01, accuracy=None, base_ms=10.0):
    samples = tuple(ms * (1 + spread * step) for step in (-1, 0, 0, 1))
    ratios = tuple(base_ms / sample for sample in samples)
    return Candidate(name, effort, samples, ratios, error, 1.0, f"# {name}", "05", "a machine", accuracy)


NOTHING = change("do nothing", 0, 10.0)
THREADS, HALF, INT8 = change("threads", 1, 8.0), change("FP16", 3, 5.0, error=1e-3), change("INT8", 4, 3.0, error=0.05)


def test_without_a_budget_the_fastest_that_keeps_the_answers():
    verdict = examining.decide([NOTHING, THREADS, HALF, INT8])
    assert verdict.chosen.name == "FP16"
    assert verdict.refused == {"INT8": "error 5.0e-02, allowed 1.0e-02"}


def test_with_a_budget_the_cheapest_that_keeps_it():
    verdict = examining.decide([INT8, HALF, THREADS, NOTHING], Limits(budget_ms=9))
    assert verdict.chosen.name == "threads"
    assert verdict.refused["do nothing"] == "10 ms, wanted 9 at most"


def test_doing_nothing_is_chosen_where_it_is_enough():
    assert examining.decide([NOTHING, THREADS, HALF], Limits(budget_ms=12)).chosen.name == "do nothing"


def test_doing_nothing_is_chosen_where_no_gain_is_earned():
    noisy = change("noisy", 2, 9.0, spread=0.3)
    verdict = examining.decide([NOTHING, noisy, change("slower", 3, 12.0)])
    assert verdict.chosen.name == "do nothing"
    assert "no gain" in verdict.refused["noisy"] and "no gain" in verdict.refused["slower"]


def test_a_gain_must_leave_the_noise_of_the_machine_behind():
    restless = change("do nothing", 0, 10.0, spread=0.5)
    assert examining.decide([restless, THREADS]).chosen.name == "do nothing"


def test_nothing_is_enough():
    verdict = examining.decide([NOTHING, HALF, INT8], Limits(budget_ms=4))
    assert verdict.chosen is None and verdict.why == "FP16 comes nearest with 5 ms of 4"
    assert repr(verdict).startswith("nothing here is enough: FP16 comes nearest")


def test_with_labels_accuracy_decides_and_the_error_does_not():
    base, int8 = change("do nothing", 0, 10.0, accuracy=0.9), change("INT8", 4, 3.0, error=0.2, accuracy=0.896)
    assert examining.decide([base, int8]).chosen.name == "INT8"
    worse = change("INT8", 4, 3.0, error=0.001, accuracy=0.8)
    assert examining.decide([base, worse]).refused["INT8"] == "accuracy 0.800, wanted 0.891"


def test_an_answer_of_nan_never_passes():
    assert examining.decide([NOTHING, change("FP16", 3, 1.0, error=float("inf"))]).chosen.name == "do nothing"


def test_a_time_that_is_not_the_change_s_is_no_reason():
    import dataclasses

    fp16 = dataclasses.replace(HALF, unproven="computed in FP32 here")
    verdict = examining.decide([NOTHING, fp16])
    assert verdict.chosen.name == "do nothing" and verdict.refused["FP16"] == "computed in FP32 here"


def test_the_front_and_the_table():
    every = [NOTHING, THREADS, HALF, INT8, change("worse", 2, 11.0, error=0.1)]
    assert examining.decide(every).front == ("INT8", "FP16", "threads")
    table = examining.table(every)
    assert list(table["change"]) == ["do nothing", "threads", "worse", "FP16", "INT8"]
    assert list(table["gate"])[0] == "passes" and "error" in list(table["gate"])[2]


def test_without_the_network_as_given_there_is_no_decision():
    with pytest.raises(BadInput, match="the network as given was not measured"):
        examining.decide([HALF])


def test_evidence_has_three_kinds_only():
    with pytest.raises(BadInput, match="choose one of .'read', 'measured', 'estimate'"):
        Finding("it is fast", "felt", "01")


def test_a_row_survives_its_journal():
    row = Row("baseline", [Finding("a", "read", "02")], [HALF], [{"data": "", "words": "w"}], ["<table>"], seconds=1.5)
    assert Row.from_plain(row.plain()) == row
    assert "left out: no time" in repr(Row("memory", left_out="no time"))


def test_the_page_draws_no_front_of_a_single_point():
    case = SimpleNamespace(limits=examining.Limits(), samples=SimpleNamespace(given=True, labels=None))

    def kinds(*changes):
        rows = {"baseline": Row("baseline", candidates=list(changes))}
        return [part["kind"] for part in page._decision(case, rows, examining.decide(changes))]

    assert "picture" not in kinds(NOTHING) and kinds(NOTHING, HALF).count("picture") == 1
