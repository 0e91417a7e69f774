"""What the doctor found: one row each, and the report of all."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One row: its value, "ok", "note" or "problem", and for a problem the command that fixes it."""

    name: str
    value: str
    status: str = "ok"
    fix: str = ""

    def __repr__(self) -> str:
        mark = "" if self.status == "ok" else f"{self.status}: "
        return f"{self.name}: {mark}{self.value}" + (f"\n    fix: {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Report:
    """All findings; `ok` when none is a problem."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == "problem")

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict:
        """For JSON: {"ok": …, "findings": [{"name", "value", "status", "fix"}, …]}."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def __repr__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:<8} {finding.name:<{width}}  {finding.value}")
            if finding.fix:
                lines.append(f"{'':<8} {'':<{width}}  fix: {finding.fix}")
        count = len(self.problems)
        lines.append("no problem found" if not count else f"{count} problem{'s' if count > 1 else ''} found")
        return "\n".join(lines)
