"""The checkers of lab 12: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import data, export, precision, quantization, training
from labsupport.comparing import requirements
from labsupport.exercises import lab12, lab12_versions
from labsupport.exercises import lab12_stand_ins as stand_ins
from labsupport.exercises.base import assert_checker, assert_complete

NAMES = {"np": np, "lab12": lab12}
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "12_project.ipynb"


def test_the_lab_holds_seven_exercises_with_hints_and_solutions():
    names = ["speed_gain", "leak", "deadlines", "vote", "self_test", "claim", "own_version"]
    assert_complete(lab12, names)


def test_the_notebook_and_the_checker_know_the_same_gate():
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    source = next(text for text in cells if text.startswith("ANSWERS = "))
    held: dict = {}
    exec(compile(source, "<gate>", "exec"), held)
    assert {name: held["LIMITS"][name] for name in lab12_versions.LIMITS} == lab12_versions.LIMITS
    seal = re.search(r'SEAL = "(\w+)"', "\n".join(cells)).group(1)
    assert requirements.declare(held["LIMITS"]).seal == seal


# --- the leak


def by_bytes(train, test):
    known = {picture.tobytes() for picture in train}
    return [number for number, picture in enumerate(test) if picture.tobytes() in known]


def by_mask(train, test):
    return (test[:, None] == train[None]).all(axis=(2, 3, 4)).any(axis=1)


def by_loops(train, test):
    return {n for n, a in enumerate(test) for b in train if np.array_equal(a, b)}


def by_mean(train, test):
    known = {float(picture.mean()) for picture in train}
    return [n for n, picture in enumerate(test) if float(picture.mean()) in known]


def nearly(train, test):
    return [n for n, a in enumerate(test) if any(np.abs(a.astype(int) - b).mean() < 1 for b in train)]


def of_train(train, test):
    return [n for n, a in enumerate(train) if any(np.array_equal(a, b) for b in test)]


def spoils(train, test):
    found = by_bytes(train, test)
    test[:] = 0
    return found


def test_leak():
    assert_checker(
        lab12.leak,
        wrong=[
            (by_mean, "was named, and it is not in train; a picture that was turned round"),
            (nearly, "number . of test was named.*differs in one pixel"),
            (of_train, "is not in train|stands in train and was not named"),
            (lambda train, test: [], "with copies in it: number . of test stands in train and was not named"),
            (lambda train, test: by_bytes(train, test)[:1], "stands in train and was not named"),
            (lambda train, test: list(range(len(test))), "where nothing is shared: number 0 of test was named"),
            (lambda train, test: len(by_bytes(train, test)), "wanted is a list of numbers, empty if nothing is shared"),
            (lambda train, test: test[by_bytes(train, test)], "wanted are whole numbers"),
            (spoils, "changed an array that it was given"),
            (lambda train, test: None, "gave None"),
            (lambda train: [], "TypeError"),
            ([1, 2], "hand in the function itself"),
        ],
        right=[by_bytes, by_mask, by_loops, lambda a, b: np.array(by_bytes(a, b)), lambda a, b: iter(by_bytes(a, b))],
        namespace=NAMES,
    )


# --- deadlines


def by_free(arrivals_s, service_s, deadline_s):
    missed, free = 0, 0.0
    for arrival, service in zip(arrivals_s, service_s, strict=True):
        free = max(arrival, free) + service
        missed += free - arrival > deadline_s
    return missed


def by_waits(arrivals_s, service_s, deadline_s):
    """Lindley's recursion: the wait of the next from that of the last."""
    wait, waits = 0.0, [0.0]
    for gap, service in zip(np.diff(arrivals_s), service_s, strict=False):
        wait = max(0.0, wait + service - gap)
        waits.append(wait)
    return int((np.array(waits) + service_s > deadline_s).sum())


def work_alone(arrivals_s, service_s, deadline_s):
    return int((np.asarray(service_s) > deadline_s).sum())


def never_waits(arrivals_s, service_s, deadline_s):
    return int((arrivals_s[0] + np.cumsum(service_s) - arrivals_s > deadline_s).sum())


def by_moment(arrivals_s, service_s, deadline_s):
    free, missed = 0.0, 0
    for arrival, service in zip(arrivals_s, service_s, strict=True):
        free = max(arrival, free) + service
        missed += free > deadline_s
    return missed


