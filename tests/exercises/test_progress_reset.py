"""The progress file survives what happens to files; reset gives a notebook back and keeps the learner's copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labsupport import files
from labsupport.errors import BadInput, LabError
from labsupport.exercises import progress, progress_report, resetting, shipped

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = {
    "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Títle"}],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "kept" / "progress.json"))
    monkeypatch.setattr(progress, "_told", set())
    return tmp_path / "kept" / "progress.json"


def outcome_in(file: Path, exercise: str = "spot") -> str:
    return json.loads(file.read_text(encoding="utf-8"))["labs"]["01_measuring"][exercise]["outcome"]


def test_outcomes_are_kept_and_right_stays(file):
    for outcome, kept in [
        ("not attempted", "not attempted"),
        ("wrong", "wrong"),
        ("not attempted", "wrong"),
        ("right", "right"),
        ("wrong", "right"),
    ]:
        assert progress.record("01_measuring", "spot", outcome) == ""
        assert outcome_in(file) == kept
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".part"] == []


def test_a_headless_run_writes_nothing(monkeypatch):
    monkeypatch.delenv("LABSUPPORT_PROGRESS", raising=False)
    assert progress.path() is None and progress.record("01", "x", "right") == "" and progress.load() == {}
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert progress.path() == ROOT / ".labprogress.json"
    monkeypatch.setenv("LABSUPPORT_METRICS", "somewhere")
    assert progress.path() is None


@pytest.mark.parametrize(
    "damage", [b"", b'{"version": 1, "labs": {"01', b"[]", b'{"labs": 3}', b"\xff\xfe", b"[" * 10**5]
)
def test_a_damaged_file_is_moved_aside_and_told_once(file, damage):
    file.parent.mkdir()
    file.write_bytes(damage)
    assert "is damaged" in progress_report.report()
    assert "damaged; it is kept as progress.damaged-" in progress.record("01_measuring", "spot", "right")
    assert outcome_in(file) == "right"
    [aside] = file.parent.glob("progress.damaged-*.json")
    assert aside.read_bytes() == damage
    file.write_bytes(damage)
    assert progress.record("01_measuring", "spot", "right") == ""


def test_entries_of_the_wrong_kind_are_left_out(file):
    file.parent.mkdir()
    file.write_text('{"labs": {"01": 3, "02": {"x": 4, "y": {"outcome": ["odd"], "prediction": "no"}}}}')
    assert "prediction" not in progress.noted("02", "y")
    assert progress.record("02", "y", "wrong") == ""
    assert progress.load()["02"]["y"]["outcome"] == "wrong"


def test_an_unwritable_file_is_told_once_and_breaks_no_check(file):
    file.mkdir(parents=True)  # a folder in its place cannot be written, not even by root
    assert "your progress is not being saved" in progress.record("01_measuring", "spot", "right")
    assert progress.record("01_measuring", "spot", "right") == ""
    assert "cannot be read" in progress_report.report()


def test_a_full_disk_keeps_the_old_file(file, monkeypatch):
    progress.record("01_measuring", "spot", "wrong")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in progress.record("01_measuring", "spot", "right")
    assert outcome_in(file) == "wrong" and not list(file.parent.glob("*.part"))


def test_two_notebooks_at_once_lose_nothing(file):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: progress.record("01_measuring", f"e{n}", "right"), range(24)))
    assert len(progress.load()["01_measuring"]) == 24


def test_a_notebook_that_holds_the_file_for_long_loses_nothing_of_its_own(file, monkeypatch):
    assert progress.record("01_measuring", "spot", "right") == ""
    before = file.read_bytes()
    monkeypatch.setattr(progress, "PATIENCE_S", 0.1)
    with files.locked(file):
        said = progress.record("01_measuring", "spot", "wrong")
    assert "your progress is not being saved" in said and "could not be acquired" in said
    assert file.read_bytes() == before


def test_progress_works_without_filelock(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    assert progress.record("01_measuring", "spot", "right") == "" and outcome_in(file) == "right"


def test_the_report_lists_every_lab_before_anything_was_tried(file, tmp_path):
    for lab in ("01_measuring", "98_elsewhere", "A_mathematics"):
        (tmp_path / f"{lab}.ipynb").write_text("{}")
    text = progress_report.report(tmp_path)
    assert text.index("01_measuring") < text.index("98_elsewhere") < text.index("A_mathematics")
    assert "0 of" in text and "no exercises" in text


def test_the_report_counts(file, tmp_path):
    (tmp_path / "98_elsewhere.ipynb").write_text("{}")
    progress.record("98_elsewhere", "one", "right")
    progress.record("98_elsewhere", "two", "wrong")
    progress.record("98_elsewhere", "three", "not attempted")
    lines = progress_report.report(tmp_path).splitlines()
    assert lines[2].split()[:3] == ["98_elsewhere", "one", "right"] and lines[2].split()[3].startswith("20")
    assert lines[-1] == "1 of 3 exercises right, 1 wrong, 1 not attempted"


@pytest.mark.parametrize("outcome", [["right"], {"right": 1}, "splendid", 3, None, True])
def test_an_outcome_nobody_wrote_counts_as_not_attempted(file, tmp_path, outcome):
    file.parent.mkdir()
    file.write_text(json.dumps({"labs": {"98_elsewhere": {"one": {"outcome": outcome, "when": 5}}}}), encoding="utf-8")
    lines = progress_report.report(tmp_path).splitlines()
    assert lines[2].split() == ["98_elsewhere", "one", "not", "attempted"]
    assert lines[-1] == "0 of 1 exercises right, 0 wrong, 1 not attempted"


def git(root: Path, *arguments: str) -> None:
    subprocess.run(
        [
            "git",
            "-C",
            str(root),
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@example.org",
            "-c",
            "commit.gpgsign=false",
            *arguments,
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A workbook of two labs with a manifest, without git and without snapshots."""
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "workbook"
    (root / "notebooks").mkdir(parents=True)
    for lab in ("01_measuring", "02_build_and_run"):
        content = {**NOTEBOOK, "metadata": {"lab": lab}}
        (root / "notebooks" / f"{lab}.ipynb").write_text(json.dumps(content, indent=1), encoding="utf-8")
    resetting.write_manifest(root=root)
    return root


