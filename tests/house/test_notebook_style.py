"""Every notebook keeps the countable rules, and every rule is shown to fire on a notebook that breaks it."""

from __future__ import annotations

import base64
import copy
import re
from pathlib import Path

import notebook_rules as rules
import pytest
from notebook_rules import Book

from labsupport.exercises import shipped

ROOT = Path(__file__).resolve().parents[2]
OWN = shipped.worked_in()  # a learner's work keeps no rules
NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name not in OWN]
PROSE = " ".join(["The builder tries several kernels for every layer and keeps the fastest one it saw."] * 2)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rule(path, rule):
    said = rule(Book.read(path))
    assert not said, f"{path.name}:\n" + "\n".join(said)


def test_the_first_three_labs_are_there():
    if not (ROOT / "notebooks").exists():
        pytest.skip("no notebooks yet")
    assert {"00_start_here", "01_measuring", "02_build_and_run"} <= {
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb")
    }


def test_no_helper_is_written_twice():
    package = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "labsupport").rglob("*.py"))
    }
    said = rules.no_name_is_defined_twice([Book.read(path) for path in NOTEBOOKS], package)
    assert not said, "\n".join(said)


def test_no_helper_comes_before_its_api():
    every = [Book.read(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    said = rules.no_helper_comes_before_its_api(every)
    assert not said, "\n".join(said)


def test_the_rule_on_helpers_fires():
    first, second = good(), good()
    first["cells"][3]["source"] = "graph = export.to_onnx(model, example)"
    second["cells"][3]["source"] = "run = runtimes.TensorRt(engine)"
    books = [book(second, "02_second"), book(first, "01_first")]
    said = rules.no_helper_comes_before_its_api(books)
    assert len(said) == 2 and "01_first, cell 4" in said[0] and "02_second" in said[1]
    first["cells"][1]["source"] = "torch.onnx.export(model)\ncontext.execute_async_v3(0)"
    assert rules.no_helper_comes_before_its_api(books) == []
    assert all(not re.search(helper, api) for helper, api in rules.API_BEFORE_HELPER.items())


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": list(outputs),
        "execution_count": None,
    }


def stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(**data: str) -> dict:
    bundle = {key.replace("_", "/"): value for key, value in data.items()}
    return {"output_type": "display_data", "data": bundle, "metadata": {}}


def numbered(cells: list[dict]) -> list[dict]:
    count = 0
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
    return cells


def good() -> dict:
    """A notebook that keeps every rule; each test below breaks it in one place."""
    png = base64.b64encode(b"\x89PNG small").decode()
    cells = [
        markdown(f"# Measuring\n\nWhy do two stopwatches disagree? Predict it first. {PROSE}"),
        code(
            "from labsupport import environment\nfrom labsupport.exercises import lab01\nenvironment.describe()",
            stream("This machine: no GPU"),
            tags=(),
        ),
        markdown(
            f"## A graph\n\n{PROSE}\n\n"
            "```mermaid\nflowchart LR\n  accTitle: Pipeline\n  accDescr: a to b\n  a --> b\n```"
        ),
        code("print(graph)", stream("OnnxGraph(5 nodes)"), tags=(rules.COMPARED,)),
        code("figure", shown(image_png=png, text_plain="The bars fall from left to right."), tags=()),
        markdown(f"### Exercises\n\n{PROSE} ![a bar plot](plot.png)"),
        code("lab01.one.check(...)", stream("Not attempted yet"), tags=(rules.COMPARED,)),
        code("lab01.two.check(...)", stream("Not attempted yet"), tags=(rules.COMPARED,)),
        code("lab01.three.check(...)", stream("Not attempted yet"), tags=(rules.COMPARED,)),
        markdown(f"## What you found\n\n{PROSE}"),
    ]
    return {
        "cells": numbered(cells),
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    }


def book(content: dict, name: str = "01_measuring", size: int = 10_000) -> Book:
    return Book(name, content, size)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_a_good_notebook_passes(rule):
    assert rule(book(good())) == []


def output(number: int, value: dict):
    """A change that gives a code cell one output."""
    return lambda notebook: notebook["cells"][number].update(outputs=[value])


def source(number: int, text: str):
    return lambda notebook: notebook["cells"][number].update(source=text)


def setting(path: tuple, value: object):
    def change(notebook: dict) -> None:
        for key in path[:-1]:
            notebook = notebook[key]
        notebook[path[-1]] = value

    return change


LONG = "\n".join(f"x{number} = {number}" for number in range(26))
SEEDED = [
    (rules.the_format_is_45_with_ids, setting(("nbformat_minor",), 4), "has format 4.4"),
    (rules.the_format_is_45_with_ids, setting(("cells", 2, "id"), "cell-1"), "2 cells have the id 'cell-1'"),
    (rules.the_format_is_45_with_ids, lambda nb: nb["cells"][1].pop("execution_count"), "not valid"),
    (rules.the_kernel_is_python3, setting(("metadata", "kernelspec", "name"), "venv"), "kernelspec is 'venv'"),
    (rules.it_opens_with_a_question_and_a_prediction, lambda nb: nb["cells"].pop(0), "cell 1 is a code cell"),
    (
        rules.it_opens_with_a_question_and_a_prediction,
        source(0, "# Measuring\n\nGuess? " + PROSE),
        "lacks a prediction",
    ),
    (
        rules.it_opens_with_a_question_and_a_prediction,
        source(0, "# Measuring\n\nPredict. " + PROSE),
        "lacks a question",
    ),
    (rules.it_opens_with_a_question_and_a_prediction, source(0, "Predict? " + PROSE), "lacks an H1"),
    (rules.there_is_one_h1, source(2, "# Again\n" + PROSE), "has 2 H1 headings"),
    (rules.headings_skip_no_level, source(2, "### Deep\n" + PROSE), "level 3 below level 1"),
    (rules.it_closes_with_what_you_found, source(9, "## The end\n" + PROSE), "not headed 'What you found'"),
    (rules.code_cells_are_small, source(3, LONG), "has 26 code lines"),
    (
        rules.code_cells_are_small,
        lambda nb: [cell.update(source=LONG[:84]) for cell in nb["cells"]],
        "median code cell",
    ),
    (rules.code_cells_are_small, source(3, "\n".join(LONG.splitlines()[:22])), "90th percentile"),
    (rules.setup_is_short, source(1, "\n".join(LONG.splitlines()[:13])), "first code cell and has 13 lines"),
    (rules.code_does_not_run_on_without_prose, lambda nb: nb["cells"].pop(5), "fourth code cell in a row"),
    (rules.prose_has_the_right_length, source(2, "word " * 121), "has 121 words"),
    (rules.prose_has_the_right_length, lambda nb: [cell.update(source="Too short.") for cell in nb["cells"]], "median"),
    (rules.every_cell_was_run_in_order, setting(("cells", 3, "execution_count"), None), "has execution count None"),
    (rules.every_cell_was_run_in_order, setting(("cells", 3, "execution_count"), 7), "a run from the top gives 2"),
    (
        rules.errors_are_meant,
        output(1, {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}),
        "stores ValueError",
    ),
    (rules.outputs_are_text_and_png, output(1, {**shown(), "data": {"image/svg+xml": "<svg/>"}}), "stores image/svg"),
    (rules.outputs_are_text_and_png, output(1, shown(application_javascript="alert(1)")), "application/javascript"),
    (rules.outputs_are_text_and_png, output(1, shown(text_html="<script>x</script>")), "HTML with a script"),
    (
        rules.outputs_are_text_and_png,
        output(
            1, {**shown(), "data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox(children=())"}}
        ),
        "widget-view",
    ),
    (
        rules.files_and_pictures_are_small,
        output(1, shown(image_png=base64.b64encode(b"0" * 100_000).decode())),
        "100 KB",
    ),
    (
        rules.pictures_come_with_text,
        output(4, shown(image_png="", text_plain="<Figure size 640x480>")),
        "without a sentence",
    ),
    (
        rules.a_third_of_the_code_is_compared,
        lambda nb: [cell["metadata"].clear() for cell in nb["cells"][3:8]],
        "1 of 6 code cells",
    ),
    (rules.a_third_of_the_code_is_compared, setting(("cells", 3, "outputs"), []), "stores no text to compare"),
    (rules.a_third_of_the_code_is_compared, output(3, shown(image_png="")), "stores no text to compare"),
    (
        rules.a_third_of_the_code_is_compared,
        setting(("cells", 3, "metadata", "tags"), [rules.COMPARED, "nbval-skip"]),
        "nbval would not compare",
    ),
    *[
        (rules.compared_text_holds_on_every_machine, output(3, stream(text)), what)
        for text, what in [
            ("took 9.9 ms", "a timing"),
            ("took 12us", "a timing"),
            ("120 images/s", "a timing"),
            ("median in ms", "a timing"),
            ("recorded 2026-11-22", "a date"),
            ("at 12:30:01", "a date"),
            ("built in 3.5 s", "a timing"),
        ]
    ],
    *[
        (rules.outputs_name_no_machine, output(1, stream(text)), what)
        for text, what in [
            ("saved in " + "/".join(["", "home", "ada"]), "absolute path"),
            ("saved in C:" + r"\ada\x", "absolute path"),
            ("<Engine object at 0x7f12ab34cd56>", "memory address"),
            ("on box.local", "host name"),
        ]
    ],
    *[
        (rules.code_stays_in_its_lane, source(3, text), what)
        for text, what in [
            ("!pip install torch", "installs"),
            ("%pip install torch", "installs"),
            ("import sys\nsys.path.append('.')", "sys.path"),
            ("from urllib.request import urlopen", "network"),
            ("requests.get(url)", "network"),
            ("!wget x", "network"),
            ("from math import *", "star"),
            ("display(x, display_id=True)", "nbval"),
            ("clear_output()", "nbval"),
            ("torch.load('x.pt')", "without weights_only"),
            ("torch.load('x.pt', weights_only=False)", "without weights_only"),
        ]
    ],
    *[
        (rules.imports_are_modules, source(3, text), "import the module")
        for text in [
            "from labsupport.build import engine",
            "from labsupport import __version__",
            "from labsupport.exercises import base",
            "from labsupport.exercises.lab01 import one",
        ]
    ],
    (rules.markdown_embeds_no_picture, source(2, f"![a](data:image/png;base64,AAAA) {PROSE}"), "embeds a picture"),
    (rules.markdown_embeds_no_picture, setting(("cells", 2, "attachments"), {"a.png": {}}), "embeds a picture"),
    (rules.pictures_in_markdown_are_described, source(2, "![](plot.png)"), "plot.png has no alt"),
    (rules.pictures_in_markdown_are_described, source(2, '<img src="a.png" alt="">'), "has no alt"),
    (
        rules.pictures_in_markdown_are_described,
        source(2, "```mermaid\nflowchart LR\n accTitle: x\n a-->b\n```"),
        "accDescr",
    ),
    (rules.there_are_three_exercises, source(7, "lab01.one.check(...)"), "checks 2 exercises"),
]


