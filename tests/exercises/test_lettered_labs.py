"""Labs A and B have letters for numbers: `run A`, `reset a`, `progress` and recordings know them all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labsupport import recordings
from labsupport.command_line import lab_paths, running
from labsupport.errors import BadInput
from labsupport.exercises import base, progress, progress_report, resetting, shipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("asked, lab", [
    ("A", "A_mathematics"), ("a", "A_mathematics"), ("B", "B_article_map"), ("b_article_map", "B_article_map"),
    ("A_mathematics", "A_mathematics"), ("notebooks/A_mathematics.ipynb", "A_mathematics"), ("15", "15_outlook"),
])  # fmt: skip
def test_run_finds_a_lab_by_its_letter(asked, lab, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [path.stem for path in running.find([asked])] == [lab]


def test_letters_come_after_numbers_in_a_run_and_in_the_table():
    stems = [path.stem for path in lab_paths.labs()]
    assert stems[-2:] == ["A_mathematics", "B_article_map"] and stems == sorted(stems)
    table = progress_report.report().splitlines()
    rows = {
        line.split()[0]: number for number, line in enumerate(table) if line[:1].isalnum() and "_" in line.split()[0]
    }
    assert rows["15_outlook"] < rows["A_mathematics"] < rows["B_article_map"]


def test_a_letter_that_is_none_is_refused():
    with pytest.raises(BadInput, match="'C' is not a lab; choose from: .*A_mathematics, B_article_map"):
        running.find(["C"])


@pytest.mark.parametrize(
    "lab, exercise", [("A_mathematics", "safe_length"), ("B_article_map", "faster"), ("15_outlook", "gone")]
)
def test_progress_lists_the_exercises_of_a_letter(lab, exercise):
    import importlib

    module = importlib.import_module(f"labsupport.exercises.lab{lab.partition('_')[0]}")
    assert module.LAB == lab and exercise in base.of(module)
    assert "hand in the function" in repr(getattr(module, exercise).check(3))
    assert progress.load()[lab][exercise]["outcome"] == "wrong"
    lines = progress_report.report().splitlines()
    assert any(exercise in line and "wrong" in line for line in lines)


def test_reset_restores_a_lettered_notebook(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for stem in ("00_start", "A_mathematics", "B_article_map"):
        (folder / f"{stem}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    manifest = resetting.write_manifest(root=tmp_path)
    assert {"A_mathematics.ipynb", "B_article_map.ipynb"} <= set(manifest)
    assert shipped.snapshot(root=tmp_path)
    (folder / "A_mathematics.ipynb").write_text("{}", encoding="utf-8")
    said = resetting.reset("A", root=tmp_path)
    assert said.startswith("A_mathematics is as shipped again. Your copy is in work/kept/")
    assert json.loads((folder / "A_mathematics.ipynb").read_text(encoding="utf-8")) == notebook
    for name in ("a", "A_mathematics", "A_mathematics.ipynb"):
        assert "A_mathematics already is as shipped" in resetting.reset(name, root=tmp_path)


def test_a_missing_recording_names_the_whole_command(tmp_path):
    said = recordings.lab("A_mathematics", root=tmp_path).told("engine.accuracy")
    assert "`python3 -m labsupport record A`" in said
