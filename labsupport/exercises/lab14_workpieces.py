"""What the checkers of labs 14 and 14b compare with: attention and its mistakes, a watched decoder, a small graph."""

from __future__ import annotations

import functools
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong

PROMPT, ROWS = 64, 128  # what the engine of `profiles` must take
BLOCK = 32

MISTAKES = {
    "tokens see later ones; the mask is missing.": {"causal": False},
    "the mask treats the first new token as row 0; it stands behind the past, at row S − T.": {"shifted": False},
    "head 1 reads group 1, and it belongs to group 0 with its neighbors: repeat_interleave.": {"interleaved": False},
    "the scores are not divided by the root of the width.": {"scaled": False},
}


def mixed_values(
    query, key, value, *, causal: bool = True, shifted: bool = True, interleaved: bool = True, scaled: bool = True
):
    import torch

    new, rows, times = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
    wide = (lambda x: x.repeat_interleave(times, 2)) if interleaved else (lambda x: x.repeat(1, 1, times, 1))
    scores = torch.einsum("bthd,bshd->bhts", query, wide(key)) * (query.shape[-1] ** -0.5 if scaled else 1.0)
    places = torch.arange(new) + (rows - new if shifted else 0)
    if causal:
        scores = scores.masked_fill(torch.arange(rows) > places[:, None], float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), wide(value))


class Watched:
    """A decoder that counts the tokens it is fed, and notes the first call whose past does not hold all of them."""

    def __init__(self, network):
        self._network, self.shape, self.fed, self.complaint = network, network.shape, 0, ""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._network, name)

    def __call__(self, tokens, past_length, *past):
        said, rows = int(past_length[0]), past[0].shape[1]
        if not self.complaint and said != self.fed:
            self.complaint = f"past_length said {said} where {self.fed} tokens had been fed before"
        if not self.complaint and rows < said:
            self.complaint = f"past_length said {said}, and the past held {rows} rows"
        self.fed += tokens.numel()
        return self._network(tokens, past_length, *past)

    forward = __call__


@functools.cache
def small_decoder():
    """(graph, shape) of a decoder of two layers with seeded weights, for the engine that is asked for."""
    from labsupport import export
    from labsupport.language import cached

    network = small_network()
    return cached.to_onnx(network, export.fresh_folder() / "small_decoder.onnx"), network.shape


@functools.cache
def small_network():
    from labsupport.language import networks

    return networks.seeded(networks.Decoder(networks.Shape(2, 64, 4, 2, 128, 300, 256)), seed=3)


def seed() -> int:
    import secrets

    return secrets.randbits(32)


def plain(token: Any) -> Any:
    return token.item() if hasattr(token, "item") else token


def as_tensor(value: Any):
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        raise Wrong(f"the function gave {described(value)}; wanted is a tensor.")
    return value.detach().float()


def unchanged(before, after) -> None:
    if any(not a.equal(b) for a, b in zip(before, after)):
        raise Wrong("the function changed a tensor that it was given; work on a copy.")


def chances(dice, size: int):
    """Probabilities (size,), drawn anew but for three sizes that show a mistake each."""
    import numpy as np

    if size == 4:  # two reach 0.75 exactly
        return dice.permutation([0.5, 0.25, 0.125, 0.125])
    if size == 6:  # the likeliest stand neither first nor in order
        return np.array([0.05, 0.1, 0.25, 0.02, 0.4, 0.18])
    return np.full(8, 0.125) if size == 8 else dice.dirichlet(np.full(size, 0.5))  # all alike: any of them will do


def check_blocks(name: str, weight, levels, step, least) -> None:
    """Refuse levels, steps and least values of a weight (5, 3 × 32) that are not within half a step of it."""
    import numpy as np

    shape = (5, 3, BLOCK)
    if levels.shape != shape or step.shape != shape[:2] or least.shape != shape[:2]:
        raise Wrong(
            f"{name}: shapes {levels.shape}, {step.shape}, {least.shape}; wanted {shape}, {shape[:2]}, {shape[:2]}."
        )
    if levels.dtype != np.uint8:
        raise Wrong(f"the levels are {levels.dtype}; wanted is uint8.")
    if levels.max() > 15:
        raise Wrong(f"{name}: a level is {int(levels.max())}; four bits end at 15. Sixteen levels are fifteen steps.")
    if (step < 0).any():
        raise Wrong(f"{name}: a step is negative. Count upward from the least value, not downward from the largest.")
    back = least[..., None].astype(np.float64) + step[..., None].astype(np.float64) * levels
    if not np.isfinite(back).all():
        raise Wrong(f"{name}: a step or a least value is no number. What is divided by 0?")
    blocks = weight.reshape(shape).astype(np.float64)
    width = np.ptp(blocks, axis=-1, keepdims=True) / 15
    worst = float(
        (np.abs(back - blocks) / np.maximum(width, 1e-5 * np.abs(blocks).max(-1, keepdims=True) + 1e-12)).max()
    )
    if worst > 0.51:
        below = bool((back <= blocks + 0.01 * width).all())
        cut = "Was it cut off instead of rounded?" if below else f"Does every block of {BLOCK} have a step of its own?"
        raise Wrong(f"{name}: a value is off by {worst:.2g} steps, and rounding costs half a step at most. {cut}")


def check_profiles(groups: list) -> None:
    """Refuse profiles, as a sidecar holds them, that do not fit one token on `ROWS` rows and prompts of `PROMPT`."""
    if len(groups) != 2:
        raise Wrong(f"the engine has {len(groups)} profile(s); profiles=[decode, prefill] makes two.")
    decode, prefill = groups
    for number, group, new, rows in ((0, decode, (1, 1), ROWS), (1, prefill, (1, PROMPT), 1)):
        tokens, past = group["tokens"], group["past_key.0"]
        if not tokens[0][1] <= new[0] <= new[1] <= tokens[2][1]:
            raise Wrong(
                f"profile {number} takes {tokens[0][1]} to {tokens[2][1]} new tokens; wanted are {new[0]} to {new[1]}."
            )
        if not past[0][1] <= rows <= past[2][1]:
            raise Wrong(f"profile {number} takes {past[0][1]} to {past[2][1]} rows of past; wanted are {rows}.")
    if decode["tokens"][1][1] != 1 or decode["past_key.0"][1][1] != ROWS:
        raise Wrong(
            f"profile 0 is tuned for {decode['tokens'][1][1]} tokens on {decode['past_key.0'][1][1]} rows; "
            f"decoding is 1 on {ROWS}: the opt shape."
        )
    if prefill["tokens"][1][1] < PROMPT // 8:
        raise Wrong(
            f"profile 1 is tuned for {prefill['tokens'][1][1]} token(s), and it is there for prompts: choose "
            "a typical length as opt."
        )


def wrong_factors(sharing: int, layers: int, sequences: int, value_bytes: int) -> dict[float, str]:
    """What a size of a cache is off by when something was forgotten, and how to say so."""
    return {
        sharing: "that counts every head, and the heads of a group share their keys and values.",
        0.5: "keys and values are two tensors.",
        1 / layers: "every layer has its own.",
        1 / sequences: "every sequence has its own.",
        1 / value_bytes: "those are values, not bytes.",
        1 / 2**20: "that is MiB; wanted are bytes.",
        1e-6: "that is MB; wanted are bytes.",
        8: "those are bits; wanted are bytes.",
    }
