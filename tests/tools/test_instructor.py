"""The instructor's tables are those that the script writes, and each syllabus fits into its hours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

import instructor

from labsupport.exercises import base, lab00


def test_the_guide_is_what_the_script_writes():
    guide = instructor.GUIDE.read_text(encoding="utf-8")
    assert guide == instructor.filled(guide), "python3 tools/instructor.py writes it again"


def test_the_mistakes_are_what_the_script_writes():
    assert instructor.MISTAKES.read_text(encoding="utf-8") == instructor.mistakes(), "python3 tools/instructor.py"


@pytest.mark.parametrize("hours", instructor.SYLLABI)
def test_a_syllabus_fits_into_its_hours_and_uses_them(hours):
    must, more, needed, there = instructor.plan(hours)
    assert there * 0.75 <= needed <= there
    assert len(set(must + more)) == len(must) + len(more)
    assert must[0].stem == "00_start_here"


def test_minutes_are_measured(tmp_path, monkeypatch):
    path = REPOSITORY / "notebooks" / "05_precision.ipynb"
    recorded = json.loads((REPOSITORY / "data/recordings/h100-trt8.6/05_precision.json").read_text("utf-8"))
    took = instructor.minutes(path)
    assert took["gpu"] == recorded["metrics"]["lab.seconds"]["value"] / 60
    assert took["all"] == took["read"] + took["exercises"] + max(took["cpu"], took["gpu"])
    every = {path.stem: instructor.minutes(path) for path in instructor.labs()}
    assert [lab for lab, took in every.items() if "cpu" not in took and "gpu" not in took] == []


def test_mistakes_come_from_the_checkers():
    said = instructor.messages(lab00)
    assert list(said) == list(base.of(lab00))
    assert any("the picture is an area of 28 rows" in text for text in said["pixels"])
    assert said["faster_than_pytorch"] == []  # a prediction has no mistakes
    wrong = lab00.pixels.check(3 * 784).message
    assert wrong in said["pixels"]


def test_a_guide_without_its_marks_is_refused():
    with pytest.raises(LookupError, match="0 places for the table of minutes"):
        instructor.filled("# nothing\n")
