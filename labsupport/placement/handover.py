"""Bytes between two processes, whose memories are as far apart as host and device: sent, copied, or only pointed at."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from multiprocessing import shared_memory

import numpy as np

from labsupport.benchmarking.measurements import at_least, one_of
from labsupport.errors import LabError
from labsupport.placement.transfers import Transfer, size_bytes
from labsupport.placement.workers import leave_interrupts_to_the_parent

WAYS = ("pipe", "shared memory, copied in", "shared memory, written in place")
START_S = 60


class Neighbor:
    """A second process with a pipe and a block of shared memory; use it with ``with``."""

    def __init__(self, mib: float):
        self.size = size_bytes(mib)
        self._block = shared_memory.SharedMemory(create=True, size=self.size)
        self.array = np.frombuffer(
            self._block.buf, np.uint8, self.size
        )  # holds the block: freed under it, reading would end the process
        self.array[:] = 1
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, self._block.name, self.size), daemon=True)
        try:
            self._process.start()
            theirs.close()
            self._hear()
        except BaseException:  # nobody holds this neighbor yet, so nobody else can free its block
            self.close()
            raise

    def hand_over(self, way: str, *, runs: int = 10) -> Transfer:
        """Time a block until the neighbor has seen its last byte, by one of :data:`WAYS`."""
        one_of("way", way, WAYS)
        at_least("runs", runs, 1)
        source, times = np.full(self.size, 7, np.uint8), []
        for turn in range(runs + 1):
            source[-1] = turn % 256
            if way == WAYS[2]:
                self.array[-1] = source[-1]  # its maker has written the rest here to begin with
            start = time.perf_counter()
            if way == WAYS[1]:
                np.copyto(self.array, source)
            if self._ask(source if way == WAYS[0] else b"look") != turn % 256:
                raise LabError(f"the neighbor saw another last byte than the one that was handed over by {way}")
            times.append((time.perf_counter() - start) * 1e3)
        return Transfer(way, "over", self.size / 2**20, tuple(times[1:]))

    def _ask(self, message) -> int:
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            raise LabError("the neighbor's process died; make a new Neighbor") from error
        return self._hear()

    def _hear(self) -> int:
        try:
            if self._pipe.poll(START_S):
                return int(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise LabError("the neighbor's process died; make a new Neighbor") from error
        raise LabError(f"the neighbor has been silent for {START_S} s; make a new Neighbor")

    def close(self) -> None:
        """End the process and free the block; calling it again does nothing."""
        if self.array is None:
            return
        self._pipe.close()
        if self._process.pid is not None:  # it was started
            self._process.join(3)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(3)
        self.array = None
        self._block.unlink()
        with contextlib.suppress(BufferError):  # somebody still holds ``array``; the memory goes when they let go of it
            self._block.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _answer(pipe, name: str, size: int) -> None:
    leave_interrupts_to_the_parent()
    block = shared_memory.SharedMemory(name=name)
    array = np.ndarray((size,), np.uint8, block.buf)
    pipe.send_bytes(b"0")
    try:
        while True:
            said = pipe.recv_bytes()
            seen = array[-1] if said == b"look" else said[-1]
            pipe.send_bytes(str(int(seen)).encode())
    except (EOFError, OSError):
        del array
        block.close()


def median_ms(transfers) -> dict[str, float]:
    """Median ms by way."""
    return {each.way: statistics.median(each.samples_ms) for each in transfers}