@pytest.fixture
def committed(root) -> Path:
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "shipped")
    return root


def lab(root: Path, name: str = "01_measuring") -> Path:
    return root / "notebooks" / f"{name}.ipynb"


def kept_copies(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((root / "work").glob("kept/*/*.ipynb"))]


DAMAGES = {"edited": b'{"cells": [], "mine": true}', "half-saved": b'{"cells": [', "empty": b"", "binary": b"\0\xff"}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("source", ["git", "snapshot"])
def test_reset_restores_one_lab_and_keeps_the_copy(root, damage, source, request):
    if source == "git":
        request.getfixturevalue("committed")
    else:
        assert shipped.snapshot(root=root) == ("01_measuring.ipynb", "02_build_and_run.ipynb")
    pristine, other = lab(root).read_bytes(), b"my other work"
    lab(root).write_bytes(damage)
    lab(root, "02_build_and_run").write_bytes(other)
    said = resetting.reset("01", root=root)
    assert lab(root).read_bytes() == pristine and kept_copies(root) == [damage]
    assert lab(root, "02_build_and_run").read_bytes() == other
    assert "01_measuring is as shipped again. Your copy is in work/kept/" in said and "progress is kept" in said
    assert not list((root / "notebooks").glob(".*.part"))


def test_reset_of_a_deleted_or_renamed_notebook(committed):
    lab(committed).rename(lab(committed, "mine"))
    pristine = lab(committed, "mine").read_bytes()
    assert "no copy to keep" in resetting.reset("01_measuring", root=committed)
    assert lab(committed).read_bytes() == pristine == lab(committed, "mine").read_bytes()


def test_an_untouched_notebook_is_left_alone_whatever_its_line_ends(committed):
    content = json.loads(lab(committed).read_bytes())
    lab(committed).write_bytes(json.dumps(content, indent=2).replace("\n", "\r\n").encode())
    assert "already is as shipped" in resetting.reset("1", root=committed)
    assert kept_copies(committed) == []


def test_reset_twice_keeps_both_copies(committed):
    for text in (b"first", b"second"):
        lab(committed).write_bytes(text)
        resetting.reset("01", root=committed)
    assert sorted(kept_copies(committed)) == [b"first", b"second"]


def test_a_learner_who_committed_the_edit_still_gets_the_shipped_one(committed):
    pristine = lab(committed).read_bytes()
    for text in (b'{"cells": [1]}', b'{"cells": [2]}'):
        lab(committed).write_bytes(text)
        git(committed, "commit", "-qam", "my edit")
    resetting.reset("01", root=committed)
    assert lab(committed).read_bytes() == pristine


