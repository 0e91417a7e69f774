"""What a lab's opening says is kept true: where its outputs come from, how long it takes; and its diagrams are legible."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from labsupport.errors import BadInput
from labsupport.exercises import editions, shipped

ROOT = Path(__file__).resolve().parents[2]
OWN = shipped.worked_in()  # a learner's work keeps no rules
NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name not in OWN]
RENEW = "`python3 -m labsupport.exercises.resetting --write-manifest` writes it"


def tool():
    spec = importlib.util.spec_from_file_location("lab_minutes", ROOT / "tools" / "lab_minutes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minutes = tool()


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text(cell: dict) -> str:
    return "".join(cell["source"])


def diagrams(notebook: dict) -> list[str]:
    prose = "\n".join(text(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return re.findall(r"(?ms)^```mermaid\s*$\n(.*?)^```", prose)


def boxes_in_a_row(diagram: str) -> int:
    """The longest chain of boxes that a diagram draws from left to right."""
    # a row ends with its subgraph, or with the diagram
    direction, longest, edges = re.search(r"(?:flowchart|graph) (\w+)", diagram)[1], 1, []
    for line in [*diagram.splitlines()[1:], "end"]:
        if turned := re.match(r"\s*direction (\w+)", line):
            direction = turned[1]
        elif re.match(r"\s*(?:subgraph|end)\b", line):
            longest = max(longest, _longest(edges) if direction == "LR" else 1)
            edges = edges if re.match(r"\s*subgraph", line) and direction == "LR" else []
        names = re.split(
            r"\s*(?:--+>?|-\.+->|-- [^-]*-->)(?:\|[^|]*\|)?\s*", re.sub(r"[\[({].*?[\])}]+", "", line).strip()
        )
        edges += list(zip(names, names[1:])) if len(names) > 1 else []
    return longest


def _longest(edges: list[tuple[str, str]]) -> int:
    def below(name: str, seen: frozenset = frozenset()) -> int:
        return 1 + max((below(b, seen | {a}) for a, b in edges if a == name and b not in seen), default=0)

    return max((below(name) for name, _ in edges), default=1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_says_where_the_outputs_come_from(path):
    notebook = read(path)
    try:
        sentence = editions.origin(notebook)
    except BadInput as reason:
        pytest.fail(f"{path.name}: {reason}")
    assert text(notebook["cells"][0]).splitlines()[-1] == sentence, RENEW


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_opening_states_minutes_that_hold(path):
    said = minutes.faults(path.stem, read(path))
    assert not said, f"{path.name}: " + "; ".join(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_diagrams_are_legible(path):
    """At 800 pixels a row of five boxes is drawn so small that its words are hard to read; draw it downwards."""
    for diagram in diagrams(read(path)):
        assert diagram.splitlines()[0] == editions.DIAGRAM_STYLE, RENEW
        assert boxes_in_a_row(diagram) <= 4, diagram


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_relative_links_also_lead_somewhere_from_a_learners_copy(path):
    """Copies stand in work/, beside notebooks/: what is named from here is another lab, or begins with ../."""
    prose = "\n".join(text(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    prose = re.sub(r"(?ms)^(```|~~~).*?^\1|`[^`\n]*`", " ", prose)
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)|<img[^>]+src=[\"']([^\"']+)", prose):
        name = (target[0] or target[1]).partition("#")[0]
        assert (path.parent / name).exists(), f"{path.name} leads to {name}, which is not there"
        assert name.startswith("../") or Path(name).suffix == ".ipynb", (
            f"{name} is not found from work/; begin with ../"
        )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_checked_cell_stands_below_a_heading_of_its_own(path):
    """So that JupyterLab's table of contents lists the exercises."""
    heading, lacking = "", []
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"(?ms)^(```|~~~).*?^\1", "", text(cell))
            heading = (re.findall(r"(?m)^#{1,6} (.+)$", prose) or [heading])[-1]
        elif asked := re.search(r"(lab\w+\.\w+)\.check\(", text(cell)):
            lacking += [] if heading.lower().startswith("exercise") else [f"{asked[1]}, below {heading!r}"]
    assert not lacking, f'{path.name}: put a heading "### Exercise: …" above {"; ".join(lacking)}'


def cells(*sources: str) -> dict:
    return {
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": source} for source in sources],
        "metadata": {},
    }


@pytest.mark.parametrize(
    "opening, said",
    [
        ("| minutes | 45 to read, 1 to run; with a GPU 3 |", {"read": 45, "run": 1, "gpu": 3, "try": 0}),
        ("One hour to\nread and try, two minutes to run.", {"read": 60, "run": 2, "try": 1}),
        ("*Read* 60 minutes, *run* one minute.", {"read": 60, "run": 1, "try": 0}),
        ("Reading takes about an hour, running two minutes. A GPU adds engines.", {"read": 60, "run": 2, "try": 0}),
        ("About ten minutes and no GPU.", {}),
    ],
)
def test_stated_minutes_are_read(opening, said):
    assert minutes.stated(cells("# Why?", opening)) == said


def test_minutes_that_do_not_hold_are_told(monkeypatch):
    monkeypatch.setattr(minutes, "to_run", lambda lab: {"cpu-ort1.31": 0.4, "h100-trt8.6": 3.7})
    long = cells("| minutes | 10 to read, 1 to run |", "word " * 5000)
    assert minutes.faults("00_a", long) == [
        "the opening says 10 minutes to read, its words and lines take 46",
        "the opening says 1 minutes to run, and h100-trt8.6 took 3.7",
    ]
    assert minutes.faults("00_a", cells("Hello.")) == [
        'the opening names no minutes to read; write "| minutes | 5 to read, 1 to run |"',
        'the opening names no minutes to run; write "| minutes | 5 to read, 1 to run |"',
    ]
    optional = cells(
        "| minutes | 10 to read, 4 to run |", "## For the curious\n" + "word " * 5000, "## Back\n" + "word " * 900
    )
    assert minutes.faults("00_a", optional) == []


@pytest.mark.parametrize(
    "diagram, count",
    [
        ("flowchart LR\n a[x] --> b[(y z)] -->|to| c", 3),
        ("flowchart LR\n a --> b\n b --> c\n a -- api --> d\n c -.-> e", 4),
        ("flowchart TB\n a --> b --> c --> d --> e", 1),
        ("flowchart TB\n subgraph s [one]\n direction LR\n a --> b --> c\n end\n s --> t", 3),
        ("flowchart LR\n subgraph s\n direction TB\n a --> b --> c --> d --> e\n end\n s --> t", 1),
    ],
)
def test_boxes_in_a_row_are_counted(diagram, count):
    assert boxes_in_a_row(f"{editions.DIAGRAM_STYLE}\n{diagram}") == count


def test_the_style_of_a_diagram_is_written_once():
    notebook = cells("Words.\n\n```mermaid\n%%{init: {}}%%\nflowchart LR\n  a --> b\n```\n", "```python\nx\n```")
    styled = editions.with_diagram_style(editions.with_diagram_style(notebook))
    assert text(styled["cells"][0]).count("init:") == 1 and editions.DIAGRAM_STYLE in text(styled["cells"][0])
    assert styled["cells"][1] == notebook["cells"][1]
