"""Who gets the next request: four dispatch policies, and a simulation of workers and bursts to compare them in.

A policy is a function of the workers' states and of the request's number, and returns the place of a worker in that
list. The simulation is exact and seeded; its service times are whatever was measured. `pool` runs the same policies on
real processes.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from labsupport.benchmarking.measurements import Percentiles
from labsupport.errors import BadInput, LabError


@dataclass(frozen=True)
class WorkerState:
    """What a dispatcher knows of one living worker when a request arrives.

    ``waiting`` requests stand in its queue, ``running`` are being served; ``service_ms`` is what one takes there by the
    measurements so far; ``free_in_ms`` is when everything given to it should be done.
    """

    name: str
    waiting: int
    running: int
    service_ms: float
    free_in_ms: float


@dataclass(frozen=True)
class Policy:
    """A way to choose a worker; with ``steals`` an idle worker takes the last request of the longest queue."""

    name: str
    choose: Callable[[Sequence[WorkerState], int], int]
    steals: bool = False

    def pick(self, states: Sequence[WorkerState], number: int) -> int:
        """The chosen place, checked. Raises BadInput for a worker that is not there."""
        place = self.choose(states, number)
        place = place.item() if hasattr(place, "item") else place
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(states):
            raise BadInput(
                f"policy {self.name!r} chose worker {place!r} for request {number}; there are {len(states)}, numbered "
                "from 0: return a place in the list of states"
            )
        return place


def round_robin(states: Sequence[WorkerState], number: int) -> int:
    """Everyone in turn, whatever their speed and their queues."""
    return number % len(states)


def shortest_queue(states: Sequence[WorkerState], number: int) -> int:
    """Whoever has the fewest requests, waiting and running."""
    return min(range(len(states)), key=lambda place: states[place].waiting + states[place].running)


def least_expected_finish(states: Sequence[WorkerState], number: int) -> int:
    """Whoever would be done with this request first: what it has left, plus its own time for one request."""
    return min(range(len(states)), key=lambda place: states[place].free_in_ms + states[place].service_ms)


POLICIES = {
    "round-robin": Policy("round-robin", round_robin),
    "shortest queue": Policy("shortest queue", shortest_queue),
    "least expected finish": Policy("least expected finish", least_expected_finish),
    "work stealing": Policy("work stealing", round_robin, steals=True),
}


def policy(chosen) -> Policy:
    """A Policy by its name, as it is, or made from a learner's function. Raises BadInput."""
    if isinstance(chosen, Policy):
        return chosen
    if callable(chosen):
        return Policy(getattr(chosen, "__name__", "your policy"), chosen)
    if not isinstance(chosen, str) or chosen not in POLICIES:
        raise BadInput(
            f"policy={chosen!r} is not known; choose one of {list(POLICIES)}, or pass a function (states, "
            "number) -> place"
        )
    return POLICIES[chosen]


def bursts(requests: int, *, mean_gap_ms: float, burst: int = 8, seed: int = 0) -> np.ndarray:
    """Arrival times in ms: groups of 1 to 2 × ``burst`` - 1 requests at once, ``mean_gap_ms`` a request on average.

    The pauses between the groups are exponential. Raises BadInput.
    """
    if requests < 1 or not mean_gap_ms > 0 or burst < 1:
        raise BadInput(f"requests={requests!r}, mean_gap_ms={mean_gap_ms!r}, burst={burst!r}; each must be above 0")
    draws = np.random.default_rng(seed)
    sizes = draws.integers(1, 2 * burst, size=requests)
    starts = np.cumsum(draws.exponential(mean_gap_ms * burst, size=requests))
    return np.repeat(starts, sizes)[:requests]


@dataclass(frozen=True, repr=False)
class Outcome(Percentiles):
    """How the requests fared under one policy: latency of each in ms (NaN where lost), and who served how many."""

    policy: str
    latencies_ms: tuple[float, ...]
    served: dict[str, int]
    moved: int = 0

    @property
    def lost(self) -> int:
        """Requests that were never answered."""
        return sum(math.isnan(ms) for ms in self.latencies_ms)

    def __repr__(self) -> str:
        return (
            f"{self.policy}: p50 {self.p50_ms:.3g} ms, p99 {self.p99_ms:.3g} ms, lost {self.lost} of "
            f"{len(self.latencies_ms)}"
        )


