"""Arrivals and what became of them: the process, the open loop, and every request accounted for."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from labsupport.errors import BadInput, LabError
from labsupport.serving import Refused, offer, poisson


def test_the_gaps_are_exponential_and_seeded():
    arrivals = poisson(200, 20_000)
    gaps = np.diff(arrivals)
    assert (gaps >= 0).all() and abs(gaps.mean() * 200 - 1) < 0.03 and abs(gaps.std() / gaps.mean() - 1) < 0.03
    assert np.array_equal(arrivals, poisson(200, 20_000)) and not np.array_equal(arrivals, poisson(200, 20_000, seed=1))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "fast", None])
def test_a_rate_that_is_none(rate):
    with pytest.raises(BadInput, match="rate_per_s="):
        poisson(rate, 10)


@pytest.mark.parametrize("requests", [0, -5, 2.0, True])
def test_a_number_of_requests_that_is_none(requests):
    with pytest.raises(BadInput, match="requests="):
        poisson(10, requests)


def answered(feed):
    future = Future()
    future.set_result(feed * 2)
    return future


def test_every_request_is_answered_refused_or_lost():
    def submit(feed):
        if feed % 3 == 1:
            raise Refused("full")
        if feed % 3 == 2:
            raise ValueError("broken")
        return answered(feed)

    load = offer(submit, range(30), np.arange(30) / 1e4, name="mixed")
    assert (load.answered, load.refused, load.lost) == (10, 10, 10)
    assert load.faults == {"ValueError: broken": 10} and load.answers[3] == 6 and load.answers[4] is None
    assert load.within(1e9) == pytest.approx(1 / 3) and "10 refused, 10 lost" in repr(load)
    assert load.as_row()["server"] == "mixed"


def test_an_error_in_the_answer_and_a_cancelled_one_are_lost():
    def submit(feed):
        future = Future()
        future.cancel() if feed else future.set_exception(LabError("dead"))
        return future

    assert offer(submit, range(2), [0.0, 0.001]).lost == 2


def test_the_offered_rate_counts_to_the_last_arrival_and_all_at_once_has_none():
    load = offer(answered, [1, 2, 3], [0.0, 0.0, 0.02])
    assert load.offered_per_s == pytest.approx(150) and load.as_row()["offered, 1/s"] == 150
    at_once = offer(answered, [1, 2], [0.0, 0.0])
    assert at_once.answers == (2, 4) and at_once.as_row()["offered, 1/s"] is None


def test_latency_counts_from_the_moment_a_request_was_due():
    def blocking(feed):
        time.sleep(0.02)
        return answered(feed)

    load = offer(blocking, range(10), np.zeros(10) + 1e-6)
    assert load.latencies_ms[-1] > 150  # it waited for nine others, though its own call took 20 ms
    assert load.p50_ms > 80 and load.p99_ms >= load.p50_ms


def test_events_happen_beside_the_load():
    happened = []
    with ThreadPoolExecutor(4) as threads:
        load = offer(
            lambda feed: threads.submit(lambda: feed),
            range(20),
            np.arange(20) / 1e3,
            events={5: lambda: happened.append(1)},
        )
    assert happened == [1] and load.answered == 20


@pytest.mark.parametrize(
    "event, said",
    [(lambda: 1 / 0, "ZeroDivisionError: division by zero"), (Future().result, "has not ended after 0.2 s")],
)
def test_an_event_that_did_not_happen_proves_nothing(event, said):
    with pytest.raises(LabError, match=f"the event at request 1 failed: .*{said}"):
        offer(answered, range(2), [0.0, 0.001], events={1: event}, patience_s=0.2)


@pytest.mark.parametrize("number", [-1, 2])
def test_an_event_beyond_the_last_request_is_refused(number):
    with pytest.raises(BadInput, match=f"an event at request {number}, and the requests are 0 to 1"):
        offer(answered, range(2), [0.0, 0.001], events={number: print})


def test_a_server_that_never_answers_is_noticed():
    with pytest.raises(LabError, match="2 requests got no answer within 0.2 s; is the server still there"):
        offer(lambda feed: Future(), range(2), [0.0, 0.001], patience_s=0.2)


@pytest.mark.parametrize("arrivals", [[0.0], [], [2.0, 1.0], [[0.0, 1.0]], [0.0, float("nan")], [-1.0, 0.0]])
def test_arrivals_that_do_not_fit(arrivals):
    with pytest.raises(BadInput, match="give one rising time in s a feed"):
        offer(answered, range(2), arrivals)
