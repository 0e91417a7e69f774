"""Answers of a later, unseen set that were judged wrongly, or rightly with words that led astray."""

from __future__ import annotations

import copy
import hmac
import operator
import re
import statistics

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from labsupport import environment
from labsupport.exercises import (
    lab03,
    lab04,
    lab05,
    lab08,
    lab09,
    lab09b,
    lab09c,
    lab10,
    lab11,
    lab12,
    lab14b,
    lab15,
    lab16,
    labB,
)
from labsupport.fusion import blocks


class Stacked(blocks.Siblings):
    def forward(self, x):
        layers = (self.left, self.middle, self.right)
        weight = torch.vstack([layer.weight for layer in layers])
        y = F.conv2d(x, weight, torch.hstack([layer.bias for layer in layers]))
        return sum(part.relu() for part in y.split(64, dim=1))


def place_in_bytes(tensors):
    offsets, end = {}, 0
    for tensor in tensors:
        offsets[tensor.name], end = end, end + 2**20 * tensor.mib
    return offsets


def proven_by(errors, fewest=3):
    def proven(alone, taught):
        gains = np.subtract(taught, alone)
        return len(gains) >= fewest and bool(gains.mean() > errors * gains.std(ddof=1) / len(gains) ** 0.5)

    return proven


def hard_answers(student, teacher, images, labels):
    return F.cross_entropy(student(images), teacher(images).detach().argmax(1))


def of_the_first_item(spans):
    return of_rows([span for span in spans if span.item == 0])


def of_rows(spans):
    rows = {}
    for span in spans:
        rows[span.row] = rows.get(span.row, 0) + span.ms
    return sum(rows.values()) / max(rows.values())


