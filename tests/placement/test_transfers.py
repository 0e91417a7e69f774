"""Transfers: their arithmetic, the order in which lanes are used, and what is refused."""

from __future__ import annotations

import pytest

from labsupport import environment
from labsupport.comparing.timeline import Span
from labsupport.errors import BadInput, NotAvailable
from labsupport.placement import transfers
from labsupport.placement.transfers import Overlap


def overlap(**parts) -> Overlap:
    usual = dict(
        slots=2,
        copy_in_ms=2.0,
        compute_ms=3.0,
        pace_ms=3.0,
        copy_out_ms=1.0,
        serial_ms=6.6,
        overlapped_ms=3.3,
        spans=(Span("compute", 0, 0, 1),),
        same_answers=True,
    )
    return Overlap(**{**usual, **parts})


def test_the_bound_is_the_longest_part():
    made = overlap()
    assert (made.gain, made.bound_ms, made.share_of_bound) == (pytest.approx(2.0), 3.0, pytest.approx(1 / 1.1))
    assert "answers equal" in repr(made) and "DIFFER" in repr(overlap(same_answers=False))
    assert "2.00 times as fast, 91% of the bound, " in repr(made)


def test_inferences_that_share_the_gpu_lower_the_bound():
    assert overlap(pace_ms=2.4).bound_ms == 2.4 and overlap(pace_ms=1.5).bound_ms == 2.0


class Busy:
    """A lane and its GPU in microseconds: a call keeps the host busy, what it asks for follows what was asked for before."""

    def __init__(self, monkeypatch):
        self.now, self.free, self.order, clock = 0.0, 0.0, [], self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                clock.order.append("mark")
                self.at = max(clock.now, clock.free)

            def synchronize(self):
                clock.now = max(clock.now, self.at)

            def elapsed_time(self, other):
                return (other.at - self.at) / 1e3

        self.stream = None
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "Event", Event)

    def ask(self, part, host_us, gpu_us):
        self.order.append(part)
        self.now += host_us
        self.free = max(self.free, self.now) + gpu_us

    def upload(self):
        self.ask("upload", 40, 300)

    def compute(self):
        self.ask("compute", 20, 100)

    def download(self):
        self.ask("download", 40, 5)


def test_a_part_is_timed_without_the_host_and_without_the_others(monkeypatch):
    lane = Busy(monkeypatch)
    for part, ms in ((lane.upload, 0.3), (lane.compute, 0.1), (lane.download, 0.005)):
        lane.order.clear()
        assert transfers._event_ms(lane, part, runs=3) == pytest.approx(ms)
        name = part.__name__
        assert lane.order == (["compute"] * 10 + [name, "mark"] + [name] * 10 + ["mark"]) * 4


class Lane:
    """Notes what is asked of it."""

    def __init__(self, name, notes):
        self.name, self.notes, self.stream, self.done = name, notes, self, self

    def infer(self):
        self.notes.append(f"infer {self.name}")

    def synchronize(self):
        self.notes.append(f"wait {self.name}")


def test_in_line_waits_after_every_batch():
    notes = []
    transfers.in_line(Lane("a", notes), 2)
    assert notes == ["infer a", "wait a"] * 2


def test_in_turns_waits_only_for_the_buffer_it_will_write():
    notes = []
    transfers.in_turns([Lane(name, notes) for name in "abc"], 4)
    turns = [f"{word} {name}" for name in "abca" for word in ("wait", "infer")]
    assert notes == [*turns, "wait a", "wait b", "wait c"]


def test_waiting_times_are_medians():
    notes = []
    assert transfers.wait_ms(Lane("a", notes), lambda: notes.append("work"), runs=3) >= 0
    assert notes == ["work", "wait a"] * 4


def test_a_link_is_linear_between_measured_sizes(monkeypatch):
    monkeypatch.setattr(transfers, "_timed", lambda work, runs: (len(work()) / 2**20 * 2.0,))
    cpu = type("Run", (), {"device": "cpu"})
    monkeypatch.setattr(transfers, "_crossing", lambda device, mib: lambda: bytes(int(mib * 2**20)))
    line = transfers.link(cpu, [1, 2, 4])
    assert (line(1), line(3), line(0.5)) == (2.0, 6.0, 2.0)
    assert (line(4), line(9), line(40)) == (8.0, 18.0, 80.0)  # beyond the largest, at its bandwidth
    assert transfers.link(cpu, [2])(6) == 12.0


def test_a_link_on_the_processor_copies():
    line = transfers.link(type("Run", (), {"device": "cpu"}), [0.1, 8], runs=3)
    assert 0 < line(0.1) < line(8)


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: transfers.link(None, []), "sizes above 0"),
        (lambda: transfers.link(None, [0]), "sizes above 0"),
        (lambda: transfers.overlap(None, None, slots=0), "slots=0"),
        (lambda: transfers.overlap(None, None, batches=1), "batches=1"),
    ],
)
def test_bad_transfers(work, message):
    with pytest.raises(BadInput, match=message):
        work()


@pytest.mark.skipif(environment.has("gpu"), reason="there is a GPU")
@pytest.mark.parametrize(
    "work",
    [
        lambda: transfers.pycuda_context().__enter__(),
    ],
)
def test_without_a_gpu_it_is_said(work):
    with pytest.raises(NotAvailable, match="no GPU can be used here|PyCUDA|pycuda"):
        work()
