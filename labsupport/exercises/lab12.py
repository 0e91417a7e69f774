"""Exercises of lab 12: a leak, deadlines, a vote, a self-test, a claim read well, and a version of the learner's
own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labsupport.exercises import lab12_stand_ins as stand_ins
from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import on_arrays

LAB = "12_project"
PER_CLASS = 40  # unseen photographs of each sign for a version of the learner's own


class SpeedGain(Prediction):
    question = "How many times as fast as eager PyTorch will the chosen version answer, for one picture?"
    quantity = "speed of the chosen version over PyTorch's"


class Leak(Exercise):
    question = (
        "Write `shared(train, test)`: two arrays of pictures, uint8 (N, H, W, C), and the list of numbers of those "
        "test pictures that stand in train as well, pixel by pixel. Hand in the function."
    )
    hints = (
        "Two pictures are the same if all their pixels are; their means may agree by chance.",
        "`picture.tobytes()` can be put into a set, and a set is asked quickly: `known = "
        "{p.tobytes() for p in train}`.",
    )
    solution_source = """
        def shared(train, test):
            known = {picture.tobytes() for picture in train}
            return [number for number, picture in enumerate(test) if picture.tobytes() in known]

        lab12.leak.check(shared)
    """
    answer = "A set of bytes is asked once a picture; comparing every pair would take N × N passes over the pixels."

    def judge(self, shared: Callable) -> str:
        import numpy as np

        rng = np.random.default_rng()
        for count, what in (
            (0, "where nothing is shared"),
            (3, "with copies in it"),
            (9, "where every test picture is a copy"),
        ):
            train, test, wanted = stand_ins.with_copies(rng, count)
            got = stand_ins.numbers(on_arrays(shared, train, test), len(test))
            if got == wanted:
                continue
            if extra := sorted(got - wanted):
                alike = "; a picture that was turned round, or differs in one pixel, is no copy" if count < 9 else ""
                raise Wrong(f"{what}: number {extra[0]} of test was named, and it is not in train{alike}.")
            raise Wrong(f"{what}: number {min(wanted - got)} of test stands in train and was not named.")
        return "Run it before you trust any accuracy."


class Deadlines(Exercise):
    question = (
        "Write `missed_frames(arrivals_s, service_s, deadline_s)`: how many frames are answered later than "
        "`deadline_s` after they arrived, where one worker takes frames in order, one at a time. Hand in the function."
    )
    hints = (
        "A frame starts when it has arrived and the worker is free, whichever comes later.",
        "Keep one number, `free`: when the worker is done. `free = max(arrival, free) + service`, then compare `free "
        "- arrival`.",
    )
    solution_source = """
        def missed_frames(arrivals_s, service_s, deadline_s):
            missed, free = 0, 0.0
            for arrival, service in zip(arrivals_s, service_s):
                free = max(arrival, free) + service
                missed += free - arrival > deadline_s
            return missed

        lab12.deadlines.check(missed_frames)
    """
    answer = "One slow frame makes those behind it late; that is why a p99 says more than a mean."

    def judge(self, missed_frames: Callable) -> str:
        import numpy as np

        rng = np.random.default_rng()
        for _ in range(20):
            arrivals, service, deadline = stand_ins.traffic(rng)
            counts = stand_ins.late_frames(arrivals, service, deadline)
            got = stand_ins.whole_count(missed_frames(arrivals.copy(), service.copy(), deadline))
            if got != counts[""]:
                raise Wrong(_why_late(got, counts, len(arrivals)))
        quiet = stand_ins.whole_count(missed_frames(np.arange(5.0), np.full(5, 0.01), 0.5))
        if quiet:
            raise Wrong(f"of 5 frames that nobody delays the function calls {quiet} late.")
        if stand_ins.whole_count(missed_frames(np.arange(5.0), np.full(5, 0.5), 0.5)):
            raise Wrong("a frame that is answered exactly at its deadline is not late; only later ones are.")
        return "Waiting counts as much as working."


def _why_late(got: int, counts: dict[str, int], frames: int) -> str:
    said = f"{got} frames late, and {counts['']} are"
    if not got:
        return f"{said}. Are all times in seconds, and does a frame wait for those before it?"
    for words, count in counts.items():
        if got == count:
            return f"{said}: {words}"
    return f"{said}, of {frames} with a burst and a pause among them. Follow three frames by hand."


class Vote(Exercise):
    question = (
        "Write `vote(answers)`: a list of logits, float arrays (20,), one for each frame of a sign, None for a broken "
        "frame. Give the class, a number, or None if no frame could be read. One frame that is very sure and wrong "
        "must not win. Hand in the function."
    )
    hints = (
        "A logit has no upper end; a probability has: no frame can give more than 1.",
        "Skip None. Turn each array into probabilities, `exp(x - x.max())` over its sum, add them up, and take "
        "`argmax`.",
    )
    solution_source = """
        def vote(answers):
            total = np.zeros(20)
            for logits in answers:
                if logits is not None:
                    odds = np.exp(logits - logits.max())
                    total += odds / odds.sum()
            return int(total.argmax()) if total.any() else None

        lab12.vote.check(vote)
    """
    answer = "A count of each frame's best class is as good here. Adding logits lets one frame speak for all."

    def judge(self, vote: Callable) -> str:
        import numpy as np

        rng = np.random.default_rng()
        for faults in stand_ins.FAULTS:
            for place in range(9):
                answers, right = stand_ins.track_of(rng, faults, place)
                self._compare(on_arrays(lambda *frames: vote(list(frames)), *answers), right, faults)
        for empty in ([], [None, None, None]):
            if vote(empty) is not None:
                raise Wrong(
                    f"of {len(empty)} frames none could be read, and the function gave {described(vote(empty))}; "
                    "wanted is None."
                )
        return "One frame has one vote, however loud it is."

    @staticmethod
    def _compare(got: Any, right: int, faults: str) -> None:
        if got is None:
            raise Wrong(
                f"{faults}: the function gave None, though most frames could be read. Did it forget its `return`?"
            )
        got = stand_ins.class_of(got)
        if got != right:
            why = {
                "one loud frame": ": one frame with a very large logit won against all others",
                "first and last wrong": ": the first and the last frame are wrong, those between are right",
                "three in a row wrong": ": three of nine frames are wrong, the others are right",
                "broken frames": ": some frames are None, the others are right",
            }.get(faults, "")
            raise Wrong(f"{faults}: class {got} was elected, and {right} is right{why}.")


class SelfTest(Exercise):
    question = (
        "Write `self_test(classify)`: `classify(pictures)` takes uint8 (N, 48, 48, 3) and gives N class numbers. Say "
        '"fine" if it reads at least 15 of the 20 pictures of '
        '`lab12.golden()`, "swapped" if it does so only with red and blue exchanged, else "broken". Hand in the '
        "function."
    )
    hints = (
        "`pictures, labels = lab12.golden()`; the last axis holds red, green, blue.",
        "Ask twice: with `pictures`, and with `pictures[:, :, :, ::-1]`, and count `answers == labels`.",
    )
    solution_source = """
        def self_test(classify):
            pictures, labels = lab12.golden()
            for word, shown in (("fine", pictures), ("swapped", pictures[:, :, :, ::-1].copy())):
                if np.sum(np.asarray(classify(shown)) == labels) >= 15:
                    return word
            return "broken"

        lab12.self_test.check(self_test)
    """
    answer = "No shape and no type tells RGB from BGR. Known pictures with known answers do."

    def judge(self, self_test: Callable) -> str:
        import numpy as np

        rng = np.random.default_rng()
        for _ in range(4):
            for wrong, swapped, wanted in stand_ins.CLASSIFIERS:
                got = self_test(stand_ins.classifier(rng, wrong, swapped))
                if got != wanted:
                    order = ", red and blue exchanged" if swapped else ""
                    raise Wrong(
                        f"of a classifier that reads {20 - wrong} of 20{order}, "
                        f"the function says {described(got)}; wanted is {wanted!r}."
                    )
        return "A car that tests itself at the start needs no accident to find out."


class Claim(Exercise):
    question = (
        'Write `claim(before_ms, after_ms, before_mib, after_mib)`: a dict of three shares, 0.3 for 30 %: "more '
        "answers "
        'a second", "less time an answer", "less memory". What became worse is below zero. Hand in the function.'
    )
    hints = (
        "Twice as fast is 1.0 more answers a second and 0.5 less time an answer. The two are never the same number.",
        "`before_ms / after_ms - 1`, `1 - after_ms / before_ms`, and the same as the second for memory.",
    )
    solution_source = """
        def claim(before_ms, after_ms, before_mib, after_mib):
            return {"more answers a second": before_ms / after_ms - 1,
                    "less time an answer": 1 - after_ms / before_ms,
                    "less memory": 1 - after_mib / before_mib}

        lab12.claim.check(claim)
    """
    answer = "“30 % faster” may mean either of the first two: 1.30 or 1.43 times as many answers a second."

    def judge(self, claim: Callable) -> str:
        import math

        import numpy as np

        rng = np.random.default_rng()
        for _ in range(10):
            before_ms, after_ms, before_mib, after_mib = (float(value) for value in 0.5 + 9 * rng.random(4))
            wanted = {
                "more answers a second": before_ms / after_ms - 1,
                "less time an answer": 1 - after_ms / before_ms,
                "less memory": 1 - after_mib / before_mib,
            }
            got = claim(before_ms, after_ms, before_mib, after_mib)
            if not hasattr(got, "keys") or not set(wanted) <= set(got.keys()):
                raise Wrong(f"the function gave {described(got)}; wanted is a dict with {list(wanted)}.")
            for name, value in wanted.items():
                number = _float(got[name], name)
                if math.isclose(number, value, rel_tol=1e-2, abs_tol=2e-3):
                    continue
                raise Wrong(_why_not_claimed(name, number, value, wanted))
        return "Say which of the two you mean, and beside which rival."


def _float(value: Any, name: str) -> float:
    from labsupport.exercises.answers import as_number

    return as_number(value, f"{name!r}")


def _why_not_claimed(name: str, number: float, value: float, wanted: dict) -> str:
    import math

    said = f"{name}: {number:.3g}, and {value:.3g} is right"
    if value < 0 <= number and math.isclose(number, 0, abs_tol=1e-9):
        return f"{said}: what became worse is below zero, not zero."
    if math.isclose(number, 100 * value, rel_tol=1e-2):
        return f"{said}: hand in shares, 0.3 for 30 %."
    if math.isclose(number, -value, rel_tol=1e-2):
        return f"{said}: the sign is turned round; what became better is above zero."
    if math.isclose(number, value + 1, rel_tol=1e-2):
        return f"{said}: that is how many times as many, not how many more."
    if name != "less memory" and any(
        math.isclose(number, other, rel_tol=1e-2) for key, other in wanted.items() if key != name
    ):
        return f"{said}: that is another of the three. Time and rate are no mirror of each other."
    return f"{said}. What is the whole that the share is of? Before, in all three."


class OwnVersion(Exercise):
    question = (
        "Make a version of your own, from the trained `model` or from another network, that passes the gate. "
        "Hand in its graph and `model`; the checker measures both on signs that nobody has seen."
    )
    hints = (
        "Half of the bytes must go, and half a point at most: `precision.cast(graph)` is 16 bits, "
        "`quantization.to_qdq(graph, calibration, target=target)` is 8.",
        "To make two changes, prune and train first, export, and quantize that graph: "
        "`int8` in the lab does so for the pruned network.",
    )
    solution_source = """
        own = quantization.to_qdq(exported(model), calibration, target=target, method="percentile")
        lab12.own_version.check(own, model)
    """
    answer = "Calibration by a percentile is a version of its own. The gate does not care how you got there."

    def judge(self, graph: Any, model: Any) -> str:
        from labsupport.comparing import requirements
        from labsupport.exercises import lab12_versions

        row = lab12_versions.measured(graph, model, per_class=PER_CLASS)
        gate = requirements.declare(
            {name: lab12_versions.LIMITS[name] for name in row if name in lab12_versions.LIMITS}
        )
        if missed := gate.misses(row):
            raise Wrong(f"the gate refuses it: {'; '.join(missed)}.")
        return f"The gate lets it pass: {lab12_versions.in_words(row)}."


golden = stand_ins.golden
speed_gain = SpeedGain()
leak = Leak()
deadlines = Deadlines()
vote = Vote()
self_test = SelfTest()
claim = Claim()
own_version = OwnVersion()
