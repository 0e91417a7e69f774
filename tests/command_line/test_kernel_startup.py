"""Kernels that `lab` starts say two errors in plain words, run the learner's own startup file, and hurt no plain Python."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from labsupport.command_line import cli

STARTUP = cli.REPOSITORY / "labsupport" / "command_line" / "kernel_startup.py"
STOP = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"


def shown(monkeypatch, *sources: str, **variables: str) -> list[str]:
    """What JupyterLab shows of the errors of these cells, without colors."""
    import re

    for name, value in {"PYTHONSTARTUP": str(STARTUP), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("IPYKERNEL_CELL_NAME", raising=False)  # `test` sets it; a learner's cells have their own names
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=60, iopub_timeout=60, kernel_name="python3", allow_errors=True).execute()
    nbformat.validate(notebook)
    errors = [output for cell in notebook.cells for output in cell.outputs if output.output_type == "error"]
    return [re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)) for error in errors]


def test_a_name_that_is_not_there_yet_sends_the_learner_up(monkeypatch):
    cell, library = shown(monkeypatch, "engine", "import ast\nast.literal_eval.__globals__['parse'] = None\nint('x')")
    assert "name 'engine' is not defined" in cell and cell.endswith(
        "Run the cells above first: menu Run > Run All Above Selected Cell."
    )
    assert "Run the cells above" not in library


def test_a_name_error_inside_a_library_is_left_alone(monkeypatch):
    source = "import textwrap\nexec('def f(): return no_such', textwrap.__dict__)\ntextwrap.f()"
    (said,) = shown(monkeypatch, source)
    assert "NameError" in said and "Run the cells above" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself ends the process there")
def test_an_interrupt_is_one_line(monkeypatch):
    assert shown(monkeypatch, STOP) == ["KeyboardInterrupt: this cell was stopped. Run it again before you go on."]


def test_the_learners_own_startup_file_is_run(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("mine = 42", encoding="utf-8")
    assert shown(monkeypatch, "assert mine == 42", LABSUPPORT_STARTUP=str(tmp_path / "mine.py")) == []


def test_a_plain_python_starts_with_it():
    ran = subprocess.run(
        [sys.executable, "-i", "-c", "print(1)"],
        input="",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSTARTUP": str(STARTUP)},
    )
    assert ran.stdout.startswith("1") and "Traceback" not in ran.stderr
