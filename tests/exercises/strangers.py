"""Answers that nobody had foreseen, for the checkers of labs 00 to 10, and what all of them get."""

from __future__ import annotations

import asyncio
import decimal
import enum
import fractions
import importlib
import itertools
import threading
from typing import Any

import numpy as np
import torch


class Several(tuple):
    """Several answers of one check, as `check(a, b)` takes them."""


class Hostile:
    """Fails at whatever it is asked."""

    def __repr__(self):
        raise RuntimeError("no text")

    def __getattr__(self, name):
        raise ValueError(f"no {name[:3]}")

    def __eq__(self, other):
        raise TypeError("not comparable")

    __hash__ = None


class Count(enum.IntEnum):
    """A number with a name."""

    ONE = 1


class Odd(BaseException):
    """An error that `except Exception` does not catch."""

    def __str__(self):
        raise KeyError("no text either")


def stops(*_, **__):
    raise asyncio.CancelledError


def odd(*_, **__):
    raise Odd


def leaves(*_, **__):
    raise SystemExit(3)


def deep(*arguments, **__):
    return deep(*arguments)


def endless(*_, **__):
    return itertools.count()


LET_GO = (
    threading.Event()
)  # ends what `never` does: the thread that a checker leaves behind would slow every later test


def never(*_, **__):
    while not LET_GO.is_set():
        pass


async def later(*_, **__):
    return 1


# what no exercise takes, whatever it asks for
NOTHING = [Hostile(), "x" * 3_000_000, 10**5000, itertools.count(), float("-inf"), b"\xff", Hostile, len, print]
NOT_ONE_IS_A_FUNCTION = [stops, odd, leaves, deep, endless, later]


def numbers(value: Any) -> list:
    """One number in all makes."""
    makes = [fractions.Fraction, decimal.Decimal, np.float64, np.array, torch.tensor]
    found = [make(value) for make in makes]
    if value == int(value):
        found += [np.int32(value), torch.tensor(int(value)), type("Mine", (int,), {})(value)]
    return [*found, Several([value])]


def judged(name: str, answer: Any):
    """The verdict on an answer to the exercise "lab03.gain"."""
    lab, _, exercise = name.partition(".")
    check = getattr(importlib.import_module(f"labsupport.exercises.{lab}"), exercise).check
    if isinstance(answer, Several):
        return check(*answer)
    return check(answer)


def verdicts(name: str, wrong: list, right: list) -> list[tuple[str, int, Any, Any]]:
    """Assert that wrong answers, hostile ones among them, are never right and right ones are; what failed, if asked."""
    failed = []
    for answer in [*wrong, *NOTHING, *NOT_ONE_IS_A_FUNCTION]:
        verdict = judged(name, answer)
        if verdict.right or verdict.outcome == "not attempted":
            failed.append((name, "accepted", answer, verdict))
    for answer in right:
        verdict = judged(name, answer)
        if not verdict.right:
            failed.append((name, "refused", answer, verdict))
    assert not failed, "\n".join(
        f"{kind}: {str(answer)[:80]} → {str(verdict)[:300]}" for _, kind, answer, verdict in failed
    )
    return failed
