"""The dispatcher's side of a worker of `pool`: its pipe, two threads that never let the dispatcher wait, its queue."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from multiprocessing.reduction import ForkingPickler

from labsupport.placement import dispatch


class Member:
    """The dispatcher's side of one process: its pipe with two threads, its queue, what it works on since when."""

    def __init__(self, name: str, process, pipe, inbox: queue.SimpleQueue | None = None):
        self.name, self.process, self.pipe, self.alive = name, process, pipe, True
        self.inbox, self.outbox = inbox or queue.SimpleQueue(), queue.SimpleQueue()  # type: ignore[var-annotated]
        self.threads: tuple[threading.Thread, ...] = ()
        self.service_ms, self.last_answer = math.nan, 0.0
        self.begin()

    def begin(self) -> None:
        """Forget what a former call of `serve` left."""
        self.queue, self.sent, self.count, self.times, self.told = deque(), {}, 0, [], False

    def connect(self) -> None:
        """Start the threads between the pipe and the two boxes."""
        self.threads = tuple(threading.Thread(target=work, daemon=True) for work in (self._receive, self._send))
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        while True:
            ticket, request = self.outbox.get()
            try:
                packed = ForkingPickler.dumps(request)
            except BaseException as error:  # whatever it is, it must not end this thread
                self.inbox.put((self, (ticket, None, f"it cannot be sent: {type(error).__name__}: {error}")))
                continue
            try:
                self.pipe.send(ticket)
                self.pipe.send_bytes(packed)
            except OSError:  # the receiver meets the end of the pipe as well, and says so
                return
            if ticket == "leave":
                return

    def _receive(self) -> None:
        try:
            while True:
                self.inbox.put((self, self.pipe.recv()))
        except Exception:  # its end; or half an answer, which nothing can follow
            self.inbox.put((self, None))

    def state(self, now: float) -> dispatch.WorkerState:
        since = self.waits_since(now)
        left = max(0.0, len(self.sent) * self.service_ms - (now - since) * 1e3)
        free_in_ms = left + len(self.queue) * self.service_ms
        return dispatch.WorkerState(self.name, len(self.queue), len(self.sent), self.service_ms, free_in_ms)

    def waits_since(self, now: float) -> float:
        """When its oldest unanswered request was sent."""
        return min((when for _, when in self.sent.values()), default=now)

    def end(self) -> None:
        """End the process where it still runs, and the threads with it: they meet the end of the pipe."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join(3)
        self.outbox.put(("leave", None))
        for thread in self.threads:  # a pipe is closed when nobody writes to it: its number may be another file's next
            thread.join(3)
        self.pipe.close()
