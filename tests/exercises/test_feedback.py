"""What a learner sees of a verdict: a box in a notebook, wrapped lines in print, and the bare text in headless runs."""

from __future__ import annotations

import re

import pytest
from faces import stand_in

from labsupport import environment
from labsupport.exercises import base, feedback

LAB = "98_feedback"


class Doubling(base.Exercise):
    question = "Write `double`."
    hints = ("Is `<=` needed? " + "A long word in a long line. " * 5, "By two.")
    solution_source = "numbers = [2 * number for number in range(10)]  # a line longer than the lines of the prose around it\ncheck(1)"
    answer = "Because it is `2 * x`."

    def judge(self, answer: int):
        if answer != 2:
            raise base.Wrong(f"`double(1)` gave {answer} & not 2.")
        return "Well `done`."


class Guess(base.Prediction):
    question = "How many?"
    quantity = "the count"


doubling, guess = Doubling(), Guess()


@pytest.fixture
def live(monkeypatch):
    stand_in(monkeypatch, environment, "headless", lambda: False)


def test_a_headless_run_shows_the_bare_text():
    for shown in (doubling.check(...), doubling.check(3), doubling.check(2), doubling.hint(), doubling.solution()):
        assert shown._repr_html_() is None and str(shown) == repr(shown)
    assert "`<=`" in repr(doubling.hint())


def test_outcomes_differ_by_word_mark_and_color(live):
    boxes = [doubling.check(answer)._repr_html_() for answer in (..., 3, 2)]
    for pattern in (r"</span> ([\w ]+)[.:]</b>", r'aria-hidden="true">(.)<', r"solid (var\(--jp-\w+-color1, #\w+\))"):
        assert len({re.search(pattern, shown)[1] for shown in boxes}) == 3
    assert "<code>double(1)</code> gave 3 &amp; not 2." in boxes[1] and "`" not in "".join(boxes)


def test_every_message_has_its_box(live):
    assert "Hint 1 of 2:" in doubling.hint()._repr_html_() and "<code>&lt;=</code>" in doubling.hint()._repr_html_()
    solution = doubling.solution()._repr_html_()
    assert "<pre" in solution and "\ncheck(1)</code></pre>" in solution and "<code>2 * x</code>" in solution
    for shown, word in (
        (guess.predict(...), "Not attempted yet:"),
        (guess.predict(3), "Noted:"),
        (guess.predict("x"), "Not quite:"),
    ):
        assert f"</span> {word}</b>" in shown._repr_html_()


def test_print_breaks_between_words_and_leaves_programs_whole(live):
    said = str(doubling.hint())
    assert "`" not in said and len(said.splitlines()) > 1
    assert all(len(line) <= feedback.COLUMNS for line in said.splitlines())
    assert said.split() == repr(doubling.hint()).replace("`", "").split()
    assert Doubling.solution_source in str(doubling.solution())
    assert "`" not in str(doubling.check(3))


def test_text_is_still_text(live):
    assert doubling.hint(9) == "There is no hint 9; hint 2 is the last. `doubling.solution()` shows one way."
    assert [doubling.hint(0)].__repr__() == "[Hints are numbered from 1 to 2: ask for hint(1).]"
