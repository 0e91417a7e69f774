"""What lab 11's checkers draw anew: candidates, streams of frames, packages that were tampered with."""

from __future__ import annotations

import hashlib
import hmac

from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong

LIMITS = {"KiB": 64.0, "p90_ms": 2.0, "points_lost": 1.0}  # the phone's gate, as the notebook declares it


def sign(key: bytes, version: int, payload: bytes) -> str:
    """HMAC-SHA256 over version and payload, as hexadecimal digits: what the exercise on updates calls a signature."""
    return hmac.new(key, version.to_bytes(8, "big") + payload, hashlib.sha256).hexdigest()


def candidates_drawn(draws, number: int) -> tuple[list[dict], dict]:
    import numpy as np

    wanted = LIMITS | ({"load_ms": 5.0} if number % 3 == 0 else {})  # another gate has other limits
    limits = {key: float(value * draws.uniform(0.5, 2)) for key, value in wanted.items()}
    rows = []
    for place in range(int(draws.integers(0, 7))):
        row = {key: float(limit * draws.uniform(0.2, 1.6)) for key, limit in limits.items()}
        if draws.random() < 0.3:  # better than before, by less or by more than the limit
            row["points_lost"] = float(-limits["points_lost"] * draws.uniform(0.0, 3.0))
        if draws.random() < 0.2:
            row["p90_ms"] = float(np.nan)
        if draws.random() < 0.3:
            row["KiB"] = limits["KiB"]  # exactly at the limit
        rows.append({"name": f"candidate {number}.{place}", **row})
    sizes = [row["KiB"] for row in rows]
    return (rows, limits) if len(set(sizes)) == len(sizes) else candidates_drawn(draws, number)


def about_choice(got, right, rows: list[dict], limits: dict) -> str:
    told = {row["name"]: row for row in rows}
    if got is not None and (not isinstance(got, str) or got not in told):
        return f"it returned {described(got)}, which is the name of no row; wanted is row['name'], or None."
    if got is None:
        return f"it returned None, and {told[right]} keeps {limits}."
    missed = [key for key, limit in limits.items() if not told[got][key] <= limit]
    if missed:
        return f"{told[got]} misses the limit on {missed[0]}: {limits}."
    return f"{told[got]} keeps the limits, and {told[right]} does, too, and is smaller."


def convolution_shapes(module, images):
    """(convolutions in the order in which they run, (channels, height) that each gives)."""
    import torch
    from torch import nn

    layers, shapes = [], set()

    def note(layer, inputs, output):
        layers.append(layer)
        shapes.add((output.shape[1], output.shape[2]))

    handles = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    try:
        with torch.inference_mode():
            module.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return layers, shapes


def sees_all(module, images) -> bool:
    import torch

    total = torch.zeros(24, 24)
    for seed in range(4):
        pixels = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        answers = module.eval()(pixels)
        if not answers.requires_grad:
            raise Wrong("no gradient leads from its answer to the pixels: take no_grad or a constant out of `forward`.")
        (slope,) = torch.autograd.grad(answers.square().sum(), pixels)
        total += slope.abs().sum((0, 1))
    return bool((total > 0).float().mean() > 0.9)


def stream_of_frames(draws, tight: bool = False) -> tuple:
    """(arrivals, service, deadline, stalls) in ms: a camera, and now and then a moment in which the box does "
    "something else. A tight deadline lies so close that behind a stall no waiting frame may have time left."""
    import numpy as np

    period = float(draws.uniform(5, 40))
    service, deadline = period * float(draws.uniform(0.3, 0.8)), period * float(draws.uniform(1.6, 4.0))
    if tight:
        deadline = service * float(draws.uniform(1.05, 1.3))
    stalls = {int(number): period * float(draws.uniform(3, 9)) for number in draws.choice(180, 4, replace=False)}
    return np.arange(200) * period, service, deadline, stalls


def exact_stream() -> tuple:
    """A stream as `stream_of_frames` draws it, in which frames can be done exactly at their deadline."""
    import numpy as np

    return np.arange(200) * 10.0, 5.0, 15.0, {30: 45.0, 90: 45.0, 150: 45.0}


def is_affine(module, images) -> bool:
    """Whether a network answers as one weighted sum of its pixels would: no ReLU or the like stands in it."""
    import torch

    other = torch.randn_like(images)
    with torch.inference_mode():
        first, second, between = (module.eval()(each) for each in (images, other, (images + other) / 2))
    off = (between - (first + second) / 2).abs().max()
    return bool(off <= 1e-4 * (first - second).abs().max())


def oldest_in_time(waiting, now, service, deadline):
    return next((place for place, arrived in enumerate(waiting) if now + service <= arrived + deadline), None)


def counted_misses(choose, arrivals, service, deadline, stalls) -> tuple[int, int]:
    """(frames in time, frames computed in vain) of a policy."""
    now, seen, waiting, in_time, late, computed = 0.0, 0, [], 0, 0, 0
    while seen < len(arrivals) or waiting:
        while seen < len(arrivals) and arrivals[seen] <= now:
            waiting.append(float(arrivals[seen]))
            seen += 1
        if not waiting:
            now = float(arrivals[seen])
            continue
        place = choose(list(waiting), now, service, deadline)
        place = place.item() if hasattr(place, "item") else place
        if place is None:
            waiting = []
            continue
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(waiting):
            raise Wrong(f"with {len(waiting)} frames waiting it returned {place!r}; wanted is a place from 0, or None.")
        arrived = waiting[place]
        waiting = waiting[place + 1 :]
        now += service + stalls.get(computed, 0.0) * (computed in stalls)
        computed += 1
        on_time = now <= arrived + deadline + 1e-9
        in_time += on_time
        late += not on_time and (computed - 1) not in stalls
    return in_time, late


def packages_drawn(key: bytes):
    """(what it is, package, what the self-test says, whether it replaces version 4)."""
    import secrets

    fresh = secrets.token_bytes(64)
    signature = sign(key, 5, fresh)
    good = {"version": 5, "payload": fresh, "signature": signature, "honest": True}
    yield "a good update", good, True, True
    yield (
        "a payload with one bit turned",
        {**good, "payload": bytes([fresh[0] ^ 1]) + fresh[1:], "honest": False},
        True,
        False,
    )
    yield "an old version under a new number", {**good, "version": 6, "honest": False}, True, False
    yield (
        "a package signed with another key",
        {**good, "signature": sign(b"another", 5, fresh), "honest": False},
        True,
        False,
    )
    yield "a package without a signature", {"version": 5, "payload": fresh}, True, False
    yield "a signature that is no text", {**good, "signature": None, "honest": False}, True, False
    yield "a signature with a letter of another alphabet", {**good, "signature": "ж" * 64, "honest": False}, True, False
    almost = {"signature": signature[:-1] + ("1" if signature.endswith("0") else "0"), "honest": False}
    yield "a signature with its last digit changed", {**good, **almost}, True, False
    yield "an older version, rightly signed", {**good, "version": 3, "signature": sign(key, 3, fresh)}, True, False
    yield (
        "the version that runs, with another payload",
        {**good, "version": 4, "signature": sign(key, 4, fresh)},
        True,
        False,
    )
    yield "an update that fails its self-test", good, False, False
    yield "an update whose self-test raises", good, RuntimeError("no such kernel"), False
    yield "a later update", {**good, "version": 40, "signature": sign(key, 40, fresh)}, True, True


def was_tested(payload: bytes, ran: list, result) -> bool:
    ran.append(payload)
    if isinstance(result, Exception):
        raise result
    return result
