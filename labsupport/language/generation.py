"""From logits to text: choosing a token, the loop with a cache, and drafts that are checked in one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from labsupport.errors import BadInput, at_least


@dataclass(frozen=True, repr=False)
class Generation:
    """The new tokens, and what they cost: steps after the prompt, tokens drafted and accepted, ms of each step."""

    tokens: list[int]
    steps: int
    drafted: int = 0
    accepted: int = 0
    first_ms: float = 0.0
    step_ms: list[float] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one pass through the network gave, the prompt's pass left out."""
        return (len(self.tokens) - 1) / self.steps if self.steps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first."""
        return 1e3 * (len(self.tokens) - 1) / sum(self.step_ms) if self.step_ms else 0.0

    def __repr__(self) -> str:
        draft = f", {self.accepted} of {self.drafted} drafted tokens accepted" if self.drafted else ""
        return f"Generation({len(self.tokens)} tokens in {self.steps} steps{draft})"


def generate(
    session, prompt: Sequence[int], most: int, *, pick: Callable | None = None, end: int | None = None,
    draft: Callable | None = None, ahead: int = 4,
) -> Generation:  # fmt: skip
    """Up to ``most`` tokens behind ``prompt`` in slot 0 of a `cached.Cached`, which is emptied first.

    ``pick(logits) -> token`` chooses (greedy if left out), ``end`` stops. ``draft(tokens, ahead)`` proposes tokens, and
    one step checks them all: those that greedy choice would have given are kept, so the answer stays the same.
    Raises BadInput.
    """
    at_least(most=most)
    if draft is not None and pick is not None:
        raise BadInput("drafts are checked against greedy choice; leave pick out")
    session.cut(0)
    pick, start = pick or greedy, time.perf_counter()
    tokens = [pick(session.step([list(prompt)])[0, -1])]
    generation = Generation(tokens, 0, first_ms=1e3 * (time.perf_counter() - start))
    steps = drafted = accepted = 0
    while len(tokens) < most and tokens[-1] != end:
        guesses = list(draft([*prompt, *tokens], ahead))[: most - len(tokens) - 1] if draft else []
        start, length = time.perf_counter(), int(session.lengths[0])
        logits = session.step([[tokens[-1], *guesses]])[0]  # (1 + guesses, vocabulary)
        chosen = [pick(row) for row in logits]
        right = agreeing(guesses, chosen)
        session.cut(length + 1 + right)  # rows of refused guesses are forgotten
        tokens += until(chosen[: right + 1], end)
        generation.step_ms.append(1e3 * (time.perf_counter() - start))
        steps, drafted, accepted = steps + 1, drafted + len(guesses), accepted + right
    return Generation(tokens, steps, drafted, accepted, generation.first_ms, generation.step_ms)


def agreeing(guesses: Sequence[int], chosen: Sequence[int]) -> int:
    """How many guesses from the first on are what the network chose in their place."""
    for count, (guess, choice) in enumerate(zip(guesses, chosen)):
        if guess != choice:
            return count
    return min(len(guesses), len(chosen))


def until(tokens: list[int], end: int | None) -> list[int]:
    """The tokens up to and with the first ``end``."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def greedy(logits: np.ndarray) -> int:
    """The token of the largest logit."""
    return int(np.argmax(logits))


def sampler(temperature: float = 1.0, seed: int = 0) -> Callable:
    """A ``pick`` that draws from `probabilities`; the same seed draws the same tokens."""
    probabilities(np.zeros(1), temperature)  # refuses a wrong temperature here, not at the first token
    dice = np.random.default_rng(seed)

    def pick(logits):
        chances = probabilities(logits, temperature)
        return int(dice.choice(len(chances), p=chances))

    return pick


def probabilities(logits: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """Softmax of logits / temperature, cut to the fewest tokens that reach ``top_p`` (Holtzman et al. 2019)."""
    if not temperature > 0 or not 0 < top_p <= 1:
        raise BadInput(
            f"temperature={temperature!r}, top_p={top_p!r}; the first is above 0, the second above 0 and at most 1"
        )
    scaled = np.asarray(logits, np.float64) / temperature
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    order = np.argsort(-chances, kind="stable")
    before = np.cumsum(chances[order]) - chances[order]  # what the likelier ones reach
    chances[order[before >= top_p]] = 0
    return chances / chances.sum()


def prompt_lookup(tokens: Sequence[int], ahead: int, *, words: int = 2) -> list[int]:
    """What followed the last ``words`` tokens when they stood in the text before, the latest place first."""
    tokens = list(tokens)
    last = tokens[-words:]
    for start in range(len(tokens) - words - 1, -1, -1):
        if tokens[start : start + words] == last:
            return tokens[start + words : start + words + ahead]
    return []


def perplexity(session, tokens: Sequence[int]) -> float:
    """exp of the mean surprise at each token of a text but the first; 1 would be a text foretold."""
    if len(tokens) < 2:
        raise BadInput(f"{len(tokens)} token(s); a perplexity takes two at least")
    session.cut(0)
    logits = session.step([list(tokens[:-1])])[0].astype(np.float64)  # (N − 1, vocabulary)
    largest = logits.max(1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(1)) + largest[:, 0]
    return float(np.exp(np.mean(total - logits[np.arange(len(logits)), list(tokens[1:])])))
