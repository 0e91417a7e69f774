"""Exercises of lab 01: a clock that waits, the right statistic, a batch under a budget, a row a table accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from labsupport.exercises.answers import as_number
from labsupport.exercises.base import Exercise, Prediction, Wrong

LAB = "01_measuring"
STATISTICS = ("mean", "median", "p90", "p99", "max")
QUESTIONS = ("a typical caller waits", "99 of 100 callers wait at most", "1000 calls occupy the machine")
FEWEST_RUNS = 30
SAME_RATE = 0.98  # a batch within 2 % of the best rate is as good as the best


class Device:
    """A pretended processor with a queue, on a clock of its own: what a GPU does to a stopwatch, the same every time.

    `launch` takes `launch_ms` of the caller's time and queues `work_ms` of work (`first_ms` more the first time);
    `synchronize` waits until the queue is empty; `now` reads the clock in seconds. `queued_ms` is what somebody else
    left in the queue.
    """

    def __init__(self, *, launch_ms: float = 1.0, work_ms: float = 4.0, first_ms: float = 80.0, queued_ms: float = 0.0):
        self.launch_ms, self.work_ms, self.first_ms = launch_ms, work_ms, first_ms
        self.launches, self.pending_at_readings_ms = 0, []
        self._clock_ms, self._idle_from_ms = 0.0, queued_ms

    def launch(self) -> None:
        """Queue one inference and return at once."""
        self._clock_ms += self.launch_ms
        work_ms = self.work_ms + (0.0 if self.launches else self.first_ms)
        self._idle_from_ms = max(self._idle_from_ms, self._clock_ms) + work_ms
        self.launches += 1

    def synchronize(self) -> None:
        """Wait until everything queued so far is done."""
        self._clock_ms = max(self._clock_ms, self._idle_from_ms)

    def now(self) -> float:
        """The time on this device's clock, in seconds."""
        self._clock_ms += 1e-6  # reading takes a moment, so that a loop that waits for the clock ends
        self.pending_at_readings_ms.append(max(0.0, self._idle_from_ms - self._clock_ms))
        return self._clock_ms / 1e3


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
        if not callable(steady_call_ms):
            raise Wrong("hand in the function itself, without calling it: check(steady_call_ms).")
        for device in (
            Device(launch_ms=1.0, work_ms=4.0, first_ms=80.0, queued_ms=30.0),
            Device(launch_ms=0.5, work_ms=7.5, first_ms=16.0, queued_ms=200.0),
        ):
            answer = steady_call_ms(device)
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
    question = "Which batch of your sweep gives the most items per second while 99 of 100 calls stay within budget_ms?"
    hints = (
        "Cross out every row whose p99 is above the budget. The median column is not the promise.",
        "Of the rows that are left take the one with the largest items/s; that is not always the largest batch.",
    )
    solution_source = """
    fitting = [row["latency"] for row in sweep if row["latency"].percentile(99) <= budget_ms]
    chosen_batch = max(fitting, key=lambda latency: latency.items_per_s).batch
    lab01.batch_for_budget.check(chosen_batch, sweep, budget_ms)
    """
    answer = "The budget is a promise to nearly every caller, so p99 decides what fits; after that, throughput decides."

    def judge(self, chosen_batch: int, sweep: list, budget_ms: float) -> str:
        rows = {
            row["latency"].batch: row["latency"]
            for row in sweep
            if isinstance(row, Mapping) and hasattr(row.get("latency"), "percentile")
        }
        if not rows:
            raise Wrong("the second answer is the list of rows that benchmarking.batch_sweep returned.")
        if chosen_batch not in rows:
            raise Wrong(f"batch {chosen_batch} is not in the sweep; it holds {sorted(rows)}.")
        fitting = {batch: row for batch, row in rows.items() if row.percentile(99) <= budget_ms}
        if not fitting:
            raise Wrong(f"no batch of this sweep keeps {budget_ms:.3g} ms; measure again, or take a larger budget.")
        _judge_batch(rows[chosen_batch], fitting, budget_ms)
        mine = rows[chosen_batch]
        return (
            f"Batch {chosen_batch}: p99 {mine.percentile(99):.3g} ms within {budget_ms:.3g} ms, "
            f"{mine.items_per_s:,.0f} items/s. In service, add the time a batch takes to fill."
        )


class HonestRow(Exercise):
    question = "Measure `network` on 32 images and make a row of it that comparing.table accepts."
    hints = (
        "A row is a mapping. The measurement goes in whole, as benchmarking.latency returned it, not as a number.",
        "Beside it belongs what the speed cost: 'max error' against `eager` on the same images, or 'accuracy'.",
    )
    solution_source = """
    row = {"latency": benchmarking.latency(network, images[:32]),
           "max error": comparing.max_error(eager(images[:32]), network(images[:32]))}
    lab01.honest_row.check(row)
    """
    answer = "A speed without its error is half a result; a number without its clock and repeats is none."

    def judge(self, row: dict) -> str:
        from labsupport import comparing
        from labsupport.comparing.tables import JUDGES

        latency = next((value for value in row.values() if hasattr(value, "samples_ms")), None)
        if latency is None:
            raise Wrong(
                "there is no measurement in this row. A bare number has no clock, no repeats and no machine: "
                "put in what benchmarking.latency returned."
            )
        comparing.table([row])
        judged = {
            key: as_number(value, f"{key!r}")
            for key, value in row.items()
            if JUDGES.search(str(key)) and value is not None
        }
        for key, value in judged.items():
            if value < 0:
                raise Wrong(f"{key!r} is {value:g}; an error or accuracy is never negative.")
            if value > 1 and "error" not in key.lower():
                raise Wrong(f"{key!r} is {value:g}; write it as a fraction from 0 to 1, as training.accuracy gives it.")
        if len(latency.samples_ms) < FEWEST_RUNS:
            raise Wrong(f"{len(latency.samples_ms)} runs say little about the spread; take {FEWEST_RUNS} or more.")
        if latency.batch != 32:
            raise Wrong(f"this was measured at batch {latency.batch}; the row was to be about 32 images.")
        return (
            f"{latency!r}, with {', '.join(f'{key} {value:.2g}' for key, value in judged.items())} beside it: "
            "clock, repeats, spread and what it cost."
        )


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
