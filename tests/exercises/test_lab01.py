"""Lab 01's checkers: untouched is not attempted, each mistake has its own message, solution and twin are right."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from labsupport import benchmarking, comparing
from labsupport.benchmarking.measurements import Latency
from labsupport.exercises import base, lab01
from labsupport.exercises.lab01 import QUESTIONS, Device

ROOMS = {"benchmarking": benchmarking, "comparing": comparing}


def untouched(device): ...  # your version


def hasty(device, runs=10):
    start = device.now()
    for _ in range(runs):
        device.launch()
    return (device.now() - start) * 1e3 / runs


def on_a_busy_queue(device):
    start = device.now()
    device.launch()
    device.synchronize()
    return (device.now() - start) * 1e3


def cold(device):
    device.synchronize()
    start = device.now()
    device.launch()
    device.synchronize()
    return (device.now() - start) * 1e3


def with_the_first_in_the_mean(device):
    device.synchronize()
    samples = []
    for _ in range(10):
        start = device.now()
        device.launch()
        device.synchronize()
        samples.append((device.now() - start) * 1e3)
    return statistics.mean(samples)


def warm_start(device):
    device.launch()
    device.synchronize()
    return device.now()


def overlapping(device):
    start = warm_start(device)
    for _ in range(50):
        device.launch()
    device.synchronize()
    return (device.now() - start) * 1e3 / 50


def launch_only(device):
    start = warm_start(device)
    device.launch()
    return (device.now() - start) * 1e3


def in_seconds(device):
    return right(device) / 1e3


def nothing_launched(device):
    start = device.now()
    device.synchronize()
    return (device.now() - start) * 1e3


def one_reading(device):
    device.launch()
    device.synchronize()
    return device.now() * 1e3


def too_small(device):
    return right(device) / 3


def forgotten_return(device):
    right(device)


def a_list(device):
    return [right(device)]


def misspelled(device):
    device.lunch()


def right(device):
    start = warm_start(device)
    device.launch()
    device.synchronize()
    return (device.now() - start) * 1e3


def right_by_median(device):
    samples = []
    for _ in range(9):
        device.synchronize()
        before_s = device.now()
        device.launch()
        device.synchronize()
        samples.append(1000 * (device.now() - before_s))
    return np.median(samples)


def test_spot_the_clock():
    base.assert_checker(
        lab01.spot_the_clock,
        untouched,
        wrong=[
            (hasty, r"when your clock stopped, .* still queued"),
            (launch_only, "timed the launch, not the work"),
            (on_a_busy_queue, "30 ms of earlier work were still queued"),
            (cold, "the first call"),
            (with_the_first_in_the_mean, "the first call"),
            (overlapping, "inverse of the throughput"),
            (in_seconds, "in seconds; milliseconds"),
            (nothing_launched, "nothing was launched"),
            (one_reading, "read device.now.. 1 times"),
            (too_small, "pass 5 ms"),
            (forgotten_return, "its `return`"),
            (a_list, "returns a list"),
            (misspelled, "no attribute 'lunch'"),
            (5.0, "the function itself"),
        ],
        right=[right, right_by_median],
        namespace={},
    )


def test_a_constant_is_no_measurement():
    def constant(device):
        device.launch(), device.now(), device.now()
        device.synchronize()
        return 5.0

    assert not lab01.spot_the_clock.check(constant)


def test_the_pretended_device_queues_and_waits():
    device = Device(launch_ms=1, work_ms=4, first_ms=80, queued_ms=30)
    start = device.now()
    device.launch()
    assert (device.now() - start) * 1e3 == pytest.approx(1, abs=1e-3)
    device.synchronize()
    assert (device.now() - start) * 1e3 == pytest.approx(30 + 4 + 80, abs=1e-3)
    assert hasty(Device(launch_ms=1, work_ms=4, first_ms=80)) == pytest.approx(1, abs=1e-3)


def latency(samples, batch=1, name="traffic"):
    return Latency(name, "host", tuple(samples), batch, "a test machine")


TRAFFIC = latency([0.1] * 220 + [4.0] * 20)  # mean 0.425, median 0.1, p90 0.1, p99 4


def chosen(*names):
    return dict(zip(QUESTIONS, names))


def test_right_statistic():
    base.assert_checker(
        lab01.right_statistic,
        (chosen(..., ..., ...), TRAFFIC),
        wrong=[
            ((chosen("mean", "p99", "mean"), TRAFFIC), "the mean is 0.425 ms, and only 8% of the callers"),
            ((chosen("max", "p99", "mean"), TRAFFIC), "the max is the wait of the unlucky few"),
            ((chosen("median", "max", "mean"), TRAFFIC), "the max is one single call"),
            ((chosen("median", "p90", "mean"), TRAFFIC), "as long as the p90"),
            ((chosen("median", "mean", "mean"), TRAFFIC), "8% of the callers waited as long as the mean"),
            ((chosen("median", "p99", "median"), TRAFFIC), r"1000 times the median is 0\.1 s.* took 0\.425 s"),
            ((chosen("median", "p99", "mode"), TRAFFIC), "'mode' is none of the statistics"),
            (({"a typical caller waits": "median"}, TRAFFIC), "no statistic was chosen for '99 of 100"),
            ((["median", "p99", "mean"], TRAFFIC), "wanted is a dict"),
            ((chosen("median", "p99", "mean"), 0.425), "the second answer is the measurement"),
        ],
        right=[(chosen("median", "p99", "mean"), TRAFFIC), (chosen(" P50", "P99", "Average"), TRAFFIC)],
        namespace={"traffic": TRAFFIC},
    )


def swept(*medians, tail=1.2):
    """Rows as batch_sweep returns them: batch 1, 2, 4, …, the slowest 2 of 100 calls `tail` times slower."""
    return [
        {"latency": latency([ms] * 98 + [ms * tail] * 2, 2**position), "max error": 0.0}
        for position, ms in enumerate(medians)
    ]


def test_batch_for_budget():
    sweep = swept(1.0, 1.2, 1.6, 3.0, 8.0)  # items/s 1000, 1667, 2500, 2667, 2000
    base.assert_checker(
        lab01.batch_for_budget,
        (..., sweep, 2.0),
        wrong=[
            ((16, sweep, 2.0), "batch 16 takes 8 ms, the budget is 2 ms"),
            ((8, sweep, 3.2), r"at the median \(3 ms\), but its p99 is 3.6 ms"),
            ((1, sweep, 2.0), "batch 4 keeps it too and gives 2,500"),
            ((16, sweep, 20.0), "batch 8 keeps it too and gives 2,667"),
            ((3, sweep, 2.0), r"not in the sweep; it holds \[1, 2, 4, 8, 16\]"),
            ((4, sweep, 0.1), "no batch of this sweep keeps 0.1 ms"),
            ((2.5, sweep, 2.0), "whole number"),
            ((4, [1, 2], 2.0), "rows that benchmarking.batch_sweep returned"),
            ((4, [{"latency": latency([1.0] * 30, 4)}], 2.0), "p99 needs at least 100 samples"),
        ],
        right=[(4, sweep, 2.0), (np.int64(4), sweep, np.float64(2.0))],
        namespace={"sweep": sweep, "budget_ms": 2.0},
    )


def test_a_batch_as_good_as_the_best_within_the_noise_is_right():
    sweep = swept(1.0, 1.99, 3.99)  # items/s 1000, 1005, 1003
    assert lab01.batch_for_budget.check(1, sweep, 10.0) and lab01.batch_for_budget.check(4, sweep, 10.0)


def test_honest_row():
    measured = latency([1.0, 1.1, 1.0] * 20, 32, "ort/all")
    images = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    names = {"images": images, "network": lambda feed: feed, "eager": lambda feed: feed, **ROOMS}
    base.assert_checker(
        lab01.honest_row,
        wrong=[
            ({"latency": measured}, "shows a speed but has no error or accuracy"),
            ({"latency": measured, "accuracy": None}, "only an empty 'accuracy'"),
            ({"runtime": "mine", "median ms": 1.0, "max error": 0.0}, "A bare number has no clock"),
            ({}, "no measurement in this row"),
            (measured, "wanted is a dict"),
            ({"latency": measured, "accuracy": 93.6}, "fraction from 0 to 1"),
            ({"latency": measured, "max error": -1e-6}, "never negative"),
            ({"latency": measured, "max error": float("inf")}, "finite number"),
            ({"latency": measured, "max error": "small"}, "a number is wanted"),
            ({"latency": latency([1.0] * 5, 32), "max error": 0.0}, "5 runs say little"),
            ({"latency": latency([1.0] * 50, 1), "max error": 0.0}, "measured at batch 1;"),
        ],
        right=[
            {"latency": measured, "max error": 1e-6},
            {"accuracy": np.float64(0.936), "time": measured},
            {"latency": measured, "max error": 2.5},
        ],
        namespace=names,
    )


@pytest.mark.parametrize("name", ["clock_gap", "spot_the_clock", "right_statistic", "batch_for_budget", "honest_row"])
def test_the_notebook_finds_the_exercise_by_its_name(name):
    assert getattr(lab01, name).name == name and getattr(lab01, name).lab == "01_measuring"