@pytest.mark.parametrize("rule, change, sentence", SEEDED, ids=lambda value: getattr(value, "__name__", None))
def test_each_rule_fires(rule, change, sentence):
    notebook = copy.deepcopy(good())
    change(notebook)
    assert any(sentence in said for said in rule(book(notebook))), rule(book(notebook))


def test_a_big_file_is_seen():
    assert "1.00 MB" in rules.files_and_pictures_are_small(book(good(), size=1_000_000))[0]


def test_every_rule_was_seen_to_fire():
    assert {rule for rule, _, _ in SEEDED} == set(rules.RULES)


def test_a_name_in_two_notebooks_or_in_the_package_is_seen():
    one, two = good(), good()
    one["cells"][3]["source"] = two["cells"][3]["source"] = "def fold(x):\n    return x"
    said = rules.no_name_is_defined_twice([book(one), book(two, "02_build_and_run")], {})
    assert said == ["02_build_and_run, cell 4 (`def fold(x):`) defines fold, which 01_measuring has already"]
    said = rules.no_name_is_defined_twice([book(one)], {"labsupport/fusion.py": "def fold(x): return x"})
    assert "which labsupport/fusion.py has already" in said[0]


@pytest.mark.parametrize(
    "allowed",
    [
        source(3, "from labsupport import build, exercises"),
        source(3, "torch.load('x.pt', weights_only=True)"),
        source(3, "%timeit 1 + 1"),
        output(3, stream("5 nodes: Conv×2, Relu×2; error 1e-6; opset 17; 1990s")),
        output(1, stream("9.9 ms on 2026-11-22 with TensorRT 8.6.0")),
        output(3, stream("plan fp16/fp32 https://example.org/a/b")),
    ],
)
def test_what_is_allowed_stays_allowed(allowed):
    notebook = good()
    allowed(notebook)
    assert [said for rule in rules.RULES for said in rule(book(notebook))] == []
