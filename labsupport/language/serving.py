"""Many requests on one decoder: static and continuous batching, the clock that judges them, and a cache in blocks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from labsupport.errors import BadInput, LabError
from labsupport.language.generation import greedy


@dataclass(frozen=True)
class Request:
    """A prompt, how many tokens are wanted, and when it arrives (ms on the schedule's clock)."""

    prompt: tuple[int, ...]
    most: int
    arrival_ms: float = 0.0

    def __post_init__(self):
        if not self.prompt or self.most < 1:
            raise BadInput(
                f"a request of {len(self.prompt)} prompt tokens and {self.most} new ones; both are 1 at least"
            )


@dataclass(frozen=True, repr=False)
class Answer:
    """The tokens of one request and the clock's ms at each."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether all tokens that were asked for are there."""
        return len(self.tokens) >= self.request.most


@dataclass(frozen=True, repr=False)
class Service:
    """All answers of a schedule, in the order of the requests, and what they say of it."""

    answers: tuple[Answer, ...]

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second, from the first arrival to the last token."""
        start = min(answer.request.arrival_ms for answer in self.answers)
        end = max(answer.times_ms[-1] for answer in self.answers)
        return 1e3 * sum(len(answer.tokens) for answer in self.answers) / (end - start)

    def first_ms(self, percentile: float) -> float:
        """Time to first token, from arrival, in ms."""
        return _percentile([answer.times_ms[0] - answer.request.arrival_ms for answer in self.answers], percentile)

    def gap_ms(self, percentile: float) -> float:
        """Time between two tokens of an answer, in ms."""
        return _percentile([gap for answer in self.answers for gap in np.diff(answer.times_ms)], percentile)

    def latency_ms(self, percentile: float) -> float:
        """Time from arrival to the last token, in ms."""
        return _percentile([answer.times_ms[-1] - answer.request.arrival_ms for answer in self.answers], percentile)

    def __repr__(self) -> str:
        return f"Service({len(self.answers)} answers, {sum(len(answer.tokens) for answer in self.answers)} tokens)"


class Clock:
    """Time on a schedule: steps take as long as they took by ``now``, and nobody sleeps until the next arrival."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now_ms, self._now = 0.0, now

    def wait_until(self, arrival_ms: float) -> None:
        """Nothing to do: go on to the next arrival."""
        self.now_ms = max(self.now_ms, arrival_ms)

    def step(self, session, tokens, **options) -> np.ndarray:
        """One step of a session, its time added; a `Rehearsal` says its time itself."""
        start = self._now()
        logits = session.step(tokens, **options)
        spent = getattr(session, "spent_ms", None)
        self.now_ms += 1e3 * (self._now() - start) if spent is None else spent
        return logits


class Rehearsal:
    """A session that computes nothing: a step takes what ``cost_ms(rows, new)`` says. For trying schedules."""

    def __init__(self, cost_ms: Callable[[int, int], float], *, slots: int):
        self.cost_ms, self.slots, self.spent_ms = cost_ms, slots, 0.0

    def step(self, tokens, *, first: int = 0, counts=None) -> np.ndarray:
        """Logits of a vocabulary of one token: (B, T, 1)."""
        rows, new = len(tokens), len(tokens[0])
        self.spent_ms = self.cost_ms(rows, new)
        return np.zeros((rows, new, 1), np.float32)

    def cut(self, length: int, slot: int = 0) -> None:
        """Nothing is kept, so nothing is forgotten."""


def one_by_one(session, requests: Sequence[Request], *, clock: Clock | None = None) -> Service:
    """Each request alone, from its prompt to its last token."""
    return static(session, requests, most=1, clock=clock)


def static(session, requests: Sequence[Request], *, most: int | None = None, clock: Clock | None = None) -> Service:
    """Whoever waits is a batch (``most`` rows, or all slots), and the batch runs until its longest answer is done."""
    clock, answers = clock or Clock(), [Answer(request) for request in requests]
    waiting = deque(sorted(answers, key=lambda answer: answer.request.arrival_ms))
    while waiting:
        clock.wait_until(waiting[0].request.arrival_ms)
        batch = _arrived(waiting, clock, most or session.slots)
        for slot in range(len(batch)):
            session.cut(0, slot)
        counts = [len(answer.request.prompt) for answer in batch]
        prompts = [[*answer.request.prompt, *[0] * (max(counts) - count)] for answer, count in zip(batch, counts)]
        logits = clock.step(session, prompts, counts=counts)
        _note(batch, [row[count - 1] for row, count in zip(logits, counts)], clock)
        while not all(answer.done for answer in batch):
            counts = [int(not answer.done) for answer in batch]
            logits = clock.step(session, [[answer.tokens[-1]] for answer in batch], counts=counts)
            _note(batch, logits[:, -1], clock)
    return Service(tuple(answers))


def continuous(session, requests: Sequence[Request], *, clock: Clock | None = None) -> Service:
    """After every step, whoever is done leaves the batch and whoever waits takes the free slot."""
    clock, answers = clock or Clock(), [Answer(request) for request in requests]
    waiting = deque(sorted(answers, key=lambda answer: answer.request.arrival_ms))
    running: list[Answer | None] = [None] * session.slots
    while waiting or any(running):
        if not any(running):
            clock.wait_until(waiting[0].request.arrival_ms)
        for slot in [slot for slot, answer in enumerate(running) if answer is None]:
            for answer in _arrived(waiting, clock, 1):
                session.cut(0, slot)
                logits = clock.step(session, [answer.request.prompt], first=slot)
                _note([answer], logits[:, -1], clock)
                running[slot] = answer
        running = [None if answer is None or answer.done else answer for answer in running]
        rows = max((slot + 1 for slot, answer in enumerate(running) if answer), default=0)
        if rows:
            tokens = [[answer.tokens[-1] if answer else 0] for answer in running[:rows]]
            logits = clock.step(session, tokens, counts=[int(answer is not None) for answer in running[:rows]])
            _note(running[:rows], logits[:, -1], clock)
            running = [None if answer is None or answer.done else answer for answer in running]
        for slot, answer in enumerate(running):
            if answer is None:
                session.cut(0, slot)
    return Service(tuple(answers))


def arrivals(
    prompts: Sequence[Sequence[int]], per_s: float, *, count: int, longest: int = 48, seed: int = 0
) -> list[Request]:
    """Requests at random times, ``per_s`` a second on average; most answers are short, a few are ``longest`` tokens."""
    if not per_s > 0 or count < 1 or not len(prompts):
        raise BadInput(f"{len(prompts)} prompts, per_s={per_s!r}, count={count!r}; all must be above 0")
    dice = np.random.default_rng(seed)
    times_ms = np.cumsum(dice.exponential(1e3 / per_s, count))
    lengths = np.clip(dice.exponential(longest / 4, count).astype(int) + 2, 2, longest)
    chosen = dice.integers(len(prompts), size=count)
    return [Request(tuple(prompts[i]), int(n), float(t)) for i, n, t in zip(chosen, lengths, times_ms)]


def _arrived(waiting, clock, most: int) -> list[Answer]:
    """The next ``most`` requests of those that are here already."""
    taken = []
    while waiting and len(taken) < most and waiting[0].request.arrival_ms <= clock.now_ms:
        taken.append(waiting.popleft())
    return taken


def _note(batch, rows, clock) -> None:
    """Greedy choice for every answer that wants more."""
    for answer, logits in zip(batch, rows):
        if answer is not None and not answer.done:
            answer.tokens.append(greedy(logits))
            answer.times_ms.append(clock.now_ms)


def _percentile(values, percentile: float) -> float:
    return float(np.percentile(values, percentile)) if len(values) else float("nan")


class Blocks:
    """A cache in blocks of ``size`` rows, handed out as sequences grow; equal beginnings share full blocks.

    After Kwon et al. 2023 (PagedAttention). ``table(name)`` lists a sequence's blocks in order. Raises LabError when
    none is free.
    """

    def __init__(self, count: int, size: int = 16):
        if count < 1 or size < 1:
            raise BadInput(f"count={count!r}, size={size!r}; both must be 1 at least")
        self.count, self.size = count, size
        self.free = list(range(count - 1, -1, -1))
        self.tables: dict[str, list[int]] = {}
        self.rows: dict[str, int] = {}
        self.users = [0] * count
        self._kept: dict[tuple[int, ...], int] = {}  # all tokens up to the end of a full block → that block

    def start(self, name: str, tokens: Sequence[int]) -> int:
        """Blocks for a prompt; how many of its rows another sequence has filled already."""
        if name in self.tables:
            raise BadInput(f"{name!r} runs already; a sequence needs a name of its own")
        shared, table = 0, []
        while (
            shared + self.size <= len(tokens)
            and (known := self._kept.get(tuple(tokens[: shared + self.size]))) is not None
        ):
            table.append(known)
            shared += self.size
        needed = -(-len(tokens) // self.size) - len(table)
        if needed > len(self.free):
            raise self._none_free(needed)
        for block in table:
            self.users[block] += 1
        table += [self._new() for _ in range(needed)]
        for end in range(shared + self.size, len(tokens) + 1, self.size):
            self._kept[tuple(tokens[:end])] = table[end // self.size - 1]
        self.tables[name], self.rows[name] = table, len(tokens)
        return shared

    def grow(self, name: str, rows: int = 1) -> None:
        """Room for more tokens of a sequence."""
        needed = -(-(self.rows[name] + rows) // self.size) - len(self.tables[name])
        if needed > len(self.free):
            raise self._none_free(needed)
        self.tables[name] += [self._new() for _ in range(needed)]
        self.rows[name] += rows

    def end(self, name: str) -> None:
        """Give a sequence's blocks back; shared ones stay until their last user is gone."""
        for block in self.tables.pop(name):
            self.users[block] -= 1
            if not self.users[block]:
                self.free.append(block)
                self._kept = {tokens: kept for tokens, kept in self._kept.items() if kept != block}
        del self.rows[name]

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self.count - len(self.free)

    @property
    def wasted_rows(self) -> int:
        """Rows that are taken and hold nothing: the ends of last blocks."""
        return sum(len(table) * self.size - self.rows[name] for name, table in self.tables.items())

    def _new(self) -> int:
        block = self.free.pop()
        self.users[block] = 1
        return block

    def _none_free(self, needed: int) -> LabError:
        return LabError(
            f"{needed} more blocks are needed and {len(self.free)} of {self.count} are free; let a sequence end, "
            "or make more blocks"
        )
