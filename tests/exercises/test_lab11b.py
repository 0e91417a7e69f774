"""The checkers of lab 11b: untouched, each foreseen mistake with its message, and right answers written in several ways."""

from __future__ import annotations

import queue
import time

import pytest

from labsupport.exercises import lab11b
from labsupport.exercises.base import assert_checker, assert_complete

NAMES = {"queue": queue, "time": time, "lab11b": lab11b}


def test_the_lab_holds_four_exercises_with_hints_and_solutions():
    assert_complete(lab11b, ["saturation", "window", "retry", "admit"])


def by_polling(waiting, limit, delay_s):
    batch = [waiting.get()]
    begin = time.perf_counter()
    while len(batch) < limit and time.perf_counter() - begin < delay_s:
        try:
            batch.append(waiting.get_nowait())
        except queue.Empty:
            time.sleep(0.005)
    return batch


def by_deadline(waiting, limit, delay_s):
    batch, until = [waiting.get()], None
    until = time.monotonic() + delay_s
    while len(batch) != limit:
        left = until - time.monotonic()
        try:
            batch.append(waiting.get(timeout=left) if left > 0 else waiting.get_nowait())
        except queue.Empty:
            return batch
    return batch


def no_wait(waiting, limit, delay_s):
    batch = [waiting.get()]
    while len(batch) < limit and not waiting.empty():
        batch.append(waiting.get())
    return batch


def new_delay_each(waiting, limit, delay_s):
    batch = [waiting.get()]
    while len(batch) < limit:
        try:
            batch.append(waiting.get(timeout=delay_s))
        except queue.Empty:
            break
    return batch


def full_or_nothing(waiting, limit, delay_s):
    return [waiting.get() for _ in range(limit)]


def sleeps_first(waiting, limit, delay_s):
    batch = [waiting.get()]
    time.sleep(delay_s)
    while len(batch) < limit and not waiting.empty():
        batch.append(waiting.get())
    return batch


def one_too_many(waiting, limit, delay_s):
    return by_deadline(waiting, limit + 1, delay_s)


def takes_and_drops(waiting, limit, delay_s):
    batch = by_deadline(waiting, limit, delay_s)
    while not waiting.empty():
        waiting.get()
    return batch


def gives_up(waiting, limit, delay_s):
    try:
        first = waiting.get(timeout=delay_s)
    except queue.Empty:
        return []
    waiting.queue.appendleft(first)
    return by_deadline(waiting, limit, delay_s)


