"""The exercises of some labs as one page of HTML, for the printer: questions and room to write, or with solutions."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from labsupport import files
from labsupport.command_line import lab_paths
from labsupport.errors import BadInput, LabError
from labsupport.exercises import base, withheld

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 11pt/1.45 system-ui, sans-serif; color: #111; background: #fff; max-width: 46rem; margin: 2rem auto;
  padding: 0 1rem; }}
h2 {{ border-top: 1px solid #999; padding-top: .8rem; }} section {{ break-inside: avoid; margin-bottom: 1.2rem; }}
pre {{ background: #f2f2f2; padding: .6rem; white-space: pre-wrap; font-size: 9pt; }}
.room {{ height: 5rem; border: 1px dashed #777; }}
@media print {{
  body {{ margin: 0; max-width: none; }} h2 {{ break-before: page; }} h2.first {{ break-before: auto; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def write(labs: Sequence[str] = (), *, folder: Path | None = None, solutions: bool = False) -> Path:
    """Write handout.html, or handout_solutions.html, into ``folder`` (default: the current one); its path.

    Raises BadInput for labs that do not exist or have no exercises, and where solutions are withheld; LabError where
    the folder cannot be written.
    """
    if solutions and withheld.solutions():
        raise BadInput(f"solutions are withheld here; print them where {withheld.VARIABLE} is not set to off")
    text = page([path.stem for path in lab_paths.find(list(labs))], solutions=solutions)
    target = Path(folder or Path.cwd()) / ("handout_solutions.html" if solutions else "handout.html")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.replace(target, text.encode("utf-8"), mode=0o644)
    except OSError as error:
        raise LabError(f"{target} cannot be written ({error.strerror or error}); name another folder") from error
    return target


def page(labs: Sequence[str], *, solutions: bool = False) -> str:
    """The page for these labs (their stems). Raises BadInput where none has an exercise."""
    chapters = [chapter for lab in labs if (chapter := _chapter(lab, solutions))]
    if not chapters:
        raise BadInput(f"{', '.join(labs)} has no exercises to print; choose another lab")
    first = chapters[0].replace("<h2>", '<h2 class="first">', 1)
    title = "TensorRT lab workbook: " + ("exercises with solutions" if solutions else "exercises")
    return HEAD.format(title=title) + "".join([first, *chapters[1:]]) + "</body>\n</html>\n"


def _chapter(lab: str, solutions: bool) -> str:
    module = importlib.import_module(f"labsupport.exercises.lab{lab.partition('_')[0]}")
    sections = [_section(name, one, solutions) for name, one in base.of(module).items()]
    return f"<h2>{escape(_title(lab))}</h2>\n{''.join(sections)}" if sections else ""


def _title(lab: str) -> str:
    path = lab_paths.NOTEBOOKS / f"{lab}.ipynb"
    try:
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    except (OSError, ValueError, LookupError, TypeError):
        return lab
    title = re.search(r"(?m)^# (.+)$", first)
    return f"{lab.partition('_')[0]}. {title.group(1)}" if title else lab


def _section(name: str, one: base.Exercise, solutions: bool) -> str:
    asked = f"<section><h3>{escape(name)}</h3>\n<p>{_marked(one.question)}</p>\n"
    if not solutions:
        return f'{asked}<div class="room"></div></section>\n'
    hints = "".join(f"<li>{_marked(hint)}</li>" for hint in one.hints)
    source, answer = textwrap.dedent(one.solution_source).strip(), textwrap.dedent(one.answer).strip()
    parts = [f"<ol>{hints}</ol>" if hints else "", f"<pre>{escape(source)}</pre>" if source else ""]
    return asked + "\n".join(filter(None, [*parts, f"<p>{_marked(answer)}</p>" if answer else ""])) + "</section>\n"


def _marked(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text, quote=False))
