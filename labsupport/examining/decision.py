"""Stage 8, the decision by code: a gate, the changes that no other one beats, and the cheapest that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labsupport import comparing
from labsupport.errors import BadInput
from labsupport.examining.cases import Limits
from labsupport.examining.rows import Candidate

EARNED = 1.05  # times faster in the lower quartile of the rounds; below that a gain is not worth a change


@dataclass(frozen=True)
class Verdict:
    """What to do, in a sentence why, what was refused and for what, and the names that no other change beats."""

    chosen: Candidate | None
    why: str
    refused: dict[str, str]
    front: tuple[str, ...]

    def __repr__(self) -> str:
        name = self.chosen.name if self.chosen else "nothing here is enough"
        lines = [f"{name}: {self.why}", *(f"refused {name}: {why}" for name, why in self.refused.items())]
        return "\n".join(lines)


def decide(candidates: Sequence[Candidate], limits: Limits | None = None) -> Verdict:
    """The cheapest change that is enough. With a budget: the first in order of effort that keeps it and the answers.

    Without one: the fastest that keeps the answers, if its gain is earned; else "do nothing", which is a decision, too.
    The answers are kept where the accuracy (or without labels the error) is within ``limits``. Raises BadInput where
    the network as given is not among the candidates.
    """
    limits = limits or Limits()
    given = next((each for each in candidates if each.effort == 0), None)
    if given is None:
        raise BadInput("the network as given was not measured, so no change can be held against it")
    ordered = sorted(candidates, key=lambda each: each.effort)
    refused = {each.name: why for each in ordered if (why := _loses(each, given, limits))}
    passing = [each for each in ordered if each.name not in refused]
    if limits.budget_ms is not None:
        chosen, why = _within(passing, limits.budget_ms, refused)
    else:
        chosen, why = _fastest(passing, given, refused)
    return Verdict(chosen, why, refused, front(candidates))


def front(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Names of the changes that no other one beats in time and closeness both, fastest first (lab 12's front)."""
    return comparing.front([{"latency": each.latency, "accuracy": _closeness(each)} for each in candidates])


def table(candidates: Sequence[Candidate], limits: Limits | None = None):
    """One row a change (DataFrame), the cheapest first: gain with its quartiles, error, size, verdict of the gate."""
    verdict = decide(candidates, limits)
    rows = []
    for each in sorted(candidates, key=lambda each: each.effort):
        low, middle, high = each.gain
        rows.append(
            {
                "change": each.name,
                "median ms": each.latency.median_ms,
                "times as fast": f"{middle:.2f} ({low:.2f} to {high:.2f})",
                "relative error": each.error,
                **({} if each.accuracy is None else {"accuracy": each.accuracy}),
                "MiB": round(each.size_mib, 2),
                "front": "yes" if each.name in verdict.front else "",
                "gate": verdict.refused.get(each.name, "passes"),
                "lab": each.lab,
            }
        )
    return comparing.table(rows)


def _closeness(each: Candidate) -> float:
    return each.accuracy if each.accuracy is not None else max(0.0, 1 - each.error)


def _loses(each: Candidate, given: Candidate, limits: Limits) -> str:
    """Why a change cannot be chosen: its time is another's, or it does not keep the answers; "" where it can."""
    if each.unproven:
        return each.unproven
    if each.accuracy is not None and given.accuracy is not None:
        least = limits.keep_accuracy * given.accuracy
        return f"accuracy {each.accuracy:.3f}, wanted {least:.3f}" if each.accuracy < least else ""
    return f"error {each.error:.1e}, allowed {limits.error:.1e}" if not each.error <= limits.error + 1e-12 else ""


def _within(passing, budget_ms: float, refused: dict):
    slow = [each for each in passing if each.latency.median_ms > budget_ms]
    refused |= {each.name: f"{each.latency.median_ms:.3g} ms, wanted {budget_ms:g} at most" for each in slow}
    enough = [each for each in passing if each not in slow]
    if not enough:
        nearest = min(passing, key=lambda each: each.latency.median_ms)
        return None, f"{nearest.name} comes nearest with {nearest.latency.median_ms:.3g} ms of {budget_ms:g}"
    chosen = enough[0]
    return chosen, f"the cheapest that keeps the budget: {chosen.latency.median_ms:.3g} ms of {budget_ms:g}"


def _fastest(passing, given: Candidate, refused: dict):
    """The change with the highest gain of those that earned one."""
    worth = [each for each in passing if each.effort and each.gain[0] >= max(EARNED, given.gain[2])]
    for each in passing:
        if each.effort and each not in worth:
            refused[each.name] = f"{each.gain[1]:.2f} times as fast, {each.gain[0]:.2f} in the lower quartile: no gain"
    if not worth:
        return given, "no change is faster beyond the noise, or none keeps the answers"
    chosen = max(worth, key=lambda each: each.gain[0])
    return chosen, f"{chosen.gain[1]:.2f} times as fast with error {chosen.error:.1e}"
