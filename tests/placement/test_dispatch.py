"""Dispatch: the policies, the simulation against queues worked out by hand, and real processes that are killed."""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from labsupport.errors import BadInput, LabError
from labsupport.placement import dispatch, pool
from labsupport.placement.dispatch import WorkerState, simulate

UNEQUAL = {"fast": [1.0, 1.1, 0.9], "slow": [4.0, 4.2, 3.9]}


# --- policies ---------------------------------------------------------------------------------------------------


def test_each_policy_chooses_by_its_own_rule():
    states = (
        WorkerState("fast", 2, 1, 1.0, 3.0),
        WorkerState("idle", 0, 0, 9.0, 0.0),
        WorkerState("mid", 1, 0, 3.0, 3.0),
    )
    assert [dispatch.round_robin(states, n) for n in range(4)] == [0, 1, 2, 0]
    assert dispatch.shortest_queue(states, 0) == 1
    assert dispatch.least_expected_finish(states, 0) == 0
    assert dispatch.POLICIES["work stealing"].steals and not dispatch.POLICIES["round-robin"].steals


def test_policies_are_found_by_name_or_made_of_functions():
    def mine(states, number):
        return np.int64(0)

    assert dispatch.policy("round-robin").name == "round-robin" and dispatch.policy(mine).name == "mine"
    assert dispatch.policy(mine).pick((WorkerState("a", 0, 0, 1, 0),), 0) == 0
    with pytest.raises(BadInput, match="policy='fastest' is not known; choose one of"):
        dispatch.policy("fastest")
    with pytest.raises(BadInput, match=r"policy=\[1\] is not known"):
        dispatch.policy([1])


@pytest.mark.parametrize("place", [2, -1, None, "a", 1.0, True])
def test_a_worker_that_is_not_there_is_refused(place):
    with pytest.raises(BadInput, match=r"policy '<lambda>' chose worker .* for request 0; there are 2"):
        simulate([0.0], {"a": [1], "b": [1]}, lambda states, number: place)


# --- the simulation ---------------------------------------------------------------------------------------------


def test_one_worker_serves_a_queue_as_worked_out_by_hand():
    outcome = simulate([0, 1, 2, 20], {"only": [5.0]}, "round-robin")
    assert outcome.latencies_ms == (5, 9, 13, 5) and outcome.served == {"only": 4} and outcome.lost == 0
    assert outcome.p50_ms == 7 and "lost 0 of 4" in repr(outcome) and outcome.served == {"only": 4}


def test_two_workers_by_hand():
    times = {"fast": [1.0], "slow": [4.0]}
    assert simulate([0, 0, 0, 0], times, "round-robin").latencies_ms == (1, 4, 2, 8)
    assert simulate([0, 0, 0, 0], times, "shortest queue").latencies_ms == (1, 4, 2, 8)
    # the fourth is done at the same moment on either, and goes to the first
    assert simulate([0, 0, 0, 0], times, "least expected finish").latencies_ms == (1, 2, 3, 4)
    # the fifth would be the fast one's fifth, and the slow one needs 4 ms; the sixth would be its second
    assert simulate([0] * 6, times, "least expected finish").latencies_ms == (1, 2, 3, 4, 4, 5)
    stolen = simulate([0, 0, 0, 0], times, "work stealing")
    assert stolen.latencies_ms == (1, 4, 2, 3) and stolen.moved == 1


def test_a_simulation_is_the_same_for_a_seed_and_another_for_another():
    arrivals = dispatch.bursts(200, mean_gap_ms=2.0, seed=1)
    first, again, other = (simulate(arrivals, UNEQUAL, "shortest queue", seed=seed) for seed in (4, 4, 5))
    assert first == again and first.latencies_ms != other.latencies_ms


