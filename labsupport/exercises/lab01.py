"""Exercises of lab 01: a clock that waits, the right statistic, a batch under a budget, a row a table accepts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from labsupport.exercises.answers import as_number, described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.lab01_stand_ins import Device, Handle, drawn_sweeps, fast_and_eager
from labsupport.exercises.watched import Watched

LAB, CHECK_S = "01_measuring", 30.0
STATISTICS = ("mean", "median", "p90", "p99", "max")
QUESTIONS = ("a typical caller waits", "99 of 100 callers wait at most", "1000 calls occupy the machine")
FEWEST_RUNS = 30
SAME_RATE = 0.98  # a batch within 2 % of the best rate is as good as the best


class ClockGap(Prediction):
    question = "How many times more will the clock show once it waits for the work to finish?"
    quantity = "the waiting clock over the hasty one"
    unit = "×"
    within = 10.0


class SpotTheClock(Exercise):
    question = (
        "Write steady_call_ms(device): how many milliseconds one caller waits for one call once the device is warm."
    )
    hints = (
        "hasty_ms has three faults. When does its clock start, when does it stop, and which calls does it count?",
        "Call device.synchronize() before each of the two readings, and once after a first launch that is not timed.",
    )
    solution_source = """
    def steady_call_ms(device):
        device.launch()                    # the first call sets things up; it is not the one to time
        device.synchronize()               # nothing of it, or of anybody else, is left in the queue
        start = device.now()
        device.launch()
        device.synchronize()               # the work is done, not merely queued
        return (device.now() - start) * 1e3

    lab01.spot_the_clock.check(steady_call_ms)
    """
    answer = "Warm up, wait before the clock starts, and wait before it stops: benchmarking.latency does these three."

    def judge(self, steady_call_ms: Callable) -> str:
        draw = random.Random()
        for first_ms in (80.0, 5e6, 16.0):  # the second builds for an hour: no number of calls hides that in a mean
            device = Device(
                launch_ms=draw.uniform(0.3, 1.5),
                work_ms=draw.uniform(3.0, 9.0),
                first_ms=first_ms,
                queued_ms=draw.uniform(30.0, 200.0),
            )
            answer = steady_call_ms(Handle(device))
            if isinstance(answer, (list, tuple)):
                raise Wrong("your function returns a list; choose the one number that stands for a warm call.")
            if answer is None:
                raise Wrong("your function returns None. Did it forget its `return`?")
            _judge_clock(device, as_number(answer, "the time your function returns"))
        return "It waits before the clock starts, before it stops, and it leaves the first call out."


class RightStatistic(Exercise):
    question = f"Which of {', '.join(STATISTICS)} answers each of the three questions about this traffic?"
    hints = (
        "Sort the calls by time. Which one stands in the middle, and which has 99 of 100 below it?",
        "Only one of the five adds up: times the number of calls, it gives back the total.",
    )
    solution_source = f"""
    choices = {{
        {QUESTIONS[0]!r}: "median",
        {QUESTIONS[1]!r}: "p99",
        {QUESTIONS[2]!r}: "mean",
    }}
    lab01.right_statistic.check(choices, traffic)
    """
    answer = (
        "The median is the caller in the middle, p99 the promise; the mean is nobody's wait, but the only one "
        "that multiplies up to the total."
    )

    def judge(self, choices: dict, traffic) -> str:
        if not hasattr(traffic, "percentile"):
            raise Wrong("the second answer is the measurement that the cell above made: check(choices, traffic).")
        chosen = {str(question).strip().lower(): _statistic(name) for question, name in choices.items()}
        lacking = [question for question in QUESTIONS if question not in chosen]
        if lacking:
            raise Wrong(
                f"no statistic was chosen for {', '.join(map(repr, lacking))}; keep the three questions as they are."
            )
        values = {
            "mean": traffic.mean_ms,
            "median": traffic.median_ms,
            "p90": traffic.percentile(90),
            "p99": traffic.percentile(99),
            "max": max(traffic.samples_ms),
        }
        typical, promised, total = (chosen[question] for question in QUESTIONS)
        _typical(typical, values, traffic)
        _promised(promised, values, traffic)
        _total(total, values, traffic)
        return (
            f"The caller in the middle waits {values['median']:.3g} ms, 99 of 100 at most {values['p99']:.3g} ms, "
            f"and 1000 calls take {values['mean']:.3g} s: one sample, three statistics."
        )


class BatchForBudget(Exercise):
    question = (
        "Write `best_batch(sweep, budget_ms)`: of the rows of your sweep, the batch with the "
        "most items per second whose 99 of 100 calls stay within budget_ms. Hand in the function, and your sweep."
    )
    hints = (
        "Cross out every row whose p99 is above the budget. The median column is not the promise.",
        'row["latency"] knows .batch, .percentile(99) and .items_per_s. Of the rows that are left take the one with '
        "the most items per second; that is not always the largest batch.",
    )
    solution_source = """
    def best_batch(sweep, budget_ms):
        fitting = [row["latency"] for row in sweep if row["latency"].percentile(99) <= budget_ms]
        return max(fitting, key=lambda latency: latency.items_per_s).batch

    lab01.batch_for_budget.check(best_batch, sweep)
    """
    answer = "The budget is a promise to nearly every caller, so p99 decides what fits; after that, throughput decides."

    def judge(self, best_batch: Callable, sweep: list) -> str:
        rows = [row for row in sweep if isinstance(row, Mapping) and hasattr(row.get("latency"), "percentile")]
        if not rows or len(rows) < len(sweep):
            raise Wrong("the second answer is the list of rows that you measured.")
        for drawn in drawn_sweeps():
            _judge_choice(best_batch, *drawn)
        first = min((row["latency"] for row in rows), key=lambda latency: latency.batch)
        budget_ms = 2 * first.percentile(99)
        mine = _judge_choice(best_batch, rows, budget_ms)
        return (
            f"In your sweep, with twice the p99 of batch {first.batch} as the budget: batch {mine.batch}, p99 "
            f"{mine.percentile(99):.3g} ms within {budget_ms:.3g} ms, {mine.items_per_s:,.0f} items/s. In service, add "
            "the time a batch takes to fill."
        )


class HonestRow(Exercise):
    question = (
        "Write `honest_row(network, eager, images)`: it measures `network` on the images, at least 30 calls, and "
        "returns a row that comparing.table accepts, with the largest error against `eager` on the same images."
    )
    hints = (
        "A row is a mapping. The measurement goes in whole, as benchmarking.latency returned it, not as a number.",
        "Beside it belongs what the speed cost: 'max error', from comparing.max_error(eager(images), network(images)).",
    )
    solution_source = """
    def honest_row(network, eager, images):
        return {"latency": benchmarking.latency(network, images),
                "max error": comparing.max_error(eager(images), network(images))}

    lab01.honest_row.check(honest_row)
    """
    answer = "A speed without its error is half a result; a number without its clock and repeats is none."

    def judge(self, honest_row: Callable) -> str:
        from labsupport import comparing

        told = ""
        for _ in range(2):
            fast, eager, images, errors = fast_and_eager()
            network = Watched(fast, "network")
            row = honest_row(network, eager, images)
            if not isinstance(row, Mapping):
                raise Wrong(f"honest_row gave {described(row)}; wanted is a row, a mapping from column to value.")
            latency = next((value for value in row.values() if hasattr(value, "samples_ms")), None)
            if latency is None:
                raise Wrong(
                    "there is no measurement in this row. A bare number has no clock, no repeats and no machine: "
                    "put in what benchmarking.latency returned."
                )
            network.judge(latency, items=len(images), least=FEWEST_RUNS, what="network")
            comparing.table([row])
            key, value = _error_of(row)
            _judge_error(key, value, errors)
            told = f"{len(images)} images, {key} {value:.2g}"
        return f"{told}: clock, repeats, spread and what it cost, of two networks that the notebook does not show."


def _error_of(row: Mapping) -> tuple[str, float]:
    """The column that tells an error, and its value."""
    errors = {str(key): value for key, value in row.items() if "error" in str(key).lower()}
    if not errors:
        raise Wrong(f"the row has the columns {list(row)}, and none tells the error against `eager`.")
    key = next(iter(errors))
    return key, as_number(errors[key], repr(key))


def _judge_error(key: str, value: float, errors: dict[str, float]) -> None:
    if any(math.isclose(value, right, rel_tol=0.02) for right in errors.values()):
        return
    if value < 0:
        raise Wrong(f"{key!r} is {value:g}; an error is never negative.")
    if value == 0:
        raise Wrong(f"{key!r} is 0: was the network compared with itself?")
    raise Wrong(
        f"{key!r} is {value:.3g}; between `eager` and `network` on these images the largest difference is "
        f"{errors['max error']:.3g}."
    )


def _judge_choice(best_batch: Callable, rows: list, budget_ms: float):
    """The row that a learner's function chose, if it is right."""
    by_batch = {row["latency"].batch: row["latency"] for row in rows}
    fitting = {batch: row for batch, row in by_batch.items() if row.percentile(99) <= budget_ms}
    batch = best_batch(list(rows), budget_ms)
    if batch is None:
        raise Wrong("best_batch gave None. Did it forget its `return`?")
    if isinstance(batch, Mapping) or hasattr(batch, "samples_ms"):
        raise Wrong("best_batch gives a row; wanted is its batch, a whole number: row['latency'].batch.")
    number = as_number(batch, "what best_batch gave")
    if number not in by_batch:
        raise Wrong(f"batch {number:g} is not in the sweep; it holds {sorted(by_batch)}.")
    if not fitting:
        raise Wrong(f"no batch of this sweep keeps {budget_ms:.3g} ms; measure again.")
    _judge_batch(by_batch[int(number)], fitting, budget_ms)
    return by_batch[int(number)]


