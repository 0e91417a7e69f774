"""Exercises of lab 08: points gained, a shrinking gradient, losses that pull alike, a teacher that is heard, a
gain that is proven, a front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import items, needs_function, yes_or_no
from labsupport.exercises.lab08_stand_ins import (
    LEARNED,
    STEPS,
    class_of_two,
    drawn_candidates,
    drawn_duels,
    look_at_loss,
    share_not_learned,
)

LAB, CHECK_S = "08_distillation", 120.0

# five losses between two batches of logits; `suspect` gives the function
SUSPECTS = {
    "kl": "T² times the KL divergence, mean over the batch",
    "cross entropy": "T² times the cross entropy of the softened student on the teacher's softened labels",
    "no T squared": "the KL divergence of the softened answers as it is",
    "mean": "T² times the KL divergence, reduced with PyTorch's default, the mean over all numbers",
    "reversed": "T² times the KL divergence with student and teacher exchanged",
}
SAME = {"kl", "cross entropy"}

# accuracy and ms of made-up candidates
CANDIDATES = {
    "A": (0.95, 4.0),
    "B": (0.93, 1.5),
    "C": (0.92, 2.0),
    "D": (0.90, 0.5),
    "E": (0.93, 1.2),
    "F": (0.85, 0.5),
}


class Gain(Prediction):
    question = (
        "By how many points of accuracy will the same student be better, mean of twenty seeds, when it learns 240 "
        "images from a teacher and not from their labels alone?"
    )
    quantity = "the gain by distillation"
    unit = "points"
    within = 1.5
    least = -100


class Factor(Exercise):
    question = (
        "Leave out the T² and double a high temperature, from 50 to 100: about how many times smaller does the "
        "gradient get?"
    )
    hints = (
        "The gradient is (q − p) / T without the T². One factor stands there already; the other hides in q − p.",
        "For high T, softmax(z / T) is about (1 + z / T) / C. So how does q − p shrink with T?",
    )
    solution_source = "lab08.factor.check(2 * 2)"
    answer = "Once for the 1 / T of the chain rule, once because both softened answers move toward 1 / C."

    def judge(self, times: float) -> str:
        if abs(times - 2) < 0.3:
            raise Wrong(
                "that is the 1 / T of the chain rule alone. Softened more, p and q also come closer to each other."
            )
        if abs(times - 1) < 0.1:
            raise Wrong("so it would be with the T² at high temperatures, which is what the T² is for. Leave it out.")
        if abs(times - 0.25) < 0.05:
            raise Wrong("that is the share that is left; asked is how many times smaller the gradient gets.")
        if abs(times - 4) > 0.3:
            raise Wrong(f"not {times:g} times. Take the closed form (q − p) / T and ask both parts.")
        return (
            "Four times, in the limit of high temperatures: there T² takes it back, and alpha keeps its meaning "
            "when you turn T."
        )


class SameGradient(Exercise):
    question = (
        "`lab08.SUSPECTS` describes five losses and `lab08.suspect(name)` gives the function of student logits, "
        "teacher logits and temperature. Which of them move the student exactly as `distillation.soft_loss` does? "
        "Hand in a list of names."
    )
    hints = (
        "The value of a loss trains nobody; its gradient does. Compare the gradients by the student's logits: "
        "`torch.autograd.grad(loss, logits)`.",
        (
            "Two of the five have the same gradient. One of the two has another value: what it adds depends on the "
            "teacher only."
        ),
    )
    solution_source = """
        pupil_logits = torch.randn(8, 15, generator=torch.Generator().manual_seed(1)).requires_grad_()
        teacher_logits = torch.randn(8, 15, generator=torch.Generator().manual_seed(2))
        wanted = distillation.soft_gradient(pupil_logits.detach(), teacher_logits, temperature=4.0)

        def pulls_alike(name):
            gradient, = torch.autograd.grad(lab08.suspect(name)(pupil_logits, teacher_logits, 4.0), pupil_logits)
            return torch.allclose(gradient, wanted, atol=1e-6)

        lab08.same_gradient.check([name for name in lab08.SUSPECTS if pulls_alike(name)])
    """
    answer = (
        "Cross entropy on soft labels is the KL divergence plus the teacher's entropy, which no student can change."
    )

    def judge(self, names: list) -> str:
        unknown = [name for name in names if not isinstance(name, str) or name not in SUSPECTS]
        if unknown:
            raise Wrong(f"{unknown[0]!r} is none of them; the names are {list(SUSPECTS)}.")
        reasons = {
            "no T squared": "at temperature 4 its gradient is 16 times smaller, and the labels would drown it.",
            "mean": "it divides by the number of classes too; with 15 of them the gradient is 15 times smaller.",
            "reversed": (
                "it punishes the student for chances that the teacher does not see, and hardly for those it "
                "misses itself."
            ),
        }
        for name in names:
            if name in reasons:
                raise Wrong(f"{name!r} pulls otherwise: {reasons[name]}")
        if lacking := SAME - set(names):
            raise Wrong(
                "one more does."
                + (
                    " Its value differs by something that has no gradient."
                    if "cross entropy" in lacking
                    else " Start with the definition itself."
                )
            )
        return (
            "The values of the two differ by the teacher's entropy, a constant to the student; a constant pulls "
            "nowhere."
        )


class Hears(Exercise):
    question = (
        "Write `step(student, teacher, images, labels)` that returns a loss. Whoever lowers it makes the student give "
        "each image the chances that the teacher gives it, those of the wrong classes, too; the teacher stays as it "
        "is. Hand in the function."
    )
    hints = (
        "The article's loop computes two losses that never meet. Where does what the teacher answers enter the "
        "student's?",
        "`with torch.no_grad(): answers = teacher(images)`, then a loss of `student(images)`, `answers` and `labels`.",
    )
    solution_source = """
        def heard(student, teacher, images, labels):
            with torch.no_grad():
                answers = teacher(images)
            return distillation.loss(student(images), answers, labels, temperature=4.0, alpha=0.9)

        lab08.hears.check(heard)
    """
    answer = "The teacher's answer enters the loss, without a gradient back to it, and the audit sees both."

    def judge(self, step: Any) -> str:
        from labsupport import distillation

        needs_function(step, "step")
        student, teacher, images, labels = class_of_two()
        look_at_loss(step, student, teacher, images, labels)
        found = distillation.audit(step, student, teacher, images, labels)
        if not found.asked:
            raise Wrong("the teacher is never asked: `teacher(images)` does not occur.")
        if not found.used:
            raise Wrong(
                f"{found.complaints[-1]}. The teacher is asked, and nobody listens: let its answers into the "
                "student's loss."
            )
        if not found.in_eval:
            raise Wrong("the teacher answers in training mode. It came in eval mode: do not call teacher.train().")
        if not found.frozen:
            raise Wrong(
                f"{found.complaints[0]}. Ask it inside `with torch.no_grad():` and step no optimizer of its own."
            )
        left = share_not_learned(step)
        if not left < LEARNED:
            why = "Is the sign right?" if not left < 1000 else "Do both answer the same images?"
            raise Wrong(
                f"a student that lowered this loss {STEPS} times does not give the teacher's chances to the classes "
                f"that the labels do not name. {why} Did logits go in, no probabilities, and all of them?"
            )
        return (
            "The loss and the student's gradient depend on what the teacher says, and not one of its bits moved. A "
            f"small student lowered it {STEPS} times and knows the teacher's chances to {max(left, 0):.1%}."
        )


class Proven(Exercise):
    question = (
        "Write `proven(alone, taught)`: from the accuracies of the same seeds, alone and with the teacher, whether the "
        "gain is proven: its mean over the seeds above twice its standard error, from three seeds or more. True or "
        "False."
    )
    hints = (
        "Each seed gives one gain, taught minus alone: what a seed does to both is gone from it. The mean's standard "
        "error is the standard deviation of the gains, divided by the root of their number.",
        "`gains = np.subtract(taught, alone)`, then `gains.mean()` and `gains.std(ddof=1) / len(gains) ** 0.5`. One "
        "seed has no spread, and a teacher that harms proves no gain.",
    )
    solution_source = """
        import numpy as np

        def proven(alone, taught):
            gains = np.subtract(taught, alone)
            if len(gains) < 3:
                return False
            return gains.mean() > 2 * gains.std(ddof=1) / len(gains) ** 0.5

        lab08.proven.check(proven)
    """
    answer = (
        "Paired by seed, a small gain can be proven although the seeds differ widely, and a large one cannot where one "
        "seed made it."
    )

    def judge(self, proven: Callable) -> str:
        needs_function(proven, "proven")
        cases = drawn_duels()
        for name, alone, taught, right in cases:
            said = yes_or_no(proven(list(alone), list(taught)), "proven")
            if said != right:
                gains = ", ".join(f"{100 * (after - before):+.1f}" for before, after in zip(alone, taught, strict=True))
                raise Wrong(f"{name}: the gains are {gains[:80]} points, and it says {said}.")
        return f"{len(cases)} duels, told apart by gain and spread. Three seeds are few, and one is none."


class Front(Exercise):
    question = (
        "Write `on_front(candidates)`: from a dict of name to (accuracy, latency), such as `lab08.CANDIDATES`, the "
        "names on the Pareto front. Another beats a candidate if it is no worse in both and better in one. Hand in the "
        "function."
    )
    hints = (
        "Go from the fastest to the slowest and keep a candidate only if it is more accurate than all you kept.",
        "Of two equally fast ones the more accurate beats the other, and the other way round; two that are equal in "
        "both beat nobody, and both stay.",
    )
    solution_source = """
        def on_front(candidates):
            def beaten(accuracy, ms):
                return any(a >= accuracy and m <= ms and (a, m) != (accuracy, ms) for a, m in candidates.values())

            return [name for name, pair in candidates.items() if not beaten(*pair)]

        lab08.front.check(on_front)
    """
    answer = "In `lab08.CANDIDATES`: A, E and D. B is as accurate as E and slower, F as fast as D and worse."

    def judge(self, on_front: Callable) -> str:
        needs_function(on_front, "on_front")
        for candidates in (CANDIDATES, *(drawn_candidates() for _ in range(5))):
            found = items(on_front(dict(candidates)), "on_front")
            if unknown := [name for name in found if not isinstance(name, str) or name not in candidates]:
                raise Wrong(f"on_front gave {described(unknown[0])}, and the candidates are {list(candidates)}.")
            _judge_front(candidates, set(found))
        return (
            "Whoever is not on the front costs time or accuracy for nothing; which of the others to take, only a "
            "gate can say."
        )


def _judge_front(candidates: dict, found: set[str]) -> None:
    for name, (accuracy, ms) in candidates.items():
        beats = [
            other
            for other, (theirs, their_ms) in candidates.items()
            if theirs >= accuracy and their_ms <= ms and (theirs, their_ms) != (accuracy, ms)
        ]
        if beats and name in found:
            theirs, their_ms = candidates[beats[0]]
            raise Wrong(
                f"{name} is beaten by {beats[0]}: accuracy {theirs} against {accuracy}, {their_ms} ms against {ms} ms."
            )
        if not beats and name not in found:
            twin = any(pair == (accuracy, ms) for other, pair in candidates.items() if other != name)
            why = " It has a twin that is equal in both, and equals beat nobody." if twin else ""
            raise Wrong(f"{name}, accuracy {accuracy} in {ms} ms, is beaten by no other, and is missing.{why}")


def suspect(name: str) -> Callable:
    """One of ``SUSPECTS``: a function of student logits, teacher logits (N, classes) and temperature that gives a
    loss.
    """
    from torch.nn import functional as F

    def logs(student, teacher, temperature):
        return F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)

    def kl(student, teacher, temperature, reduction="batchmean"):
        return F.kl_div(*logs(student, teacher, temperature), reduction=reduction, log_target=True)

    def over_all(student, teacher, temperature):
        q, p = logs(student, teacher, temperature)
        return (p.exp() * (p - q)).mean()

    return {
        "kl": lambda s, t, T: T**2 * kl(s, t, T),
        "cross entropy": lambda s, t, T: T**2 * F.cross_entropy(s / T, (t / T).softmax(dim=-1)),
        "no T squared": kl,
        "mean": lambda s, t, T: T**2 * over_all(s, t, T),
        "reversed": lambda s, t, T: T**2 * kl(t, s, T),
    }[name]


gain = Gain()
factor = Factor()
same_gradient = SameGradient()
hears = Hears()
proven = Proven()
front = Front()