def test_bursts_have_the_mean_gap_and_are_seeded():
    arrivals = dispatch.bursts(20000, mean_gap_ms=2.0, burst=8, seed=0)
    assert arrivals[-1] / len(arrivals) == pytest.approx(2.0, rel=0.1) and (np.diff(arrivals) >= 0).all()
    assert np.array_equal(dispatch.bursts(50, mean_gap_ms=1, seed=3), dispatch.bursts(50, mean_gap_ms=1, seed=3))
    assert (np.diff(dispatch.bursts(50, mean_gap_ms=1, burst=1)) > 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_least_expected_finish_beats_taking_turns(seed):
    arrivals = dispatch.bursts(400, mean_gap_ms=dispatch.mean_gap_ms(UNEQUAL, 0.5), seed=seed)
    best, turns = (simulate(arrivals, UNEQUAL, name) for name in ("least expected finish", "round-robin"))
    assert best.p99_ms < turns.p99_ms


def test_every_request_is_answered_under_every_policy():
    arrivals = dispatch.bursts(300, mean_gap_ms=dispatch.mean_gap_ms(UNEQUAL, 0.9), seed=2)
    outcomes = [simulate(arrivals, UNEQUAL, name) for name in dispatch.POLICIES]
    assert all(o.lost == 0 and sum(o.served.values()) == 300 for o in outcomes)


@pytest.mark.parametrize("name", list(dispatch.POLICIES))
def test_a_worker_that_dies_loses_nothing(name):
    arrivals = dispatch.bursts(300, mean_gap_ms=1.5, seed=2)
    outcome = simulate(arrivals, UNEQUAL, name, dies=("slow", float(arrivals[100])))
    assert outcome.lost == 0 and sum(outcome.served.values()) == 300
    after = simulate(arrivals, UNEQUAL, name, dies=("slow", -1.0))
    assert after.served["slow"] == 0


def test_what_a_dead_worker_had_goes_to_the_others_by_hand():
    outcome = simulate([0, 0, 0, 0], {"a": [4.0], "b": [4.0]}, "round-robin", dies=("a", 1.0))
    assert outcome.latencies_ms == (12, 4, 16, 8) and outcome.moved == 2


def test_the_load_sets_the_gap():
    assert dispatch.mean_gap_ms({"a": [2.0], "b": [2.0]}, 0.5) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: simulate([0.0], {}, "round-robin"), "no workers"),
        (lambda: simulate([0.0], {"a": []}, "round-robin"), "worker 'a' has service times"),
        (lambda: simulate([0.0], {"a": [0.0]}, "round-robin"), "milliseconds above 0"),
        (lambda: simulate([0.0], {"a": [math.nan]}, "round-robin"), "milliseconds above 0"),
        (lambda: simulate([], {"a": [1]}, "round-robin"), "rising list of times"),
        (lambda: simulate([2, 1], {"a": [1]}, "round-robin"), "rising list of times"),
        (lambda: simulate([0.0], {"a": [1]}, "round-robin", dies=("b", 1)), "dies names 'b'"),
        (lambda: dispatch.bursts(0, mean_gap_ms=1), "requests=0"),
        (lambda: dispatch.bursts(5, mean_gap_ms=-1), "mean_gap_ms=-1"),
        (lambda: dispatch.mean_gap_ms({"a": [1]}, 1.0), "load=1.0"),
    ],
)
def test_bad_simulations(work, message):
    with pytest.raises(BadInput, match=message):
        work()


def test_all_dead_is_said():
    with pytest.raises(LabError, match="every worker is dead at 1.0 ms and requests from number 0 on are unanswered"):
        simulate([0.0, 5.0], {"a": [4.0]}, "round-robin", dies=("a", 1.0))


def test_nothing_answered_has_no_percentile():
    assert math.isnan(dispatch.Outcome("none", (math.nan,), {}).p99_ms)


