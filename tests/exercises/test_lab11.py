"""The checkers of lab 11: untouched, each foreseen mistake with its message, and right answers written in several ways."""

from __future__ import annotations

import hmac

import pytest
import torch
from torch import nn

from labsupport.exercises import lab11, lab11_stand_ins
from labsupport.exercises.base import assert_checker, assert_complete

NAMES = {"torch": torch, "hmac": hmac, "lab11": lab11}


def test_the_lab_holds_five_exercises_with_hints_and_solutions():
    assert_complete(lab11, ["smaller_by", "choose_phone", "thin", "in_time", "update"])


def keeps(row, limits):
    return all(row[key] <= limit for key, limit in limits.items())


def by_sorting(rows, limits):
    for row in sorted(rows, key=lambda row: row["KiB"]):
        if keeps(row, limits):
            return row["name"]


def by_reduction(rows, limits):
    best = None
    for row in rows:
        if keeps(row, limits) and (best is None or row["KiB"] < best["KiB"]):
            best = row
    return None if best is None else best["name"]


def strictly_below(rows, limits):
    passed = [row for row in rows if all(row[key] < limit for key, limit in limits.items())]
    return min(passed, key=lambda row: row["KiB"])["name"] if passed else None


def lets_nan_through(rows, limits):
    passed = [row for row in rows if not any(row[key] > limit for key, limit in limits.items())]
    return min(passed, key=lambda row: row["KiB"])["name"] if passed else None


def smallest_of_all(rows, limits):
    return min(rows, key=lambda row: row["KiB"])["name"] if rows else None


def fastest(rows, limits):
    passed = [row for row in rows if keeps(row, limits)]
    return min(passed, key=lambda row: row["p90_ms"])["name"] if passed else None


def whole_row(rows, limits):
    return next((row for row in rows if row["name"] == by_sorting(rows, limits)), None)


def in_place(rows, limits):
    rows.sort(key=lambda row: row["KiB"])
    return by_sorting(rows, limits)


def fixed_limits(rows, limits):
    return by_sorting(rows, lab11.LIMITS)


def test_choose_phone():
    assert_checker(lab11.choose_phone, wrong=[
        (strictly_below, "keeps"), (lets_nan_through, "misses the limit on"), (smallest_of_all, "misses the limit on"),
        (fastest, "does, too, and is smaller"), (whole_row, "which is the name of no row"), (in_place, "changed the rows"),
        (fixed_limits, "misses the limit|keeps"), (lambda rows, limits: None, "it returned None, and"),
        (lambda rows, limits: rows[0]["name"], "IndexError|misses|keeps|is smaller"), ("onnx int8", "hand in the function itself"),
    ], right=[by_sorting, by_reduction, lambda rows, limits: by_sorting(list(rows), dict(limits))], namespace=NAMES)  # fmt: skip


def stage(inputs, outputs, *, groups=None, kernel=3, stride=2):
    spatial = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs if groups is None else groups)
    return nn.Sequential(spatial, nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def network(*stages, width=20, last=80, classes=15):
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), *stages, tail)