def waiting_alone(arrivals_s, service_s, deadline_s):
    free, missed = 0.0, 0
    for arrival, service in zip(arrivals_s, service_s, strict=True):
        missed += max(free - arrival, 0) > deadline_s
        free = max(arrival, free) + service
    return missed


def test_deadlines():
    assert_checker(
        lab12.deadlines,
        wrong=[
            (work_alone, "you count the frames whose own work is long. Others wait behind them"),
            (never_waits, "your worker never waits for a frame"),
            (by_moment, "that is the moment of the answer"),
            (waiting_alone, "you count the waiting alone"),
            (lambda a, s, d: by_free(a, s, d) / len(a), "wanted is how many frames are late, a whole number"),
            (lambda a, s, d: by_free(a, s, d) > 0, "a whole number"),
            (lambda a, s, d: 0, "0 frames late, and"),
            (lambda a, s, d: None, "a whole number"),
            (lambda a, s: 0, "TypeError"),
            (12, "hand in the function itself"),
        ],
        right=[by_free, by_waits, lambda a, s, d: np.int64(by_free(a, s, d)), lambda a, s, d: float(by_free(a, s, d))],
        namespace=NAMES,
    )


# --- the vote


def odds(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def by_odds(answers):
    read = [odds(one) for one in answers if one is not None]
    return int(np.sum(read, axis=0).argmax()) if read else None


def by_count(answers):
    best = [int(one.argmax()) for one in answers if one is not None]
    return max(set(best), key=best.count) if best else None


def by_torch(answers):
    read = [torch.from_numpy(np.asarray(one)).softmax(0) for one in answers if one is not None]
    return torch.stack(read).mean(0).argmax() if read else None


def by_sum(answers):
    read = [one for one in answers if one is not None]
    return int(np.sum(read, axis=0).argmax()) if read else None


def by_logs(answers):
    read = [np.log(odds(one.astype(np.float64)) + 1e-300) for one in answers if one is not None]
    return int(np.sum(read, axis=0).argmax()) if read else None


def the_last(answers):
    read = [one for one in answers if one is not None]
    return int(read[-1].argmax()) if read else None


def spoiled_vote(answers):
    for one in answers:
        if one is not None:
            one -= one.max()
    return by_odds(answers)


def no_shift(answers):
    with np.errstate(all="ignore"):
        read = [np.exp(one) / np.exp(one).sum() for one in answers if one is not None]
        return int(np.sum(read, axis=0).argmax()) if read else None


def test_vote():
    assert_checker(
        lab12.vote,
        wrong=[
            (by_sum, "one loud frame: class .* one frame with a very large logit won"),
            (by_logs, "one loud frame: class"),
            (the_last, "one loud frame|first and last wrong: class .* those between are right"),
            (spoiled_vote, "changed an array that it was given"),
            (no_shift, "loud frame: class|large logits: class"),
            (lambda a: np.mean([odds(one) for one in a if one is not None], axis=0), "wanted is the number of a class"),
            (lambda a: None, "gave None, though most frames could be read"),
            (lambda a: int(np.mean([one for one in a], axis=0).argmax()), "TypeError|ValueError"),
            (3, "hand in the function itself"),
        ],
        right=[by_odds, by_count, by_torch, lambda a: (lambda r: None if r is None else np.int64(r))(by_odds(a))],
        namespace=NAMES,
    )


# --- the self-test


def asks_twice(classify):
    pictures, labels = lab12.golden()
    for word, shown in (("fine", pictures), ("swapped", pictures[..., ::-1].copy())):
        if np.sum(np.asarray(classify(shown)) == labels) >= 15:
            return word
    return "broken"


def by_channels(classify):
    pictures, labels = lab12.golden()
    right = (classify(pictures) == labels).sum()
    turned = (classify(pictures[:, :, :, [2, 1, 0]]) == labels).sum()
    return "fine" if right > 14 else "swapped" if turned > 14 else "broken"


def asks_once(classify):
    pictures, labels = lab12.golden()
    return "fine" if (classify(pictures) == labels).sum() >= 15 else "swapped"


def strict(classify):
    pictures, labels = lab12.golden()
    return "fine" if (classify(pictures) == labels).all() else asks_twice(classify)[:0] or "broken"


def turns_rows(classify):
    pictures, labels = lab12.golden()
    if (classify(pictures) == labels).sum() >= 15:
        return "fine"
    return "swapped" if (classify(pictures[:, ::-1].copy()) == labels).sum() >= 15 else "broken"


def floats(classify):
    return "fine" if len(classify(lab12.golden()[0] / 255)) else "broken"


def test_self_test():
    assert_checker(
        lab12.self_test,
        wrong=[
            (asks_once, "reads 14 of 20, the function says 'swapped' .str.; wanted is 'broken'"),
            (strict, "reads 15 of 20, the function says 'broken' .str.; wanted is 'fine'"),
            (turns_rows, "red and blue exchanged, the function says 'broken'"),
            (floats, "classify was given float64 .*; it takes uint8"),
            (lambda classify: "fine", "wanted is 'broken'"),
            (lambda classify: True, "wanted is 'fine'"),
            (lambda classify: None, "None .NoneType.; wanted is 'fine'"),
            ("fine", "hand in the function itself"),
        ],
        right=[asks_twice, by_channels],
        namespace=NAMES,
    )


def test_golden_pictures_are_told_apart_by_color():
    pictures, labels = lab12.golden()
    right = stand_ins.classifier(np.random.default_rng(0), 0, False)
    assert (right(pictures) == labels).all() and not (right(pictures[..., ::-1]) == labels).any()


# --- the claim


def shares(before_ms, after_ms, before_mib, after_mib):
    return {
        "more answers a second": before_ms / after_ms - 1,
        "less time an answer": 1 - after_ms / before_ms,
        "less memory": 1 - after_mib / before_mib,
    }


def changed(**instead):
    return lambda *row: shares(*row) | {name.replace("_", " "): change(*row) for name, change in instead.items()}


def test_claim():
    assert_checker(
        lab12.claim,
        wrong=[
            (lambda *row: {name: 100 * value for name, value in shares(*row).items()}, "hand in shares, 0.3 for 30 %"),
            (changed(more_answers_a_second=lambda b, a, *_: b / a), "how many times as many, not how many more"),
            (changed(more_answers_a_second=lambda b, a, *_: 1 - a / b), "that is another of the three"),
            (changed(less_memory=lambda b, a, m, n: n / m - 1), "the sign is turned round"),
            (changed(less_memory=lambda b, a, m, n: m / n - 1), "less memory: .* What is the whole"),
            (lambda *row: list(shares(*row).values()), "wanted is a dict with"),
            (lambda *row: {"less memory": 0.1}, "wanted is a dict with"),
            (lambda *row: {name: f"{value:.0%}" for name, value in shares(*row).items()}, "a number is wanted"),
            (lambda *row: None, "wanted is a dict"),
            (0.3, "hand in the function itself"),
        ],
        right=[shares, lambda b, a, m, n: {k: np.float64(v) for k, v in reversed(shares(b, a, m, n).items())}],
        namespace=NAMES,
    )


# --- a version of one's own


class Reader(nn.Module):
    """Twenty logits by the nearest golden picture: a network whose answers are known without training."""

    input_name, output_name = "images", "logits"

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(32 * 144, 20)

    def forward(self, images):
        return self.head(self.body(images).flatten(1))

    def example_input(self, batch=1):
        return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return Reader().eval()


@pytest.fixture
def measured(monkeypatch):
    """The checker with a row that is not measured, so that the verdict does not hang on a clock."""
    row = {
        "accuracy": 0.97, "points lost to FP32": 0.25, "accuracy, rain": 0.95, "accuracy, blur": 0.9,
        "accuracy, darkness": 0.8, "accuracy, compression": 0.9, "p50, share of PyTorch's": 0.2,
        "weights and activations, share of FP32's": 0.26, "file MiB": 0.2, "file to first answer s": 0.01,
    }  # fmt: skip
    monkeypatch.setattr(lab12_versions, "measured", lambda graph, model, per_class: row)
    return row


def test_own_version_passes_or_is_refused_with_the_reason(measured, reader):
    graph = export.to_onnx(reader, reader.example_input())
    assert lab12.own_version.check(graph, reader).right
    assert "97.0% of unseen signs, +0.25 points lost, 5 times as fast" in lab12.own_version.check(graph, reader).message
    measured["accuracy, darkness"], measured["points lost to FP32"] = 0.5, 0.62
    refused = lab12.own_version.check(graph, reader)
    assert refused.outcome == "wrong" and "accuracy, darkness is 0.5, wanted at least 0.7" in refused.message
    assert "points lost to FP32 is 0.62, wanted at most 0.5" in refused.message


def test_own_version_is_measured_on_unseen_signs(reader):
    graph = export.to_onnx(reader, reader.example_input())
    row = lab12_versions.measured(graph, reader, per_class=2)
    assert set(row) == set(lab12_versions.LIMITS) and row["weights and activations, share of FP32's"] == pytest.approx(
        1
    )
    assert row["points lost to FP32"] == 0 and row["accuracy"] < 0.5
    half = lab12_versions.measured(precision.cast(graph), reader, per_class=2)
    assert half["weights and activations, share of FP32's"] < 0.52
    calibration = [data.preprocess(lab12.golden()[0])]
    small = lab12_versions.measured(quantization.to_qdq(graph, calibration, target="onnxruntime"), reader, per_class=2)
    assert small["weights and activations, share of FP32's"] < 0.35


def test_an_untrained_network_is_refused_by_the_gate(reader, monkeypatch):
    monkeypatch.setattr(lab12, "PER_CLASS", 2)
    verdict = lab12.own_version.check(export.to_onnx(reader, reader.example_input()), reader)
    assert verdict.outcome == "wrong" and re.search(
        "the gate refuses it: accuracy is .*wanted at least 0.95", verdict.message
    )


def test_what_cannot_be_measured_is_told_apart(reader):
    graph = export.to_onnx(reader, reader.example_input())
    other = export.to_onnx(nn.Linear(4, 20), torch.zeros(1, 4))
    narrow = export.to_onnx(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 48, 48))
    assert lab12.own_version.check(..., reader).outcome == "not attempted"
    for answers, pattern in [
        ((reader, reader), "the first answer is a Reader; hand in the graph"),
        ((graph, graph), "the second answer is a OnnxGraph|the second answer is .*hand in the trained PyTorch network"),
        ((other, reader), "the car feeds float32"),
        ((narrow, reader), "wanted are 20 logits for each picture"),
        ((precision.cast(graph, keep_io=False), reader), "keep the input as the network had it"),
        (("no such.onnx", reader), "no such file"),
        ((graph,), "came with 1 answer, this exercise takes 2"),
    ]:
        verdict = lab12.own_version.check(*answers)
        assert verdict.outcome == "wrong" and re.search(pattern, verdict.message), verdict


