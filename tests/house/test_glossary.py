"""The glossary and the labs are in step: a word is explained where it is used for the first time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from notebook_rules import Book, prose_of

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \[(\w+)\]\(\.\./notebooks/\3\.ipynb\) \|$", re.MULTILINE)
WORDS = ROW.findall((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))


def first_use(word: str, cells: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(lab, prose) of the first cell that has the word or its plural; names of functions do not count."""
    pattern = re.compile(rf"(?i)(?<![\w.]){re.escape(word)}s?(?!\w)")
    return next((cell for cell in cells if pattern.search(re.sub(r"`[^`]*`", "", cell[1]))), None)


@pytest.fixture(scope="module")
def cells() -> list[tuple[str, str]]:
    """(lab, prose) of every Markdown cell, in the order they are read."""
    books = [Book.read(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return [(book.name, prose_of(source)) for book in books for _, _, source in book.cells("markdown")]


def test_the_page_has_rows_in_order():
    words = [word.lower() for word, _, _ in WORDS]
    assert len(words) > 40 and words == sorted(words) and len(set(words)) == len(words)


@pytest.mark.parametrize("word, meaning, lab", WORDS, ids=[word for word, _, _ in WORDS])
def test_a_word_is_explained_at_its_first_use(cells, word, meaning, lab):
    found = first_use(word, cells)
    assert found, f"no lab uses {word!r} any more; take it out of the glossary"
    assert found[0] == lab, f"{word!r} is first used in {found[0]}, the glossary says {lab}"
    assert f"**{word}**" in found[1], f"{lab} uses {word!r} before it is explained in bold: {found[1][:80]!r}"
    assert len(meaning.split()) >= 3


def test_the_check_fires():
    cells = [("00_a", "An `engine.build` call. Engines are fast."), ("01_b", "An **engine** is a program.")]
    assert first_use("engine", cells) == cells[0] and first_use("kernel", cells) is None