@pytest.mark.parametrize("manifest", [None, b"{", b"[]"])
def test_a_lost_manifest_comes_from_git(committed, manifest):
    pristine = lab(committed).read_bytes()
    lab(committed).write_bytes(b"mine")
    where = committed / "notebooks" / shipped.MANIFEST
    where.unlink() if manifest is None else where.write_bytes(manifest)
    resetting.reset("01", root=committed)
    assert lab(committed).read_bytes() == pristine


def test_nothing_to_restore_from_is_said_and_changes_nothing(root):
    lab(root).write_bytes(b"mine")
    with pytest.raises(LabError, match="no shipped version of 01_measuring was found.*Download notebooks/01_measuring"):
        resetting.reset("01", root=root)
    assert lab(root).read_bytes() == b"mine" and kept_copies(root) == []


def test_a_damaged_snapshot_is_not_trusted(root):
    shipped.snapshot(root=root)
    [store] = root.parent.glob("cache/shipped/01*")
    store.write_bytes(b'{"cells": ["someone else"]}')
    lab(root).write_bytes(b"mine")
    with pytest.raises(LabError, match="no shipped version"):
        resetting.reset("01", root=root)


def test_a_snapshot_is_taken_only_of_what_is_as_shipped(root):
    lab(root).write_bytes(b'{"cells": []}')
    assert shipped.snapshot(root=root) == ("02_build_and_run.ipynb",)
    assert shipped.snapshot(root=root) == ()


def test_an_unwritable_cache_keeps_the_workbook_opening(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setenv("LABSUPPORT_CACHE", str(root / "file"))
    assert shipped.snapshot(root=root) == ()


def test_a_copy_that_cannot_be_moved_stays(committed, monkeypatch):
    lab(committed).write_bytes(b"mine")
    (committed / "work").write_text("a file where the folder should be")
    with pytest.raises(LabError, match="could not be restored"):
        resetting.reset("01", root=committed)
    assert lab(committed).read_bytes() == b"mine" and not list((committed / "notebooks").glob(".*.part"))


@pytest.mark.parametrize("name", ["03", "nonsense", "", "0", "../01_measuring_"])
def test_an_unknown_lab_is_refused_with_the_list(committed, name):
    with pytest.raises(BadInput, match=r"is not the name of a lab; choose one of \['01_measuring', '02_build"):
        resetting.reset(name, root=committed)


@pytest.mark.parametrize("name", ["01", "1", "01_measuring", "01_MEASURING.ipynb", "notebooks/01_measuring.ipynb"])
def test_names_of_a_lab(committed, name):
    assert "01_measuring already is as shipped" in resetting.reset(name, root=committed)


def test_the_manifest_is_up_to_date():
    """Authors: `python -m labsupport.exercises.resetting --write-manifest` after storing a notebook."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        pytest.skip("no notebook is shipped yet")
    own = shipped.worked_in()
    now = {file.name: shipped.content_hash(file.read_bytes()) for file in notebooks if file.name not in own}
    manifest = ROOT / "notebooks" / shipped.MANIFEST
    listed = json.loads(manifest.read_text()) if manifest.exists() else {}
    assert files.SEAL in listed and files.whole(listed)
    assert {name: text for name, text in listed.items() if name not in {*own, files.SEAL}} == now, (
        "notebooks/shipped.json is stale: run `python -m labsupport.exercises.resetting --write-manifest` "
        "(or, if you did not mean to change a lab, `python -m labsupport reset LAB`)"
    )


def test_a_notebook_somebody_worked_in_is_told_from_a_stale_manifest(committed):
    assert shipped.worked_in(root=committed) == []
    file = next((committed / "notebooks").glob("*.ipynb"))
    worked = json.loads(file.read_text())
    worked["metadata"]["mine"] = True
    file.write_text(json.dumps(worked))
    assert shipped.worked_in(root=committed) == [file.name]
    subprocess.run(
        ["git", "-C", str(committed), "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qam", "x"],
        check=True,
    )
    assert shipped.worked_in(root=committed) == [], "a committed notebook with a stale manifest is the author's fault"


def test_the_manifest_command_states_its_usage():
    ran = subprocess.run(
        [sys.executable, "-m", "labsupport.exercises.resetting"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 1 and "--write-manifest" in ran.stderr