@pytest.mark.parametrize("part", [np.s_[..., 2], np.s_[..., 0], np.s_[-1], np.s_[1::2]])
def test_a_leak_is_judged_by_all_pixels(part):
    def shared(train, test):
        return [i for i, one in enumerate(test) if any(np.array_equal(one[part], other[part]) for other in train)]

    assert any(lab12.leak.check(shared).outcome == "wrong" for _ in range(5))


def test_a_frame_at_its_deadline_is_not_late():
    def missed_frames(arrivals_s, service_s, deadline_s):
        return int((stand_ins.finished(arrivals_s, service_s) - arrivals_s >= deadline_s).sum())

    assert "exactly at its deadline" in lab12.deadlines.check(missed_frames).message


def _best_of(answers):
    return [int(one.argmax()) for one in answers if one is not None]


def test_a_vote_hears_all_frames_and_knows_class_0():
    def first_three(answers):
        best = _best_of(answers)[:3]
        return max(best, key=best.count) if best else None

    def without_0(answers):
        best = _best_of(answers)
        return (max(best, key=best.count) or None) if best else None

    assert "three in a row" in lab12.vote.check(first_three).message
    for _ in range(10):
        assert "None" in lab12.vote.check(without_0).message


@pytest.mark.parametrize("least", [12, 16])
def test_a_self_test_has_one_limit_for_both_orders(least):
    def self_test(classify):
        pictures, labels = lab12.golden()
        if (classify(pictures) == labels).sum() >= 15:
            return "fine"
        return "swapped" if (classify(pictures[..., ::-1].copy()) == labels).sum() >= least else "broken"

    assert "red and blue exchanged" in lab12.self_test.check(self_test).message


def test_a_version_is_not_measured_beside_a_network_that_reads_nothing(reader, monkeypatch):
    monkeypatch.setattr(lab12, "PER_CLASS", 1)
    monkeypatch.setattr(training, "accuracy", lambda run, split: 0.1 if run.name == "PyTorch, eager" else 0.98)
    verdict = lab12.own_version.check(export.to_onnx(reader, reader.example_input()), reader)
    assert "hand in the trained one" in verdict.message