class Written(nn.Module):
    """The same, as a class, with the mean taken in forward and a bias-free depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False)
        self.first, self.mix = nn.Conv2d(20, 20, 3, 2, 1, groups=20, bias=False), nn.Conv2d(20, 40, 1)
        self.second, self.mix2 = nn.Conv2d(40, 40, 3, 2, 1, groups=40, bias=False), nn.Conv2d(40, 80, 1)
        self.head = nn.Linear(80, 15)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.mix2(self.second(torch.relu(self.mix(self.first(x))))))
        return self.head(x.mean((2, 3)))


def pooled():
    """No depthwise convolution: the neighborhood is averaged."""
    return network(nn.AvgPool2d(2), nn.Conv2d(20, 40, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(40, 80, 1), nn.ReLU())


class Skips(nn.Module):
    """Right convolutions, but only a corner of the picture reaches them."""

    def __init__(self):
        super().__init__()
        self.inside = network(stage(20, 40), stage(40, 80))

    def forward(self, x):
        seen = torch.zeros_like(x)
        seen[:, :, :8, :8] = x[:, :, :8, :8]
        return self.inside(seen)


def test_thin():
    from labsupport import distillation

    narrow = network(stage(10, 40), stage(40, 80), width=10)
    assert_checker(lab11.thin, wrong=[
        (distillation.staged_cnn(width=20), "mixes space and channels at once"), (narrow, "no convolution gives 20 channels at 12×12"),
        (network(stage(20, 40), stage(40, 80), classes=10), r"wanted is \(2, 15\)"), (pooled(), "two depthwise 3×3: a 1×1 alone"),
        (network(stage(20, 40), stage(40, 80, groups=1)), "mixes space and channels at once"), (Skips(), "some pixels do not change"),
        (network(stage(20, 40), stage(40, 80, stride=1)), "no convolution gives 80 channels at 3×3"),
        (network(stage(20, 40), stage(40, 40, stride=1), *[stage(40, 40, stride=1)] * 3, stage(40, 80)), "of the student's MACs; 30"),
        (Written, "an instance, not a class|hand in a torch.nn.Module"), (42, "hand in a torch.nn.Module"), (nn.Flatten(), r"wanted is \(2, 15\)"),
        (network(stage(20, 40)), "shape|mat1|no convolution"),
    ], right=[network(stage(20, 40), stage(40, 80)), Written(), network(stage(20, 40), stage(40, 80)).train(), network(stage(20, 40, kernel=5), stage(40, 80))],
        namespace=NAMES)  # fmt: skip


def oldest_alive(waiting_ms, now_ms, service_ms, deadline_ms):
    places = [place for place, arrived in enumerate(waiting_ms) if arrived >= now_ms + service_ms - deadline_ms]
    return places[0] if places else None


def newest(waiting_ms, now_ms, service_ms, deadline_ms):
    return len(waiting_ms) - 1


def newest_alive(waiting_ms, now_ms, service_ms, deadline_ms):
    place = len(waiting_ms) - 1
    return place if now_ms + service_ms <= waiting_ms[place] + deadline_ms else None


def forgets_the_work(waiting_ms, now_ms, service_ms, deadline_ms):
    return next((place for place, arrived in enumerate(waiting_ms) if now_ms <= arrived + deadline_ms), None)


def from_the_front(waiting_ms, now_ms, service_ms, deadline_ms):
    """A twin that counts the dead instead of finding the first that lives."""
    dead = sum(now_ms + service_ms > arrived + deadline_ms for arrived in waiting_ms)
    return dead if dead < len(waiting_ms) else None


def test_in_time():
    assert_checker(lab11.in_time, wrong=[
        (lambda waiting_ms, *_: 0, "frames were computed that could not be done in time"), (newest, "dropped frames|could not be done in time"),
        (newest_alive, "you dropped frames that still had time"), (forgets_the_work, "could not be done in time any more"),
        (lambda *_: None, "0 frames were in time"), (lambda waiting_ms, *_: len(waiting_ms), "wanted is a place from 0, or None"),
        (lambda waiting_ms, *_: waiting_ms[0], "wanted is a place from 0, or None"), (lambda waiting_ms, *_: True, "wanted is a place"),
        (oldest_alive([1.0], 0, 1, 5), "hand in the function itself"), (lambda *_: -1, "wanted is a place from 0"),
    ], right=[oldest_alive, from_the_front], namespace=NAMES)  # fmt: skip


def careful(box, package, key, works):
    version, payload, given = package["version"], package["payload"], package.get("signature")
    if not isinstance(given, str) or not given.isascii():
        return box
    if not hmac.compare_digest(given, lab11_stand_ins.sign(key, version, payload)):
        return dict(box)
    if version <= box["version"]:
        return box
    try:
        if not works(payload):
            return box
    except Exception:
        return box
    return {**box, "version": version, "payload": payload}


def plain_comparison(box, package, key, works):
    """Right by what it does: time-constant comparison is a habit that a verdict on results cannot see."""
    if package.get("signature") != lab11_stand_ins.sign(key, package["version"], package["payload"]):
        return box
    if package["version"] <= box["version"]:
        return box
    try:
        return {"version": package["version"], "payload": package["payload"]} if works(package["payload"]) else box
    except RuntimeError:
        return box


def without(step):
    """`careful` with one of its steps left out."""

    def install(box, package, key, works):
        version, payload = package["version"], package["payload"]
        if step == "self-test first" and not works(payload):
            return box
        if step != "signature" and package.get("signature") != lab11_stand_ins.sign(key, version, payload):
            return box
        if step == "same version" and version < box["version"]:
            return box
        if step not in ("version", "same version") and version <= box["version"]:
            return box
        if step == "not caught" and not works(payload):
            return box
        if step not in ("self-test", "not caught"):
            try:
                if not works(payload):
                    return box
            except Exception:
                return None if step == "nothing returned" else box
        if step == "in place":
            box.update(version=version, payload=payload)
            return box
        return {"version": version, "payload": payload}

    return install


def begins_alike(box, package, key, works):
    """Half a signature is none."""
    right = lab11_stand_ins.sign(key, package["version"], package["payload"])
    whole = right if str(package.get("signature")).startswith(right[:32]) else None
    return careful(box, {**package, "signature": whole}, key, works)


def test_update():
    assert_checker(lab11.update, wrong=[
        (without("signature"), "a payload with one bit turned: "), (without("version"), "an older version, rightly signed: it was installed"),
        (without("same version"), "the version that runs, with another payload: it was installed"),
        (without("self-test"), "fails its self-test: it was installed"), (without("not caught"), "RuntimeError"),
        (without("self-test first"), "its payload was run before anybody knew"), (without("in place"), "changed the box in place"),
        (without("nothing returned"), "wanted is a dict"), (lambda box, package, key, works: box, "a good update: it was not installed"),
        (lambda box, package, key, works: True, "wanted is a dict with version and payload"),
        (lambda box, package, key, works: box if package["signature"] != lab11_stand_ins.sign(key, 5, package["payload"]) else package, "KeyError|was run|installed"),
        (begins_alike, "last digit changed: it was installed"), (b"", "hand in the function itself"),
    ], right=[careful, plain_comparison], namespace=NAMES)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_right_answers_hold_however_the_cases_are_drawn(seed):
    for exercise, answer in (
        (lab11.choose_phone, by_sorting),
        (lab11.in_time, from_the_front),
        (lab11.update, careful),
    ):
        assert exercise.check(answer).right


def _choose_by(keeps):
    def choose(rows, limits):
        kept = [row for row in rows if keeps(row, limits)]
        return min(kept, key=lambda row: row["KiB"])["name"] if kept else None

    return choose


@pytest.mark.parametrize(
    "keeps",
    [
        lambda row, limits: all(abs(row[key]) <= limit for key, limit in limits.items()),  # a gain is no loss
        lambda row, limits: all(row[key] <= limits[key] for key in ("KiB", "p90_ms", "points_lost")),  # three typed
    ],
)
def test_choose_phone_reads_signs_and_every_limit(keeps):
    assert lab11.choose_phone.check(_choose_by(keeps)).outcome == "wrong"


def test_a_frame_that_is_done_at_its_deadline_counts():
    def strict(waiting, now, service, deadline):
        return next((i for i, arrived in enumerate(waiting) if now + service < arrived + deadline), None)

    assert "exactly" in lab11.in_time.check(strict).message


def _thin_of(*pairs):
    entry = nn.Sequential(nn.Conv2d(3, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.ReLU())
    return nn.Sequential(entry, *pairs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 15))


def _depthwise(inputs, outputs, groups=1):
    spatial = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs)
    return nn.Sequential(spatial, nn.Conv2d(inputs, outputs, 1, groups=groups), nn.ReLU())


def test_thin_mixes_its_channels():
    unmixed = (nn.Conv2d(20, 40, 3, 2, 1, groups=20), nn.ReLU(), nn.Conv2d(40, 80, 3, 2, 1, groups=40), nn.ReLU())
    grouped = (_depthwise(20, 40, groups=20), _depthwise(40, 80, groups=40))
    for module in (_thin_of(*unmixed), _thin_of(*grouped)):
        assert "never meet" in lab11.thin.check(module).message
    assert lab11.thin.check(_thin_of(_depthwise(20, 40), _depthwise(40, 80))).right


def test_thin_of_an_answer_without_a_gradient():
    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, images):
            return super().forward(images)

    right = _thin_of(_depthwise(20, 40), _depthwise(40, 80))
    assert "take no_grad or a constant out of" in lab11.thin.check(Frozen(*right)).message


def test_thin_keeps_its_relu():
    pairs = (*_depthwise(20, 40)[:2], *_depthwise(40, 80)[:2])
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 15))
    assert "ReLU" in lab11.thin.check(nn.Sequential(nn.Conv2d(3, 20, 3, 2, 1), *pairs, *tail)).message
