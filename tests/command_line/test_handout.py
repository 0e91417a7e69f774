"""The printable page of exercises, and solutions that a teacher withholds."""

from __future__ import annotations

import re

import pytest

from labsupport.command_line import cli, handout
from labsupport.errors import BadInput, LabError
from labsupport.exercises import base, lab05, withheld

SOLVED = next(one for one in base.of(lab05).values() if not isinstance(one, base.Prediction))


def test_questions_for_the_learner_and_solutions_for_the_teacher(tmp_path):
    plain, full = (handout.write(["05"], folder=tmp_path, solutions=wanted).read_text("utf-8") for wanted in (0, 1))
    names = re.findall(r"<h3>(\w+)</h3>", plain)
    assert names == list(base.of(lab05)) == re.findall(r"<h3>(\w+)</h3>", full)
    assert plain.count('class="room"') == len(names) and "<pre>" not in plain
    assert full.count("<pre>") >= len(names) - 2 and 'class="room"' not in full
    assert "<script" not in full and "http" not in full  # one file, nothing to fetch


def test_every_lab_gets_a_chapter_and_the_page_is_well_formed():
    import xml.etree.ElementTree as tree

    text = handout.page(["00_start_here", "05_precision"], solutions=True)
    body = text[text.index("<body>") : text.index("</body>") + 7]
    chapters = [title.text for title in tree.fromstring(body).iter("h2")]
    assert len(chapters) == 2 and chapters[0].startswith("00. ")


def test_the_command(tmp_path, capsys, monkeypatch):
    assert cli.main(["handout", "5", "--save", str(tmp_path / "a folder")]) == 0
    assert (tmp_path / "a folder" / "handout.html").exists()
    assert "--solutions adds" in capsys.readouterr().err
    monkeypatch.setenv(withheld.VARIABLE, "off")
    assert cli.main(["handout", "5", "--solutions", "--save", str(tmp_path)]) == 1
    assert "withheld here" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_and_a_lab_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot be written"):
        handout.write(["05"], folder=tmp_path / "file")
    with pytest.raises(BadInput, match="is not a lab"):
        handout.write(["77"], folder=tmp_path)


def test_withheld_solutions_are_not_shown_and_hints_are(monkeypatch):
    shown = str(SOLVED.solution())
    monkeypatch.setenv(withheld.VARIABLE, "OFF")
    assert str(SOLVED.solution()) == withheld.SAID and SOLVED.answer.strip()[:40] not in str(SOLVED.solution())
    assert "Hint 1 of" in str(SOLVED.hint())
    assert withheld.SAID in str(SOLVED.hint(99))
    assert not SOLVED.check(...).right  # judging goes on
    for value in ("", "on"):
        monkeypatch.setenv(withheld.VARIABLE, value)
        assert str(SOLVED.solution()) == shown


def test_a_value_that_is_neither_on_nor_off(monkeypatch):
    monkeypatch.setenv(withheld.VARIABLE, "maybe")
    with pytest.raises(BadInput, match="LABSUPPORT_SOLUTIONS='maybe' is unknown; set it to off"):
        SOLVED.solution()