def simulate(
    arrivals_ms, service_ms: dict[str, Sequence[float]], chosen, *, seed: int = 0, dies: tuple[str, float] | None = None
) -> Outcome:
    """Serve arrivals by workers whose times are drawn from measured samples, worker name → samples in ms.

    A policy sees each worker's median, not the time that the request will really take. ``dies`` = (worker, at ms): what
    it was serving and what waited there is given to the others, and arrives again at that moment. Deterministic for a
    ``seed``. Raises BadInput; LabError when every worker is dead.
    """
    chosen, service = policy(chosen), _checked_service(service_ms)
    arrivals = np.asarray(arrivals_ms, dtype=float)
    if arrivals.ndim != 1 or not len(arrivals) or (np.diff(arrivals) < 0).any():
        raise BadInput("arrivals_ms must be a rising list of times in ms, one at least; dispatch.bursts makes one")
    if dies is not None and dies[0] not in service:
        raise BadInput(f"dies names {dies[0]!r}; the workers are {list(service)}")
    return _Simulation(arrivals, service, chosen, np.random.default_rng(seed), dies).run()


def _checked_service(service_ms) -> dict[str, np.ndarray]:
    if not service_ms:
        raise BadInput("no workers: give one at least, as {name: [measured ms, …]}")
    service = {name: np.asarray(samples, dtype=float).ravel() for name, samples in dict(service_ms).items()}
    for name, samples in service.items():
        if not len(samples) or not np.isfinite(samples).all() or (samples <= 0).any():
            raise BadInput(f"worker {name!r} has service times {samples[:3]}…; give measured milliseconds above 0")
    return service


class _Worker:
    def __init__(self, name: str, samples: np.ndarray):
        self.name, self.samples, self.usual = name, samples, float(np.median(samples))
        self.queue, self.current, self.started, self.alive, self.count = deque(), None, 0.0, True, 0

    def state(self, now: float) -> WorkerState:
        running = int(self.current is not None)
        # the usual time is known, the real one is not
        left = max(0.0, self.usual - (now - self.started)) if running else 0.0
        return WorkerState(self.name, len(self.queue), running, self.usual, left + len(self.queue) * self.usual)


class _Simulation:
    def __init__(self, arrivals, service, chosen, draws, dies):
        self.arrivals, self.chosen, self.draws, self.dies = arrivals, chosen, draws, dies
        self.workers = [_Worker(name, samples) for name, samples in service.items()]
        self.latencies, self.moved = np.full(len(arrivals), math.nan), 0
        self.events: list = [(when, number, "arrive", number) for number, when in enumerate(arrivals)]
        if dies:
            self.events.append((dies[1], -1, "die", dies[0]))
        heapq.heapify(self.events)
        self.ticket = len(arrivals)

    def run(self) -> Outcome:
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            if kind == "arrive":
                self._give(what, now)
            elif kind == "die":
                self._bury(next(w for w in self.workers if w.name == what), now)
            else:
                self._finish(what[0], what[1], now)
        served = {worker.name: worker.count for worker in self.workers}
        return Outcome(self.chosen.name, tuple(self.latencies.tolist()), served, self.moved)

    def _give(self, number: int, now: float) -> None:
        alive = [worker for worker in self.workers if worker.alive]
        if not alive:
            raise LabError(
                f"every worker is dead at {now:.1f} ms and requests from number {number} on are unanswered; "
                "keep one alive, or start another"
            )
        worker = alive[self.chosen.pick(tuple(w.state(now) for w in alive), number)]
        worker.queue.append(number)
        self._start(worker, now)
        if self.chosen.steals:
            self._steal(now)

    def _start(self, worker: _Worker, now: float) -> None:
        if worker.alive and worker.current is None and worker.queue:
            worker.current, worker.started = worker.queue.popleft(), now
            self.ticket += 1
            done = now + float(self.draws.choice(worker.samples))
            heapq.heappush(self.events, (done, self.ticket, "finish", (worker, worker.current)))

    def _finish(self, worker: _Worker, number: int, now: float) -> None:
        if not worker.alive or worker.current != number:  # it died meanwhile
            return
        self.latencies[number] = now - self.arrivals[number]
        worker.current, worker.count = None, worker.count + 1
        self._start(worker, now)
        if self.chosen.steals:
            self._steal(now)

    def _steal(self, now: float) -> None:
        for thief in self.workers:
            longest = max((w for w in self.workers if w.alive), key=lambda w: len(w.queue), default=None)
            if thief.alive and thief.current is None and not thief.queue and longest is not None and longest.queue:
                thief.queue.append(longest.queue.pop())
                self.moved += 1
                self._start(thief, now)

    def _bury(self, worker: _Worker, now: float) -> None:
        orphans = ([worker.current] if worker.current is not None else []) + list(worker.queue)
        worker.alive, worker.current, worker.queue = False, None, deque()
        self.moved += len(orphans)
        for number in orphans:
            self._give(number, now)


def mean_gap_ms(service_ms, load: float) -> float:
    """Mean time between requests that keeps all workers together busy for ``load`` (0 to 1) of the time."""
    if not 0 < load < 1:
        raise BadInput(
            f"load={load!r}; give a share of the workers' capacity between 0 and 1, since queues grow without end at 1"
        )
    capacity = sum(1 / float(np.mean(samples)) for samples in _checked_service(service_ms).values())
    return 1 / (load * capacity)
