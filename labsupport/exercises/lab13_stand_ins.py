"""What the checkers of lab 13 draw and compare: chains of operators, sessions of ONNX Runtime, a module with an `if`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong


def chain(draw) -> tuple[list[str], set[str], int]:
    names = ["conv", "relu", "add", "matmul", "fft", "unique", "det", "softmax"]
    operators = [draw.choice(names) for _ in range(draw.randint(1, 14))]
    return operators, set(draw.sample(names, draw.randint(3, 7))), draw.randint(1, 4)


def staying(operators, supported, least) -> list[int]:
    places, block = [], []
    for place, name in [*enumerate(operators), (len(operators), None)]:
        if name in supported:
            block.append(place)
            continue
        places += block if len(block) < least else []
        places += [place] if name is not None else []
        block = []
    return sorted(places)


class Session:
    """What of an InferenceSession tells about its providers."""

    def __init__(self, loaded: list[str]):
        self._loaded = list(loaded)

    def get_providers(self) -> list[str]:
        return list(self._loaded)

    def get_provider_options(self) -> dict[str, dict]:
        return {name: {} for name in self._loaded}


@functools.cache
def _gate_class():
    import torch

    class Gate(torch.nn.Module):
        """Doubles a batch of mean above 0, negates any other; by a Python `if`."""

        def forward(self, x):
            if x.mean() > 0:
                return 2 * x
            return -x

    return Gate


def Gate():  # noqa: N802 - a class to the learner, made when torch is there
    """A module that decides by a Python `if` on its data."""
    return _gate_class()()


def needs_function(function: Any, name: str) -> None:
    if not callable(function) or isinstance(function, type):
        raise Wrong(f"that is {described(function)}; hand in the function itself: check({name}).")


def whole_numbers(values: Any, name: str) -> list[int]:
    """Whole numbers from whatever holds some: a list, a set, a range, an array."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise Wrong(f"`{name}` gave {described(values)}; wanted is a list of positions.")
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    for value in plain:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"`{name}` gave {described(value)} among the positions; they are whole numbers from 0.")
    return plain
