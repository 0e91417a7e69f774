"""The scheduler: batches, bounds, wrong requests, replicas that fail, updates, and an end that leaves nothing behind."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from labsupport.errors import BadInput, LabError
from labsupport.serving import Batcher, Refused

SHAPE = (2, 3)


def doubled(images):
    return images.reshape(len(images), -1) * 2


def request(value, count=1):
    return np.full((count, *SHAPE), value, np.float32)


def server(*replicas, **options):
    return Batcher(replicas or [doubled], shape=SHAPE, **options)


class Gate:
    """A replica that waits until it is opened; ``entered`` says that a batch is in its hands."""

    def __init__(self, run=doubled):
        self.run, self.entered, self.opened = run, threading.Event(), threading.Event()

    def __call__(self, images):
        self.entered.set()
        assert self.opened.wait(10)
        return self.run(images)


def test_answers_come_in_order_and_batches_stay_within_the_limit():
    with server(max_batch=4, delay_ms=20) as box:
        futures = [box.submit(request(value, 1 + value % 3)) for value in range(40)]
        for value, future in enumerate(futures):
            answer = future.result(10)
            assert answer.shape == (1 + value % 3, 6) and (answer == 2 * value).all()
    assert max(box.batches) <= 4 and box.mean_batch > 1.5


def test_a_lone_request_waits_for_the_delay_and_a_full_batch_does_not():
    with server(max_batch=2, delay_ms=300) as box:
        begin = time.perf_counter()
        box.submit(request(1)).result(10)
        assert time.perf_counter() - begin > 0.25
        begin = time.perf_counter()
        pair = [box.submit(request(value)) for value in (1, 2)]
        assert [future.result(10)[0, 0] for future in pair] == [2, 4] and time.perf_counter() - begin < 0.25


def test_a_flood_is_refused_and_what_was_accepted_is_answered():
    gate = Gate()
    with server(gate, max_batch=1, delay_ms=0, max_waiting=3) as box:
        accepted = [box.submit(request(0))]
        assert gate.entered.wait(10)
        accepted += [box.submit(request(value)) for value in (1, 2, 3)]
        with pytest.raises(Refused, match="3 requests wait, and no more may; send it again later"):
            box.submit(request(4))
        gate.opened.set()
        assert [future.result(10)[0, 0] for future in accepted] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((1, 3, 2), np.float32), r"float32 \(1, 3, 2\); wanted is float32 \(n, 2, 3\)"),
        (np.zeros((1, 2, 3)), "float64"),
        (np.zeros((0, 2, 3), np.float32), "0 images; wanted are 1 to 4"),
        (np.zeros((5, 2, 3), np.float32), "5 images; wanted are 1 to 4: split it"),
        (np.full((1, 2, 3), np.nan, np.float32), "NaN or infinity"),
        (b"\x89PNG", "holds bytes"),
        (None, "holds NoneType"),
    ],
)
def test_a_wrong_request_is_refused_and_the_server_goes_on(images, said):
    with server(max_batch=4) as box:
        with pytest.raises(BadInput, match=said):
            box.submit(images)
        assert box.submit(request(3)).result(10)[0, 0] == 6


def test_a_client_that_leaves_is_passed_over():
    gate = Gate()
    with server(gate, max_batch=1, delay_ms=0) as box:
        first = box.submit(request(1))
        assert gate.entered.wait(10)
        gone, stays = box.submit(request(2)), box.submit(request(3))
        assert gone.cancel()
        gate.opened.set()
        assert first.result(10)[0, 0] == 2 and stays.result(10)[0, 0] == 6
    assert sum(box.batches.values()) == 2


def broken(images):
    raise RuntimeError("the device is lost")


def short(images):
    return doubled(images)[:-1]


@pytest.mark.parametrize("bad", [broken, short])
def test_the_requests_of_a_replica_that_fails_are_answered_by_another(bad):
    with server(bad, doubled, max_batch=2) as box:
        futures = [box.submit(request(value)) for value in range(20)]
        assert [future.result(10)[0, 0] for future in futures] == [2 * value for value in range(20)]
        assert box.living == ("replica 2",) or "replica 1" in box.living  # the bad one may never have been asked


def test_requests_that_are_given_back_go_first_and_in_their_order():
    def fails(images):
        raise RuntimeError("no more")

    def notes(images):
        served.extend(images[:, 0, 0])
        return doubled(images)

    served, gate = [], Gate(fails)
    with server(gate, max_batch=3, delay_ms=500) as box:
        futures = [box.submit(request(value)) for value in (1, 2, 3)]
        assert gate.entered.wait(10)
        box.add(notes)
        futures.append(box.submit(request(4)))
        gate.opened.set()
        assert [future.result(10)[0, 0] for future in futures] == [2, 4, 6, 8]
    assert served == [1, 2, 3, 4]


def test_when_the_last_replica_fails_everybody_hears_of_it():
    with server(broken, max_batch=1) as box:
        with pytest.raises(LabError, match="no replica could answer .*the device is lost.*0 are left"):
            box.submit(request(1)).result(10)
        with pytest.raises(LabError, match="no replica is left; add one"):
            box.submit(request(1))
        box.add(doubled)
        assert box.submit(request(1)).result(10)[0, 0] == 2


def test_a_client_that_left_does_not_silence_the_others_when_the_last_replica_fails():
    gate = Gate(broken)
    with server(gate, max_batch=1, delay_ms=0) as box:
        futures = [box.submit(request(value)) for value in range(4)]
        assert gate.entered.wait(10) and futures[1].cancel()
        gate.opened.set()
        for future in (futures[0], *futures[2:]):
            with pytest.raises(LabError, match="the device is lost|the last replica failed"):
                future.result(10)


def test_a_replica_that_calls_exit_is_dead_and_its_requests_are_not_lost():
    with server(sys.exit, doubled, max_batch=1, delay_ms=0) as box:
        assert [box.submit(request(value)).result(10)[0, 0] for value in (1, 2, 3)] == [2, 4, 6]


def test_closing_also_ends_what_a_dead_replica_gave_back():
    dying, busy = Gate(broken), Gate()
    box = server(dying, busy, max_batch=1, delay_ms=0)
    held = [box.submit(request(1)), box.submit(request(2))]
    assert dying.entered.wait(10) and busy.entered.wait(10)
    dying.opened.set()
    while box.waiting == 0:
        time.sleep(0.001)
    threading.Timer(0.1, busy.opened.set).start()
    box.close()
    ends = [type(future.exception(10)) for future in held]
    assert sorted(ends, key=str) == sorted([type(None), Refused], key=str)


def test_a_request_that_kills_every_replica_does_not_kill_them_all():
    with server(*[broken] * 5, max_batch=1) as box:
        with pytest.raises(LabError, match="no replica could answer"):
            box.submit(request(1)).result(10)
        assert len(box.living) == 2


def test_a_killed_replica_loses_nothing():
    gate = Gate()
    with server(gate, max_batch=2, delay_ms=0) as box:
        held = box.submit(request(1))
        assert gate.entered.wait(10)
        box.add(doubled)
        box.kill("replica 1")
        gate.opened.set()
        assert held.result(10)[0, 0] == 2 and box.living == ("replica 2",)


def test_an_update_answers_with_the_old_or_with_the_new_and_ends_with_the_new():
    with server(doubled, doubled, max_batch=2, delay_ms=0) as box:
        before = [box.submit(request(1)) for _ in range(50)]
        box.update([lambda images: -doubled(images)] * 2)
        after = box.submit(request(1)).result(10)
        assert {future.result(10)[0, 0] for future in before} <= {2.0, -2.0} and after[0, 0] == -2
        assert box.living == ("replica 3", "replica 4")
        box.update([doubled])
        assert len(box.living) == 1


def test_closing_refuses_what_waits_and_leaves_no_thread():
    gate = Gate()
    box = server(gate, max_batch=1, delay_ms=0)
    running = box.submit(request(1))
    assert gate.entered.wait(10)
    waiting = box.submit(request(2))
    threading.Timer(0.1, gate.opened.set).start()
    box.close()
    box.close()
    assert running.result(10)[0, 0] == 2
    with pytest.raises(Refused, match="closed before"):
        waiting.result(10)
    with pytest.raises(Refused, match="this server is closed"):
        box.submit(request(3))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replica")]


def test_an_interrupt_inside_the_block_ends_the_threads():
    with pytest.raises(KeyboardInterrupt), server():
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replica")]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"max_batch": 0}, "max_batch=0; wanted a whole number"),
        ({"max_batch": True}, "max_batch=True"),
        ({"max_waiting": 2.5}, "max_waiting=2.5"),
        ({"delay_ms": -1}, "delay_ms=-1"),
        ({"delay_ms": "2"}, "delay_ms='2'"),
        ({"delay_ms": float("nan")}, "delay_ms=nan"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(BadInput, match=said):
        server(**options)


def test_no_replica_and_unknown_names():
    with pytest.raises(BadInput, match="at least one replica"):
        Batcher([], shape=SHAPE)
    with pytest.raises(BadInput, match="at least one replica"):
        Batcher([3], shape=SHAPE)
    for change in (lambda box: box.update([]), lambda box: box.update([3]), lambda box: box.add(3)):
        with server() as box:
            with pytest.raises(BadInput, match="at least one replica|Batcher.add: run=3"):
                change(box)
            assert box.living == ("replica 1",) and box.submit(request(1)).result(10)[0, 0] == 2
    with server() as box, pytest.raises(BadInput, match="'replica 9' is no replica; there are"):
        box.kill("replica 9")
