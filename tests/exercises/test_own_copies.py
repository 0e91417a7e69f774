"""A learner's copies in work/: made once, never overwritten, offered what is newer; and where outputs come from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labsupport.errors import BadInput, LabError
from labsupport.exercises import editions, own_copies, progress, progress_report, resetting, shipped

TABLE = """Python        3.10.13 on Linux
Processor     Intel(R) Xeon(R) Processor, 16 cores, 125.9 GiB
GPU           {gpu}
ONNX Runtime  1.23.2
This machine  {lane}
"""
H100 = TABLE.format(gpu="NVIDIA H100, 80 GiB", lane="TensorRT 8.6.0 on NVIDIA H100")
LAPTOP = TABLE.format(
    gpu="none", lane="no GPU: ONNX Runtime executes; TensorRT-RTX builds engines without running them"
)


def put(root: Path, lab: str, code: str = "environment.describe()", said: str = H100) -> None:
    shown = new_output("execute_result", {"text/plain": said}, execution_count=1)
    cells = [new_markdown_cell("# Why?\n\nPredict."), new_code_cell(code, outputs=[shown], execution_count=1)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{lab}.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A workbook of two labs, as somebody has just downloaded it."""
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "workbook"
    for lab in ("00_start", "01_more"):
        put(root, lab)
    ship(root)
    return root


def ship(root: Path) -> None:
    resetting.write_manifest(root=root)
    shipped.snapshot(root=root)


def read(root: Path, lab: str = "00_start") -> dict:
    return json.loads(own_copies.path_of(lab, root=root).read_text(encoding="utf-8"))


def solve(root: Path, lab: str = "00_start") -> bytes:
    """What a learner does: another text, an output, saved by JupyterLab."""
    notebook = nbformat.read(own_copies.path_of(lab, root=root), 4)
    notebook.cells[1].source = "6 * 7"
    notebook.cells[1].outputs = [new_output("execute_result", {"text/plain": "42"}, execution_count=3)]
    nbformat.write(notebook, own_copies.path_of(lab, root=root))
    return own_copies.path_of(lab, root=root).read_bytes()


def test_copies_have_no_outputs_and_point_to_the_edition_with_outputs(root):
    before = {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()}
    said = str(own_copies.provide(root=root))
    assert said == "your own copies of 2 labs: in work/"
    opening, code = read(root)["cells"]
    assert code["outputs"] == [] and code["execution_count"] is None
    text = "".join(opening["source"])
    assert text.startswith("# Why?\n\nPredict.\n\n*This copy is yours:") and "H100" not in text
    assert "(../notebooks/00_start.ipynb)" in text
    assert {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()} == before


def test_a_copy_is_written_as_jupyter_writes_it(root):
    own_copies.provide(root=root)
    path = own_copies.path_of("00_start", root=root)
    before = path.read_bytes()
    nbformat.write(nbformat.read(path, 4), path)
    assert path.read_bytes() == before
    assert {"codemirror_mode", "nbconvert_exporter", "pygments_lexer", "version"} <= set(
        read(root)["metadata"]["language_info"]
    )


def test_nothing_of_a_learner_is_overwritten(root):
    own_copies.provide(root=root)
    mine = solve(root)
    assert str(own_copies.provide(root=root)) == ""
    put(root, "00_start", "new = 1")
    ship(root)
    assert str(own_copies.provide(root=root)) == (
        "newer than your copies: 00_start; `python3 -m labsupport reset 00` fetches one and keeps yours in work/kept/"
    )
    assert own_copies.path_of("00_start", root=root).read_bytes() == mine
    assert own_copies.newer(root=root) == ["00_start"]
    said = resetting.reset("00", root=root)
    [kept] = (root / "work").glob("kept/*/00_start.ipynb")
    assert kept.read_bytes() == mine and kept.relative_to(root).as_posix() in said
    assert read(root)["cells"][1]["source"] == ["new = 1"] and own_copies.newer(root=root) == []


def test_an_unused_copy_follows_the_shipped_lab(root):
    own_copies.provide(root=root)
    put(root, "01_more", "new = 1")
    ship(root)
    assert str(own_copies.provide(root=root)) == "newer now, and you had not used them yet: 01_more"
    assert read(root, "01_more")["cells"][1]["source"] == ["new = 1"]


