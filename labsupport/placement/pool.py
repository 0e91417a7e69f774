"""Real worker processes behind a dispatcher: queues, policies, and no request lost when one dies or stalls.

The queues are the dispatcher's; a worker holds at most ``ahead`` requests. So whatever happens to a process, every
request that it has not answered is still known, and goes to another. Each worker has two threads here, one that sends
and one that receives, so a pipe that is full or a process that stands still never stops the dispatcher.

Ray does all of this, too (`ray_actors`), and on many machines. The pool stays beside it because its queues, policies
and deaths are the lesson: here they can be read and changed.
"""

from __future__ import annotations

import math
import multiprocessing
import queue
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from labsupport.errors import BadInput, LabError, at_least
from labsupport.placement import dispatch
from labsupport.placement.processes.members import Member as _Member
from labsupport.placement.workers import Worker, answer_requests

__all__ = ["Pool", "Served", "Unanswered", "Worker"]

START_S = 120
NEWEST_COUNTS = 0.1  # weight of the newest answer in a worker's running mean of service times


@dataclass(frozen=True, repr=False)
class Served(dispatch.Outcome):
    """An Outcome on real processes, with the answers in the order of the requests and the workers that died.

    ``service_ms`` holds what each worker's requests took, the way there and back included: `dispatch.simulate` takes
    it.
    """

    answers: tuple = ()
    died: tuple[str, ...] = ()
    service_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        died = f", died: {', '.join(self.died)}, {self.moved} requests moved" if self.died else ""
        return dispatch.Outcome.__repr__(self) + died


class Unanswered(LabError):
    """Some requests have no answer. ``served`` is the Served with all that have one, and None for the others."""

    def __init__(self, text: str, served: Served):
        super().__init__(text)
        self.served = served


