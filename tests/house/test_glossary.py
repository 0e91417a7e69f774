"""Labs and glossary in step: what a lab prints bold is in the glossary, and the lab that the glossary names explains it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("00", "01")  # a newcomer reads these, so every word of the trade is explained in them
NEEDED = (
    "engine kernel runtime precision FP32 FP16 opset logits p90 p99 spread NOISY latency median batch builder profile ONNX"
).split() + ["host clock", "device clock", "inference", "stream"]
EMPHASIS = re.compile(r"(?<!\*)(\*{1,2})(?!\s)([^*\n]{2,40}?)(?<!\s)\1(?!\*)")


def entries() -> dict[str, tuple[str, str]]:
    """Word → (meaning, lab) of the glossary's second table."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("## Words")[2]
    rows = re.findall(r"(?m)^\| (?!word |---)(.+?) \| (.+?) \| (\w+) \|$", text)
    return {word: (meaning, lab) for word, meaning, lab in rows}


def prose(lab: str) -> str:
    (path,) = (ROOT / "notebooks").glob(f"{lab}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"(?ms)^(```|~~~).*?^\1|\$\$.*?\$\$", "", text)


def emphasized(text: str, marks: tuple[str, ...] = ("*", "**")) -> list[str]:
    return [words for mark, words in EMPHASIS.findall(text) if mark in marks]


def unexplained(text: str, known: dict) -> list[str]:
    """Words that a lab prints bold as it explains them, and that the glossary lacks; sentences are no words."""
    words = [word for word in emphasized(text, ("**",)) if word != "Predict" and not re.search(r"[.:?!]$", word)]
    return sorted({word for word in words if word.lower() not in {entry.lower() for entry in known}})


def _is_meant(word: str, mark: str) -> bool:
    return word in mark or len(mark) > 4 and word.startswith(f"{mark} ")


def test_the_glossary_is_in_order_and_says_each_thing_once():
    words = [word.lower() for word in entries()]
    assert words == sorted(words) and len(words) > 60
    for word, (meaning, _) in entries().items():
        assert meaning.endswith(".") and all(len(part.split()) <= 30 for part in meaning.split(". ")), word


@pytest.mark.parametrize("lab", sorted({lab for _, lab in entries().values()}))
def test_the_lab_that_the_glossary_names_explains_the_word(lab):
    marked = [words.lower() for words in emphasized(prose(lab))]  # "*Continuous* batching" explains both words
    words = [word for word, (_, place) in entries().items() if place == lab]
    lacking = [word for word in words if not any(_is_meant(word.lower(), mark) for mark in marked)]
    assert not lacking, f"lab {lab} marks none of these with *…* or **…** where it explains them: {lacking}"


@pytest.mark.parametrize("lab", ["00", "01", "02", "03", "04", "05"])
def test_what_a_lab_explains_is_in_the_glossary(lab):
    lacking = unexplained(prose(lab), entries())
    assert not lacking, f"docs/glossary.md lacks {lacking}, which lab {lab} prints bold"


def test_the_first_two_labs_explain_every_word_that_they_need():
    explained = {word for word, (_, lab) in entries().items() if lab in FIRST}
    assert not set(NEEDED) - explained


@pytest.mark.parametrize("word", NEEDED)
def test_a_word_is_explained_where_it_is_used_first(word):
    """In running text: the opening's question may name what comes, and so may a title or a table."""
    for lab in FIRST:
        text = re.sub(r"(?m)^(?:#|\|).*$|`[^`\n]*`|ONNX Runtime", "", prose(lab))
        opening, _, rest = text.partition("*Predict*") if "*Predict*" in text else text.partition("predict:")
        text = text if word.lower() in " | ".join(emphasized(opening)).lower() else rest
        used = re.search(rf"(?i)(?<![\w-]){re.escape(word)}(?![\w-])", text)
        if used:
            paragraph = text[: used.end()].rpartition("\n\n")[2] + text[used.end() :].partition("\n\n")[0]
            assert word.lower() in " | ".join(emphasized(paragraph)).lower(), f"lab {lab}: {paragraph.strip()[:160]}"
            return
    pytest.fail(f"neither lab 00 nor lab 01 uses {word!r}")


def test_a_word_without_an_entry_is_seen():
    text = "An **engine** runs. A **frobnicator** does not. **Predict** now. **What is it?** **Time:** 3"
    assert unexplained(text, {"Engine": ("", "00")}) == ["frobnicator"]
