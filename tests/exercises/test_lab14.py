"""The checkers of lab 14: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from labsupport import build, environment
from labsupport.exercises import lab14, lab14_workpieces
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.language import cached, engine_cached, generation, networks

NAMES = {"np": np, "torch": torch, "F": F, "build": build, "engine_cached": engine_cached}


def test_the_lab_holds_seven_exercises_with_hints_and_solutions():
    assert_complete(lab14, ["cache_gain", "grouped", "loop", "cache_bytes", "top_p", "four_bits", "profiles"])


def by_pytorch(query, key, value):
    """A twin: PyTorch's own operator, with a mask for the last rows."""
    new, rows, times = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
    seen = torch.ones(new, rows, dtype=torch.bool).tril(rows - new)
    wide = [x.transpose(1, 2).repeat_interleave(times, 1) for x in (key, value)]
    return F.scaled_dot_product_attention(query.transpose(1, 2), *wide, attn_mask=seen).transpose(1, 2)


def by_loops(query, key, value):
    out, times = torch.empty_like(query), query.shape[2] // key.shape[2]
    new, rows = query.shape[1], key.shape[1]
    for t in range(new):
        for h in range(query.shape[2]):
            seen = slice(0, rows - new + t + 1)
            scores = (query[:, t, h, None] * key[:, seen, h // times]).sum(-1) / query.shape[-1] ** 0.5
            out[:, t, h] = (scores.softmax(-1)[..., None] * value[:, seen, h // times]).sum(1)
    return out


def in_place(query, key, value):
    query *= query.shape[-1] ** -0.5
    return by_pytorch(query, key, value) * 1.0


def test_grouped():
    def with_option(**options):
        return lambda query, key, value: lab14_workpieces.mixed_values(query, key, value, **options)

    assert_checker(lab14.grouped, wrong=[
        (with_option(causal=False), "tokens see later ones"), (with_option(shifted=False), "stands behind the past"),
        (with_option(interleaved=False), "repeat_interleave"), (with_option(scaled=False), "root of the width"),
        (lambda q, k, v: by_pytorch(q, k, v).transpose(1, 2), "the result has shape|off by"), (lambda q, k, v: q, "off by"),
        (lambda q, k, v: by_pytorch(q, k, v).softmax(-1), "off by"), (in_place, "changed a tensor"), (lambda q, k, v: 3, "wanted is a tensor"),
        (4, "hand in the function itself"), (lambda q: q, "TypeError"),
    ], right=[by_pytorch, by_loops, lambda q, k, v: by_pytorch(q, k, v).numpy()], namespace=NAMES)  # fmt: skip


def test_cache_bytes():
    def right(shape, sequences, tokens, value_bytes):
        return 2 * shape.layers * sequences * tokens * shape.kv_heads * shape.head_width * value_bytes

    def twin(shape, sequences, tokens, value_bytes):
        total = 0
        for _ in range(shape.layers):
            total += 2 * sequences * tokens * shape.hidden // shape.heads * shape.kv_heads * value_bytes
        return np.int64(total)

    assert_checker(lab14.cache_bytes, wrong=[
        (lambda s, n, t, v: 2 * s.layers * n * t * s.hidden * v, "counts every head"), (lambda s, n, t, v: right(s, n, t, v) // 2, "keys and values are two"),
        (lambda s, n, t, v: right(s, n, t, v) / s.layers, "every layer"), (lambda s, n, t, v: right(s, 1, t, v), "every sequence has"),
        (lambda s, n, t, v: right(s, n, t, 1), "those are values"), (lambda s, n, t, v: right(s, n, t, v) / 2**20, "MiB"),
        (lambda s, n, t, v: 92160, "it is"), (lambda s, n, t, v: "many", "a number"), (7, "hand in the function itself"),
    ], right=[right, twin], namespace=NAMES)  # fmt: skip


def cached_answer(network, prompt, most):
    shape = network.shape
    past = [torch.zeros(1, 0, shape.kv_heads, shape.head_width) for _ in range(2 * shape.layers)]
    new, tokens = list(prompt), []
    for _ in range(most):
        length = torch.tensor([past[0].shape[1]], dtype=torch.int32)
        logits, *rows = network(torch.tensor([new], dtype=torch.int32), length, *past)
        past = [torch.cat([old, row], 1) for old, row in zip(past, rows)]
        new = [int(logits[0, -1].argmax())]
        tokens += new
    return tokens


def with_buffers(network, prompt, most):
    """A twin: one buffer of all rows, of which past_length says how many count."""
    shape, size = network.shape, len(prompt) + most
    cache = [torch.zeros(1, size, shape.kv_heads, shape.head_width) for _ in range(2 * shape.layers)]
    new, length, tokens = torch.tensor([prompt], dtype=torch.int32), 0, []
    while len(tokens) < most:
        logits, *rows = network(new, torch.tensor([length], dtype=torch.int32), *cache)
        for kept, row in zip(cache, rows):
            kept[:, length : length + new.shape[1]] = row
        length += new.shape[1]
        new = logits[:, -1].argmax(-1, keepdim=True).int()
        tokens.append(new.item())
    return torch.tensor(tokens)


def without_cache(network, prompt, most):
    shape, tokens = network.shape, []
    past = [torch.zeros(1, 0, shape.kv_heads, shape.head_width)] * (2 * shape.layers)
    for _ in range(most):
        logits, *_ = network(
            torch.tensor([[*prompt, *tokens]], dtype=torch.int32), torch.zeros(1, dtype=torch.int32), *past
        )
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


def forgetful(network, prompt, most):
    """The past is kept, and its length is not said."""
    shape = network.shape
    past = [torch.zeros(1, 0, shape.kv_heads, shape.head_width)] * (2 * shape.layers)
    new, tokens = torch.tensor([prompt], dtype=torch.int32), []
    for _ in range(most):
        logits, *rows = network(new, torch.zeros(1, dtype=torch.int32), *past)
        past = [torch.cat(pair, 1) for pair in zip(past, rows)]
        tokens.append(int(logits[0, -1].argmax()))
        new = torch.tensor([tokens[-1:]], dtype=torch.int32)
    return tokens


def one_place_off(network, prompt, most):
    """The past is kept, and its length is told one too large; often the tokens are the right ones all the same."""
    calls = iter(range(most))

    def misled(tokens, length, *past):
        return network(tokens, length + (next(calls) > 0), *past)

    misled.shape = network.shape
    return cached_answer(misled, prompt, most)


def by_the_helper(network, prompt, most):
    """A twin: the lab's own session, which asks the network for its parameters."""
    return generation.generate(cached.TorchCached(network.eval(), capacity=64), prompt, most).tokens


def test_loop():
    def grown(network, prompt, most):
        answer = cached_answer(network, prompt, most)
        prompt.extend(answer)
        return answer

    assert_checker(lab14.loop, wrong=[
        (without_cache, "computed again"), (forgetful, "past_length"), (lambda n, p, m: p + cached_answer(n, p, m), "the prompt is part of it"),
        (lambda n, p, m: cached_answer(n, p, m)[:-1] or [1, 2], "new tokens were asked for"), (lambda n, p, m: [5] * m, "is right"), (grown, "changed the prompt"),
        (lambda n, p, m: "text", "wanted is a list"), (lambda n, p, m: None, "wanted is a list"), (lambda n, p, m: 1 / 0, "ZeroDivisionError"),
        (5, "hand in the function itself"), (one_place_off, "past_length"),
    ], right=[cached_answer, by_the_helper, with_buffers, lambda n, p, m: tuple(cached_answer(n, p, m))], namespace=NAMES)  # fmt: skip


def test_top_p():
    def by_threshold(chances, p):
        """A twin: the smallest of the kept ones, found by a loop."""
        total, kept = 0.0, np.zeros(len(chances))
        for i in sorted(range(len(chances)), key=lambda i: -chances[i]):
            if total >= p:
                break
            kept[i], total = chances[i], total + chances[i]
        return (kept / total).tolist()

    def by_logits(chances, p):
        with np.errstate(divide="ignore"):
            return generation.probabilities(np.log(chances), 1.0, p)

    def one_short(chances, p):
        order = np.argsort(-chances)
        kept = np.where(np.cumsum(chances[order]) <= p, chances[order], 0)
        out = np.zeros_like(chances)
        out[order] = kept
        return out / max(out.sum(), 1e-9)

    def sorted_out(chances, p):
        return np.sort(by_threshold(chances, p))[::-1]

    def unscaled(chances, p):
        return np.where(np.asarray(by_threshold(chances, p)) > 0, chances, 0)

    def evened(chances, p):
        kept = np.asarray(by_threshold(chances, p)) > 0
        return kept / kept.sum()

    def zeroed(chances, p):
        chances[np.asarray(by_threshold(chances, p)) == 0] = 0
        return chances / chances.sum()

    def from_the_front(chances, p):
        return np.where(np.cumsum(chances) - chances < p, chances, 0)

    def not_a_number(chances, p):
        kept = np.asarray(by_threshold(chances, p))
        return np.where(kept > 0, kept, np.nan)

    def all_alike(chances, p):
        """Every token as likely as the last kept one stays, too."""
        kept = np.asarray(by_threshold(chances, p))
        kept = np.where(chances >= chances[kept > 0].min(), chances, 0)
        return kept / kept.sum()

    def one_beyond(chances, p):
        """It goes on where p is reached exactly."""
        order = np.argsort(-chances)
        before = np.cumsum(chances[order]) - chances[order]
        kept = np.zeros_like(chances)
        kept[order[before <= p]] = chances[order[before <= p]]
        return kept / kept.sum()

    assert_checker(lab14.top_p, wrong=[
        (one_short, "the one that crosses it stays"), (sorted_out, "the order of the input|likeliest ones are others"), (unscaled, "scale it to 1"),
        (evened, "proportions"), (zeroed, "changed an array"), (from_the_front, "stay|likeliest"), (lambda c, p: c, "tokens stay|one token too many"),
        (lambda c, p: c[c > p], "keep the order"), (lambda c, p: np.where(c == c.max(), 1.0, 0.0), "stay"), (0.9, "hand in the function itself"),
        (not_a_number, "NaN"), (all_alike, "tokens stay"), (one_beyond, "one token too many"),
    ], right=[by_threshold, by_logits], namespace=NAMES)  # fmt: skip


def blocks(weight):
    grouped = weight.reshape(len(weight), -1, 32)
    least, most = grouped.min(2), grouped.max(2)
    step = (most - least) / np.float32(15)
    levels = np.zeros(grouped.shape, np.uint8)
    np.copyto(levels, np.rint((grouped - least[..., None]) / np.where(step == 0, 1, step)[..., None]).astype(np.uint8))
    return levels, step, least


def by_searching(weight):
    """A twin: the nearest of the sixteen levels."""
    grouped = weight.reshape(len(weight), -1, 32).astype(np.float64)
    least = grouped.min(-1)
    step = (grouped.max(-1) - least) / 15
    grid = least[..., None] + step[..., None] * np.arange(16)
    return np.abs(grouped[..., None] - grid[:, :, None]).argmin(-1).astype(np.uint8), step, least


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_four_bits():
    def symmetric(weight):
        grouped = weight.reshape(len(weight), -1, 32)
        step = np.maximum(np.abs(grouped).max(-1) / 7.5, 1e-9)
        return np.rint(grouped / step[..., None] + 7.5).clip(0, 15).astype(np.uint8), step, -7.5 * step

    def cut(weight):
        levels, step, least = blocks(weight)
        grouped = weight.reshape(len(weight), -1, 32)
        return ((grouped - least[..., None]) / np.where(step == 0, 1, step)[..., None]).astype(np.uint8), step, least

    def downward(weight):
        """From the largest value down, with a negative step."""
        levels, step, least = blocks(weight)
        return 15 - levels, -step, least + 15 * step

    def sixteen(weight):
        levels, step, least = blocks(weight)
        grouped, step = weight.reshape(len(weight), -1, 32), step * 15 / 16
        return (
            np.rint((grouped - least[..., None]) / np.where(step == 0, 1, step)[..., None]).astype(np.uint8),
            step,
            least,
        )

    def divides(weight):
        grouped = weight.reshape(len(weight), -1, 32)
        least = grouped.min(-1)
        step = (grouped.max(-1) - least) / 15
        inverse = np.float32(1) / step
        return (
            np.nan_to_num(np.rint((grouped - least[..., None]) * inverse[..., None])).clip(0, 15).astype(np.uint8),
            1 / inverse * np.where(inverse > 1e30, np.nan, 1),
            least,
        )

    def by_row(weight):
        rows = weight.reshape(len(weight), 1, -1)
        least, step = rows.min(-1), (rows.max(-1) - rows.min(-1)) / 15
        levels = np.rint((rows - least[..., None]) / step[..., None]).astype(np.uint8)
        return levels.reshape(len(weight), -1, 32), np.repeat(step, 3, 1), np.repeat(least, 3, 1)

    def in_place_of(weight):
        answer = blocks(weight)
        weight -= weight.min()
        return answer

    assert_checker(lab14.four_bits, wrong=[
        (downward, "a step is negative"),
        (symmetric, "a value is off by"), (cut, "cut off instead of rounded"), (sixteen, "four bits end at 15"), (divides, "no number"),
        (by_row, "a step of its own"), (in_place_of, "changed an array"), (lambda w: blocks(w)[0], "wanted are levels, step and least"),
        (lambda w: (blocks(w)[0].astype(np.int64), *blocks(w)[1:]), "wanted is uint8"), (lambda w: (blocks(w)[0].reshape(5, -1), *blocks(w)[1:]), "shapes"),
        (4, "hand in the function itself"),
    ], right=[blocks, by_searching], namespace=NAMES)  # fmt: skip


@pytest.mark.skipif(not environment.has("engine building"), reason="no builder works on this machine")
def test_profiles():
    graph, shape = lab14.small_decoder()
    both = engine_cached.profiles(shape, prompt=64, capacity=128)

    def built(profiles, name, of=graph):
        return build.engine(of, profiles=profiles, optimization_level=1, name=name)

    eager = [{**both[0], "tokens": build.Profile((1, 1), (1, 8), (1, 8))}, both[1]]
    short = [both[0], {**both[1], "tokens": build.Profile((1, 1), (1, 16), (1, 32))}]
    narrow = engine_cached.profiles(shape, prompt=64, capacity=64)
    untuned = [both[0], {**both[1], "tokens": build.Profile((1, 1), (1, 1), (1, 64))}]
    assert_checker(lab14.profiles, wrong=[
        (built([both[0]], "one"), "has 1 profile"), (built(both[::-1], "swapped"), "profile 0 takes|profile 0 is tuned"),
        (built(eager, "eager"), "tuned for 8 tokens"), (built(short, "short"), "takes 1 to 32 new tokens"), (built(narrow, "narrow"), "rows of past"),
        (built(untuned, "untuned"), "choose a typical length"), (both, "hand in what build.engine returns"), (graph, "hand in what build.engine returns"),
    ], right=[built(both, "right"), built([{**both[0], "tokens": build.Profile((1, 1), (1, 1), (1, 1))}, both[1]], "twin")], namespace=NAMES)  # fmt: skip


def test_a_network_of_another_lab_is_no_answer():
    assert lab14.profiles.check(networks.Shape(1, 1, 1, 1, 1, 1, 1)).outcome == "wrong"
