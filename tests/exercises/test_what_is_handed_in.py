"""Whatever a learner hands in gets a verdict: no traceback, no hang, no type refused for its make alone."""

from __future__ import annotations

import _thread
import asyncio
import collections
import decimal
import fractions
import re
import signal
import threading
import time
import types

import numpy as np
import pytest

from labsupport.exercises import base

LAB = "01_measuring"


class Scale(base.Exercise):
    question, hints, answer = "Write a function that doubles.", ("Multiply.", "By two."), "Twice."

    def judge(self, function):
        if function(3) != 6:
            raise base.Wrong(f"doubling 3 gave {function(3)}.")


class Listed(base.Exercise):
    question, hints, answer = "Which names?", ("a", "b"), "c"

    def judge(self, names: list, table: dict, share: float) -> str:
        if (names, table, share) != (["a", "b"], {"a": 1}, 0.5):
            raise base.Wrong(f"{names}, {table}, {share}")
        return ""


class Unshown:
    def __repr__(self):
        raise ValueError("no text")


scale, listed = Scale(), Listed()


@pytest.fixture
def stop_button():
    """The handler that a kernel has: a library that an earlier test loaded may have put its own in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_stop_button_passes_through(stop_button):
    def interrupted(x):
        _thread.interrupt_main()
        time.sleep(2)

    with pytest.raises(KeyboardInterrupt):
        scale.check(interrupted)


def test_the_stop_button_ends_what_was_only_just_started(monkeypatch):
    """Python sees the button when `start` returns; the answer must not be called a second time afterwards."""
    start, calls, threads, called = threading.Thread.start, [], [], threading.Event()

    def pressed(thread):
        start(thread)
        threads.append(thread)
        called.wait(5)
        raise KeyboardInterrupt

    def slow(x):
        calls.append(x)
        called.set()
        time.sleep(0.5)
        return 7  # wrong, so the judge calls once more to say what came

    monkeypatch.setattr(threading.Thread, "start", pressed)
    with pytest.raises(KeyboardInterrupt):
        scale.check(slow)
    threads[0].join(5)
    assert calls == [3] and not threads[0].is_alive()


class Untold(Exception):
    def __str__(self):
        raise ValueError("no text either")


def raises(error):
    def learners(x):
        raise error

    return learners


@pytest.mark.parametrize(
    "error, pattern",
    [
        (asyncio.CancelledError(), "your `learners` raised CancelledError"),
        (GeneratorExit(), "raised"),
        (KeyboardInterrupt(), "raised"),
        (BaseException("bare"), "your `learners` raised BaseException: bare"),
        (Untold(), "your `learners` raised Untold"),
        (RuntimeError("x" * 1_000_000), "raised RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_becomes_a_verdict(error, pattern):
    verdict = scale.check(raises(error))
    assert verdict.outcome == "wrong" and len(verdict.message) <= base.LONGEST + 10
    assert re.search(pattern, verdict.message), verdict.message


def test_what_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(base, "CHECK_S", 0.3)

    def forever(x):
        while True:
            x += 1

    def stubborn(x):
        while True:
            try:
                time.sleep(0.01)
            except (ValueError, RuntimeError, OSError):
                continue

    for function in (forever, stubborn):
        verdict = scale.check(function)
        assert verdict.outcome == "wrong" and "has not come back after 0.3 s" in verdict.message
    assert "RecursionError" in scale.check(recursive).message
    assert "more than 10000 items" in listed.check(iter(int, 1), {}, 0.5).message


def recursive(x):
    return recursive(x) + 1


def test_lists_dicts_and_numbers_of_any_make_are_taken():
    table = {"a": 1}
    halves = (0.5, fractions.Fraction(1, 2), decimal.Decimal("0.5"), np.float16(0.5))
    for names in (["a", "b"], ("a", "b"), np.array(["a", "b"]), {"a": 0, "b": 1}.keys(), (n for n in "ab")):
        for mapping in (table, collections.UserDict(table), types.MappingProxyType(table)):
            assert listed.check(names if not isinstance(names, types.GeneratorType) else ["a", "b"], mapping, 0.5).right
    assert all(listed.check(["a", "b"], table, half).right for half in halves)
    for wrong in ("ab", table, 3, None, Unshown(), "x" * 10**7):
        assert listed.check(wrong, table, 0.5).outcome == "wrong"
    assert listed.check(["a", "b"], [("a", 1)], 0.5).outcome == "wrong"
    assert listed.check((each for each in ("a", ...)), table, 0.5).outcome == "not attempted"
    assert "finite" in listed.check(["a", "b"], table, 10**400).message


def finished_below_the_starters_line(x):
    ...
    return 2 * x


def finished_with_an_ellipsis_in_except(x):
    try:
        return 2 * x
    except TypeError:
        ...


def unfinished_and_wrong(x):
    ...
    return 3 * x


def test_a_line_that_the_starter_left_behind_does_not_matter_where_the_rest_is_right():
    assert scale.check(finished_below_the_starters_line).right
    assert scale.check(finished_with_an_ellipsis_in_except).right
    verdict = scale.check(unfinished_and_wrong)
    assert verdict.outcome == "not attempted" and "doubling 3 gave 9" in verdict.message


def test_one_answer_may_come_under_any_name():
    assert scale.check(pixels=lambda x: 2 * x).right
