"""The checkers of lab 04: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import collections
import contextlib
import fractions
import itertools

import numpy as np
import pytest
import torch

from labsupport import build, export, footprint, models
from labsupport.errors import BadInput
from labsupport.exercises import lab04, lab04_stand_ins
from labsupport.exercises.base import assert_checker, assert_complete, run_solution

SHAPE = (3, 224, 224)


def profile(least, tuned, most, rest=SHAPE):
    return build.Profile((least, *rest), (tuned, *rest), (most, *rest))


def test_the_lab_holds_six_exercises_with_hints_and_solutions():
    assert_complete(lab04, ["reuse", "peak", "order", "allocator", "budget", "serving"])


def test_peak():
    assert_checker(
        lab04.peak,
        wrong=[
            (26, "26 MiB is all tensors together"),
            (27, "27 MiB is all tensors together"),
            (12, "who reads `a` for the last time"),
            (6, "6 MiB is the largest tensor"),
            (10, "if c could overwrite b"),
            (13, "no step of the puzzle is fullest at 13 MiB"),
            ("16", "a number is wanted"),
            (True, "a number is wanted"),
        ],
        right=[16, 16.0, footprint.schedule(lab04.PUZZLE).peak_mib],
        namespace={},
    )


def test_order():
    best = ["right_wide", "right_slim", "left_wide", "left_slim", "joined", "scores"]
    assert_checker(
        lab04.order,
        untouched=[..., ...],
        wrong=[
            (
                [name for name, _, _ in lab04.BRANCHES],
                "the peak is 36 MiB, no lower than the 36 MiB of the order as written",
            ),
            (
                ["left_wide", "left_slim", "right_wide", "right_slim", "joined", "scores"],
                "falls from 36 to 25 MiB, and 21 is possible",
            ),
            (
                ["right_wide", "left_wide", "right_slim", "left_slim", "joined", "scores"],
                "falls from 36 to 33 MiB, and 21",
            ),
            (
                ["right_slim", *[name for name in best if name != "right_slim"]],
                "step 0 computes 'right_slim' from 'right_wide', which is written only later",
            ),
            (best[:-1], "'scores' is missing"),
            ([*best, "extra"], "'extra' is no step"),
            ([*best, "scores"], "a step is named twice"),
            ("right_wide, right_slim", "a list"),
        ],
        right=[best, tuple(best)],
        namespace={},
    )


def test_the_least_peak_is_the_least_of_all_orders():
    peaks = []
    for order in itertools.permutations(lab04.BRANCHES):
        with contextlib.suppress(BadInput):
            peaks.append(footprint.schedule(order).peak_mib)
    assert min(peaks) == lab04.LEAST_PEAK < footprint.schedule(lab04.BRANCHES).peak_mib


def first_fit(tensors, order=None):
    """The notebook's allocator, over any order of placing."""
    offsets = {}
    for tensor in order or tensors:
        taken = sorted(
            (offsets[t.name], offsets[t.name] + t.mib) for t in tensors if t.name in offsets and t.overlaps(tensor)
        )
        start = 0
        for low, high in taken:
            if low - start >= tensor.mib:
                break
            start = max(start, high)
        offsets[tensor.name] = start
    return offsets


def largest_first(tensors):
    return first_fit(tensors, sorted(tensors, key=lambda tensor: (tensor.mib, tensor.dies - tensor.born), reverse=True))


def lowest_candidate(tensors):
    """A twin: tries the ends of all placed neighbors as starting points, lowest first."""
    placed = []
    for tensor in sorted(tensors, key=lambda tensor: -tensor.mib):
        near = [(low, other) for low, other in placed if other.overlaps(tensor)]
        starts = sorted({0, *(low + other.mib for low, other in near)})
        start = next(s for s in starts if all(s + tensor.mib <= low or low + other.mib <= s for low, other in near))
        placed.append((start, tensor))
    return {tensor.name: start for start, tensor in placed}


def largest_first_the_other_way(tensors):
    return first_fit(tensors, sorted(tensors, key=lambda tensor: tensor.mib)[::-1])