def test_a_copy_that_was_only_run_is_the_learners_too(root):
    own_copies.provide(root=root)
    path = own_copies.path_of("00_start", root=root)
    ran = read(root)
    ran["cells"][1]["execution_count"] = 1
    path.write_text(json.dumps(ran), encoding="utf-8")
    mine = path.read_bytes()
    put(root, "00_start", "new = 1")
    ship(root)
    assert own_copies.provide(root=root).newer == ["00_start"] and path.read_bytes() == mine


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cells": [{}], "metadata": {}}', b"\xff"])
def test_what_cannot_be_read_stays_too(root, content):
    own_copies.provide(root=root)
    own_copies.path_of("00_start", root=root).write_bytes(content)
    put(root, "00_start", "new = 1")
    ship(root)
    assert str(own_copies.provide(root=root)) == ""
    assert own_copies.path_of("00_start", root=root).read_bytes() == content
    resetting.reset("00", root=root)
    assert [path.read_bytes() for path in (root / "work").glob("kept/*/*.ipynb")] == [content]


def test_a_new_output_alone_makes_no_newer_lab(root):
    own_copies.provide(root=root)
    solve(root)
    put(root, "00_start", said=LAPTOP)
    ship(root)
    assert own_copies.provide(root=root).newer == []


def test_work_in_the_old_place_is_taken_along(root):
    put(root, "00_start", "mine = 1")
    assert own_copies.provide(root=root).adopted == ["00_start"]
    code = read(root)["cells"][1]
    assert code["source"] == ["mine = 1"] and code["outputs"]
    assert own_copies.newer(root=root) == []


def test_a_folder_that_cannot_be_made_is_said(root):
    (root / "work").write_text("a file")
    with pytest.raises(LabError, match="your copies in .*work cannot be made .*; make that folder writable"):
        own_copies.provide(root=root)
    folder, said = own_copies.folder_to_open(root=root)
    assert folder == "notebooks" and said.endswith("The shipped notebooks are opened; save yours under other names")


def test_copies_that_became_read_only_are_opened_and_the_learner_is_told(root, monkeypatch):
    assert own_copies.folder_to_open(root=root) == ("work", "your own copies of 2 labs: in work/")
    monkeypatch.setattr(own_copies.os, "access", lambda path, mode: False)
    folder, said = own_copies.folder_to_open(root=root)
    assert folder == "work" and said == "work/ cannot be written now, so nothing that you change there can be saved"


def test_two_at_once_make_one_copy(root, monkeypatch):
    link = os.link

    def later(part, target):
        Path(target).write_text("the other one's")
        link(part, target)

    monkeypatch.setattr(own_copies.os, "link", later)
    own_copies.provide(root=root)
    assert own_copies.path_of("00_start", root=root).read_text() == "the other one's"


def test_a_file_system_without_links(root, monkeypatch):
    def none(part, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(own_copies.os, "link", none)
    own_copies.provide(root=root)
    assert read(root)["cells"]


def test_progress_names_newer_labs(root, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(root / "progress.json"))
    monkeypatch.setattr(progress, "ROOT", root)
    own_copies.provide(root=root)
    solve(root)
    assert "newer than your copies" not in progress_report.report()
    put(root, "00_start", "new = 1")
    ship(root)
    assert progress_report.report().splitlines()[-1].startswith("newer than your copies: 00_start; `python3 -m")


def test_the_first_cell_says_where_outputs_come_from(root):
    first = json.loads((root / "notebooks" / "00_start.ipynb").read_bytes())["cells"][0]
    said = "".join(first["source"]).splitlines()[-1]
    assert said.startswith(
        "*The outputs stored in this notebook come from one run on an NVIDIA H100 with TensorRT 8.6.0, "
    )
    assert said.endswith(". Times on your machine differ.*")


def test_the_sentence_follows_the_outputs():
    notebook = new_notebook(cells=[new_markdown_cell("# Why?"), new_code_cell("1")])
    with pytest.raises(BadInput, match="no stored output shows the machine"):
        editions.with_origin(notebook, day="2026-11-30")
    for said, day, words in (
        (H100, "2026-11-22", "on an NVIDIA H100 with TensorRT 8.6.0, on 22 November 2026."),
        (H100, "2026-11-30", "on an NVIDIA H100 with TensorRT 8.6.0, on 22 November 2026."),  # the same outputs
        (LAPTOP, "2026-12-01", "a GPU (Intel(R) Xeon(R) Processor) with ONNX Runtime 1.23.2, on 1 December 2026."),
    ):
        notebook.cells[1].outputs = [new_output("stream", text=said)]
        notebook = editions.with_origin(notebook, day=day)
        assert notebook.cells[0].source.count("\n\n*The outputs") == 1
        assert words in notebook.cells[0].source == f"# Why?\n\n{editions.origin(notebook)}"
    notebook.cells[1].outputs.append(new_output("stream", text="another\n"))
    with pytest.raises(BadInput, match="the day of these outputs is not noted"):
        editions.origin(notebook)
