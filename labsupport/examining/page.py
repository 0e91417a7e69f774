"""The report of an examination: one self-contained page, every claim with its evidence and its lab."""

from __future__ import annotations

from datetime import date

from labsupport import comparing, environment
from labsupport.comparing import page
from labsupport.examining.decision import Verdict, table
from labsupport.examining.rows import Row

HEADINGS = {
    "identity": "1. Who it is",
    "baseline": "2. Where it stands",
    "fusion": "3. What is fused",
    "sixteen bits": "4. Sixteen bits",
    "eight bits": "5. Eight bits",
    "memory": "6. Memory over time",
    "pruning and cuts": "7. Less network",
}


def html(case, rows: dict[str, Row], verdict: Verdict | None) -> str:
    """The page of an examination; ``verdict`` None where nothing could be measured."""
    sections = [{"heading": "Decision", "parts": _decision(case, rows, verdict)}]
    sections += [{"heading": HEADINGS[name], "parts": _parts(row)} for name, row in rows.items()]
    out = [f"{HEADINGS[name]}: {row.left_out}" for name, row in rows.items() if row.left_out]
    if out:
        sections.append({"heading": "What was left out", "parts": [_lines((text, "") for text in out)]})
    return page.render(
        title=case.graph.path.name,
        lead=f"Examined on {date.today().isoformat()}. Measured: run on this machine. Estimate: computed by a formula. "
        "Read: it stands in the file.",
        machine=str(environment.describe()),
        sections=sections,
        command=command(case),
        source="The model's file was not changed. A finished stage is not run again until the model, its inputs or the "
        "machine change.",
    )


def command(case) -> str:
    """What makes this report again."""
    limits = case.limits
    options = f" --inputs {case.samples_file.name}" if case.samples_file else ""
    options += f" --budget-ms {limits.budget_ms:g}" if limits.budget_ms is not None else ""
    return (
        f"python3 -m labsupport examine {case.graph.path.name}{options} --keep-accuracy {limits.keep_accuracy:g} "
        f"--minutes {limits.minutes:g}"
    )


def candidates(rows: dict[str, Row]) -> list:
    """Every change that some stage measured."""
    return [each for row in rows.values() for each in row.candidates]


def _decision(case, rows: dict[str, Row], verdict: Verdict | None) -> list[dict]:
    if verdict is None:
        return [_text("Nothing could be measured, so there is no decision; the stages below say why.")]
    every = candidates(rows)
    name = verdict.chosen.name if verdict.chosen else "no change here is enough"
    parts = [_text(f"{name}: {verdict.why}")]
    if verdict.chosen is not None:
        parts.append(_text(verdict.chosen.code))
    parts.append({"kind": "table", "data": table(every, case.limits)._repr_html_()})
    parts.append(_lines(_caveats(case, every)))
    if len(every) > 1:
        drawn = Row("decision")
        points = [{"latency": each.latency, "accuracy": max(0.0, 1 - each.error)} for each in every]
        drawn.show(comparing.pareto(points, title="1 − relative error against latency"))
        parts += [{"kind": "picture", **picture} for picture in drawn.pictures]
    others = [each for each in every if verdict.chosen is None or each.name != verdict.chosen.name]
    parts += [_text(f"{each.name} again:\n\n{each.code}") for each in others if each.effort]
    return parts


def _caveats(case, every):
    yield "Gains and errors in the table are measured, in turn with the network as given.", "measured, lab 12"
    if not case.samples.given:
        yield "No inputs were given: errors are those on random values, and say little of real ones.", "lab 06"
        yield "An error in the table is the larger of that on the samples and that of the worst of new ones.", "lab 06"
    if case.samples.labels is None:
        yield "No labels were given: a relative error stands in for accuracy.", "lab 05"
    for each in every:
        if each.note:
            yield f"{each.name}: {each.note}.", f"lab {each.lab}"


def _parts(row: Row) -> list[dict]:
    parts = [_lines((finding.text, f"{finding.evidence}, lab {finding.lab}") for finding in row.findings)]
    if row.left_out:
        parts.append(_text(f"left out: {row.left_out}"))
    parts += [{"kind": "table", "data": each} for each in row.tables]
    return parts + [{"kind": "picture", **picture} for picture in row.pictures]


def _lines(pairs) -> dict:
    return {"kind": "list", "data": [{"text": text, "quiet": quiet and f"({quiet})"} for text, quiet in pairs]}


def _text(text: str) -> dict:
    return {"kind": "text", "data": text}
