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


def read_off(device):
    device.launch(), device.now()
    return device.launch_ms + device.work_ms


def ten_thousand_cold(device):
    device.synchronize()
    start = device.now()
    for _ in range(10_000):
        device.launch()
        device.synchronize()
    return (device.now() - start) * 1e3 / 10_000


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
            (on_a_busy_queue, " ms of earlier work were still queued"),
            (cold, "the first call"),
            (with_the_first_in_the_mean, "the first call"),
            (overlapping, "inverse of the throughput"),
            (in_seconds, "in seconds; milliseconds"),
            (nothing_launched, "nothing was launched"),
            (one_reading, "read device.now.. 1 times"),
            (too_small, "pass [0-9.]+ ms"),
            (read_off, "no attribute 'launch_ms'"),
            (ten_thousand_cold, "the first call"),
            (lambda device: right(device) * 1e3, "in microseconds"),
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


def best_batch(sweep, budget_ms):
    fitting = [row["latency"] for row in sweep if row["latency"].percentile(99) <= budget_ms]
    return max(fitting, key=lambda latency: latency.items_per_s).batch


def by_loop(sweep, budget_ms):
    best, rate = None, 0.0
    for row in reversed(sweep):
        point = row["latency"]
        if point.p99_ms <= budget_ms and point.batch / point.median_ms > rate:
            best, rate = point.batch, point.batch / point.median_ms
    return np.int64(best)


def fits_by(statistic, choose):
    def learners(sweep, budget_ms):
        return choose([row["latency"] for row in sweep if statistic(row["latency"]) <= budget_ms])

    return learners


def largest(points):
    return max(point.batch for point in points)


def fastest(points):
    return max(points, key=lambda point: point.items_per_s).batch


def p99(point):
    return point.percentile(99)


def test_batch_for_budget():
    sweep = swept(1.0, 1.2, 1.6, 3.0, 8.0)  # items/s 1000, 1667, 2500, 2667, 2000
    base.assert_checker(
        lab01.batch_for_budget,
        (..., sweep),
        wrong=[
            ((4, sweep), "function itself, `best_batch`"),
            ((fits_by(lambda point: point.median_ms, fastest), sweep), "at the median .* but its p99 is"),
            ((fits_by(lambda point: 0, fastest), sweep), "but its p99 is|the budget is"),
            ((fits_by(p99, largest), sweep), "keeps it too and gives"),
            ((lambda sweep, budget_ms: 4, sweep), "batch 4 keeps the budget at the median|batch 4 takes"),
            ((lambda sweep, budget_ms: sweep[0]["latency"].batch, sweep), "batch"),
            ((lambda sweep, budget_ms: 3, sweep), r"not in the sweep; it holds \[1, 2, 4, 8, 16, 32\]"),
            ((lambda sweep, budget_ms: sweep[0], sweep), "gives a row"),
            ((lambda sweep, budget_ms: None, sweep), "`return`"),
            ((lambda sweep, budget_ms: max(sweep), sweep), "raised TypeError"),
            ((best_batch, [1, 2]), "list of rows that you measured"),
            ((best_batch, [{"latency": latency([1.0] * 30, 4)}]), "p99 needs at least 100 samples"),
        ],
        right=[(best_batch, sweep), (by_loop, sweep)],
        namespace={"sweep": sweep},
    )


def test_a_batch_as_good_as_the_best_within_the_noise_is_right():
    sweep = swept(1.0, 1.99, 3.99, 7.97)  # items/s 1000, 1005, 1003, 1004
    assert lab01.batch_for_budget.check(best_batch, sweep[:1] * 1 + sweep[1:2]).right


def honest(network, eager, images):
    row = {"latency": benchmarking.latency(network, images)}
    return {**row, "max error": comparing.max_error(eager(images), network(images))}


def by_hand(network, eager, images):
    off = np.abs(eager(images)["logits"] - network(images)["logits"]).max()
    return {"error": off, "time": benchmarking.latency(network, images, runs=30, warmup=3)}


def row_of(change, runs=50):
    def learners(network, eager, images):
        row = {"latency": benchmarking.latency(network, images, runs=runs)}
        return change(row, network, eager, images)

    return learners


def test_honest_row():
    def error(one, other, images):
        return comparing.max_error(one(images), other(images))

    base.assert_checker(
        lab01.honest_row,
        wrong=[
            ({"max error": 0.1}, "function itself, `honest_row`"),
            (row_of(lambda row, *_: row), "shows a speed but has no error"),
            (row_of(lambda row, *_: {**row, "accuracy": 0.93}), "none tells the error"),
            (row_of(lambda row, *_: {**row, "accuracy": None}), "only an empty 'accuracy'"),
            (row_of(lambda row, network, eager, x: {**row, "max error": error(network, network, x)}), "with itself"),
            (row_of(lambda row, *_: {**row, "max error": 1e-6}), "the largest difference is"),
            (row_of(lambda row, *_: {**row, "max error": -1e-6}), "never negative"),
            (row_of(lambda row, *_: {**row, "max error": float("inf")}), "finite number"),
            (row_of(lambda row, *_: {**row, "max error": "small"}), "a number is wanted"),
            (row_of(lambda row, n, eager, x: {**row, "max error": error(eager, n, x[:1])}), "the largest difference"),
            (row_of(lambda row, n, e, x: {"ms": row["latency"].median_ms, "max error": error(e, n, x)}), "no measur"),
            (row_of(lambda row, n, e, x: {**row, "max error": error(e, n, x)}, runs=5), "5 calls are few"),
            (lambda n, e, x: {"latency": benchmarking.latency(e, x), "max error": error(e, n, x)}, "was it measured"),
            (lambda n, e, x: {"latency": benchmarking.latency(n, x[:1]), "max error": error(e, n, x)}, "had 1 item"),
            (lambda n, e, x: benchmarking.latency(n, x), "wanted is a row"),
            (lambda n, e, x: None, "wanted is a row"),
        ],
        right=[honest, by_hand],
        namespace=ROOMS,
    )


@pytest.mark.parametrize("name", ["clock_gap", "spot_the_clock", "right_statistic", "batch_for_budget", "honest_row"])
def test_the_notebook_finds_the_exercise_by_its_name(name):
    assert getattr(lab01, name).name == name and getattr(lab01, name).lab == "01_measuring"
