"""The progress of a class of thirty, also where some have lost, damaged or never made their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labsupport.command_line import cli
from labsupport.errors import BadInput
from labsupport.exercises import base, class_report, lab05, progress_report

EXERCISES = list(base.of(lab05))


def learner(folder: Path, right: int, wrong: int, when: str = "2026-11-30T10:00:00+01:00") -> Path:
    folder.mkdir(parents=True)
    outcomes = ["right"] * right + ["wrong"] * wrong
    entries = {name: {"outcome": outcome, "when": when} for name, outcome in zip(EXERCISES, outcomes, strict=False)}
    (folder / class_report.FILE).write_text(json.dumps({"version": 1, "labs": {"05_precision": entries}}))
    return folder


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "05_precision.ipynb").write_text("{}")
    return folder


@pytest.fixture
def thirty(tmp_path):
    return [learner(tmp_path / "class" / f"seat{number:02}", number % 3, number % 2) for number in range(30)]


def test_a_class_of_thirty(thirty, notebooks):
    group = class_report.read(thirty, notebooks)
    assert [one.name for one in group.learners] == [f"seat{number:02}" for number in range(30)]
    assert [one.right for one in group.learners] == [number % 3 for number in range(30)]
    assert all(one.right + one.wrong + one.not_attempted == len(EXERCISES) for one in group.learners)
    first, second = (group.exercises[f"05_precision {name}"] for name in EXERCISES[:2])
    assert (first["right"], second["right"]) == (20, 10)
    text = str(group)
    assert len([line for line in text.splitlines() if line.startswith("seat")]) == 30
    assert text.splitlines()[-1] == "30 of 30 learners read, 30 right answers"


def test_where_a_class_is_stuck_comes_first(thirty, notebooks):
    group = class_report.read(thirty, notebooks)
    listed = str(group).partition("most learners first:\n")[2].splitlines()[2:]
    counts = [int(line.split()[2]) for line in listed[: len(EXERCISES)] if line.startswith("05_precision")]
    assert counts == sorted(counts, reverse=True) and sum(counts) == 15


def test_one_who_tried_nothing_and_one_whose_file_is_damaged_do_not_hide_the_others(thirty, notebooks, tmp_path):
    (thirty[3] / class_report.FILE).unlink()
    (thirty[4] / class_report.FILE).write_text('{"labs": [')
    (thirty[5] / class_report.FILE).write_bytes(b"\xff\xfe")
    group = class_report.read([*thirty, tmp_path / "nobody"], notebooks)
    problems = {one.name: one.problem for one in group.learners if one.problem}
    assert problems == {
        "seat03": "no .labprogress.json: nothing was tried yet",
        "seat04": ".labprogress.json is damaged",
        "seat05": ".labprogress.json is damaged",
        "nobody": "there is no such folder",
    }
    assert "27 of 31 learners read" in str(group)


def test_names_are_what_tells_the_folders_apart(tmp_path, notebooks):
    places = [learner(tmp_path / name / "labs", 1, 0) for name in ("Ana Öztürk", "Ben")]
    files = [places[0], places[1] / class_report.FILE]
    assert [one.name for one in class_report.read(files, notebooks).learners] == ["Ana Öztürk", "Ben"]
    with pytest.raises(BadInput, match="was named 2 times; name each learner once"):
        class_report.read([places[0], places[0]], notebooks)
    with pytest.raises(BadInput, match="no folder was named"):
        class_report.read([], notebooks)


def test_the_command_prints_text_or_json_and_says_by_its_code_who_is_missing(thirty, capsys, tmp_path):
    names = list(map(str, thirty))
    assert cli.main(["progress", "--of", *names, "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert len(read["learners"]) == 30 and read["learners"][2]["right"] == 2
    assert cli.main(["progress", "--of", *names, str(tmp_path / "gone")]) == 1
    assert "30 of 31 learners read" in capsys.readouterr().out


def test_one_learners_progress_as_json(monkeypatch, tmp_path, notebooks):
    file = learner(tmp_path / "me", 2, 1) / class_report.FILE
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(file))
    told = progress_report.as_dict(notebooks)
    assert told["totals"] == {"right": 2, "wrong": 1, "not attempted": len(EXERCISES) - 3}
    assert told["labs"]["05_precision"][EXERCISES[0]] == {"outcome": "right", "when": "2026-11-30 10:00"}
    assert told["problems"] == []
    file.write_text("[]")
    assert "is damaged" in progress_report.as_dict(notebooks)["problems"][0]
