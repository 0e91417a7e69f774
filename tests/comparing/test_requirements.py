"""A gate in numbers: sealed, not to be bent, judged by code, with the reasons in words."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from labsupport.comparing import requirements
from labsupport.errors import BadInput

LIMITS = {"accuracy": ("at least", 0.95), "p99 ms": ("at most", 33.3)}
ROWS = {
    "slow": {"accuracy": 0.99, "p99 ms": 40.0, "p50 ms": 30.0},
    "good": {"accuracy": 0.96, "p99 ms": 20.0, "p50 ms": 9.0},
    "best": {"accuracy": 0.95, "p99 ms": 33.3, "p50 ms": 8.0},
    "blind": {"accuracy": float("nan"), "p99 ms": 1.0, "p50 ms": 1.0},
}


def test_the_seal_is_a_hash_that_anyone_can_compute():
    plain = sorted([name, side, float(limit)] for name, (side, limit) in LIMITS.items())
    by_hand = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
    assert requirements.declare(LIMITS).seal == by_hand
    assert requirements.declare(dict(reversed(LIMITS.items()))).seal == by_hand  # the order says nothing


@pytest.mark.parametrize(
    "changed",
    [
        {**LIMITS, "accuracy": ("at least", 0.9)},
        {**LIMITS, "accuracy": ("at most", 0.95)},
        {"accuracy": ("at least", 0.95)},
        {**LIMITS, "file MiB": ("at most", 8)},
    ],
)
def test_a_gate_changed_after_the_fact_is_refused(changed):
    seal = requirements.declare(LIMITS).seal
    assert requirements.declare(LIMITS, seal=seal).seal == seal
    with pytest.raises(BadInput, match=f"the gate was changed after the fact: it was sealed {seal}"):
        requirements.declare(changed, seal=seal)
    with pytest.raises(BadInput, match="the gate was changed after the fact"):
        requirements.decide(requirements.declare(changed), ROWS, by="p50 ms", seal=seal)


def test_a_contract_cannot_be_written_to():
    contract = requirements.declare(LIMITS)
    with pytest.raises(AttributeError):
        contract.requirements[0].limit = 0.5
    with pytest.raises(AttributeError):
        contract.requirements = ()


def test_the_lowest_of_those_that_pass_is_chosen():
    contract = requirements.declare(LIMITS)
    decision = requirements.decide(contract, ROWS, by="p50 ms", seal=contract.seal)
    assert (decision.chosen, decision.runner_up) == ("best", "good")
    assert set(decision.refused) == {"slow", "blind"}
    assert decision.refused["slow"] == ("p99 ms is 40, wanted at most 33.3",)
    assert decision.refused["blind"] == ("accuracy was not measured",)
    assert "chosen: best" in repr(decision) and "slow: refused" in repr(decision)


def test_nobody_or_one_alone():
    contract = requirements.declare(LIMITS)
    nobody = requirements.decide(contract, {"slow": ROWS["slow"]}, by="p50 ms", seal=contract.seal)
    assert nobody.chosen is None and "nobody passes" in repr(nobody)
    alone = requirements.decide(contract, {"good": ROWS["good"]}, by="p50 ms", seal=contract.seal)
    assert alone.runner_up is None and "nobody else passes" in repr(alone)


def test_a_miss_by_a_hair_shows_its_digits():
    contract = requirements.declare(LIMITS)
    assert contract.misses({"accuracy": 0.9499999, "p99 ms": 1})[0] == "accuracy is 0.9499999, wanted at least 0.95"
    assert contract.passes({"accuracy": np.float32(0.96), "p99 ms": np.float64(2)})


@pytest.mark.parametrize(
    "limits",
    [{}, [], None, {"a": 3}, {"a": ("over", 1)}, {"a": ("at least", "much")}, {"a": ("at least", float("nan"))},
     {"a": ("at least", True)}, {1: ("at least", 1)}, {"": ("at least", 1)}],
    ids=repr,
)  # fmt: skip
def test_what_is_no_gate_is_refused(limits):
    with pytest.raises(
        BadInput, match="a gate needs one requirement|is no requirement; wanted is|limits=.*; wanted a mapping"
    ):
        requirements.declare(limits)


def test_a_decision_needs_candidates_and_something_to_rank_by():
    contract = requirements.declare(LIMITS)
    with pytest.raises(BadInput, match="no candidates"):
        requirements.decide(contract, {}, by="p50 ms", seal=contract.seal)
    with pytest.raises(BadInput, match="'good' passes, and has no number in 'joules' to be ranked by"):
        requirements.decide(contract, ROWS, by="joules", seal=contract.seal)
    with pytest.raises(BadInput, match="changed after the fact"):
        requirements.decide(LIMITS, ROWS, by="p50 ms", seal=contract.seal)
