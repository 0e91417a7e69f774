"""One lab as one self-contained page of HTML: its gate, tables, pictures and decision, the machine, and how to
repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from labsupport import environment, files
from labsupport.command_line import running
from labsupport.errors import BadInput, LabError, NotAvailable

TAG = "report"  # of the code cells whose outputs belong into the page


def write(name: str, *, folder: Path | None = None, stored: bool = False, pdf: bool = False) -> list[Path]:
    """Write LAB.html, and LAB.pdf if asked, into ``folder`` (default: the current one); the paths written.

    The lab is executed afresh, or with ``stored`` its stored outputs are used. Raises BadInput for a lab without cells
    tagged "report" or without outputs, LabError where a cell fails, NotAvailable where nothing can write PDF.
    """
    chosen = running.find([name])
    folder = Path(folder or Path.cwd())
    if pdf:
        _pdf_writer()  # before minutes are spent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        notebook = running.read(chosen[0])
        if not stored:
            with files.scratch() as metrics:
                result = running.execute(notebook, chosen[0], metrics=metrics)
            if not result.ok:
                raise LabError(f"{result}; there is no report of a lab that fails. Repair that cell, then try again")
        page = html(notebook, chosen[0].stem, stored=stored)
        paths = [folder / f"{chosen[0].stem}.html"]
        files.replace(paths[0], page.encode("utf-8"), mode=0o644)
        if pdf:
            paths.append(folder / f"{chosen[0].stem}.pdf")
            files.replace(paths[1], _pdf_writer()(string=page).write_pdf(), mode=0o644)
    except OSError as error:
        raise LabError(f"the report cannot be written to {folder} ({error.strerror}); name another folder") from error
    return paths


def html(notebook, lab: str, *, stored: bool = False) -> str:
    """The page of an executed notebook; text is escaped, tables are taken over, pictures are embedded."""
    from labsupport.comparing import page

    sections = _sections(notebook)
    if not sections:
        raise BadInput(
            f'{lab} has no code cell with the tag "{TAG}"; lab 12 has some, and a report is made of their outputs'
        )
    if not any(section["parts"] for section in sections):
        raise BadInput(f"{lab} was stored without outputs; leave --stored out, and it is executed first")
    first = _text(notebook.cells[0].source)
    title = re.search(r"(?m)^# (.+)$", first)
    question = next((line.strip() for line in first.splitlines() if "?" in line and not line.startswith("#")), "")
    origin = "The outputs are those stored in the notebook." if stored else "The lab was executed for this page."
    return page.render(
        title=title.group(1) if title else lab,
        lead=f"{lab}, {date.today().isoformat()}. {question}",
        machine=_machine(notebook) if stored else str(environment.describe()),
        sections=[section for section in sections if section["parts"]],
        command=f"python3 -m labsupport report {lab[:2]}    # in a clone of this workbook",
        source=f"{origin} Every number above was computed by a cell of the notebook; none was typed.",
    )


def _sections(notebook) -> list[dict]:
    """The tagged cells under the heading they stand below, in order."""
    heading, sections = "", []
    parts: list[dict] = []
    for cell in notebook.cells:
        source = _text(cell.source)
        if cell.cell_type == "markdown":
            found = re.findall(r"(?m)^#{2,3} (.+)$", source)
            heading = found[-1].strip() if found else heading
        elif TAG in cell.metadata.get("tags", []):
            if not sections or sections[-1]["heading"] != heading:
                parts = []
                sections.append({"heading": heading, "parts": parts})
            parts += [part for output in cell.outputs for part in _parts(output)]
    return sections


def _parts(output: Mapping) -> list[dict]:
    """What one output gives to the page; its richest form only."""
    if output["output_type"] == "stream":
        return [{"kind": "text", "data": _text(output["text"]).rstrip()}] if output["name"] == "stdout" else []
    shown = output.get("data", {})
    if "image/png" in shown:
        described = output.get("metadata", {}).get("image/png", {}).get("alt") or _text(shown.get("text/plain", ""))
        return [{"kind": "picture", "data": re.sub(r"\s", "", _text(shown["image/png"])), "words": described}]
    if "<table" in (table := _text(shown.get("text/html", ""))) and not re.search(
        r"(?i)<(script|iframe)|\son\w+=", table
    ):
        return [{"kind": "table", "data": table}]
    plain = _text(shown.get("text/plain", ""))
    return [{"kind": "text", "data": plain}] if plain and not _is_caption(plain) else []


def _is_caption(text: str) -> bool:
    """A drawing shows its sentence a second time, below the picture; the page has it there already."""
    return text.startswith("(picture") or text.endswith(".") and "\n" not in text


def _machine(notebook) -> str:
    """What the notebook's first cell said about its machine."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = _text(output.get("data", {}).get("text/plain", ""))
            if text.startswith("Python "):
                return text
    return "not stored in this notebook"


def _pdf_writer():
    """WeasyPrint's HTML class. Raises NotAvailable where it is not installed."""
    try:
        from weasyprint import HTML
    except (ImportError, OSError) as error:  # OSError: its native libraries are missing
        raise NotAvailable(
            f"nothing here writes PDF ({type(error).__name__}): python3 -m pip install weasyprint, "
            "or leave --pdf out, open the HTML page and print it to a file"
        ) from None
    return HTML


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