def whole_rates(service_ms, load):
    return load * sum(1000 // ms for ms in service_ms.values())


def rounded_shares(items, rates):
    return [round(items * rate / sum(rates)) for rate in rates]


def with_the_input(nodes):
    return ["frame", *[outputs[0] for _, outputs in nodes[:-1]]]


def by_remainders(items, rates):
    whole = [items * rate / sum(rates) for rate in rates]
    given = [int(each) for each in whole]
    for place in sorted(range(len(rates)), key=lambda i: given[i] - whole[i])[: items - sum(given)]:
        given[place] += 1
    return given


def only_two_axes(x, gate, weight):
    if len(x) != 2 or x != gate or weight != x[-1:]:
        raise ValueError(f"{x} {gate} {weight}")
    return x


def asserts(x, gate, weight):
    assert x and x == gate and weight == x[-1:]
    return x


def oldest_or_first(waiting, now, service, deadline):
    return next((i for i, arrived in enumerate(waiting) if now + service - arrived <= deadline), 0)


def trusts_the_package(box, package, key, works):
    right = lab11.sign(key, package["version"], package["payload"])
    if not hmac.compare_digest(right, package["signature"]) or package["version"] <= box["version"]:
        return box
    return {k: package[k] for k in ("version", "payload")} if works(package["payload"]) is True else box


def never_late(arrivals_s, service_s, deadline_s):
    return int(sum(service_s) > 1000 * deadline_s * len(arrivals_s))


def no_losses(before_ms, after_ms, before_mib, after_mib):
    rows = before_ms / after_ms - 1, 1 - after_ms / before_ms, 1 - after_mib / before_mib
    return dict(zip(("more answers a second", "less time an answer", "less memory"), (max(0, row) for row in rows)))


def chosen_by(in_time, close):
    def choose(changes, budget_ms, keep):
        proven = [c for c in changes if not c["unproven"]]
        good = [c for c in proven if in_time(c["median_ms"], budget_ms) and close(c["error"], 1 - keep)]
        return min(good, key=lambda c: c["effort"])["name"] if good else None

    return choose


def objects(change, given, keep, equal=False):
    if not change["rounds"]:
        return "estimate"
    if change["error"] > 1 - keep or (equal and change["error"] == 1 - keep):
        return "answers"
    if change["unproven"]:
        return "not its time"
    low, high = statistics.quantiles(change["rounds"], n=4)[0], statistics.quantiles(given["rounds"], n=4)[2]
    return "" if low > high else "noise"


def ends_here(code, seconds):
    try:
        exec(code, {})
    except Exception:
        return "raised"
    return "ok"


WRONG = [
    (lab04.allocator, place_in_bytes, "Are those bytes"),
    (lab05.rescaled, lambda block: copy.deepcopy(block).half(), "no FP32 module any more"),
    (lab08.proven, proven_by(2, fewest=4), "three seeds that agree"),
    (lab08.proven, proven_by(1), "a mean of 1.3 standard errors"),
    (lab08.proven, proven_by(3), "a mean of 2.6 standard errors"),
    (lab08.hears, hard_answers, "that the labels do not name"),
    (lab09.ideal, of_the_first_item, "of every item"),
    (lab09b.offered, whole_rates, "What can each worker answer in a second"),
    (lab09c.clean, with_the_input, "'frame' is the input"),
    (lab09c.shares, rounded_shares, "of sum 3"),
    (lab09c.shares, by_remainders, "0.447 s are possible"),
    (lab10.shapes, only_two_axes, r"weight .*, which fit, it raised ValueError"),
    (lab10.shapes, asserts, "it raised AssertionError; wanted is ValueError"),
    (lab11.in_time, oldest_or_first, "could not be done in time any more"),
    (lab11.update, trusts_the_package, "a package without a signature: install raised KeyError"),
    (lab12.deadlines, never_late, "Are all times in seconds"),
    (lab12.claim, no_losses, "is below zero, not zero"),
    (lab16.choose, chosen_by(operator.lt, operator.le), "good enough"),
    (lab16.choose, chosen_by(operator.le, operator.lt), "good enough"),
    (lab16.objection, lambda *three: objects(*three, equal=True), "you say 'answers'"),
    (labB.contained, ends_here, "it ended your own program"),
]


@pytest.mark.parametrize(("exercise", "answer", "words"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_answer_is_refused_and_told_why(exercise, answer, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verdict = exercise.check(answer)
    assert verdict.outcome == "wrong"
    assert re.search(words, verdict.message), verdict.message


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(lab09b.offered, whole_rates), (lab09c.shares, rounded_shares), (lab09c.shares, by_remainders)],
)
def test_no_draw_lets_a_wrong_answer_through(exercise, answer):
    assert {exercise.check(answer).outcome for _ in range(60)} == {"wrong"}


@pytest.mark.parametrize(("exercise", "answer"), [(lab03.merge_it, Stacked), (lab09.ideal, of_rows)])
def test_a_right_answer_is_taken(exercise, answer):
    assert exercise.check(answer).outcome == "right"


def test_either_definition_of_a_quartile_is_taken():
    assert {tuple(sorted(lab16._objection(rows[1], rows[0], 0.9))) for rows in map(lab16.changes, range(200))} >= {
        ("", "noise")
    }
    assert lab16.objection.check(objects).outcome == "right"


def test_a_question_says_what_its_check_asks():
    assert "for one batch or more" in lab09.lookahead.question
    assert "`frame`, is not among them" in lab09c.clean.question
    assert "the signature is missing or no text, or `works` raises" in lab11.update.question
    assert "`inner` is a multiple of `world`" in lab14b.split.question
    assert "not a library" not in lab05.to_bf16.question


@pytest.mark.skipif(not environment.has("engine building"), reason="nothing here can build")
def test_the_seventh_program_keeps_its_output():
    mended = (
        lab15.SEVENTH.replace(
            "config.max_workspace_size = 1 << 26", "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 26)"
        )
        .replace("engine = builder.build_engine", "plan = builder.build_serialized_network")
        .replace("plan = engine.serialize()", "")
    )
    assert lab15.seventh.check(mended).outcome == "right"
    for was, becomes in (("relu.get_output", "conv.get_output"), ("Type.RELU", "Type.SIGMOID"), ("16, 16)", "8, 8)")):
        verdict = lab15.seventh.check(mended.replace(was, becomes))
        assert verdict.outcome == "wrong" and "does not end in its ReLU" in verdict.message, becomes