def _judge_clock(device: Device, answer_ms: float) -> None:
    """Compare with the truth, launch plus work; where it differs, find the fault in what the device saw."""
    truth_ms, readings = device.launch_ms + device.work_ms, device.pending_at_readings_ms
    if device.launches and readings and math.isclose(answer_ms, truth_ms, rel_tol=0.02):
        return
    given = f"your function returns {answer_ms:.4g}"
    if not device.launches:
        raise Wrong(f"{given}, but nothing was launched on the device.")
    if len(readings) < 2:
        raise Wrong(
            f"{given}, but it read device.now() {len(readings)} times; a duration takes two readings of that clock."
        )
    if math.isclose(answer_ms * 1e3, truth_ms, rel_tol=0.02):
        raise Wrong(f"{given}, which is in seconds; milliseconds are wanted.")
    if math.isclose(answer_ms / 1e3, truth_ms, rel_tol=0.02):
        raise Wrong(f"{given}, which is in microseconds; milliseconds are wanted.")
    if readings[-1] > 0:
        raise Wrong(
            f"{given}, and when your clock stopped, {readings[-1]:.4g} ms of work were still queued: "
            "it timed the launch, not the work."
        )
    if device.work_ms * 0.98 <= answer_ms < truth_ms * 0.98:
        raise Wrong(
            f"{given}: that is the time between results while calls overlap in the queue, the inverse of the "
            "throughput. A caller who waits for each result waits longer; synchronize after every launch."
        )
    if readings[0] > 0:
        raise Wrong(
            f"{given}, and when your clock started, {readings[0]:.4g} ms of earlier work were still queued: "
            "your call paid for them."
        )
    if answer_ms > truth_ms:
        raise Wrong(f"{given}: the first call, which sets things up, is in it. Which calls are warm?")
    raise Wrong(f"{given}; between launching a warm call and the end of its work pass {truth_ms:.4g} ms.")


