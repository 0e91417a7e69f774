"""Lab 09c's checkers: untouched, each foreseen mistake, the solution and a differently written twin."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport.exercises import base, lab09c


def test_clean():
    def by_counting(nodes):
        names = []
        for place in range(len(nodes) - 1):
            before = {"frame"}.union(*(outputs for _, outputs in nodes[: place + 1]))
            behind = set().union(*(inputs for inputs, _ in nodes[place + 1 :]))
            made = nodes[place][1]
            if len(made) == 1 and before & behind == {made[0]}:
                names.append(made[0])
        return tuple(names)

    base.assert_checker(
        lab09c.clean,
        wrong=[
            (lambda nodes: [name for _, outputs in nodes[:-1] for name in outputs], "is no clean cut"),
            (lambda nodes: by_counting(nodes)[:-1], "is one, too"),
            (lambda nodes: [], "is one, too"),
            (lambda nodes: [*by_counting(nodes), "scores"], "is no clean cut"),
            (lambda nodes: [*by_counting(nodes), "frame"], "'frame' is the input"),
            (lambda nodes: None, "forget its `return`"),
            (lambda nodes: [*by_counting(nodes), *by_counting(nodes)], "each name belongs in the list once"),
            (lambda nodes: 5, "wanted is a list"),
            (["a"], "hand in the function"),
        ],
        right=[by_counting, lambda nodes: list(reversed(by_counting(nodes)))],
        namespace={},
    )


def test_cuts_of_the_box():
    model = lab09c.box()
    assert model.choose("latency").name == "crop" and model.choose("interval").name == "stage2"
    base.assert_checker(
        lab09c.cuts,
        wrong=[
            (("stage2", "crop"), "wrong way round"),
            (("frame", "stage2"), "whole frame crosses"),
            (("scores", "stage2"), "slow device does all"),
            (("stage1", "stage2"), "before and behind"),
            (("crop", "stage3"), "Which side waits"),
            (("crop", "crop"), "Which side waits"),
            (("lens", "crop"), "is no cut of the box"),
            ((1, "crop"), "text"),
        ],
        right=[("crop", "stage2"), (str(model.choose().name), model.choose("interval").name)],
        namespace={},
    )


def test_shares():
    def by_search(items, rates):
        given = [int(items * rate / sum(rates)) for rate in rates]
        while sum(given) < items:
            place = min(range(len(rates)), key=lambda p: (given[p] + 1) / rates[p])
            given[place] += 1
        return given

    base.assert_checker(
        lab09c.shares,
        wrong=[
            (lambda items, rates: [items // len(rates)] * len(rates), "whole numbers|are possible"),
            (lambda items, rates: [items, *[0] * (len(rates) - 1)], "are possible"),
            (lambda items, rates: [items * rate / sum(rates) for rate in rates], "whole numbers"),
            (lambda items, rates: [round(items * rate / sum(rates)) + 1 for rate in rates], "whole numbers"),
            (lambda items, rates: by_search(items, [1] * len(rates)), "are possible"),
            (lambda items, rates: None, "forget its `return`"),
            (lambda items, rates: ["a"] * len(rates), "number is wanted"),
            (7, "hand in the function"),
        ],
        right=[by_search, lambda items, rates: np.array(by_search(items, rates))],
        namespace={},
    )


@pytest.mark.parametrize("name", list(base.of(lab09c)))
def test_each_exercise_names_its_lab(name):
    assert getattr(lab09c, name).lab == "09c_cuts" and getattr(lab09c, name).name == name