def of_other_makes(tensors):
    makes = itertools.cycle((np.float32, np.float64, fractions.Fraction, torch.tensor))
    return {name: make(offset) for make, (name, offset) in zip(makes, largest_first(tensors).items())}


def apart(tensors):
    ends = itertools.accumulate((tensor.mib for tensor in tensors), initial=0)
    return {tensor.name: end for tensor, end in zip(tensors, ends)}


def ignores_who_waits(tensors):
    """Thinks that a tensor is done with once the next step has read it."""
    return {tensor.name: 13 * (i % 2) for i, tensor in enumerate(tensors)}


def test_allocator():
    assert_checker(
        lab04.allocator,
        wrong=[
            (
                lambda tensors: {tensor.name: 0 for tensor in tensors},
                r"for ResNet-50, 'conv1' and 'relu1' are both alive in step 1 and "
                r"share memory",
            ),
            (ignores_who_waits, "are both alive in step"),
            (apart, "nothing overlaps, and nothing is used again: 404 MiB, where 37 are"),
            (first_fit, r"nothing overlaps, but ResNet-50 takes 45.9 MiB, 25% above its peak of 36.8: holes stay"),
            (largest_first_the_other_way, r"8% above its peak .* Which of two equally large ones"),
            (lambda tensors: None, "Did it forget its `return`"),
            (lambda tensors: list(apart(tensors).values()), "offsets is a list"),
            (lambda tensors: dict(list(apart(tensors).items())[1:]), "places no tensor 'conv1'"),
            (lambda tensors: {tensor.name: -1.0 for tensor in tensors}, "'conv1' is placed at -1.0"),
            (lambda tensors: 1 / 0, "raised ZeroDivisionError"),
            (largest_first([]), r"that is \{\} \(dict\); hand in the function itself"),
            (lambda: {}, "raised TypeError"),
        ],
        right=[
            largest_first,
            lowest_candidate,
            of_other_makes,
            lambda tensors: collections.UserDict(largest_first(tensors)),
        ],
        namespace={},
    )


def test_an_untouched_allocator_is_not_attempted():
    def place_tensors(tensors):
        return ...

    assert lab04.allocator.check(place_tensors).outcome == "not attempted"


def test_the_judges_networks_need_an_allocator_that_looks_at_lifetimes():
    for lives in (lab04_stand_ins.resnet_schedule(), *(lab04_stand_ins.random_schedule(seed) for seed in range(4))):
        assert lives.peak_mib < 0.5 * lives.total_mib
    assert (
        lab04_stand_ins.random_schedule(1).tensors
        == lab04_stand_ins.random_schedule(1).tensors
        != lab04_stand_ins.random_schedule(2).tensors
    )


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    model = models.resnet50()
    return export.to_onnx(model, model.example_input(), path=tmp_path_factory.mktemp("r50") / "resnet50.onnx")


def test_the_numbers_in_the_exercises_are_resnet_50s(resnet50):
    lives = footprint.lifetimes(resnet50, batch=4)
    by_hand = lab04_stand_ins.resnet_schedule()
    assert [t.mib for t in lives.tensors] == pytest.approx([t.mib for t in by_hand.tensors])
    assert lives.live_mib == pytest.approx(by_hand.live_mib)
    half = footprint.lifetimes(resnet50, precision="fp16")
    assert half.peak_mib == pytest.approx(lab04.PEAK_PER_IMAGE)
    assert half.total_mib == pytest.approx(lab04.SUM_PER_IMAGE, abs=0.01)
    assert resnet50.size_mib / 2 < lab04.WEIGHTS_MIB


