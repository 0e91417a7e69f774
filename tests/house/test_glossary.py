"""The glossary and the labs are in step: a word is explained where it is used for the first time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from notebook_rules import Book, prose_of

from labsupport.exercises import editions

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \[(\w+)\]\(\.\./notebooks/\3\.ipynb\) \|$", re.MULTILINE)
EARLY, _, LATER = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("## Later labs")
WORDS, LATER_WORDS = ROW.findall(EARLY), ROW.findall(LATER)
EMPHASIS = re.compile(r"(?<!\*)(\*{1,2})(?!\s)([^*\n]{2,40}?)(?<!\s)\1(?!\*)")
# a newcomer reads labs 00 and 01 first, so every word that they need is explained in them
NEEDED = {
    "engine", "kernel", "runtime", "precision", "FP32", "FP16", "opset", "logits", "p90", "p99", "spread", "NOISY",
    "host clock", "device clock", "latency", "median", "batch", "builder", "profile", "ONNX", "inference", "stream",
}  # fmt: skip


def first_use(word: str, cells: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(lab, prose) of the first cell that has the word or its plural; names of functions do not count."""
    pattern = re.compile(rf"(?i)(?<![\w.]){re.escape(word)}s?(?!\w)")
    return next((cell for cell in cells if pattern.search(re.sub(r"`[^`]*`", "", cell[1]))), None)


@pytest.fixture(scope="module")
def cells() -> list[tuple[str, str]]:
    """(lab, prose) of every Markdown cell, in the order they are read."""
    books = [Book.read(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    # the kept sentence about stored outputs stands in the first cell of each, before anything is explained
    return [(book.name, prose_of(editions.bare(source))) for book in books for _, _, source in book.cells("markdown")]


def test_the_page_has_rows_in_order():
    for part in (WORDS, LATER_WORDS):
        words = [word.lower() for word, _, _ in part]
        assert len(words) > 30 and words == sorted(words)
    every = [word.lower() for word, _, _ in WORDS + LATER_WORDS]
    assert len(set(every)) == len(every)


def test_labs_00_and_01_explain_what_they_need():
    explained = {word for word, _, lab in WORDS if lab.startswith(("00", "01"))}
    assert not NEEDED - explained


@pytest.mark.parametrize("word, meaning, lab", WORDS, ids=[word for word, _, _ in WORDS])
def test_a_word_is_explained_at_its_first_use(cells, word, meaning, lab):
    found = first_use(word, cells)
    assert found, f"no lab uses {word!r} any more; take it out of the glossary"
    assert found[0] == lab, f"{word!r} is first used in {found[0]}, the glossary says {lab}"
    assert f"**{word}**" in found[1], f"{lab} uses {word!r} before it is explained in bold: {found[1][:80]!r}"
    assert len(meaning.split()) >= 3


def emphasized(prose: str) -> list[str]:
    return [words.lower() for _, words in EMPHASIS.findall(prose)]


def is_meant(word: str, mark: str) -> bool:
    """Whether a mark such as "*Continuous* batching" explains a word such as "continuous batching"."""
    return word in mark or len(mark) > 4 and word.startswith(f"{mark} ")


@pytest.mark.parametrize("word, meaning, lab", LATER_WORDS, ids=[word for word, _, _ in LATER_WORDS])
def test_a_later_lab_marks_the_word_where_it_explains_it(cells, word, meaning, lab):
    marks = [mark for name, prose in cells if name == lab for mark in emphasized(prose)]
    assert any(is_meant(word.lower(), mark) for mark in marks), f"{lab} prints {word!r} neither bold nor slanted"
    assert meaning.endswith(".") and all(len(part.split()) <= 30 for part in meaning.split(". "))


def test_the_check_fires():
    cells = [("00_a", "An `engine.build` call. Engines are fast."), ("01_b", "An **engine** is a program.")]
    assert first_use("engine", cells) == cells[0] and first_use("kernel", cells) is None
    assert emphasized("An *open loop* and **NOISY**, 2 * 3 * 4.") == ["open loop", "noisy"]
    assert is_meant("continuous batching", "continuous") and not is_meant("peak", "pea")