# --- real processes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubling(tmp_path_factory):
    """A graph that doubles its input."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    path = tmp_path_factory.mktemp("graph") / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def numbers(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 1, 4)


def test_a_killed_process_loses_none_of_2000_requests(doubling):
    requests = numbers(2000)
    with pool.Pool([pool.Worker("a", doubling), pool.Worker("b", doubling)], requests[0]) as crew:
        assert set(crew.service_ms) == {"a", "b"} and all(ms > 0 for ms in crew.service_ms.values())
        arrivals_ms, start = np.linspace(0, 200, 100), time.perf_counter()
        calm = crew.serve(requests[:100], "work stealing", arrivals_ms=arrivals_ms)
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        # Latency counts from the arrival, so both together are a moment of this run.
        assert min(calm.latencies_ms) > 0 and (np.array(calm.latencies_ms) + arrivals_ms <= elapsed_ms).all()
        assert (
            calm.lost == 0
            and calm.died == ()
            and sum(calm.served.values()) == 100
            and sum(map(len, calm.service_ms.values())) == 100
        )
        served = crew.serve(requests, "round-robin", kill={"a": 300})
        assert served.lost == 0 and served.died == ("a",) and served.moved > 0 and sum(served.served.values()) == 2000
        assert np.array_equal(np.array(served.answers), 2 * requests)
        assert crew.alive == ("b",) and "died: a" in repr(served)
        with pytest.raises(LabError, match="every worker is dead: .* of 50 requests are answered"):
            crew.serve(requests[:50], kill={"b": 10})
        with pytest.raises(LabError, match="every worker is dead: 0 of 5"):
            crew.serve(requests[:5])
    assert crew.alive == ()


def test_a_process_that_falls_silent_counts_as_dead(doubling):
    requests = numbers(60)
    with pool.Pool([pool.Worker("a", doubling), pool.Worker("b", doubling, repeat=3)], requests[0], ahead=2) as crew:
        served = crew.serve(requests, lambda states, number: number % len(states), stall={"b": 10}, stall_s=0.4)
        assert served.died == ("b",) and served.lost == 0 and np.array_equal(np.array(served.answers), 2 * requests)
        with pytest.raises(BadInput, match="chose worker 9"):
            crew.serve(requests, lambda states, number: 9)
        with pytest.raises(
            BadInput, match="chose worker 9"
        ):  # two requests are under way by then, and their answers are not the next call's
            crew.serve(
                requests[::-1], lambda states, number: 9 if number == 2 else 0, arrivals_ms=[0.0, 0.0] + [5.0] * 58
            )
        for options, message in (
            ({"kill": {"c": 1}}, "no worker is called 'c'"),
            ({"stall_s": 0}, "stall_s=0"),
            ({"arrivals_ms": [1.0]}, "1 times for 60 requests"),
            ({"policy": "best"}, "is not known"),
        ):
            with pytest.raises(BadInput, match=message):
                crew.serve(requests, **options)
        with pytest.raises(BadInput, match="no requests"):
            crew.serve([])
        with pytest.raises(
            LabError, match=r"request 1 cannot be answered, worker '[ab]' says BadInput: .* has shape \(1, 3\)"
        ):
            crew.serve([requests[0], np.zeros((1, 3), np.float32)])
        assert np.array_equal(np.array(crew.serve(requests).answers), 2 * requests)


@pytest.mark.parametrize(
    "workers, message",
    [
        ([], "no workers"),
        ([pool.Worker("a", "x.onnx"), pool.Worker("a", "x.onnx")], "repeat; the report"),
        ([pool.Worker("a", "x.onnx", repeat=0)], "repeat and ahead"),
    ],
)
def test_bad_pools(workers, message):
    with pytest.raises(BadInput, match=message):
        pool.Pool(workers, numbers(1)[0])


def test_a_worker_that_cannot_load_is_named(tmp_path):
    with pytest.raises(LabError, match="worker 'a' could not start: BadInput: missing.onnx: no such file"):
        pool.Pool([pool.Worker("a", tmp_path / "missing.onnx")], numbers(1)[0])


@pytest.mark.parametrize(
    "ready, message", [(False, "it was silent for 120 s"), (True, "its process ended before it answered")]
)
def test_a_worker_that_does_not_greet_is_named(ready, message):
    def ended():
        raise EOFError

    crew = object.__new__(pool.Pool)
    crew._members = []
    member = pool._Member("a", None, SimpleNamespace(poll=lambda seconds: ready, recv=ended))
    with pytest.raises(LabError, match=f"worker 'a' could not start: {message}"):
        crew._greet(member, None)


def test_a_worker_that_dies_while_it_is_timed_is_named():
    said = iter([0.0])

    def recv():
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    member = pool._Member(
        "a",
        None,
        SimpleNamespace(
            poll=lambda seconds: True, recv=recv, send=lambda message: None, send_bytes=lambda packed: None
        ),
    )
    with pytest.raises(LabError, match="worker 'a' could not start: its process ended before it answered"):
        object.__new__(pool.Pool)._greet(member, None)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, LabError])
def test_a_pool_that_does_not_come_about_leaves_no_process(monkeypatch, tmp_path, reason):
    import multiprocessing

    def stops(self, member, example):
        raise reason("stopped")

    before = set(multiprocessing.active_children())
    monkeypatch.setattr(pool.Pool, "_greet", stops)
    with pytest.raises(reason):
        pool.Pool(
            [pool.Worker("a", tmp_path / "missing.onnx"), pool.Worker("b", tmp_path / "missing.onnx")], numbers(1)[0]
        )
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(os.name == "nt", reason="an interrupt reaches one process only there")
def test_an_interrupt_of_the_notebook_leaves_the_workers_alive(doubling):
    import signal
    import time

    with pool.Pool([pool.Worker("a", doubling)], numbers(1)[0]) as crew:
        os.kill(crew._members[0].process.pid, signal.SIGINT)  # JupyterLab signals the whole process group
        time.sleep(0.2)
        assert crew.serve(numbers(5)).lost == 0 and crew.alive == ("a",)


def test_a_request_that_waited_behind_another_took_what_was_left_of_the_time(monkeypatch):
    """Two were sent at once: the second one's time begins with the answer to the first."""
    now = SimpleNamespace(s=10.0)
    monkeypatch.setattr(pool.time, "perf_counter", lambda: now.s)
    member = SimpleNamespace(name="a", count=0, times=[], service_ms=20.0, last_answer=0.0, begin=lambda: None)
    member.sent = {1: (0, 10.0), 2: (1, 10.0)}
    service = pool._Service(SimpleNamespace(_members=[member]), ["x", "y"], None, None, [], 5.0)
    service.begin = 9.5
    now.s = 10.030
    service._note(member, 1, "one", "")
    now.s = 10.070
    service._note(member, 2, "two", "")
    assert member.times == [pytest.approx(30), pytest.approx(40)]
    assert service.latencies.tolist() == [pytest.approx(530), pytest.approx(570)]
    assert member.service_ms == pytest.approx(20 + 0.1 * 10 + 0.1 * (40 - 21)) and service.answers == ["one", "two"]
    service._note(member, 2, "again", "")  # a ticket of a former call
    assert member.count == 2 and service.answers[1] == "two"


def test_what_may_have_ended_a_worker_waits_until_all_others_are_answered():
    from collections import deque

    idle = SimpleNamespace(name="a", alive=True, sent={}, queue=deque(), begin=lambda: None)
    service = pool._Service(SimpleNamespace(_members=[idle]), ["x", "y", "z"], None, None, [], 5.0)
    service.suspects.append(1)
    for answered, queued in ((0, []), (1, []), (2, [1])):
        service.answered = answered
        service._try_suspect()
        assert list(idle.queue) == queued, answered
    service._try_suspect()
    assert list(idle.queue) == [1]  # once: its worker is busy
