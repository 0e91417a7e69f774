"""A lab as one page of HTML: what is on it, that it needs nothing beside it, and what is said where it cannot be
made.
"""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labsupport.command_line import cli, report, running
from labsupport.errors import BadInput, LabError, NotAvailable

PNG = "iVBORw0KGgo="


def notebook(**instead):
    picture = new_output(
        "display_data", {"image/png": PNG, "text/plain": "(picture, described below)"},
        metadata={"image/png": {"alt": "Two <bars> & one gate."}},
    )  # fmt: skip
    table = new_output("execute_result", {"text/html": "<table><tr><td>0.95</td></tr></table>", "text/plain": "0.95"})
    spoken = new_output("stream", name="stdout", text="chosen: INT8 <fast>\n")
    heard = new_output("stream", name="stderr", text="a warning\n")
    caption = new_output("display_data", {"text/plain": "Two <bars> & one gate."})
    machine = new_output("execute_result", {"text/plain": "Python        3.11 on Linux\nGPU           none"})
    cells = [
        new_markdown_cell("# Signs: a title\n\nWhich one do you choose?"),
        new_code_cell("environment.describe()", outputs=[machine]),
        new_markdown_cell("## The cost\n\nIt was measured.\n\n### The decision\n\nIt is computed."),
        new_code_cell("decision", outputs=[spoken, heard, picture, caption], metadata={"tags": ["report"]}),
        new_code_cell("table", outputs=[table], metadata={"tags": ["report", "nbval-check-output"]}),
        new_markdown_cell("## Not shown"),
        new_code_cell("secret", outputs=[new_output("stream", name="stdout", text="not for the page")]),
    ]
    return new_notebook(cells=instead.get("cells", cells))


def test_the_page_holds_what_is_tagged_under_its_heading():
    page = report.html(notebook(), "12_project", stored=True)
    for wanted in (
        "<h1>Signs: a title</h1>", "Which one do you choose?", "3.11 on Linux", "<h2>The decision</h2>",
        "chosen: INT8 &lt;fast&gt;", "<td>0.95</td>", f"base64,{PNG}", 'alt="Two &lt;bars&gt; &amp; one gate."',
        "python3 -m labsupport report 12",
    ):  # fmt: skip
        assert wanted in page, wanted
    for unwanted in ("not for the page", "Not shown", "The cost", "a warning", "(picture", "environment.describe()"):
        assert unwanted not in page, unwanted
    assert page.count("Two &lt;bars&gt;") == 2  # once as the picture's description, once below it


def test_the_page_needs_nothing_beside_it():
    page = report.html(notebook(), "12_project", stored=True)
    assert not re.search(r"(?i)<(script|link|iframe)|src=\"(?!data:)|https?://(?!www\.nvidia)|url\(|@import", page)


def test_html_with_a_script_is_not_taken_over():
    sly = new_output("display_data", {"text/html": "<table onclick=x()><tr></tr></table>", "text/plain": "plain"})
    cells = [new_markdown_cell("# A\n\nWhy?"), new_code_cell("x", outputs=[sly], metadata={"tags": ["report"]})]
    page = report.html(notebook(cells=cells), "12_project", stored=True)
    assert "onclick" not in page and "<pre>plain</pre>" in page


def test_a_lab_without_tags_or_outputs_is_refused():
    with pytest.raises(BadInput, match='has no code cell with the tag "report"'):
        report.html(notebook(cells=[new_markdown_cell("# A")]), "05_precision")
    bare = [new_markdown_cell("# A"), new_code_cell("x", metadata={"tags": ["report"]})]
    with pytest.raises(BadInput, match="was stored without outputs; leave --stored out"):
        report.html(notebook(cells=bare), "12_project", stored=True)


@pytest.fixture
def one_lab(tmp_path, monkeypatch):
    """A folder of notebooks with one lab in it."""
    path = tmp_path / "notebooks" / "12_project.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook(), path)
    monkeypatch.setattr(running, "find", lambda names: [path])
    return tmp_path


def test_the_command_writes_the_page_and_says_where(one_lab, capsys, monkeypatch):
    monkeypatch.setattr(cli, "prepare", lambda options, argv, ready: None)
    assert cli.main(["report", "12", "--stored", "--save", str(one_lab / "out")]) == 0
    path = one_lab / "out" / "12_project.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>") and path.stat().st_mode & 0o044


def test_a_lab_that_fails_gives_no_page(one_lab, monkeypatch):
    monkeypatch.setattr(running, "execute", lambda *a, **k: running.LabRun("12_project", False, 1.0, "none", 4, "boom"))
    with pytest.raises(LabError, match=r"FAILED in cell \[4\]: boom.*there is no report of a lab that fails"):
        report.write("12", folder=one_lab / "out")
    assert not (one_lab / "out" / "12_project.html").exists()


def test_a_fresh_run_describes_this_machine(one_lab, monkeypatch):
    monkeypatch.setattr(running, "execute", lambda *a, **k: running.LabRun("12_project", True, 1.0, "none"))
    (path,) = report.write("12", folder=one_lab)
    assert "The lab was executed for this page." in path.read_text(encoding="utf-8")


def test_pdf_is_written_where_weasyprint_is(one_lab, monkeypatch):
    class Html:
        def __init__(self, string):
            self.string = string

        def write_pdf(self):
            return b"%PDF-" + self.string[:9].encode()

    monkeypatch.setitem(sys.modules, "weasyprint", SimpleNamespace(HTML=Html))
    _, pdf = report.write("12", folder=one_lab, stored=True, pdf=True)
    assert pdf.read_bytes() == b"%PDF-<!doctype"


def test_without_weasyprint_it_says_what_to_do_before_it_runs_the_lab(one_lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    monkeypatch.setattr(running, "execute", lambda *a, **k: pytest.fail("the lab was run in vain"))
    with pytest.raises(NotAvailable, match="nothing here writes PDF.*pip install weasyprint.*print it to a file"):
        report.write("12", folder=one_lab, pdf=True)


def test_a_folder_that_cannot_be_written_is_named(one_lab):
    (one_lab / "taken").write_text("a file")
    with pytest.raises(LabError, match="the report cannot be written to"):
        report.write("12", folder=one_lab / "taken", stored=True)