def delay_from_the_call(waiting, limit, delay_s):
    until, batch = time.monotonic() + delay_s, [waiting.get()]
    while len(batch) < limit and time.monotonic() < until:
        try:
            batch.append(waiting.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            break
    return batch


def test_window():
    assert_checker(lab11b.window, wrong=[
        (no_wait, "it did not wait for more|the batch is"), (new_delay_each, "one comes every 0.12 s .*: the batch is"), (full_or_nothing, "does not come back"),
        (sleeps_first, "ten wait, four fit: it took 1"), (one_too_many, "holds 5 requests, and 4 are allowed"), (takes_and_drops, "requests got lost"),
        (gives_up, "nobody waits yet: it took|nobody waits yet .*the batch is"), (delay_from_the_call, "nobody waits yet"), (lambda w, n, d: by_deadline(w, n, d)[::-1], "the batch is"),
        (lambda w, n, d: None, "it returned nothing|it returned None"), (lambda w, n, d: 1 / 0, "ZeroDivisionError"), ([], "hand in the function itself"),
    ], right=[by_polling, by_deadline], namespace=NAMES)  # fmt: skip


def recursive(request, replicas):
    if not replicas:
        raise ConnectionError("all are dead")
    try:
        return replicas[0](request)
    except ConnectionError:
        return recursive(request, replicas[1:])


def keeps_the_last(request, replicas):
    last = ConnectionError("there are no replicas")
    for replica in replicas:
        try:
            return replica(request)
        except ConnectionError as error:
            last = error
    raise last


def anything_goes(request, replicas):
    for replica in replicas:
        try:
            return replica(request)
        except Exception as error:
            last = error
    raise ConnectionError("no replica is left") from last


def first_only(request, replicas):
    return replicas[0](request)


def same_again(request, replicas):
    for _ in range(10):
        try:
            return replicas[0](request)
        except ConnectionError:
            pass
    raise ConnectionError("dead")


def silent(request, replicas):
    for replica in replicas:
        try:
            return replica(request)
        except ConnectionError:
            pass


def asks_all(request, replicas):
    answers = []
    for replica in replicas:
        try:
            answers.append(replica(request))
        except ConnectionError:
            continue
    if not answers:
        raise ConnectionError("no replica is left")
    return answers[0]


def resets_only(request, replicas):
    for replica in replicas[:2]:
        try:
            return replica(request)
        except ConnectionResetError:
            continue
    raise ConnectionError("gave up after two")


def wraps(request, replicas):
    try:
        return recursive(request, replicas)
    except ConnectionError:
        raise
    except Exception as error:
        raise RuntimeError("the request failed") from error


def times_out_too(request, replicas):
    for replica in replicas:
        try:
            return replica(request)
        except (ConnectionError, TimeoutError):
            continue
    raise ConnectionError("no replica is left")


def test_retry():
    assert_checker(lab11b.retry, wrong=[
        (anything_goes, "ValueError is the request's own fault, and it was sent to 3"), (first_only, "ConnectionResetError|the process is gone"),
        (same_again, "ConnectionError|dead"), (silent, "nothing was raised; the client must hear"), (asks_all, r"it asked \[0, 1, 2, 3, 4\]"),
        (resets_only, "ConnectionError|gave up after two"), (wraps, "RuntimeError came out; let it through"), (times_out_too, "TimeoutError is the request's own fault"),
        (lambda request, replicas: request * 3, r"it asked \[\]"), (lambda request, replicas: [r(request) for r in replicas], "the process is gone|the answer was"),
        ("send", "hand in the function itself"),
    ], right=[recursive, keeps_the_last], namespace=NAMES)  # fmt: skip


def in_rounds(ahead, replicas, service_ms, deadline_ms):
    full_rounds = 0
    while ahead >= replicas:
        ahead, full_rounds = ahead - replicas, full_rounds + 1
    return bool(full_rounds * service_ms + service_ms <= deadline_ms)


def by_capacity(ahead, replicas, service_ms, deadline_ms):
    """A twin: how many fit into the deadline, all replicas together."""
    return ahead < int(deadline_ms / service_ms) * replicas


def test_admit():
    assert_checker(lab11b.admit, wrong=[
        (lambda *_: True, "admitted requests were late"), (lambda *_: False, "you turn away requests that had time"),
        (lambda a, r, s, d: a // r * s <= d, "admitted requests were late"), (lambda a, r, s, d: (a + 1) * s <= d, "you turn away requests that had time"),
        (lambda a, r, s, d: a < r, "you turn away requests that had time"), (lambda a, r, s, d: a < 64, "admitted requests were late"),
        (lambda a, r, s, d: a * s / r <= d, "admitted requests were late"), (lambda a, r, s, d: "yes", "wanted is True or False"),
        (lambda a, r, s, d: a, "wanted is True or False"), (lambda a, r, s, d: s <= d, "admitted requests were late"), (True, "hand in the function itself"),
    ], right=[in_rounds, by_capacity], namespace=NAMES)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_right_answers_hold_however_the_cases_are_drawn(seed):
    for exercise, answer in ((lab11b.retry, recursive), (lab11b.admit, in_rounds), (lab11b.admit, by_capacity)):
        assert exercise.check(answer).right


def test_a_batch_that_gets_full_leaves_at_once():
    def sleeps(waiting, limit, delay_s):
        batch = [waiting.get()]
        if waiting.qsize() < limit - 1:
            time.sleep(delay_s)
        while len(batch) < limit and not waiting.empty():
            batch.append(waiting.get_nowait())
        return batch

    assert "leaves at once" in lab11b.window.check(sleeps).message


def _sender(died=ConnectionError, wants=lambda answer: True, take=iter):
    def send(request, replicas):
        for replica in take(replicas):
            try:
                answer = replica(request)
            except died:
                continue
            if wants(answer):
                return answer
        raise ConnectionError("no replica is left")

    return send


def _popped(replicas):
    while replicas:
        yield replicas.pop(0)


def test_retry_knows_each_death_an_answer_of_0_and_a_list_that_is_not_its_own():
    assert lab11b.retry.check(_sender()).right
    assert "Each kind" in lab11b.retry.check(_sender(died=ConnectionResetError)).message
    assert "may be 0" in lab11b.retry.check(_sender(wants=bool)).message
    assert "changed the list" in lab11b.retry.check(_sender(take=_popped)).message


def test_admit_counts_whole_rounds_every_time():
    for _ in range(5):
        verdict = lab11b.admit.check(lambda ahead, replicas, ms, deadline: (ahead / replicas + 1) * ms <= deadline)
        assert verdict.outcome == "wrong"
