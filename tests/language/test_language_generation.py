"""Choosing tokens, drafts, and perplexity."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport.errors import BadInput
from labsupport.language import cached, generation, networks

SHAPE = networks.Shape(2, 64, 4, 2, 128, 300, 128)


@pytest.fixture
def session():
    return cached.TorchCached(networks.seeded(networks.Decoder(SHAPE), seed=2), capacity=128)


def oracle(answer, prompt):
    """A drafter that knows the answer."""
    return lambda tokens, ahead: answer[len(tokens) - len(prompt) :][:ahead]


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_a_draft_never_changes_the_answer(session, ahead):
    prompt, dice = [5, 6, 7, 5, 6], np.random.default_rng(0)
    plain = generation.generate(session, prompt, 30)
    drafts = {
        "right": oracle(plain.tokens, prompt), "wrong": lambda tokens, n: [299] * n, "none": lambda tokens, n: [],
        "noise": lambda tokens, n: dice.integers(300, size=n).tolist(), "lookup": generation.prompt_lookup,
        "half": lambda tokens, n: [*oracle(plain.tokens, prompt)(tokens, n)[: n // 2], *[1] * (n - n // 2)],
    }  # fmt: skip
    for name, draft in drafts.items():
        drafted = generation.generate(session, prompt, 30, draft=draft, ahead=ahead)
        assert drafted.tokens == plain.tokens, name
        assert drafted.accepted <= drafted.drafted and drafted.steps <= plain.steps, name
    right = generation.generate(session, prompt, 30, draft=drafts["right"], ahead=ahead)
    assert right.accepted == right.drafted and right.tokens_per_step > min(ahead, 2)
    assert plain.first_ms > 0 and len(plain.step_ms) == plain.steps == 29 and min(plain.step_ms) > 0
    assert plain.tokens_per_step == 1 and plain.tokens_per_s == pytest.approx(1e3 * 29 / sum(plain.step_ms))


def test_an_answer_stops_at_its_end(session):
    plain = generation.generate(session, [5, 6, 7], 12)
    end = plain.tokens[4]
    stopped = generation.generate(session, [5, 6, 7], 12, end=end)
    assert stopped.tokens == plain.tokens[: plain.tokens.index(end) + 1]
    assert (
        generation.generate(session, [5, 6, 7], 12, end=end, draft=oracle(plain.tokens, [5, 6, 7])).tokens
        == stopped.tokens
    )


def test_bad_wishes(session):
    for most in (0, -1, True, 2.5):
        with pytest.raises(BadInput, match="most=.*; wanted a whole number"):
            generation.generate(session, [5], most)
    with pytest.raises(BadInput, match="is the prompt empty"):
        generation.generate(session, [], 3)
    with pytest.raises(BadInput, match="leave pick out"):
        generation.generate(session, [5], 3, pick=generation.greedy, draft=generation.prompt_lookup)
    with pytest.raises(BadInput, match="129 positions are needed|positions are needed"):
        generation.generate(session, [5] * 129, 3)


def test_lookup_takes_the_latest_place():
    assert generation.prompt_lookup([1, 2, 8, 9, 1, 2, 5, 6, 7, 1, 2], 3) == [5, 6, 7]
    assert generation.prompt_lookup([1, 2, 3], 3) == []
    assert generation.prompt_lookup([4, 4, 4], 2) == [4]
    assert generation.prompt_lookup([7], 2) == []


def test_probabilities_are_a_softmax_cut_at_p():
    scores = np.array([1.0, 3.0, 2.0, -5.0])
    chances = np.exp(scores) / np.exp(scores).sum()
    assert np.allclose(generation.probabilities(scores), chances)
    assert np.count_nonzero(generation.probabilities(scores, top_p=0.5)) == 1
    kept = generation.probabilities(scores, top_p=0.8)
    assert np.flatnonzero(kept).tolist() == [1, 2] and np.isclose(kept[1] / kept[2], chances[1] / chances[2])
    assert generation.probabilities(scores, temperature=0.1).max() > 0.99
    for options in ({"temperature": 0}, {"top_p": 0}, {"top_p": 1.1}):
        with pytest.raises(BadInput, match="the first is above 0"):
            generation.probabilities(scores, **options)


def test_draws_follow_the_probabilities_and_the_seed():
    scores = np.array([0.0, 1.0, 2.0])
    first, again = generation.sampler(seed=3), generation.sampler(seed=3)
    drawn = [first(scores) for _ in range(4000)]
    assert drawn[:50] == [again(scores) for _ in range(50)]
    assert np.abs(np.bincount(drawn) / 4000 - generation.probabilities(scores)).max() < 0.03


def test_perplexity(session):
    class Even:
        def cut(self, length):
            pass

        def step(self, tokens):
            return np.zeros((1, len(tokens[0]), 50), np.float32)

    assert np.isclose(generation.perplexity(Even(), [1, 2, 3, 4]), 50)
    answer = generation.generate(session, [5, 6], 20).tokens
    assert generation.perplexity(session, [5, 6, *answer]) < generation.perplexity(session, [5, 6, *answer[::-1]])
    with pytest.raises(BadInput, match="two at least"):
        generation.perplexity(session, [1])
