"""A speed measured on a machine that others use too is not judged."""

from __future__ import annotations

import os

import pytest

from labsupport.benchmarking.measurements import Latency, Ratio
from labsupport.exercises import lab00, shared_machine
from labsupport.exercises.answers import NotAttempted


def latency(samples, name="onnxruntime", batch=500):
    return Latency(name, "host", tuple(samples), batch, "a shared machine")


RESTLESS = [1.0, 1.1, 4.0, 8.0] * 10


def test_the_exercise_on_a_full_batch_waits_for_a_quiet_machine(monkeypatch):
    monkeypatch.setattr(lab00.Watched, "judge", lambda self, measured, **wanted: None)
    judged = [lab00.full_batch.check(lambda run, one=one: latency(one), lambda images: images)
              for one in (RESTLESS, [2.0, 2.1] * 20)]  # fmt: skip
    assert judged[0].outcome == "not attempted" and "too busy to judge a speed" in judged[0].message
    assert judged[1].right


def test_predictions_wait_for_a_quiet_machine():
    lab00.faster_than_pytorch.predict(2)
    assert lab00.faster_than_pytorch.compare(Ratio((0.5, 1.0, 1.1, 4.0, 9.0), "a", "b")).outcome == "not attempted"
    assert lab00.faster_than_pytorch.compare(Ratio((1.9, 2.0, 2.1, 2.0), "a", "b")).right


def test_the_load_is_named_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (30.2, 9.0, 9.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(NotAttempted, match="and 30 processes want its 4 cores"):
        shared_machine.judge_quiet(latency(RESTLESS))
    monkeypatch.delattr(os, "getloadavg")
    with pytest.raises(NotAttempted, match="of their median: this machine"):
        shared_machine.judge_quiet(latency(RESTLESS))


@pytest.mark.parametrize("value", [3.5, "fast", None, [1, 2]])
def test_plain_values_have_no_spread(value):
    shared_machine.judge_quiet(value)
