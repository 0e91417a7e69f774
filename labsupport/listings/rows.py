"""The article's listings as data: what each claims, its lines, and its run in the sandbox, as printed or with help."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from labsupport.errors import BadInput
from labsupport.listings import sandbox

FOLDER = Path(__file__).resolve().parents[2] / "data" / "article"
LIMIT_S = 20.0
HANGS_AFTER_S = 2.0  # for the one that is known never to end


@dataclass(frozen=True, repr=False)
class Listing:
    """One listing. ``claim`` and ``verdict`` are the workbook's words; ``help`` is what it needs to get "
    "further, and why."""

    id: str
    section: str
    kind: str
    claim: str
    verdict: str
    lab: str
    equivalent: str
    code: str
    article_lines: int
    sha256: str
    help: dict | None = None

    @property
    def helped(self) -> str:
        """The listing with its help: lines replaced, before and after it; the same text where there is none."""
        if not self.help:
            return self.code
        code = self.code
        for old, new in self.help["replace"]:
            code = code.replace(old, new)
        inside = self.help["before"].rstrip().endswith(":")  # a function around it
        code = "\n".join("    " + line for line in code.splitlines()) if inside else code
        return "\n".join(part for part in (self.help["before"], code, self.help["after"]) if part)

    def run(self, *, helped: bool = False, tensorflow: bool = False, seconds: float | None = None) -> sandbox.Outcome:
        """Run it in the sandbox; ``helped`` gives it what it lacks. Without ``tensorflow`` a stand-in takes its place.

        The name tensorrt leads to whichever TensorRT is installed. Raises BadInput for what is no program, and
        NotAvailable where there is no Bash for a shell listing.
        """
        if self.kind == "bash":
            return sandbox.shell(self.code, seconds=seconds or LIMIT_S)
        if self.kind != "python":
            raise BadInput(f"{self.id} is a {self.kind}, which nothing runs; read its verdict")
        modules = {"tensorrt": product} if (product := _product()) else {}
        if tensorflow:  # loaded before the guard: its import asks for the names of hosts
            modules["tensorflow"] = "tensorflow"
        stand_ins = {} if tensorflow else {"tensorflow": recorded()["lacks"]}
        given = self.help["given"] if helped and self.help else {}
        limit = seconds or (HANGS_AFTER_S if helped and self.id == "5.3.2-balance" else LIMIT_S)
        return sandbox.python(
            self.helped if helped else self.code, seconds=limit, modules=modules, given=given, stand_ins=stand_ins
        )

    def __repr__(self) -> str:
        return f"{self.id} ({self.kind}, {len(self.code.splitlines())} lines): {self.claim}"


@functools.cache
def every() -> dict[str, Listing]:
    """id → listing, in the article's order."""
    rows = json.loads((FOLDER / "listings.json").read_text(encoding="utf-8"))
    return {row["id"]: Listing(**{**row, "code": "\n".join(row["code"])}) for row in rows}


def named(name: str) -> Listing:
    """One listing; BadInput lists the names for an unknown one."""
    if name not in every():
        raise BadInput(f"{name!r} is no listing of the article; choose one of {list(every())}")
    return every()[name]


@functools.cache
def recorded() -> dict:
    """What the listings that need TensorFlow did with the real one: release, date, names it lacks, and outcomes."""
    return json.loads((FOLDER / "tensorflow.json").read_text(encoding="utf-8"))


def _product() -> str | None:
    from labsupport import environment

    return environment.machine().tensorrt_product


def unlisted(article: str) -> list[str]:
    """First lines of the fenced blocks of an article's text that have no row here; none when every listing has one."""
    import hashlib
    import re

    digests = {listing.sha256 for listing in every().values()}
    blocks = re.findall(r"(?ms)^[ \t]*```\w+[ \t]*\n(.*?)\n[ \t]*```[ \t]*$", article)
    blocks += [formula.strip() for formula in re.findall(r"(?s)\$\$(.*?)\$\$", article)]
    lacking = [block for block in blocks if hashlib.sha256(block.encode()).hexdigest() not in digests]
    return [next((line.strip() for line in block.splitlines() if line.strip()), "") for block in lacking]