class Pool:
    """Worker processes that load their networks once; use it with ``with``. Spawned, never forked.

    ``example`` is one request, with which each worker warms up and measures its service time; ``ahead`` requests are in
    a worker at once. Raises BadInput; LabError when a worker cannot start.
    """

    def __init__(self, workers, example, *, ahead: int = 1):
        workers = list(workers)
        if not workers:
            raise BadInput("no workers: give one pool.Worker at least")
        names = [worker.name for worker in workers]
        if len(set(names)) != len(names):
            raise BadInput(f"worker names {names} repeat; the report tells them apart by name")
        for number in (ahead, *(worker.repeat for worker in workers)):
            at_least(**{"repeat and ahead": number})
        context = multiprocessing.get_context("spawn")
        self.ahead, self._members, self._ticket = ahead, [], 0
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()  # (member, what it said; None when its pipe has ended)
        try:
            for worker in workers:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=answer_requests,
                    daemon=True,
                    args=(theirs, worker.source, worker.engine is not None, worker.threads, worker.repeat, example),
                )
                process.start()
                theirs.close()  # or the end of the process would not end the pipe
                self._members.append(_Member(worker.name, process, ours, self._inbox))
            for member in self._members:
                self._greet(member, example)
        except BaseException:  # an interrupt as well: nobody holds this pool, so nobody else can end its processes
            self.close()
            raise

    def _greet(self, member: _Member, example) -> None:
        trips: list[float] = []
        try:
            said = member.pipe.recv() if member.pipe.poll(START_S) else f"it was silent for {START_S} s"
            if not isinstance(said, str):
                member.connect()
            while not isinstance(said, str) and len(trips) < 5:  # what the dispatcher sees: there and back as well
                start = time.perf_counter()
                member.outbox.put((0, example))
                _, answer = member.inbox.get(timeout=START_S)
                trips.append((time.perf_counter() - start) * 1e3)
                said = "its process ended before it answered" if answer is None else said
        except (EOFError, OSError):
            said = "its process ended before it answered"
        except queue.Empty:
            said = f"it was silent for {START_S} s"
        if isinstance(said, str):
            raise LabError(f"worker {member.name!r} could not start: {said}")
        member.service_ms = float(np.median(trips))

    @property
    def service_ms(self) -> dict[str, float]:
        """What one request takes on each worker: measured at the start, then a running mean of its answers."""
        return {member.name: member.service_ms for member in self._members}

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the workers that are there."""
        return tuple(member.name for member in self._members if member.alive)

    def serve(
        self,
        requests,
        policy="least expected finish",
        *,
        arrivals_ms=None,
        kill: Mapping[str, int] | None = None,
        stall: Mapping[str, int] | None = None,
        stall_s: float = 5.0,
    ) -> Served:
        """Answer all requests, an array or a list of arrays; ``arrivals_ms`` says when each comes (None: all at once).

        ``kill`` and ``stall`` map a worker to the number of answers after which its process is ended, or told to fall
        asleep. A worker that is silent on a request for ``stall_s`` counts as dead and is ended. What a dead worker had
        goes to the others; the request that it was working on comes last, alone on one worker, and is given up when
        that one dies, too. Raises BadInput; Unanswered, with all answers there are, when all workers are dead or a
        request cannot be answered by any.
        """
        faults = {**dict.fromkeys(kill or {}, "kill"), **dict.fromkeys(stall or {}, "stall")}
        unknown = set(faults) - {member.name for member in self._members}
        if unknown:
            raise BadInput(
                f"no worker is called {sorted(unknown)[0]!r}; there are {[member.name for member in self._members]}"
            )
        if not stall_s > 0:
            raise BadInput(f"stall_s={stall_s!r}; give seconds above 0")
        plan = sorted((after, name, faults[name]) for name, after in {**(kill or {}), **(stall or {})}.items())
        return _Service(self, list(requests), dispatch.policy(policy), arrivals_ms, plan, stall_s).run()

    def close(self) -> None:
        """End all processes; calling it again does nothing."""
        for member in self._members:
            member.outbox.put(("leave", None))
            if not member.threads:  # it was never greeted, and reads its pipe's end
                member.pipe.close()
        for member in self._members:
            member.process.join(3)
            member.end()
            member.alive = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Service:
    def __init__(self, pool: Pool, requests: list, policy, arrivals_ms, plan: list, stall_s: float):
        if not requests:
            raise BadInput("no requests; give one at least")
        arrivals = np.zeros(len(requests)) if arrivals_ms is None else np.asarray(arrivals_ms, dtype=float)
        if arrivals.shape != (len(requests),) or (np.diff(arrivals) < 0).any():
            raise BadInput(
                f"arrivals_ms has {arrivals.size} times for {len(requests)} requests; give a rising time in ms for each"
            )
        self.pool, self.requests, self.policy, self.plan, self.stall_s = pool, requests, policy, plan, stall_s
        self.arrivals_s = arrivals / 1e3
        self.answers, self.latencies = [None] * len(requests), np.full(len(requests), math.nan)
        self.answered = self.arrived = self.moved = 0
        self.died: list[str] = []
        self.suspects: deque[int] = deque()  # each was under way when a worker died by itself
        self.faults: dict[int, str] = {}  # request → why no worker can answer it
        for member in pool._members:
            member.begin()

    def run(self) -> Served:
        self.begin = time.perf_counter()
        self._listen(0.0)  # who died since the last call
        while self.answered + len(self.faults) < len(self.requests):
            now = time.perf_counter()
            while self.arrived < len(self.requests) and self.arrivals_s[self.arrived] <= now - self.begin:
                self.arrived += 1
                self._give(self.arrived - 1)
            self._try_suspect()
            self._send_out()
            self._listen(self._patience_s())
            self._cause_faults()
            self._end_stalled()
        if self.faults:
            number, fault = min(self.faults.items())
            self._refuse(f"request {number} cannot be answered, {fault};", "leave it out, or make it right")
        return self._served()

    def _served(self) -> Served:
        served = {member.name: member.count for member in self.pool._members}
        times = {member.name: tuple(member.times) for member in self.pool._members}
        latencies, answers, died = tuple(self.latencies.tolist()), tuple(self.answers), tuple(self.died)
        return Served(self.policy.name, latencies, served, self.moved, answers, died, times)

    def _refuse(self, why: str, remedy: str) -> NoReturn:
        done = f"{self.answered} of {len(self.requests)} requests are answered, and this error's .served holds them"
        raise Unanswered(f"{why} {done}; {remedy}", self._served())

    def _try_suspect(self) -> None:
        """When everything else is answered, what may have ended a worker goes alone to one that lives."""
        others = self.answered + len(self.faults) + len(self.suspects)
        busy = any(member.sent or member.queue for member in self.pool._members)
        if self.suspects and others == len(self.requests) and not busy:
            self._living()[0].queue.append(self.suspects[0])

    def _living(self) -> list[_Member]:
        living = [member for member in self.pool._members if member.alive]
        if not living:
            self._refuse("every worker is dead:", "start a new Pool and serve the rest again")
        return living

    def _give(self, number: int) -> None:
        living, now = self._living(), time.perf_counter()
        living[self.policy.pick(tuple(member.state(now) for member in living), number)].queue.append(number)

    def _send_out(self) -> None:
        living = self._living()
        for member in living:
            if self.policy.steals and not member.queue and not member.sent:
                longest = max(living, key=lambda other: len(other.queue))
                if longest.queue:
                    member.queue.append(longest.queue.pop())
            while member.alive and member.queue and len(member.sent) < self.pool.ahead:
                number = member.queue.popleft()
                self.pool._ticket += 1  # never used twice: an answer to a former call must not pass for one to this
                member.sent[self.pool._ticket] = (number, time.perf_counter())
                member.outbox.put((self.pool._ticket, self.requests[number]))

    def _patience_s(self) -> float:
        """How long to wait for an answer: until the next request comes, and never so long that a stall is missed."""
        wait_s = min(0.1, self.stall_s / 4)
        if self.arrived < len(self.requests):
            wait_s = min(wait_s, max(0.0, self.arrivals_s[self.arrived] - (time.perf_counter() - self.begin)))
        return wait_s

    def _listen(self, wait_s: float) -> None:
        said: list = []
        try:
            said.append(self.pool._inbox.get(block=wait_s > 0, timeout=wait_s or None))
            while True:
                said.append(self.pool._inbox.get_nowait())
        except queue.Empty:
            pass
        for member, answer in said:
            if answer is not None:
                self._note(member, *answer)
            elif member.alive:  # what it had answered before is noted already
                self._bury(member)

    def _note(self, member: _Member, ticket: int, answer, fault: str) -> None:
        now, (number, sent) = time.perf_counter(), member.sent.pop(ticket, (None, 0.0))
        if number is None:
            return
        if number in self.suspects:
            self.suspects.remove(number)
        if fault:  # of the request, not of the worker: another one could not answer it either
            self.faults[number] = f"worker {member.name!r} says {fault}"
            return
        self.answers[number], member.count, self.answered = answer, member.count + 1, self.answered + 1
        self.latencies[number] = (now - self.begin - self.arrivals_s[number]) * 1e3
        took_ms = (now - max(sent, member.last_answer)) * 1e3
        member.times.append(took_ms)
        member.service_ms, member.last_answer = member.service_ms + NEWEST_COUNTS * (took_ms - member.service_ms), now

    def _cause_faults(self) -> None:
        while self.plan and self.plan[0][0] <= self.answered:
            _, name, kind = self.plan.pop(0)
            member = next(each for each in self.pool._members if each.name == name)
            member.told = True  # it dies for the lesson: the request that it has is not to blame
            if member.alive and kind == "kill":
                member.process.kill()
            elif member.alive:
                member.outbox.put(("sleep", 3600.0))

    def _end_stalled(self) -> None:
        now = time.perf_counter()
        for member in self.pool._members:
            if member.alive and now - member.waits_since(now) > self.stall_s:
                self._bury(member)

    def _bury(self, member: _Member) -> None:
        member.alive = False
        member.end()
        self.died.append(member.name)
        held = [number for number, _ in member.sent.values()]
        orphans = [*held, *member.queue]
        member.sent, member.queue = {}, deque()
        self.moved += len(orphans)
        if held and held[0] in self.suspects:
            self.suspects.remove(held[0])
            self.faults[held[0]] = "two workers in turn died of it"
            orphans.remove(held[0])
        elif held and not member.told:
            self.suspects.append(held[0])
            orphans.remove(held[0])
        for number in orphans:
            self._give(number)