def test_budget(resnet50):
    assert_checker(
        lab04.budget,
        wrong=[
            (profile(1, 8, 8), "counts every tensor apart"),
            (profile(1, 8, 9), "counts every tensor apart"),
            (profile(1, 8, 52), "counts four bytes a value"),
            (profile(1, 8, 53), "counts four bytes a value"),
            (profile(1, 8, 100), "share the engine's one copy of the weights"),
            (profile(1, 8, 108), "leaves the weights out"),
            (profile(1, 8, 111), "leaves the weights out"),
            (profile(1, 8, 212), "with one context, and there are two"),
            (profile(1, 8, 112), "batch 112 needs 1079 MiB, and there are 1024"),
            (profile(1, 8, 106), "batch 106 fits, but is no multiple of 4"),
            (profile(1, 8, 88), "batch 88 fits, and so does a larger multiple of 4"),
            (profile(8, 8, 104), "a single image would be refused"),
            (profile(1, 104, 104), "the one to tune for, batch 8; it came with 104"),
            (profile(1, 8, 104, (3, 32, 32)), "ends in 3, 224, 224"),
            (build.Profile((1,), (8,), (104,)), "three shapes such as"),
            (104, r"that is 104 \(int\); wanted is build.Profile"),
            ({"images": profile(1, 8, 104)}, "that is a dict"),
        ],
        right=[profile(1, 8, 104), build.Profile(min=[1, 3, 224, 224], opt=[8, 3, 224, 224], max=[104, 3, 224, 224])],
        namespace={"footprint": footprint, "build": build, "graph": resnet50},
    )


def with_block(make, requests):
    with make() as run:
        return [run(images) for images in requests]


def with_finally(make, requests):
    run, answers = make(), []
    try:
        for images in requests:
            answers.append(run(images))
    finally:
        run.close()
    return answers


def with_stack(make, requests):
    with contextlib.ExitStack() as stack:
        return list(map(stack.enter_context(make()), requests))


def leaks(make, requests):
    return [make()(images) for images in requests]


def leaks_one(make, requests):
    run = make()
    return [run(images) for images in requests]


def loads_each_time(make, requests):
    answers = []
    for images in requests:
        with make() as run:
            answers.append(run(images))
    return answers


def closes_only_on_good_days(make, requests):
    run = make()
    answers = [run(images) for images in requests]
    run.close()
    return answers


def closes_for_one_kind(make, requests):
    run = make()
    try:
        answers = [run(images) for images in requests]
    except lab04_stand_ins.BadRequest:
        run.close()
        raise
    run.close()
    return answers


def raises_again(make, requests):
    with make() as run:
        try:
            return tuple(run(images) for images in requests)
        except Exception as error:
            raise RuntimeError("a request failed") from error


def answers_too_late(make, requests):
    with make() as run:
        pass
    return [run(images) for images in requests]


def returns_nothing(make, requests):
    with make() as run:
        for images in requests:
            run(images)


def returns_early(make, requests):
    with make() as run:
        for images in requests:
            return [run(images)]


def is_lazy(make, requests):
    with make() as run:
        return (run(images) for images in requests)


def swallows(make, requests):
    answers = []
    with make() as run, contextlib.suppress(Exception):
        for images in requests:
            answers.append(run(images))
    return answers


def test_serving():
    assert_checker(
        lab04.serving,
        wrong=[
            (leaks, "4 of 4 runtimes are still open"),
            (leaks_one, "1 of 1 runtimes is still open"),
            (loads_each_time, "nothing stays open, but 4 runtimes were loaded for 4 requests"),
            (closes_only_on_good_days, "request 2 fails with BadRequest, the runtime stays open"),
            (closes_for_one_kind, "request 1 fails with MemoryError, the runtime stays open"),
            (answers_too_late, "a request reached a runtime that was closed already"),
            (returns_nothing, "forget its `return`"),
            (returns_early, r"four requests gave \[\d+\]; wanted is a list"),
            (is_lazy, "wanted is a list with the answer of each"),
            (swallows, "passed in silence"),
            (lab04_stand_ins.Counter().make(), "hand in the function itself, `serve`"),
            (7, r"that is 7 \(int\)"),
            (lambda make: [], "raised TypeError"),
        ],
        right=[with_block, with_finally, with_stack, raises_again],
        namespace={},
    )


def test_an_untouched_service_is_not_attempted():
    def serve(make, requests):
        return ...

    assert lab04.serving.check(serve).outcome == "not attempted"


def test_a_runtime_that_is_closed_twice_counts_once():
    counter = lab04_stand_ins.Counter()
    with counter.make() as run:
        run.close()
    assert (counter.made, counter.open) == (1, 0)


@pytest.mark.parametrize("name", ["peak", "order", "allocator", "serving"])
def test_solutions_run_by_themselves(name):
    assert run_solution(getattr(lab04, name), {}).right
