"""The stages in order: each finished one is kept, one that cannot run says why, and the rest go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from labsupport import environment
from labsupport.errors import BadInput, LabError, first_line
from labsupport.examining import (
    baseline,
    eight_bits,
    identity,
    journal,
    kernels,
    memory_peak,
    page,
    sixteen_bits,
    smaller,
)
from labsupport.examining.cases import Case, Limits, OutOfTime, case_of
from labsupport.examining.decision import Verdict, decide
from labsupport.examining.rows import Row

STAGES: dict[str, Callable[[Case], Row]] = {
    "identity": identity.stage,
    "baseline": baseline.stage,
    "fusion": kernels.stage,
    "sixteen bits": sixteen_bits.stage,
    "eight bits": eight_bits.stage,
    "memory": memory_peak.stage,
    "pruning and cuts": smaller.stage,
}
REPORT = "report.html"


@dataclass(frozen=True)
class Examination:
    """What came of it: a row for each stage, the verdict (None where nothing could be measured) and the page."""

    rows: dict[str, Row]
    verdict: Verdict | None
    report: Path
    reused: tuple[str, ...] = ()

    @property
    def candidates(self) -> list:
        """Every change that was measured."""
        return page.candidates(self.rows)

    @property
    def left_out(self) -> dict[str, str]:
        """Stage → the line that says why it was left out."""
        return {name: row.left_out for name, row in self.rows.items() if row.left_out}

    def __repr__(self) -> str:
        kept = [f"kept from an earlier run: {', '.join(self.reused)}"] if self.reused else []
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            reasons.setdefault(why, []).append(name)
        out = [f"left out, {', '.join(names)}: {why}" for why, names in reasons.items()]
        decision = repr(self.verdict) if self.verdict else "no decision: nothing could be measured"
        return "\n".join([*kept, *out, f"decision: {decision}", f"report: {self.report}"])


def examine(
    model: str | os.PathLike,
    *,
    inputs: str | os.PathLike | None = None,
    limits: Limits | None = None,
    save: str | os.PathLike | None = None,
    stages: Iterable[str] | None = None,
    progress: bool = True,
) -> Examination:
    """Take a model file through the labs and write a report beside it; the file itself is never changed.

    ``inputs`` is an .npz with an array for each input, and ``labels`` if there are any. Finished stages lie in
    ``<model>.examined`` (or ``save``) and are not run again for the same model, inputs and machine. ``stages`` limits
    what is run. Raises BadInput for a file that is no network or inputs that do not fit, LabError without disk space.
    """
    chosen = list(STAGES) if stages is None else list(stages)
    if unknown := [name for name in chosen if name not in STAGES]:
        raise BadInput(f"there is no stage {unknown[0]!r}; choose from {list(STAGES)}")
    with case_of(model, inputs=inputs, limits=limits, save=save) as case:
        if case.samples_file is not None:
            _ = case.samples  # inputs that do not fit are the caller's mistake, and said at once
        key = journal.key_of(case.graph, case.samples_file)
        results = journal.read(case.folder, key)
        reused = tuple(name for name in chosen if name in results)
        for name in _bar([name for name in chosen if name not in results], progress):
            results[name] = _run(case, name)
            journal.write(case.folder, key, results)
        rows = {name: results[name] for name in chosen}
        every = page.candidates(rows)
        verdict = decide(every, case.limits) if any(not each.effort for each in every) else None
        report = case.folder / REPORT
        journal.put(report, page.html(case, rows, verdict).encode())
    return Examination(rows, verdict, report, reused)


def _run(case: Case, name: str) -> Row:
    """One stage, or the line that says why not."""
    start = case.now()
    try:
        case.afford(1, f"stage {name!r}")
        row = STAGES[name](case)
    except OutOfTime as error:
        row = Row(name, left_out=str(error), retry=True)
    except LabError as error:
        row = Row(name, left_out=str(error))
    except Exception as error:  # libraries raise what they like; the row says so, and the other stages go on
        said = f"{type(error).__name__}: {first_line(error)}"
        row = Row(name, left_out=f"an error that this tool did not foresee, {said}; please report it", failed=True)
    row.seconds = round(case.now() - start, 2)
    return row


def _bar(names: list[str], progress: bool):
    from tqdm.auto import tqdm

    bar = tqdm(names, desc="examining", unit="stage", leave=False, disable=not progress or environment.headless())
    for name in bar:
        bar.set_postfix_str(name)
        yield name
