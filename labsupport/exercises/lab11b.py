"""Exercises of lab 11b: how busy a server may be, a batch in time, a replica that dies, and whom to turn away."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from labsupport.errors import LabError
from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong

LAB = "11b_data_center"
SERVICE_MS, LIMIT_MS = 8.0, 50.0
PATIENCE_S = 5.0
DEATHS = (ConnectionResetError, ConnectionRefusedError, BrokenPipeError, ConnectionAbortedError, ConnectionError)


class Saturation(Prediction):
    question = (
        "A server takes one request at a time and can do 125 a second. Requests arrive as a Poisson process. Up to how "
        "many a second do 99 of 100 get their answer within the lab's limit, 6.25 service times?"
    )
    quantity = "requests per second at the limit"
    unit = "1/s"
    within = 1.1


class Window(Exercise):
    question = (
        "Write `next_batch(waiting, limit, delay_s)`: a list of requests from the `queue.Queue` named waiting. Wait "
        "for the first as long as it takes; then take what comes until the list holds `limit` or `delay_s` have passed "
        "since the first."
    )
    hints = (
        "`waiting.get()` waits for ever, `waiting.get(timeout=…)` raises `queue.Empty` when the time is over.",
        "Note `time.monotonic() + delay_s` once, behind the first; each further `get` waits for what is left of it, "
        "at least 0.",
    )
    solution_source = """
        def next_batch(waiting, limit, delay_s):
            batch = [waiting.get()]
            end = time.monotonic() + delay_s
            while len(batch) < limit:
                try:
                    batch.append(waiting.get(timeout=max(0.0, end - time.monotonic())))
                except queue.Empty:
                    break
            return batch

        lab11b.window.check(next_batch)
    """
    answer = "One deadline for the whole batch. A new delay for each request lets the first wait without end."

    def judge(self, next_batch: Callable) -> str:
        # (what it is, waits already, comes later as (s, request), limit, delay, wanted, at least s, at most s)
        cases = [
            ("ten wait, four fit", range(10), [], 4, 1.0, [0, 1, 2, 3], 0.0, 0.5),
            ("one fits", range(3), [], 1, 1.0, [0], 0.0, 0.5),
            ("two wait, and no more come", range(2), [], 8, 0.2, [0, 1], 0.15, 0.6),
            ("one comes every 0.12 s", [0], [(0.12 * k, k) for k in range(1, 6)], 8, 0.3, "in time", 0.25, 0.8),
            ("nobody waits yet", [], [(0.3, 7), (0.35, 8)], 2, 0.2, "in time", 0.3, 1.0),
            ("the batch gets full while it waits", [0], [(0.1, 1)], 2, 1.5, "in time", 0.05, 0.8),
            ("no delay is allowed", range(3), [], 8, 0.0, None, 0.0, 0.4),
        ]
        for case in cases:
            for go in range(3):  # a busy machine may sleep through a deadline, but not each time
                try:
                    self._try(next_batch, *case)
                    break
                except Wrong:
                    if go == 2 or not case[2]:
                        raise
        return "The first request pays for the delay, and nobody waits longer than it."

    @staticmethod
    def _try(next_batch, name, now, later, limit, delay, wanted, least, most) -> None:
        batch, seconds, left, came_s = _collected(next_batch, list(now), later, limit, delay, name)
        if wanted == "in time":  # by when each really came: a busy machine is late itself
            wanted = _in_time(batch, list(now), came_s, limit, delay)
        if len(batch) > limit:
            raise Wrong(f"{name}: the batch holds {len(batch)} requests, and {limit} are allowed.")
        if wanted is not None and batch != wanted:
            raise Wrong(f"{name} (limit {limit}, delay {delay:g} s): the batch is {batch}, and {wanted} is right.")
        if wanted is None and (not batch or batch != list(range(len(batch)))):
            raise Wrong(f"{name}: the batch is {batch}; at least the first request, 0, must be in it, in order.")
        if not later and left != list(now)[len(batch) :]:
            raise Wrong(
                f"{name}: {left} are left in the queue, and {list(now)[len(batch) :]} should be: requests got lost."
            )
        if seconds > most:
            why = "The delay counts from the first request, and a full batch leaves at once."
            raise Wrong(f"{name}: it took {seconds:.2f} s. {why}")
        if seconds < least:
            said = f"{name}: it took {seconds:.2f} s only, with {delay:g} s of delay"
            raise Wrong(f"{said}; it did not wait for more requests.")


class Retry(Exercise):
    question = (
        "Write `send(request, replicas)`: the answer of the first replica that gives one. A replica is a function of "
        "the request. ConnectionError means that it died: go on to the next. Any other error is the request's own "
        "fault: let it through. When all are dead, raise ConnectionError."
    )
    hints = (
        "A loop over the replicas with `try: return replica(request)`. Which error may go round the loop once more?",
        "`except ConnectionError: continue`, and behind the loop `raise ConnectionError(...)`. Nothing broader.",
    )
    solution_source = """
        def send(request, replicas):
            for replica in replicas:
                try:
                    return replica(request)
                except ConnectionError:
                    continue
            raise ConnectionError("no replica is left")

        lab11b.retry.check(send)
    """
    answer = "An inference changes nothing, so it may be repeated. A bad request may not: it would kill every replica."

    def judge(self, send: Callable) -> str:
        import random

        for dead in (0, 1, 2, 4):
            asked, replicas = _replicas(dead, 5)
            request = random.randrange(1, 1000) if dead != 2 else 0  # an answer may be 0, too
            there = list(replicas)
            try:
                got = send(request, replicas)
            except ConnectionError as error:
                raise Wrong(
                    f"replica {dead} lives, and {type(error).__name__} came out. Each kind of ConnectionError means "
                    "that one replica died, and an answer may be 0."
                ) from None
            if replicas != there:
                raise Wrong("the function changed the list of replicas; the next request would miss some of them.")
            if got != request * 3:
                raise Wrong(
                    f"with {dead} dead replicas in front the answer was {got!r}; replica {dead} gave {request * 3}."
                )
            if asked != list(range(dead + 1)):
                raise Wrong(
                    f"with {dead} dead replicas in front it asked {asked}; each dead one once, then one that lives."
                )
        self._bad_request(send)
        asked, replicas = _replicas(3, 3)
        raised = _raised(send, 1, replicas)
        if not isinstance(raised, ConnectionError):
            said = f"it raised {type(raised).__name__}" if raised else "nothing was raised"
            raise Wrong(f"all three replicas were dead, and {said}; the client must hear a ConnectionError.")
        if len(asked) != 3:
            raise Wrong(f"all three replicas were dead, and it asked {len(asked)} times; once each is enough.")
        return "0 requests lost to one death, and no bad request is passed round."

    @staticmethod
    def _bad_request(function) -> None:
        for error in (ValueError("NaN"), LabError("oversized"), TimeoutError("too slow"), KeyError("shape")):
            asked = []

            def replica(request, error=error, asked=asked):
                asked.append(request)
                raise error

            raised = _raised(function, 1, [replica] * 3)
            if len(asked) > 1:
                raise Wrong(
                    f"{type(error).__name__} is the request's own fault, and it was sent to {len(asked)} replicas."
                )
            if raised is not error:
                said = f"{type(raised).__name__} came out" if raised else "no error came out"
                raise Wrong(f"the replica raised {type(error).__name__}, and {said}; let it through as it is.")


class Admit(Exercise):
    question = (
        "Write `admit(ahead, replicas, service_ms, deadline_ms)`: True if a new request can be answered in time, else "
        "False. `ahead` requests were admitted and have no answer yet; each replica serves one at a time, in order, "
        "`service_ms` each."
    )
    hints = (
        "With 2 replicas and 5 requests ahead, the new one is in the third round. When is that round over, at the "
        "latest?",
        "Rounds before it: `ahead // replicas`. It is done after one round more; compare that with the deadline.",
    )
    solution_source = """
        def admit(ahead, replicas, service_ms, deadline_ms):
            return (ahead // replicas + 1) * service_ms <= deadline_ms

        lab11b.admit.check(admit)
    """
    answer = (
        "A request that will be late anyway costs others their time. Say no at once, and the client can go elsewhere."
    )

    def judge(self, admit: Callable) -> str:
        import numpy as np

        draws = np.random.default_rng()
        for load in (0.3, 0.9, 2.0, 4.0):
            for _ in range(6):
                case = _overload(draws, load)
                late, answered, refused = _served(admit, *case)
                _, possible, needless = _served(_admit, *case)
                if late:
                    raise Wrong(
                        f"at {load:g} times what the replicas can serve, {late} admitted requests were late: each also "
                        "needs its own service time, in its own round."
                    )
                if answered < 0.97 * possible:
                    raise Wrong(
                        f"at {load:g} times what the replicas can serve, {answered} of {refused + answered} were "
                        f"answered in time, and {possible} can be: you turn away requests that had time ({refused} "
                        f"refused, {needless} needed)."
                    )
        for replicas in (1, 2, 3, 4):
            for ahead in range(10):
                _place_fault(admit, ahead, replicas)
        return "Under twice the load the server answers as many as ever, all of them in time, and says no to the rest."


def _place_fault(function: Callable, ahead: int, replicas: int) -> None:
    """Raise Wrong where the verdict differs just above or below the moment at which the new request is done."""
    done_ms = (ahead // replicas + 1) * 10.0
    for deadline_ms, in_time in ((done_ms + 1.0, True), (done_ms - 1.0, False)):
        verdict = function(ahead, replicas, 10.0, deadline_ms)
        if bool(verdict) != in_time:
            raise Wrong(
                f"with {replicas} replicas, {ahead} requests ahead and 10 ms each, a new one is done after "
                f"{done_ms:g} ms at the latest; for a deadline of {deadline_ms:g} ms you say {bool(verdict)}."
            )


def _admit(ahead, replicas, service_ms, deadline_ms) -> bool:
    return (ahead // replicas + 1) * service_ms <= deadline_ms


def _collected(function: Callable, now: list, later: list, limit: int, delay: float, name: str):
    """(batch, seconds, what is left, request → when it came in s) of the learner's function, which may also hang."""
    waiting: queue.Queue = queue.Queue()
    for request in now:
        waiting.put(request)
    result: dict[str, Any] = {}
    came_s: dict[int, float] = {}

    def call():
        try:
            result["batch"] = function(waiting, limit, delay)
        except BaseException as error:  # a learner's error, shown as the verdict
            result["error"] = error
        result["seconds"] = time.monotonic() - begin

    begin = time.monotonic()
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    for moment, request in later:
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        waiting.put(request)
        came_s[request] = time.monotonic() - begin
    thread.join(PATIENCE_S)
    if thread.is_alive():
        raise Wrong(
            f"{name}: the function does not come back. Does it wait for a full batch, without an end to its patience?"
        )
    if isinstance(error := result.get("error"), BaseException):
        raise Wrong(f"{name}: {type(error).__name__}: {error}")
    batch = result["batch"]
    if not isinstance(batch, (list, tuple)):
        raise Wrong(f"{name}: it returned {described(batch)}; wanted is a list of requests.")
    left = []
    while not waiting.empty():
        left.append(waiting.get_nowait())
    return list(batch), result["seconds"], left, came_s


def _in_time(batch: list, now: list, came_s: dict[int, float], limit: int, delay: float) -> list:
    """The batch itself if it is right, else what it should be: in order, whoever came within the delay of the first."""
    first = 0.0 if now else min(came_s.values(), default=0.0)
    order = [*now, *came_s]
    sure = [request for request in order if came_s.get(request, 0.0) < first + delay - 0.05][:limit]
    possible = [request for request in order if came_s.get(request, 0.0) < first + delay + 0.05][:limit]
    fits = batch == order[: len(batch)] and len(sure) <= len(batch) <= len(possible)
    return batch if fits else sure


def _replicas(dead: int, count: int) -> tuple[list, list]:
    asked: list[int] = []

    def made(number: int) -> Callable:
        def replica(request):
            asked.append(number)
            if number < dead:
                raise DEATHS[number % len(DEATHS)]("the process is gone")
            return request * 3

        return replica

    return asked, [made(number) for number in range(count)]


def _raised(function: Callable, *arguments) -> Exception | None:
    try:
        function(*arguments)
    except Exception as error:  # what the client would see
        return error
    return None


def _overload(draws, load: float) -> tuple:
    import numpy as np

    replicas, service = int(draws.integers(1, 5)), float(draws.uniform(2, 20))
    gaps = draws.exponential(service / replicas / load, size=400)
    return np.cumsum(gaps), replicas, service, service * float(draws.uniform(2.2, 7))


def _served(decide: Callable, arrivals, replicas: int, service: float, deadline: float) -> tuple[int, int, int]:
    """(late, answered in time, refused): exact, first come first served."""
    free, open_until, late, in_time, refused = [0.0] * replicas, [], 0, 0, 0
    for now in arrivals:
        open_until = [end for end in open_until if end > now]
        verdict = decide(len(open_until), replicas, service, deadline)
        verdict = verdict.item() if hasattr(verdict, "item") else verdict
        if not isinstance(verdict, bool):
            raise Wrong(f"it returned {described(verdict)}; wanted is True or False.")
        if not verdict:
            refused += 1
            continue
        place = min(range(replicas), key=free.__getitem__)
        free[place] = max(free[place], now) + service
        open_until.append(free[place])
        on_time = free[place] <= now + deadline + 1e-9
        in_time += on_time
        late += not on_time
    return late, in_time, refused


saturation = Saturation()
window = Window()
retry = Retry()
admit = Admit()
