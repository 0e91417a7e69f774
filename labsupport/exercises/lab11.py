"""Exercises of lab 11: a candidate for the phone, a thinner network, frames that come late, an update that can be "
"bad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.lab11_stand_ins import (  # noqa: F401 - learners call lab11.sign and read lab11.LIMITS
    LIMITS,
    about_choice,
    candidates_drawn,
    convolution_shapes,
    counted_misses,
    exact_stream,
    is_affine,
    oldest_in_time,
    packages_drawn,
    sees_all,
    sign,
    stream_of_frames,
    was_tested,
)

LAB = "11_scenarios"
MACS_SHARE = 0.30
WANTED = ((20, 12), (40, 6), (80, 3))  # channels and height after the three stages of the student


class SmallerBy(Prediction):
    question = "By what factor does INT8 make the file of a phone model smaller?"
    quantity = "FP32 bytes over INT8 bytes of an ONNX file"
    unit = "×"
    within = 1.25


class ChoosePhone(Exercise):
    question = (
        "Write `choose(rows, limits)`: the name of the smallest candidate that keeps every limit, or None. A row has "
        "`name` and the keys of `limits`; a value may equal its limit, and NaN (it did not run) keeps none."
    )
    hints = (
        "First the rows that keep all limits, then the smallest of them by `KiB`. What is `nan <= 2.0`?",
        "`all(row[key] <= limit for key, limit in limits.items())` is False for NaN; `min(..., key=..., "
        "default=None)`.",
    )
    solution_source = """
        def choose(rows, limits):
            kept = []
            for row in rows:
                if all(row[key] <= limit for key, limit in limits.items()):
                    kept.append(row)
            return min(kept, key=lambda row: row["KiB"])["name"] if kept else None

        lab11.choose_phone.check(choose)
    """
    answer = "A gate is an AND over all limits; only what passes is compared by size."

    def judge(self, choose: Callable) -> str:
        import numpy as np

        draws = np.random.default_rng()
        for number in range(300):
            rows, limits = candidates_drawn(draws, number)
            passed = [row for row in rows if all(row[key] <= limit for key, limit in limits.items())]
            right = min(passed, key=lambda row: row["KiB"])["name"] if passed else None
            given = [dict(row) for row in rows]
            got = choose(given, dict(limits))
            if given != rows:
                raise Wrong("the function changed the rows that it was given; the next gate would read other numbers.")
            if got != right:
                raise Wrong(about_choice(got, right, rows, limits))
        return "Declared first, a gate is a few lines of code, and nobody argues with the result."


class Thin(Exercise):
    question = (
        "Hand in a module like the student, in which every 3×3 convolution behind the first is replaced by a depthwise "
        "3×3 and a 1×1 convolution. It still has 20, 40 and 80 channels at 12, 6 and 3 pixels, and at most 30 % of "
        "the MACs."
    )
    hints = (
        "A depthwise convolution has `groups` equal to its channels: `Conv2d(20, 20, 3, 2, 1, groups=20)`.",
        "Stage: depthwise 3×3 with stride 2, then `Conv2d(inputs, outputs, 1)`, batch norm, ReLU. Last: mean, linear.",
    )
    solution_source = """
        def stage(inputs, outputs):
            spatial = torch.nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs)
            mixing = torch.nn.Conv2d(inputs, outputs, 1)
            return torch.nn.Sequential(spatial, mixing, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())

        entry = torch.nn.Sequential(torch.nn.Conv2d(3, 20, 3, 2, 1), torch.nn.BatchNorm2d(20), torch.nn.ReLU())
        reader = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(80, 15))
        lab11.thin.check(torch.nn.Sequential(entry, stage(20, 40), stage(40, 80), reader))
    """
    answer = "Nine weights a channel look at the neighborhood; the 1×1 convolution mixes the channels."

    def judge(self, module: Any) -> str:
        import torch
        from torch import nn

        from labsupport import distillation
        from labsupport.pruning import macs

        if not isinstance(module, nn.Module):
            raise Wrong(f"that is {described(module)}; hand in a torch.nn.Module (an instance, not a class).")
        images = torch.randn(2, 3, 24, 24)
        layers, shapes = convolution_shapes(module, images)
        with torch.inference_mode():
            answers = module.eval()(images)
        if not isinstance(answers, torch.Tensor) or tuple(answers.shape) != (2, 15):
            raise Wrong(
                f"for two images it answers {getattr(answers, 'shape', described(answers))}; wanted is (2, 15)."
            )
        for channels, height in WANTED:
            if (channels, height) not in shapes:
                raise Wrong(f"no convolution gives {channels} channels at {height}×{height} pixels; keep the stages.")
        wide = [layer for layer in layers[1:] if max(layer.kernel_size) > 1 and layer.groups != layer.in_channels]
        if wide:
            raise Wrong(
                f"{wide[0]} mixes space and channels at once; a depthwise one has groups={wide[0].in_channels}."
            )
        spatial = [layer for layer in layers[1:] if max(layer.kernel_size) > 1]
        if len(spatial) < 2:
            raise Wrong(
                "behind the first convolution there must be two depthwise 3×3: a 1×1 alone sees no neighborhood."
            )
        mixing = [layer for layer in layers[1:] if max(layer.kernel_size) == 1 and layer.groups == 1]
        if len(mixing) < 2:
            raise Wrong(
                "the channels never meet: behind each depthwise 3×3 there must be a 1×1 convolution with groups=1."
            )
        student = macs.cost(distillation.staged_cnn(width=20))
        share = macs.cost(module, images[:1]).macs / student.macs
        if share > MACS_SHARE:
            raise Wrong(f"it takes {share:.0%} of the student's MACs; {MACS_SHARE:.0%} is allowed.")
        if not sees_all(module, images):
            raise Wrong("some pixels do not change the answer: a stride without a 3×3 kernel skips them.")
        if is_affine(module, images):
            raise Wrong("the whole network is one weighted sum of the pixels: keep the ReLU behind each stage.")
        return f"{share:.0%} of the MACs. Phone networks are built of this pair; now it would have to be trained."


class InTime(Exercise):
    question = (
        "Write `next_frame(waiting_ms, now_ms, service_ms, deadline_ms)`: the place of the waiting frame to compute "
        "now, or None. `waiting_ms` holds the arrival times, oldest first. A frame counts if it is done at most "
        "`deadline_ms` after it arrived; frames before the chosen one are dropped, on None all are. Let as many count "
        "as you can."
    )
    hints = (
        "A frame that cannot be done in time costs the same as one that can. Which frames are still worth it?",
        "Frame i is worth it if `now_ms + service_ms <= waiting_ms[i] + deadline_ms`. The first of those leaves the "
        "rest in play.",
    )
    solution_source = """
        def next_frame(waiting_ms, now_ms, service_ms, deadline_ms):
            for place, arrived in enumerate(waiting_ms):
                if now_ms + service_ms <= arrived + deadline_ms:
                    return place

        lab11.in_time.check(next_frame)
    """
    answer = "The oldest frame that can still be in time. Late ones waste time; a dropped one that had time is lost."

    def judge(self, next_frame: Callable) -> str:
        import numpy as np

        draws = np.random.default_rng()
        for number in range(30):
            stream = stream_of_frames(draws, tight=number % 3 == 0)
            best, _ = counted_misses(oldest_in_time, *stream)
            count, late = counted_misses(next_frame, *stream)
            if late:
                raise Wrong(
                    f"{late} frames were computed that could not be done in time any more; they kept others waiting."
                )
            if count < best:
                raise Wrong(
                    f"{count} frames were in time, and {best} can be: of a burst behind a stall you dropped frames "
                    f"that still had time."
                )
        best, _ = counted_misses(oldest_in_time, *exact_stream())
        if counted_misses(next_frame, *exact_stream())[0] < best:
            raise Wrong("a frame that is done exactly `deadline_ms` after it arrived counts, and you dropped some.")
        return "After a stall it skips what is lost and saves the rest. Computing every frame would stay late for long."


class Update(Exercise):
    question = (
        "Write `install(box, package, key, works)`. `box` is a dict with `version` and `payload`; `package` has "
        "`version`, `payload` and `signature`, which is `lab11.sign(key, version, payload)`. Return a new dict with "
        "the package's version and payload if the signature is right, the version is newer and `works(payload)` is "
        "True. Otherwise return `box`, also where the signature is missing or no text, or `works` raises."
    )
    hints = (
        "The order matters: nothing unsigned may run, so `works` comes last. Compare with `hmac.compare_digest`.",
        "`works` may raise, and the signature may be anything: `try` around the self-test, and a check that it is a "
        "str.",
    )
    solution_source = """
        def install(box, package, key, works):
            right = lab11.sign(key, package["version"], package["payload"]).encode()
            given = str(package.get("signature")).encode()
            if not hmac.compare_digest(right, given) or package["version"] <= box["version"]:
                return box
            try:
                good = works(package["payload"]) is True
            except Exception:
                good = False
            return {"version": package["version"], "payload": package["payload"]} if good else box

        lab11.update.check(install)
    """
    answer = "Signature, then version, then self-test; any doubt keeps what runs."

    def judge(self, install: Callable) -> str:
        import secrets

        key = secrets.token_bytes(16)
        for name, package, result, replaced in packages_drawn(key):
            box, ran = {"version": 4, "payload": b"the engine that runs"}, []
            kept = dict(box)
            try:
                got = install(box, dict(package), key, functools.partial(was_tested, ran=ran, result=result))
            except Exception as error:
                raise Wrong(f"{name}: install raised {type(error).__name__}: {error}. The box has to go on.") from error
            if box != kept:
                raise Wrong(
                    f"{name}: the function changed the box in place; a power cut in the middle leaves half an update."
                )
            if not isinstance(got, dict) or not {"version", "payload"} <= got.keys():
                raise Wrong(f"{name}: it returned {described(got)}; wanted is a dict with version and payload.")
            changed = got["payload"] != kept["payload"] or got["version"] != kept["version"]
            if changed and not replaced:
                raise Wrong(f"{name}: it was installed.")
            if replaced and (got["payload"], got["version"]) != (package["payload"], package["version"]):
                raise Wrong(f"{name}: it was not installed.")
            if ran and not package.get("honest"):
                raise Wrong(f"{name}: its payload was run before anybody knew where it comes from.")
        return "A bad update costs a message, and the box goes on. A real fleet signs with a key that no box holds."


smaller_by = SmallerBy()
choose_phone = ChoosePhone()
thin = Thin()
in_time = InTime()
update = Update()
