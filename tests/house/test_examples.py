"""The examples run, are short, and end in the assertion that they were written for."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest
from api_surface import scan_source

from labsupport import environment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"build_and_read_back": "engine building"}


def faults(name: str, text: str) -> list[str]:
    """What keeps a script from being an example: its opening, its length, its last statement."""
    tree, said = ast.parse(text), []
    count = sum(bool(line.strip()) for line in text.splitlines())
    if f"`python3 -m examples.{name}`" not in (ast.get_docstring(tree) or ""):
        said.append(f"{name} does not open with what it shows and how it is run")
    if count > 35:
        said.append(f"{name} has {count} lines; 35 at most")
    if not isinstance(tree.body[-1], ast.Assert):
        said.append(f"{name} does not end in an assertion")
    return said


def test_there_are_four():
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_ends_in_an_assertion(path):
    text = path.read_text(encoding="utf-8")
    assert faults(path.stem, text) == []
    assert not scan_source(text, path.name).faults  # names that some TensorRT lacks stand behind a check


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, monkeypatch, capsys):
    if reason := environment.why_not(*filter(None, [NEEDS.get(path.stem)])):
        pytest.skip(reason)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, f"examples.{path.stem}", raising=False)
    runpy.run_module(f"examples.{path.stem}", run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_an_example_that_asserts_nothing_is_seen():
    said = faults("one", '"""Shows it."""\n' + "print(1)\n" * 35)
    assert [sentence.split(" ", 1)[1].split(";")[0] for sentence in said] == [
        "does not open with what it shows and how it is run",
        "has 36 lines",
        "does not end in an assertion",
    ]
