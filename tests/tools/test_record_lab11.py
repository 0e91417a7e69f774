"""The tool that records lab 11b: the highest rate that kept the limit, and the load of several clients as one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tool_scripts import tool_script

from labsupport.serving import Load


@pytest.fixture
def tool():
    return tool_script("record_lab11")


def load(p99_ms=10.0, *, count=200, refused=0, seconds=2.0, faults=()):
    return Load("server", (p99_ms,) * count, (), refused, Counter(faults), seconds, count / seconds)


def test_the_rate_rises_until_the_limit_breaks(tool):
    asked = []

    def offered(rate, count, name):
        asked.append((rate, count, name))
        return load(60.0 if len(asked) == 4 else 20.0 + len(asked), count=count, seconds=count / rate)

    served, best = tool.sustained("Ray", offered, 5000, 64_000.0)
    assert [round(rate) for rate, _, _ in asked] == [300, 500, 600, 700], "and no rate is offered after the broken one"
    assert [count for _, count, _ in asked] == [1200, 2000, 2400, 2800]
    assert asked[0][2] == "Ray at 30%"
    assert (best.p99_ms, served) == (pytest.approx(23.0), pytest.approx(0.6 * 64_000))


@pytest.mark.parametrize("broken", [load(50.5), load(refused=1), load(faults={"TimeoutError": 1})])
def test_a_late_a_refused_or_a_lost_answer_breaks_it(tool, broken):
    assert tool.sustained("Ray", lambda rate, count, name: broken, 5000, 64_000.0) == (0.0, None)


def test_the_largest_count_is_kept(tool):
    counts = []
    tool.sustained("Ray", lambda rate, count, name: counts.append(count) or load(), 1500, 64_000.0)
    assert counts == [1200, 1500, 1500, 1500, 1500, 1500]


def test_the_joules_of_each_rate_are_noted(tool):
    ticks, spent = iter((100.0, 356.0, 400.0, 464.0)), {}
    run = tool.metered(lambda rate, count, name: load(count=count), lambda: next(ticks), spent)
    assert len(run(5, 2, "a").latencies_ms) == 2 and len(run(5, 1, "b").latencies_ms) == 1
    assert spent == {"a": 256 / (64 * 2), "b": 1.0}
    plain = object()
    assert tool.metered(plain, None, {}) is plain


def test_clients_add_up_to_one_load(tool):
    parts = [
        load(5.0, count=300, seconds=3.0, faults={"TimeoutError": 1}),
        load(9.0, count=100, refused=2, seconds=2.0, faults={"TimeoutError": 2, "OSError": 1}),
    ]
    whole = tool.together("both", parts)
    assert len(whole.latencies_ms) == 400 and whole.latencies_ms.count(9.0) == 100
    assert (whole.refused, whole.lost, whole.faults["TimeoutError"]) == (2, 4, 3)
    assert whole.answered_per_s == pytest.approx((400 - 2 - 4) / 3.0)  # until the last client was done
    assert whole.offered_per_s == pytest.approx(100 + 50)


def test_an_answer_that_is_off_stops_it(tool):
    wanted = np.arange(1.0, 9.0)
    tool.judge(wanted * 1.01, wanted)
    with pytest.raises(SystemExit, match="off by 0.1"):
        tool.judge(wanted * 1.1, wanted)
