"""Exercises of lab 14: a cache's gain, shared heads, bytes, a loop with a cache, a sampler, four bits, two profiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labsupport.exercises import lab14_workpieces as pieces
from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import on_arrays
from labsupport.exercises.lab14_workpieces import small_decoder

LAB = "14_large_models"


class CacheGain(Prediction):
    question = "With 256 tokens behind it, how many times faster is the next token with a key-value cache than without?"
    quantity = "time a token without a cache over time with it"
    unit = "times"


class Grouped(Exercise):
    question = (
        "Write `grouped(query, key, value)`: attention where several heads share one key and value. query is (B, T, "
        "heads, width), key and value are (B, S, kv_heads, width); the T new tokens are the last T of the S rows, and "
        "none sees a later one. Give (B, T, heads, width). Hand in the function."
    )
    hints = (
        "Head h reads group h // (heads // kv_heads): `repeat_interleave` along the axis of heads, and not `repeat`.",
        "Token t of the new ones stands at row S − T + t; it sees rows up to that one.",
    )
    solution_source = """
        def grouped(query, key, value):
            new, rows = query.shape[1], key.shape[1]
            times = query.shape[2] // key.shape[2]
            q = query.transpose(1, 2)                                            # (B, heads, T, width)
            k, v = (x.repeat_interleave(times, 2).transpose(1, 2) for x in (key, value))
            scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5           # (B, heads, T, S)
            hidden = torch.arange(rows) > torch.arange(rows - new, rows)[:, None]
            return (scores.masked_fill(hidden, -1e4).softmax(-1) @ v).transpose(1, 2)

        lab14.grouped.check(grouped)
    """
    answer = "Nine heads over three keys: a third of the cache, and a third of what every token reads."

    def judge(self, grouped: Callable) -> str:
        import torch

        dice = torch.Generator().manual_seed(pieces.seed())
        for batch, new, rows, heads, groups in ((2, 3, 7, 6, 2), (1, 1, 9, 9, 3), (1, 5, 5, 4, 4), (2, 2, 4, 4, 1)):
            query = torch.randn(batch, new, heads, 8, generator=dice)
            key, value = torch.randn(2, batch, rows, groups, 8, generator=dice)
            before = query.clone(), key.clone(), value.clone()
            got = pieces.as_tensor(grouped(query, key, value))
            pieces.unchanged(before, (query, key, value))
            where = f"{new} new of {rows} rows, {heads} heads over {groups}"
            if got.shape != query.shape:
                raise Wrong(f"{where}: the result has shape {tuple(got.shape)}; wanted is {tuple(query.shape)}.")
            if torch.allclose(got, pieces.mixed_values(query, key, value), atol=1e-4):
                continue
            for why, options in pieces.MISTAKES.items():
                if torch.allclose(got, pieces.mixed_values(query, key, value, **options), atol=1e-4):
                    raise Wrong(f"{where}: {why}")
            off = float((got - pieces.mixed_values(query, key, value)).abs().max())
            raise Wrong(f"{where}: off by {off:.2g}. Compare one head with PyTorch's own.")
        return "Right for one and several new tokens, and for 1, 2, 3 and 4 groups of heads."


class CacheBytes(Exercise):
    question = (
        "Write `cache_bytes(shape, sequences, tokens, value_bytes)`: bytes of keys and values that a decoder keeps. "
        "`shape` has layers, hidden, heads, kv_heads and head_width. Hand in the function."
    )
    hints = (
        "Keys and values are two tensors in each layer; their heads are kv_heads.",
        "The hidden width does not appear: kv_heads × head_width is what one token leaves in one tensor.",
    )
    solution_source = """
        def cache_bytes(shape, sequences, tokens, value_bytes):
            row = shape.kv_heads * shape.head_width
            return 2 * shape.layers * sequences * tokens * row * value_bytes

        lab14.cache_bytes.check(cache_bytes)
    """
    answer = "Weights are read by all sequences together; a cache belongs to one, and many caches outgrow the weights."

    def judge(self, cache_bytes: Callable) -> str:
        import numpy as np

        from labsupport.exercises.answers import as_number
        from labsupport.language.networks import Shape

        dice = np.random.default_rng(pieces.seed())
        for number in range(12):
            groups, times, width = (int(dice.integers(1, high)) for high in (5, 5, 90))
            layers, sequences, tokens = (int(dice.integers(2, high)) for high in (40, 20, 3000))
            value_bytes = int(dice.choice([1, 2, 4]))
            if number == 0:  # each thing forgotten shows as another factor
                times, layers, sequences, value_bytes = 2, 7, 5, 4
            heads = groups * (times + 1)
            shape = Shape(layers, heads * width, heads, groups, 4 * heads * width, 1000, 4096)
            right = shape.cache_bytes(sequences, tokens, value_bytes)
            got = as_number(cache_bytes(shape, sequences, tokens, value_bytes), "the size")
            if got == right:
                continue
            ratio = got / right
            size = f"{layers} layers, {heads} heads over {groups}, {sequences} × {tokens} tokens of {value_bytes} bytes"
            say = f"for {size} you say {got:g}"
            reasons = pieces.wrong_factors(times + 1, layers, sequences, value_bytes)
            for factor, why in reasons.items():
                if number == 0 and abs(ratio / factor - 1) < 1e-6:
                    raise Wrong(f"{say}: {why}")
            raise Wrong(f"{say}; it is {right} bytes.")
        return "Right for twelve shapes. At 4 bytes, this lab's decoder leaves 45 KiB a token."


class Loop(Exercise):
    question = (
        "Write `answer(network, prompt, most)`: `most` greedy tokens behind a prompt (a list of ids), each token fed "
        "to the network once. `network(tokens, past_length, *past)` is this lab's decoder. Hand in the function; it "
        "gives a list of ids."
    )
    hints = (
        "Begin with a past of zero rows: `torch.zeros(1, 0, kv_heads, head_width)` for each key and value.",
        "After every call, `torch.cat([past, new], 1)` for each of the tensors that come behind the logits.",
    )
    solution_source = """
        def answer(network, prompt, most):
            shape, tokens = network.shape, []
            past = [torch.zeros(1, 0, shape.kv_heads, shape.head_width)] * (2 * shape.layers)
            new = torch.tensor([prompt], dtype=torch.int32)
            while len(tokens) < most:
                length = torch.tensor([past[0].shape[1]], dtype=torch.int32)
                logits, *rows = network(new, length, *past)
                past = [torch.cat(pair, 1) for pair in zip(past, rows)]
                tokens.append(int(logits[0, -1].argmax()))
                new = torch.tensor([tokens[-1:]], dtype=torch.int32)
            return tokens

        lab14.loop.check(answer)
    """
    answer = "A prompt of P tokens and an answer of N need P + N − 1 positions; without a cache about N (P + N / 2)."

    def judge(self, answer: Callable) -> str:
        import numpy as np
        import torch

        from labsupport.language import cached, generation

        dice = np.random.default_rng(pieces.seed())
        for most in (9, 1, 14):
            network = pieces.small_network()
            prompt = dice.integers(3, network.shape.vocabulary, int(dice.integers(3, 9))).tolist()
            right = generation.generate(cached.TorchCached(network, capacity=64), prompt, most).tokens
            watched, asked = pieces.Watched(network), list(prompt)
            with torch.inference_mode():
                got = answer(watched, asked, most)
            if asked != prompt:
                raise Wrong("the function changed the prompt that it was given; work on a list of its own.")
            if isinstance(got, torch.Tensor) or hasattr(got, "tolist"):
                got = got.tolist()
            if not isinstance(got, (list, tuple)) or not all(
                isinstance(token, int) for token in map(pieces.plain, got)
            ):
                raise Wrong(f"the function gave {described(got)}; wanted is a list of {most} token ids.")
            got = [pieces.plain(token) for token in got]
            if len(got) != most:
                kind = "the prompt is part of it" if got[: len(prompt)] == prompt else f"{len(got)} tokens came"
                raise Wrong(f"{most} new tokens were asked for: {kind}.")
            if got != right:
                at = next(i for i, (a, b) in enumerate(zip(got, right)) if a != b)
                raise Wrong(
                    f"token {at + 1} of {most} is {got[at]}, and {right[at]} is right. Does past_length say how "
                    "many rows are in the past?"
                )
            if watched.fed > len(prompt) + most:
                raise Wrong(
                    f"the tokens are right, and the network was fed {watched.fed} of them where "
                    f"{len(prompt) + most - 1} suffice: earlier tokens were computed again."
                )
            if watched.complaint:
                raise Wrong(f"the tokens happen to be right, but {watched.complaint}. Another text would show it.")
        return "The same tokens as with the lab's own loop, and each was fed once."


class TopP(Exercise):
    question = (
        "Write `top_p(chances, p)`: keep the fewest of the likeliest tokens that reach p together, set the others to "
        "0, and scale the rest to sum 1. `chances` is a NumPy array of probabilities in no order. Hand in the function."
    )
    hints = (
        "Sort downward with `np.argsort(-chances)`; a token stays while what stands before it has not reached p.",
        "`before = np.cumsum(sorted) - sorted`: the likeliest one always stays, since nothing stands before it.",
    )
    solution_source = """
        def top_p(chances, p):
            order = np.argsort(-chances)
            before = np.cumsum(chances[order]) - chances[order]
            kept = np.zeros_like(chances)
            kept[order[before < p]] = chances[order[before < p]]
            return kept / kept.sum()

        lab14.top_p.check(top_p)
    """
    answer = "The cut moves with the distribution: one token where the network is sure, hundreds where it is not."

    def judge(self, top_p: Callable) -> str:
        import numpy as np

        dice = np.random.default_rng(pieces.seed())
        for size, p in ((6, 0.5), (40, 0.9), (40, 0.05), (300, 0.99), (12, 1.0), (4, 0.75), (8, 0.5)):
            chances = pieces.chances(dice, size)
            got = np.asarray(on_arrays(top_p, chances, p), np.float64)
            if got.shape != chances.shape:
                raise Wrong(f"{size} probabilities came and {got.shape} left; keep the order and set the others to 0.")
            if not np.isfinite(got).all():
                raise Wrong(f"p={p}: the answer holds NaN or infinity; the tokens that go get 0.")
            order = np.argsort(-chances)
            count = size if p == 1 else int(np.searchsorted(np.cumsum(chances[order]), p) + 1)
            kept = set(np.flatnonzero(got > 0).tolist())
            wanted = set(order[:count].tolist())
            if len(kept) == count and sorted(chances[list(kept)]) == sorted(chances[list(wanted)]):
                wanted = kept  # equal chances may change places
            if kept != wanted and not (p == 1 and kept >= set(np.flatnonzero(chances > 1e-12).tolist())):
                if kept == set(order[: count - 1].tolist()):
                    raise Wrong(
                        f"p={p}: {len(kept)} tokens reach {chances[order[: count - 1]].sum():.3f}, which is short "
                        "of p; the one that crosses it stays."
                    )
                if len(kept) == count + 1:
                    raise Wrong(f"p={p}: one token too many stays; {count} reach it already.")
                if len(kept) == count:
                    raise Wrong(
                        f"p={p}: the number is right, and the likeliest ones are others. Is the result in the "
                        "order of the input?"
                    )
                raise Wrong(f"p={p}: {len(kept)} of {size} tokens stay; the fewest that reach it are {count}.")
            if abs(got.sum() - 1) > 1e-6:
                raise Wrong(f"p={p}: what stays sums to {got.sum():.3f}; scale it to 1.")
            if not np.allclose(got[list(wanted)] * chances[list(wanted)].sum(), chances[list(wanted)], atol=1e-6):
                raise Wrong(f"p={p}: the right tokens stay, and their chances do not keep their proportions.")
        return "Right for seven distributions, down to one token and up to all."


class FourBits(Exercise):
    question = (
        f"Write `four_bits(weight)` for a float32 array (N, K): in every {pieces.BLOCK} inputs of a row, 16 levels "
        f"from the least to the largest value. Give levels (N, K / {pieces.BLOCK}, {pieces.BLOCK}) as uint8 from 0 to "
        f"15, step and least (N, K / {pieces.BLOCK}). Hand in the function."
    )
    hints = (
        f"`weight.reshape(len(weight), -1, {pieces.BLOCK})`, then `min(-1)` and `max(-1)`: 16 levels are 15 steps.",
        "A block of one value has step 0: divide by 1 there, every level is 0, and least says it all.",
    )
    solution_source = """
        def four_bits(weight):
            blocks = weight.reshape(len(weight), -1, 32)
            least = blocks.min(-1)
            step = (blocks.max(-1) - least) / 15
            divisor = np.where(step > 0, step, 1)
            levels = np.rint((blocks - least[..., None]) / divisor[..., None])
            return levels.astype(np.uint8), step, least

        lab14.four_bits.check(four_bits)
    """
    answer = "Half a step is the most that rounding costs. One large value makes the steps large: hence small blocks."

    def judge(self, four_bits: Callable) -> str:
        import numpy as np

        dice = np.random.default_rng(pieces.seed())
        plain = dice.standard_normal((5, 3 * pieces.BLOCK))
        cases = {
            "noise": plain,
            "numbers far from 0": plain + 40,
            "numbers below 0": -np.abs(plain) - 1,
            "a block of one value": np.where(np.arange(3 * pieces.BLOCK) < pieces.BLOCK, 0.25, plain),
            "blocks of different size": plain * 10.0 ** np.arange(5)[:, None],
        }
        for name, weight in cases.items():
            weight = weight.astype(np.float32)
            parts = on_arrays(four_bits, weight)
            if not isinstance(parts, (tuple, list)) or len(parts) != 3:
                raise Wrong(f"the function gave {described(parts)}; wanted are levels, step and least.")
            pieces.check_blocks(name, weight, *(np.asarray(part) for part in parts))
        return "Within half a step for all five kinds of weights."


class Profiles(Exercise):
    question = (
        "`graph, shape = lab14.small_decoder()`. Hand in its engine with two profiles, built with "
        "`build.engine(graph, profiles=...)`: number 0 for "
        f"one new token on {pieces.ROWS} rows of past, number 1 for prompts of 1 to {pieces.PROMPT} tokens on one row."
    )
    hints = (
        "A profile is a mapping from each input to `build.Profile(min, opt, max)`; the past has 2 × layers inputs.",
        f"`engine_cached.profiles(shape, prompt={pieces.PROMPT}, capacity={pieces.ROWS})` writes such profiles; "
        "print what it gives.",
    )
    solution_source = """
        graph, shape = lab14.small_decoder()
        both = engine_cached.profiles(shape, prompt=64, capacity=128)
        engine = build.engine(graph, profiles=both, optimization_level=1)
        lab14.profiles.check(engine)
    """
    answer = "One engine, one copy of the weights, and kernels chosen for each of the two workloads."

    def judge(self, engine: Any) -> str:
        from labsupport import build, environment

        if not isinstance(engine, build.Engine):
            raise Wrong(
                f"that is {described(engine)}; hand in what build.engine returns."
                + (" " + environment.why_not("engine building")).rstrip()
            )
        graph, shape = small_decoder()
        if engine.sidecar.get("built_from", {}).get("sha256") != graph.sha256:
            raise Wrong(
                "that engine was built from another graph; `graph, shape = lab14.small_decoder()` gives the one."
            )
        pieces.check_profiles(engine.sidecar["options"]["profiles"])
        return "One engine for both workloads; a context of each profile runs it."


cache_gain = CacheGain()
grouped = Grouped()
loop = Loop()
cache_bytes = CacheBytes()
top_p = TopP()
four_bits = FourBits()
profiles = Profiles()
