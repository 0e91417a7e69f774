"""A lab in its two editions: shipped, with stored outputs and the sentence that says where these come from; and a
learner's copy, without them, as JupyterLab itself would save it.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import platform
import re
from collections.abc import Iterator
from typing import Any

from labsupport.errors import BadInput

NOTE = "labsupport"  # the key of what is noted in a notebook's own metadata
STORED = "*The outputs stored in this notebook come from "
YOURS = (
    "*This copy is yours: what it shows was computed on your machine. The edition with stored outputs is "
    "[notebooks/{name}.ipynb](../notebooks/{name}.ipynb).*"
)
_SENTENCES = re.compile(
    r"\n*^(?:\*The outputs stored in this notebook |\*?The stored outputs come |\*This copy is yours: )[^\n]*$",
    re.MULTILINE,
)
# One look in both themes of JupyterLab, which does not draw a diagram again when the theme changes; the lines are of a
# grey that is seen on white and on black, and everything else stands on a ground of its own.
_COLOURS = {
    "fontSize": "16px",
    "primaryColor": "#E8F1FA",
    "primaryTextColor": "#111111",
    "primaryBorderColor": "#4A7FB5",
    "lineColor": "#7A8794",
    "edgeLabelBackground": "#E3E7EB",
    "clusterBkg": "#F6F3E8",
    "clusterBorder": "#A89F7A",
    "titleColor": "#111111",
}
_SPACES = {"nodeSpacing": 24, "rankSpacing": 34, "subGraphTitleMargin": {"top": 4, "bottom": 10}}
DIAGRAM_STYLE = "%%{init: " + json.dumps({"theme": "base", "themeVariables": _COLOURS, "flowchart": _SPACES}) + "}%%"
_ROW = re.compile(r"^(Processor|ONNX Runtime(?= +\d)|This machine) {2,}(.+)$")
_LANE = re.compile(r"(?P<runtime>TensorRT(?:-RTX)? [\d.]+) on (?P<gpu>[^|;]+)|\b(?:no GPU|without a TensorRT)")


def sources(content: dict) -> str:
    """A fingerprint of what a lab says and asks: the kind and the text of its cells, without outputs and metadata."""
    cells = [(cell["cell_type"], _text(cell["source"])) for cell in content["cells"]]
    cells = [(kind, bare(text) if number == 0 else text) for number, (kind, text) in enumerate(cells)]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def bare(opening: str) -> str:
    """The first cell's text without the sentence about outputs."""
    return _SENTENCES.sub("", opening).rstrip()


def has_outputs(content: dict) -> bool:
    """Whether any cell was run."""
    return any(cell.get("outputs") or cell.get("execution_count") for cell in content["cells"])


def with_origin(content: dict, *, day: str, first_day: str | None = None) -> dict:
    """The notebook with the sentence and the note of where its outputs come from.

    ``day`` (2026-11-30) is noted where the outputs are others than those noted before; where nothing was noted yet,
    ``first_day`` is, if given. Raises BadInput where the outputs do not say on which machine they were made.
    """
    content, outputs = copy.deepcopy(content), _outputs(content)
    note = content["metadata"].get(NOTE) or {"outputs": outputs, "date": first_day or day}
    if note.get("outputs") != outputs:
        note = {"outputs": outputs, "date": day}
    content["metadata"][NOTE] = note
    opening = content["cells"][0]
    opening["source"] = f"{bare(_text(opening['source']))}\n\n{origin(content)}"
    return content


def origin(content: dict) -> str:
    """The sentence about the stored outputs, from the table in them and the noted day. Raises BadInput without them."""
    facts, note = machine(content), content["metadata"].get(NOTE, {})
    if note.get("outputs") != _outputs(content):
        raise BadInput(
            "the day of these outputs is not noted; python3 -m labsupport.exercises.resetting --write-manifest does it"
        )
    day = datetime.date.fromisoformat(note["date"])
    cpu = f" ({facts['cpu']})" if facts["cpu"] else ""
    where = f"an {facts['gpu']}" if facts["gpu"] else f"a processor without a GPU{cpu}"
    return (
        f"{STORED}one run on {where} with {facts['runtime']}, on {day.day} {day:%B %Y}. Times on your machine differ.*"
    )


def with_diagram_style(content: dict) -> dict:
    """The notebook with the workbook's style as the first line of each Mermaid diagram."""
    content = copy.deepcopy(content)
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = re.sub(
                r"(?m)^```mermaid[ \t]*\n(?:%%\{init:.*\n)?", f"```mermaid\n{DIAGRAM_STYLE}\n", _text(cell["source"])
            )
    return content


def machine(content: dict) -> dict[str, str]:
    """{"gpu": "" without one, "cpu", "runtime"} of the run that was stored, read from the table of
    ``environment.describe()``. Raises BadInput where no cell has shown it.
    """
    lines = [*_shown(content)]
    rows = [match.groups() for line in lines if (match := _ROW.match(line))]
    facts: dict[str, str] = {name: value for name, value in reversed(rows)}  # the first of each name counts
    lane = facts.get("This machine") or next(filter(_LANE.search, lines), "")
    if not (found := _LANE.search(lane)):
        raise BadInput("no stored output shows the machine; call environment.describe() in the first code cell")
    onnxruntime = f"ONNX Runtime {facts.get('ONNX Runtime', '')}".rstrip()
    return {
        "gpu": (found["gpu"] or "").strip(),
        "cpu": facts.get("Processor", "").partition(",")[0],
        "runtime": found["runtime"] or onnxruntime,
    }


def learners(content: dict, name: str, *, keep_outputs: bool = False) -> dict:
    """A learner's copy of lab ``name``: outputs cleared, the kernel named as JupyterLab does; it notes what it was
    made of.
    """
    edition = copy.deepcopy(content)
    edition["metadata"] = {**edition["metadata"], **_kernel(), NOTE: {"shipped": sources(content)}}
    edition["metadata"].pop("widgets", None)
    for opening in edition["cells"][:1]:
        opening["source"] = f"{bare(_text(opening['source']))}\n\n{YOURS.format(name=name)}"
    for cell in edition["cells"]:
        if cell["cell_type"] == "code" and not keep_outputs:
            cell.update(execution_count=None, outputs=[])
    return edition


def written(content: dict) -> bytes:
    """A notebook as JupyterLab writes it: sorted keys, an indent of one, text in lists of lines."""
    for cell in content["cells"]:
        cell["source"] = _text(cell["source"]).splitlines(keepends=True)
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _kernel() -> dict[str, Any]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        title = KernelSpecManager().get_kernel_spec("python3").display_name
    except Exception:  # no such kernel, or no Jupyter: JupyterLab then writes its own name for it
        title = "Python 3 (ipykernel)"
    version = platform.python_version()
    return {
        "kernelspec": {"display_name": title, "language": "python", "name": "python3"},
        "language_info": {
            "codemirror_mode": {"name": "ipython", "version": 3},
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "name": "python",
            "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3",
            "version": version,
        },
    }


def _outputs(content: dict) -> str:
    stored = [cell.get("outputs", []) for cell in content["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(_joined(stored), sort_keys=True).encode()).hexdigest()[:16]


def _joined(value: Any) -> Any:
    """The same whether text is kept as one string or as a list of lines."""
    if isinstance(value, dict):
        return {key: _joined(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return "".join(value) if value and all(isinstance(entry, str) for entry in value) else [*map(_joined, value)]
    return value


def _shown(content: dict) -> Iterator[str]:
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            yield from _text(output.get("text") or output.get("data", {}).get("text/plain", "")).splitlines()


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
