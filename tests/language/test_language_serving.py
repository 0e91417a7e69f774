"""Schedules on a real session and on rehearsals, and a cache in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport.errors import BadInput, LabError
from labsupport.language import cached, networks, serving

SHAPE = networks.Shape(2, 64, 4, 2, 128, 300, 64)


def requests(count=14, per_s=500.0, seed=0):
    dice = np.random.default_rng(seed)
    prompts = [dice.integers(300, size=n).tolist() for n in (3, 5, 9)]
    return serving.arrivals(prompts, per_s, count=count, longest=20, seed=seed)


def test_every_schedule_gives_each_request_its_own_answer():
    session = cached.TorchCached(networks.seeded(networks.Decoder(SHAPE), seed=1), slots=4, capacity=40)
    wanted = requests()
    services = [schedule(session, wanted) for schedule in (serving.one_by_one, serving.static, serving.continuous)]
    for service in services:
        assert [answer.request for answer in service.answers] == wanted
        assert [len(answer.tokens) for answer in service.answers] == [request.most for request in wanted]
        assert [answer.tokens for answer in service.answers] == [answer.tokens for answer in services[0].answers]


def test_one_step_at_a_time_on_the_clock():
    session = serving.Rehearsal(lambda rows, new: 10.0 if new == 1 else 30.0, slots=2)
    wanted = [serving.Request((1, 2), 3, 0.0), serving.Request((1, 2), 1, 0.0), serving.Request((1, 2), 2, 1000.0)]
    service = serving.continuous(session, wanted)
    assert service.answers[0].times_ms == [30.0, 70.0, 80.0], "its prefill, then the other's, then two steps"
    assert service.answers[1].times_ms == [60.0] and service.answers[2].times_ms == [1030.0, 1040.0]
    assert service.first_ms(100) == 60.0 and service.latency_ms(100) == 80.0 and service.gap_ms(0) == 10.0
    static = serving.static(session, wanted)
    assert static.answers[0].times_ms == [30.0, 40.0, 50.0] and static.answers[1].times_ms == [30.0]


def test_a_finished_request_makes_room_at_once():
    session = serving.Rehearsal(lambda rows, new: 1.0, slots=2)
    wanted = [serving.Request((1,), 50), serving.Request((1,), 2), serving.Request((1,), 2)]
    assert serving.continuous(session, wanted).answers[2].times_ms[-1] < 10
    assert serving.static(session, wanted).answers[2].times_ms[-1] > 50


def test_continuous_serves_more_at_the_same_work():
    session = serving.Rehearsal(lambda rows, new: 20 + 5 * rows if new == 1 else 5 + 2 * rows * new, slots=8)
    wanted = requests(200, per_s=1000)
    assert serving.continuous(session, wanted).tokens_per_s > 1.3 * serving.static(session, wanted).tokens_per_s


def test_wishes_that_cannot_be():
    with pytest.raises(BadInput, match="0 prompt tokens and 3 new ones"):
        serving.Request((), 3)
    for prompts, per_s, count in (([], 1, 1), ([[1]], 0, 1), ([[1]], 1, 0)):
        with pytest.raises(BadInput, match="all must be above 0"):
            serving.arrivals(prompts, per_s, count=count)


def test_arrivals_keep_their_rate_and_are_mostly_short():
    many = serving.arrivals([[1], [2]], 50, count=2000, longest=40)
    assert 45 < 1e3 * len(many) / many[-1].arrival_ms < 55
    lengths = [request.most for request in many]
    assert np.median(lengths) < 12 and max(lengths) == 40 and min(lengths) == 2


def test_blocks_are_shared_grown_and_given_back():
    blocks = serving.Blocks(10, 4)
    assert blocks.start("a", [1, 2, 3, 4, 5, 6]) == 0 and blocks.used == 2 and blocks.wasted_rows == 2
    assert blocks.start("b", [1, 2, 3, 4, 9]) == 4, "one full block is there already"
    assert blocks.tables["a"][0] == blocks.tables["b"][0] and blocks.tables["a"][1] != blocks.tables["b"][1]
    blocks.grow("a", 3)
    assert len(blocks.tables["a"]) == 3 and blocks.used == 4
    blocks.end("a")
    assert blocks.used == 2 and blocks.start("c", [1, 2, 3, 4]) == 4
    blocks.end("b")
    blocks.end("c")
    assert blocks.used == 0 and blocks.start("d", [1, 2, 3, 4]) == 0, "what nobody uses is forgotten"


def test_no_block_too_many():
    blocks = serving.Blocks(2, 4)
    blocks.start("a", [1, 2, 3, 4, 5])
    with pytest.raises(LabError, match="1 more blocks are needed and 0 of 2 are free"):
        blocks.start("b", [7])
    with pytest.raises(LabError, match="let a sequence end"):
        blocks.grow("a", 4)
    with pytest.raises(BadInput, match="'a' runs already"):
        blocks.start("a", [1])
    with pytest.raises(BadInput, match="both must be 1 at least"):
        serving.Blocks(0)
