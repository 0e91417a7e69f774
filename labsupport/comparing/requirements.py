"""A gate in absolute numbers: declared before anything is measured, sealed with a hash, and judged by code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labsupport.errors import BadInput

SIDES = {"at least": ">=", "at most": "<="}


@dataclass(frozen=True)
class Requirement:
    """One quantity and its limit; the quantity's name carries its unit."""

    quantity: str
    side: str
    limit: float

    def __repr__(self) -> str:
        return f"{self.quantity} {self.side} {self.limit:g}"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.side == "at least" else value <= self.limit


@dataclass(frozen=True, repr=False)
class Contract:
    """Requirements that all must be met; ``seal`` is a hash of every quantity, side and limit."""

    requirements: tuple[Requirement, ...]

    @property
    def seal(self) -> str:
        plain = sorted([r.quantity, r.side, float(r.limit)] for r in self.requirements)
        return hashlib.sha256(json.dumps(plain, ensure_ascii=True).encode()).hexdigest()[:16]

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(requirement.quantity for requirement in self.requirements)

    def misses(self, row: Mapping) -> tuple[str, ...]:
        """What a measured row fails, a sentence each; empty for one that passes. What was not measured fails."""
        failed = []
        for requirement in self.requirements:
            value = _number(row.get(requirement.quantity))
            if value is None:
                failed.append(f"{requirement.quantity} was not measured")
            elif not requirement.met(value):
                failed.append(
                    f"{requirement.quantity} is {_written(value, requirement.limit)}, wanted {requirement.side} "
                    f"{requirement.limit:g}"
                )
        return tuple(failed)

    def passes(self, row: Mapping) -> bool:
        return not self.misses(row)

    def __repr__(self) -> str:
        return "\n".join([f"Contract, sealed {self.seal}:", *(f"  {requirement}" for requirement in self.requirements)])


@dataclass(frozen=True, repr=False)
class Decision:
    """Who was chosen, who came second, and what each of the refused failed; the names are those of the rows."""

    chosen: str | None
    runner_up: str | None
    refused: Mapping[str, tuple[str, ...]]
    by: str
    seal: str

    def __repr__(self) -> str:
        lines = [f"{name}: refused, {'; '.join(reasons)}" for name, reasons in self.refused.items()]
        if self.chosen is None:
            return "\n".join(["nobody passes the gate", *lines])
        first = f"chosen: {self.chosen}, the one with the lowest {self.by} of those that pass"
        second = f"runner-up: {self.runner_up}" if self.runner_up else "runner-up: none, nobody else passes"
        return "\n".join([first, second, *lines])


def declare(limits: Mapping[str, tuple[str, float]], *, seal: str | None = None) -> Contract:
    """A contract of quantity → ("at least" or "at most", limit), such as {"accuracy": ("at least", 0.95)}.

    ``seal`` is the hash that was written down when the gate was declared; another one means that somebody has changed a
    limit since. Raises BadInput for that, for an empty gate, an unknown side and a limit that is no finite number.
    """
    if not isinstance(limits, Mapping) or not limits:
        raise BadInput("a gate needs one requirement at least: {'accuracy': ('at least', 0.95)}")
    requirements = []
    for quantity, pair in limits.items():
        side, limit = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (None, None)
        if side not in SIDES or _number(limit) is None or not isinstance(quantity, str) or not quantity:
            raise BadInput(
                f"{quantity!r}: {pair!r} is no requirement; wanted is a name and a pair such as ('at most', 33.3), "
                f"the side one of {list(SIDES)}"
            )
        requirements.append(Requirement(quantity, side, float(limit)))
    contract = Contract(tuple(requirements))
    if seal is not None and contract.seal != seal:
        raise BadInput(
            f"the gate was changed after the fact: it was sealed {seal} and is {contract.seal} now; restore its "
            "limits, or declare a new gate under a new seal and measure everything again"
        )
    return contract


def decide(contract: Contract, rows: Mapping[str, Mapping], *, by: str, seal: str) -> Decision:
    """The row with the lowest ``by`` of those that pass; ``seal`` is the one written down when the gate was declared.

    Raises BadInput where the seal does not fit any more, for no rows, and for a passing row without ``by``.
    """
    if not isinstance(contract, Contract) or contract.seal != seal:
        raise BadInput(
            f"the gate was changed after the fact: it was sealed {seal} and is "
            f"{getattr(contract, 'seal', contract)!s:.40} now"
        )
    if not isinstance(rows, Mapping) or not rows:
        raise BadInput("no candidates; give a mapping from name to measured row")
    refused = {name: contract.misses(row) for name, row in rows.items()}
    passing = [name for name in rows if not refused[name]]
    for name in passing:
        if _number(rows[name].get(by)) is None:
            raise BadInput(f"{name!r} passes, and has no number in {by!r} to be ranked by; measure it")
    ranked: Sequence[str] = sorted(passing, key=lambda name: _number(rows[name][by]))
    first, second = (*ranked[:2], None, None)[:2]
    return Decision(first, second, {name: reasons for name, reasons in refused.items() if reasons}, by, seal)


def _written(value: float, limit: float) -> str:
    """As many digits as it takes to tell the value from the limit."""
    for digits in range(4, 12):
        text = f"{value:.{digits}g}"
        if float(text) != limit:
            return text
    return repr(value)


def _number(value) -> float | None:
    """A finite number, also one of NumPy's; None for anything else."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
