"""Transfers: their arithmetic, the order in which lanes are used, what is refused, and bytes between processes."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport import environment
from labsupport.comparing.timeline import Span
from labsupport.errors import BadInput, NotAvailable
from labsupport.placement import handover, transfers
from labsupport.placement.transfers import Overlap, Transfer


def test_bandwidth_is_bytes_over_the_median():
    transfer = Transfer("pinned", "up", 64.0, (1.0, 2.0, 4.0))
    assert transfer.gb_per_s == pytest.approx(64 * 2**20 / 1e6 / 2.0) and transfer.as_metric()["unit"] == "GB/s"
    assert repr(transfer) == "pinned up, 64 MiB: 33.6 GB/s" and transfer.spread == pytest.approx(0.75)


def overlap(**parts) -> Overlap:
    usual = dict(
        slots=2,
        copy_in_ms=2.0,
        compute_ms=3.0,
        copy_out_ms=1.0,
        serial_ms=6.6,
        overlapped_ms=3.3,
        spans=(Span("compute", 0, 0, 1),),
        same_answers=True,
    )
    return Overlap(**{**usual, **parts})


def test_the_ideal_gain_follows_from_the_parts():
    found = overlap()
    assert (found.gain, found.ideal_gain, found.share_of_ideal) == (pytest.approx(2.0), 2.0, pytest.approx(1.0))
    assert "answers equal" in repr(found) and "DIFFER" in repr(overlap(same_answers=False))
    assert "gain 2.00× of ideal 2.00× (100% of it), " in repr(
        found
    ) and "gain 1.50× of ideal 2.00× (75% of it)" in repr(overlap(overlapped_ms=4.4))


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
    transfers.in_turns([Lane("a", notes), Lane("b", notes)], 3)
    assert notes == ["wait a", "infer a", "wait b", "infer b", "wait a", "infer a", "wait a", "wait b"]


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


def test_a_core_passes_over_a_buffer():
    buffer = np.zeros(2**20, np.uint8)
    assert transfers.cpu_pass(buffer, write=False) > 0 and not buffer.any()
    assert transfers.cpu_pass(buffer, write=True) > 0 and buffer.all()


def test_pageable_memory_needs_no_gpu():
    buffer = transfers.host_buffer("pageable", 0.5)
    assert buffer.nbytes == 2**19 and buffer.all()


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: transfers.host_buffer("locked", 1), "kind='locked' is not known; choose one of"),
        (lambda: transfers.host_buffer("pageable", 0), "mib=0; give a size above 0"),
        (lambda: transfers.host_buffer("pageable", float("inf")), "mib=inf"),
        (lambda: transfers.copy(np.ones(4, np.uint8), direction="left"), "direction='left'"),
        (lambda: transfers.copy(np.ones(4, np.uint8), runs=0), "runs=0"),
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
        lambda: transfers.copy(np.ones(4, np.uint8)),
        lambda: transfers.host_buffer("pinned", 1),
        lambda: transfers.host_buffer("write-combined", 1),
        lambda: transfers.host_buffer("mapped", 1),
        lambda: transfers.pycuda_context().__enter__(),
    ],
)
def test_without_a_gpu_it_is_said(work):
    with pytest.raises(NotAvailable, match="no GPU can be used here|PyCUDA|pycuda"):
        work()


def test_bytes_reach_a_neighbor_in_three_ways():
    with handover.Neighbor(1) as neighbor:
        moved = [neighbor.hand_over(way, runs=3) for way in handover.WAYS]
        assert [each.way for each in moved] == list(handover.WAYS) and all(
            each.mib == 1 and len(each.samples_ms) == 3 for each in moved
        )
        assert set(handover.median_ms(moved)) == set(handover.WAYS)
        with pytest.raises(BadInput, match="way='fax' is not known"):
            neighbor.hand_over("fax")
        with pytest.raises(BadInput, match="runs=0"):
            neighbor.hand_over("pipe", runs=0)
    neighbor.close()  # a second time does nothing


def test_a_neighbor_that_died_is_said():
    with handover.Neighbor(0.1) as neighbor:
        neighbor._process.kill()
        neighbor._process.join(5)
        with pytest.raises(handover.LabError, match="neighbor's process died"):
            neighbor.hand_over("shared memory, copied in")


def test_a_silent_neighbor_and_a_wrong_byte_are_said():
    neighbor = object.__new__(handover.Neighbor)
    neighbor.size, neighbor.array = 8, np.zeros(8, np.uint8)

    class Quiet:
        sent = None

        def poll(self, seconds):
            return self.sent is None

        def send_bytes(self, message):
            pass

        def recv_bytes(self):
            return b"99"

    neighbor._pipe = Quiet()
    with pytest.raises(handover.LabError, match="saw another last byte"):
        neighbor.hand_over("pipe")
    neighbor._pipe.sent = True
    with pytest.raises(handover.LabError, match="has been silent for 60 s"):
        neighbor.hand_over("pipe")


def test_a_neighbor_that_does_not_come_about_leaves_nothing(monkeypatch):
    import multiprocessing

    made, create = [], handover.shared_memory.SharedMemory

    def watched(**options):
        made.append(create(**options))
        return made[-1]

    def interrupted(self):
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    monkeypatch.setattr(handover.shared_memory, "SharedMemory", watched)
    monkeypatch.setattr(handover.Neighbor, "_hear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handover.Neighbor(0.01)
    assert set(multiprocessing.active_children()) <= before
    with pytest.raises(FileNotFoundError):
        create(name=made[0].name)


def test_a_neighbor_is_closed_though_its_array_is_held():
    neighbor = handover.Neighbor(0.01)
    held = neighbor.array
    neighbor.close()
    assert held[0] == 1 and neighbor.array is None
    neighbor.close()
    del held
