"""Dynamic batching: requests wait a moment in one bounded queue, and whichever replica is free takes a batch."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from labsupport.errors import BadInput, LabError, at_least

ATTEMPTS = 3  # a request that met this many failing replicas may be the reason why they fail


class Refused(LabError):
    """The queue is full, or the server is closed: the request was never accepted, and may be sent again later."""


@dataclass
class _Request:
    images: np.ndarray
    future: Future
    since: float
    attempts: int = 0

    def wanted(self) -> bool:
        """Whether its client still waits; from here on it cannot leave any more."""
        return self.attempts > 0 or self.future.set_running_or_notify_cancel()

    def fail(self, error: Exception) -> None:
        if self.wanted():
            self.future.set_exception(error)


@dataclass
class _Replica:
    name: str
    run: Callable
    served: int = 0
    state: str = "ready"  # ready → leaving (finishes its batch, then goes) or dead
    thread: threading.Thread = field(default=None, repr=False)


class Batcher:
    """A server in this process: one queue, replicas that take batches from it, answers as Futures.

    ``replicas`` are callables, images (N, …) → answers (N, …); each gets a thread. A batch leaves when ``max_batch``
    images wait, or when its oldest request has waited ``delay_ms``. At most ``max_waiting`` requests wait; one more is
    Refused at once. A replica that raises is taken out, and its requests go back to the head of the queue, so that
    another one answers. ``shape`` is that of one image. Use it with ``with``: leaving it stops every thread.
    Raises BadInput. Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs (batchers)
    """

    def __init__(
        self,
        replicas: Sequence[Callable],
        *,
        shape: Sequence[int],
        max_batch: int = 16,
        delay_ms: float = 2.0,
        max_waiting: int = 64,
    ):
        for name, value in {"max_batch": max_batch, "max_waiting": max_waiting}.items():
            at_least(**{name: value})
        for size in shape:
            at_least(0, shape=size)
        if not 0 <= delay_ms <= 10_000:
            raise BadInput(f"delay_ms={delay_ms!r}; give 0 to 10000 ms")
        _check_replicas(replicas)
        self.shape, self.max_batch, self.delay_s, self.max_waiting = (
            tuple(shape),
            max_batch,
            delay_ms / 1e3,
            max_waiting,
        )
        self.batches: Counter = Counter()
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed, self._made = False, 0
        self._replicas: dict[str, _Replica] = {}
        for run in replicas:
            self.add(run)

    # --- what a client calls ---------------------------------------------------------------------------------

    def submit(self, images) -> Future:
        """A Future of the answers to ``images`` (n, …), n at most ``max_batch``; Refused when the queue is full.

        Raises BadInput for a malformed or oversized request: it must not reach the batch that others are in.
        """
        self._check(images)
        with self._changed:
            if self._closed:
                raise Refused("this server is closed; start a new one")
            if not self.living:
                raise LabError("no replica is left; add one with add(run)")
            if len(self._queue) >= self.max_waiting:
                raise Refused(f"{len(self._queue)} requests wait, and no more may; send it again later")
            future: Future = Future()
            self._queue.append(_Request(images, future, time.perf_counter()))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def mean_batch(self) -> float:
        """Images in a batch, on average; NaN before the first."""
        count = sum(self.batches.values())
        return sum(size * times for size, times in self.batches.items()) / count if count else float("nan")

    # --- what an operator calls ------------------------------------------------------------------------------

    @property
    def living(self) -> tuple[str, ...]:
        """Names of the replicas that take batches."""
        return tuple(name for name, replica in self._replicas.items() if replica.state == "ready")

    def add(self, run: Callable) -> str:
        """One more replica; its name comes back."""
        _check_replicas([run])
        with self._changed:
            self._made += 1
            replica = _Replica(f"replica {self._made}", run)
            self._replicas[replica.name] = replica
        replica.thread = threading.Thread(target=self._work, args=(replica,), daemon=True, name=replica.name)
        replica.thread.start()
        return replica.name

    def kill(self, name: str) -> None:
        """End a replica as a crash would: whatever it is computing now is lost to it, and goes back to the queue."""
        with self._changed:
            self._named(name).state = "dead"
            self._changed.notify_all()

    def retire(self, name: str) -> None:
        """Let a replica finish the batch it has, and then go."""
        replica = self._named(name)
        with self._changed:
            replica.state = "leaving" if replica.state == "ready" else replica.state
            self._changed.notify_all()
        replica.thread.join(30)

    def update(self, runs: Sequence[Callable]) -> None:
        """A rolling update: each new replica is there before an old one goes. BadInput, and the old ones stay."""
        _check_replicas(runs)
        old = list(self.living)
        for number, run in enumerate(runs):
            self.add(run)
            if number < len(old):
                self.retire(old[number])
        for name in old[len(runs) :]:
            self.retire(name)

    def close(self) -> None:
        """Refuse what comes, end the replicas and the requests that still wait; calling it again does nothing."""
        with self._changed:
            self._closed = True
            for replica in self._replicas.values():
                replica.state = "leaving" if replica.state == "ready" else replica.state
            left, self._queue = list(self._queue), deque()
            self._changed.notify_all()
        for request in left:
            request.fail(Refused("the server was closed before this request was served"))
        for replica in self._replicas.values():
            replica.thread.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- the scheduler ---------------------------------------------------------------------------------------

    def _work(self, replica: _Replica) -> None:
        while batch := self._next_batch(replica):
            sizes = [len(request.images) for request in batch]
            try:
                answers = np.asarray(replica.run(np.concatenate([request.images for request in batch])))
                if replica.state == "dead":
                    raise LabError(f"{replica.name} was killed")
                if len(answers) != sum(sizes):
                    raise LabError(f"{replica.name} gave {len(answers)} answers for {sum(sizes)} images")
            except BaseException as error:  # a crash of the replica, exit() too: its requests are not lost
                self._give_back(replica, batch, error)
                return
            with self._changed:
                self.batches[sum(sizes)] += 1
                replica.served += sum(sizes)
            for request, part in zip(batch, np.split(answers, np.cumsum(sizes)[:-1])):
                request.future.set_result(part)

    def _next_batch(self, replica: _Replica) -> list[_Request]:
        """Wait for the first request, then for a full batch or for the end of its delay; empty when it must go."""
        with self._changed:
            while replica.state == "ready":
                if not self._queue:
                    self._changed.wait()
                    continue
                left_s = self._queue[0].since + self.delay_s - time.perf_counter()
                if left_s <= 0 or sum(len(request.images) for request in self._queue) >= self.max_batch:
                    if batch := self._taken():
                        return batch
                    continue
                self._changed.wait(left_s)
            self._changed.notify()  # what woke this one was meant for a replica that goes on
            return []

    def _taken(self) -> list[_Request]:
        batch, images = [], 0
        while self._queue and images + len(self._queue[0].images) <= self.max_batch:
            request = self._queue.popleft()
            if request.wanted():  # a client that left is passed over
                batch.append(request)
                images += len(request.images)
        return batch

    def _give_back(self, replica: _Replica, batch: list[_Request], error: BaseException) -> None:
        with self._changed:
            replica.state = "dead"
            for request in reversed(batch):
                request.attempts += 1
                if request.attempts < ATTEMPTS and (self.living or self._closed):
                    self._queue.appendleft(request)
                else:
                    why = f"{type(error).__name__}: {error}"
                    request.fail(LabError(f"no replica could answer ({why}); {len(self.living)} are left"))
            if not self.living:
                while self._queue:
                    self._queue.popleft().fail(LabError("the last replica failed; add one"))
            self._changed.notify_all()

    def _check(self, images) -> None:
        if not isinstance(images, np.ndarray) or images.shape[1:] != self.shape or images.dtype != np.float32:
            came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise BadInput(f"a request holds {came}; wanted is float32 (n, {', '.join(map(str, self.shape))})")
        if not 1 <= len(images) <= self.max_batch:
            raise BadInput(f"a request holds {len(images)} images; wanted are 1 to {self.max_batch}: split it")
        if not np.isfinite(images).all():
            raise BadInput("a request holds NaN or infinity; look at its preprocessing")

    def _named(self, name: str) -> _Replica:
        if name not in self._replicas:
            raise BadInput(f"{name!r} is no replica; there are {list(self._replicas)}")
        return self._replicas[name]


def _check_replicas(runs: Sequence[Callable]) -> None:
    if not runs or not all(callable(run) for run in runs):
        raise BadInput("give at least one replica, a callable images → answers")
