"""The checkers of lab 14b: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from labsupport.exercises import lab14b
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.language import generation

NAMES = {"np": np, "torch": torch, "F": F}


def test_the_lab_holds_four_exercises_with_hints_and_solutions():
    assert_complete(lab14b, ["batch_gain", "shared_blocks", "gained", "split"])


def test_gained():
    def by_library(guesses, chosen):
        return chosen[: generation.agreeing(guesses, chosen) + 1]

    def by_takewhile(guesses, chosen):
        right = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(guesses, chosen)))
        return np.array(chosen[: len(right) + 1])

    assert_checker(lab14b.gained, wrong=[
        (lambda g, c: by_library(g, c)[:-1], "is a token as well"), (lambda g, c: c, "a text that does not exist"), (lambda g, c: g, "function says"),
        (lambda g, c: [a for a, b in zip(g, c) if a == b] + c[-1:], "function says"), (lambda g, c: len(by_library(g, c)), "wanted is the list"),
        (lambda g, c: c[:1], "function says"), (lambda g, c: sorted(by_library(g, c)), "function says"), (2, "hand in the function itself"),
        (lambda g, c: [a for a, b in zip(g, c) if a == b], "function says|token as well"), (lambda g, c: g[: generation.agreeing(g, c) + 1], "function says"),
    ], right=[by_library, by_takewhile, lambda g, c: tuple(by_library(g, c))], namespace=NAMES)  # fmt: skip


def test_shared_blocks():
    def by_tree(prompts, size):
        """A twin: a tree of blocks, whose nodes are counted."""
        tree, count, rest = {}, 0, 0
        for prompt in prompts:
            node = tree
            for start in range(0, len(prompt) // size * size, size):
                block = tuple(prompt[start : start + size])
                count += block not in node
                node = node.setdefault(block, {})
            rest += bool(len(prompt) % size)
        return float(count + rest)

    def by_sets(prompts, size):
        ends = {tuple(p[:end]) for p in prompts for end in range(size, len(p) + 1, size)}
        return len(ends) + sum(len(p) % size != 0 for p in prompts)

    def partial_shared(prompts, size):
        return len({tuple(p[: i + size]) for p in prompts for i in range(0, len(p), size)})

    assert_checker(lab14b.shared_blocks, wrong=[
        (lambda p, s: sum(-(-len(x) // s) for x in p), "without sharing"), (partial_shared, "still grows|take"),
        (lambda p, s: len({tuple(x[i : i + s]) for x in p for i in range(0, len(x) - s + 1, s)}) + sum(len(x) % s > 0 for x in p), "different beginnings"),
        (lambda p, s: by_sets(p, s) - 1, "take"), (lambda p, s: sum(len(x) // s for x in p), "take"), (lambda p, s: by_sets(p, 1), "take"),
        (lambda p, s: "many", "a number"), (lambda p, s: None, "number|None"), (5, "hand in the function itself"), (lambda p: 3, "TypeError"),
    ], right=[by_tree, by_sets], namespace=NAMES)  # fmt: skip


def test_split():
    def by_chunks(up, down, rank, world):
        return up.chunk(world, 1)[rank], down.chunk(world, 0)[rank]

    def every_other(up, down, rank, world):
        """A twin: another order, each inner value still held by one rank."""
        return [up[:, rank::world], down[rank::world]]

    assert_checker(lab14b.split, wrong=[
        (lambda u, d, r, w: (u.chunk(w, 0)[r], d.chunk(w, 0)[r]), "do not fit"), (lambda u, d, r, w: (u.chunk(w, 1)[r], d.chunk(w, 1)[r]), "do not fit"),
        (lambda u, d, r, w: (u, d / w), "hold .* weights together"), (lambda u, d, r, w: (u.chunk(w, 1)[r], d.chunk(w, 0)[w - 1 - r]), "the sum is off"),
        (lambda u, d, r, w: (u.chunk(w, 1)[0], d.chunk(w, 0)[0]), "the sum is off"), (lambda u, d, r, w: u, "wanted are two tensors"),
        (lambda u, d, r, w: (u, d) if r == 0 else (u[:, :1] * 0, d[:1] * 0), "hold .* weights together"), (lambda u, d, r, w: (3, 4), "wanted is a tensor"),
        (lambda u, d, r, w: (u, d) if r == 0 else (u[:, :0], d[:0]), "equal part"),
        (lambda u, d, r, w: (u, d), "the sum is off"), (8, "hand in the function itself"),
    ], right=[by_chunks, every_other, lambda u, d, r, w: tuple(x.numpy() for x in by_chunks(u, d, r, w))], namespace=NAMES)  # fmt: skip