def _statistic(name) -> str:
    same = {"average": "mean", "avg": "mean", "p50": "median", "maximum": "max", "worst": "max"}
    plain = str(name).strip().lower()
    plain = same.get(plain, plain)
    if plain not in STATISTICS:
        raise Wrong(f"{name!r} is none of the statistics; choose from {', '.join(STATISTICS)}.")
    return plain


def _share_above(traffic, value: float) -> float:
    return sum(sample >= value for sample in traffic.samples_ms) / len(traffic.samples_ms)


def _typical(chosen: str, values: dict, traffic) -> None:
    if chosen == "mean":
        raise Wrong(
            f"the mean is {values['mean']:.3g} ms, and only {_share_above(traffic, values['mean']):.0%} of the "
            "callers waited that long: a few bursts pulled it away from everybody."
        )
    if chosen != "median":
        raise Wrong(f"the {chosen} is the wait of the unlucky few ({values[chosen]:.3g} ms), not of a typical caller.")


def _promised(chosen: str, values: dict, traffic) -> None:
    if chosen == "max":
        raise Wrong(
            "the max is one single call, and it grows the longer you measure; a promise to 99 of 100 need not "
            "hold for it."
        )
    if chosen != "p99":
        late = _share_above(traffic, values[chosen])
        raise Wrong(
            f"{late:.0%} of the callers waited as long as the {chosen} ({values[chosen]:.3g} ms) or longer; "
            "the promise allows 1 in 100."
        )


def _total(chosen: str, values: dict, traffic) -> None:
    if chosen != "mean":
        raise Wrong(
            f"1000 times the {chosen} is {values[chosen]:.3g} s, but these {len(traffic.samples_ms)} calls "
            f"took {values['mean']:.3g} s per 1000. Which statistic, times the count, gives back the total?"
        )


def _judge_batch(mine, fitting: dict, budget_ms: float) -> None:
    if mine.batch not in fitting:
        if mine.median_ms <= budget_ms:
            raise Wrong(
                f"batch {mine.batch} keeps the budget at the median ({mine.median_ms:.3g} ms), but its p99 is "
                f"{mine.percentile(99):.3g} ms: more than 1 caller in 100 would be late."
            )
        raise Wrong(f"batch {mine.batch} takes {mine.median_ms:.3g} ms, the budget is {budget_ms:.3g} ms.")
    best = max(fitting.values(), key=lambda row: row.items_per_s)
    if mine.items_per_s < SAME_RATE * best.items_per_s:
        raise Wrong(
            f"batch {mine.batch} keeps the budget with {mine.items_per_s:,.0f} items/s, but batch {best.batch} "
            f"keeps it too and gives {best.items_per_s:,.0f}."
        )


clock_gap = ClockGap()
spot_the_clock = SpotTheClock()
right_statistic = RightStatistic()
batch_for_budget = BatchForBudget()
honest_row = HonestRow()
