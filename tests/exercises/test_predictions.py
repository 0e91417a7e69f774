"""Predictions: noted before the result, held against it, closed by it; and those of every lab."""

from __future__ import annotations

import importlib
import types

import pytest

from labsupport.exercises import base

LAB = "01_measuring"


class Guess(base.Prediction):
    question = "How many milliseconds?"
    quantity = "the median latency"
    unit = "ms"


@pytest.fixture
def no_file(monkeypatch):
    monkeypatch.delenv("LABSUPPORT_PROGRESS", raising=False)


def test_a_prediction_meets_its_measurement(no_file):
    guess = Guess()
    assert repr(guess.predict()).startswith("Not attempted yet: How many milliseconds?")
    assert "number is wanted" in guess.predict("fast")
    unguessed = guess.compare(4.0)
    assert unguessed.outcome == "not attempted" and "measured 4 ms" in unguessed.message
    guess = Guess()
    assert "can only be above 0" in guess.predict(0) and "can only be above 0" in guess.predict(-2)
    assert guess.predict(12) == "Noted: you predict 12 ms for the median latency."
    assert "within a factor of 1.2" in guess.compare(10).message and guess.compare(10).right
    assert "3 times too high" in guess.compare(4).message
    assert "2.5 times too low" in guess.compare(30).message
    assert "exactly" in guess.compare(12).message
    assert "The difference is 13 ms" in guess.compare(-1).message
    assert guess.compare(...).outcome == "not attempted"
    assert guess.hint().startswith("There is no hint")


def test_a_prediction_closes_when_the_result_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
    guess = Guess()
    guess.predict(30), guess.predict(12)  # before the result it may change
    assert not guess.compare(30).right
    assert "your prediction of 12 ms stays" in guess.predict(30)
    assert "your prediction of 12 ms stays" in Guess().predict(30)  # also after the kernel was started anew
    assert guess.predict(12).startswith("Noted") and not guess.compare(30).right


def test_a_guess_after_the_result_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
    guess = Guess()
    guess.compare(4.0)
    assert "not counted" in guess.predict(4)
    guess.predict(4)
    for each in (guess, Guess()):
        verdict = each.compare(4.0)
        assert verdict.outcome == "not attempted" and "does not count" in verdict.message


def test_a_count_may_be_none_at_all():
    class Count(base.Prediction):
        question, quantity, least = "How many?", "nodes", 0

    assert Count().predict(0).startswith("Noted") and "least possible" in Count().predict(-1)


def test_a_measurement_object_is_understood():
    guess, measured = Guess(), types.SimpleNamespace(as_metric=lambda: {"value": 10.0, "unit": "ms"})
    guess.predict(10)
    assert guess.compare(measured).right


def test_a_prediction_survives_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
    Guess().predict(5)
    assert "You predicted 5 ms" in Guess().compare(4).message


@pytest.mark.parametrize(
    "name, measured, near, far",
    [
        ("lab00.faster_than_pytorch", 3.0, 2, 20),
        ("lab01.clock_gap", 1000.0, 500, 50_000),
        ("lab02.parsed_layers", 21, 20, 7),
        ("lab03.kernels", 23, 23, 69),
        ("lab04.reuse", 9.0, 8, 20),
        ("lab05.wide_nodes", 8, 9, 29),
        ("lab06.speed", 1.38, 1.4, 2),
        ("lab07.zeros_speed", 1.0, 1.1, 10),
        ("lab08.gain", 5.0, 4, 1),
        ("lab09b.tail", 4.0, 3, 30),
        ("lab10.gain", 5.0, 4, 20),
        ("lab11.smaller_by", 3.2, 4, 2),
        ("lab11b.saturation", 78, 75, 120),
        ("lab12.speed_gain", 6.5, 5, 1.3),
        ("lab13.gain", 1.6, 1.5, 5),
        ("lab14.cache_gain", 14.0, 10, 256),
        ("lab14b.batch_gain", 1.9, 2, 8),
        ("lab15.growth", 2.025, 2, 10),
        ("labA.signs", 0, 0, 2),
        ("labB.compiles", 5, 5, 20),
    ],
)
def test_the_prediction_of_each_lab_meets_its_measurement(name, measured, near, far, no_file):
    lab, _, variable = name.partition(".")
    kind = type(getattr(importlib.import_module(f"labsupport.exercises.{lab}"), variable))
    early, wrong = kind(), kind()
    assert kind().compare(measured).outcome == "not attempted"
    assert repr(early.predict(...)).startswith("Not attempted yet")
    early.predict(near), wrong.predict(far)
    assert early.compare(measured).right
    assert wrong.compare(measured).outcome == "wrong"
