"""Headless execution, on four tiny notebooks with real kernels; recordings are faked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import nbformat
import pytest
from faces import stand_in
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labsupport import environment
from labsupport.command_line import running
from labsupport.command_line.running import LabRun
from labsupport.errors import BadInput, LabError


def notebook(*sources: str):
    cells = [new_markdown_cell("# Why?"), *(new_code_cell(source) for source in sources)]
    made = new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "a-kernel-nobody-has", "display_name": "x", "language": "python"}
    return made


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "notebooks"
    place.mkdir()
    return place


def put(folder, name: str, *sources: str):
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook(*sources), path)
    return path


@pytest.fixture
def names(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("00_start_here", "01_measuring", "A_mathematics"):
        put(folder, name)
    return lambda *asked: [path.stem for path in running.find(list(asked), folder)]


@pytest.mark.parametrize(
    "asked",
    [
        "01",
        "1",
        "01_measuring",
        "./01_measuring",
        "notebooks/01_measuring.ipynb",
        "notebooks/01_measuring",
        "01_measuring.ipynb",
    ],
)
def test_a_lab_is_found_by_number_name_and_path(names, asked):
    assert names(asked) == ["01_measuring"]


def test_a_path_is_found_from_other_folders(names, folder, monkeypatch):
    absolute = str(folder / "01_measuring.ipynb")
    (folder / "my_work").mkdir()
    monkeypatch.chdir(folder / "my_work")
    for asked in (absolute, "../01_measuring.ipynb", "notebooks/01_measuring.ipynb"):
        assert names(asked) == ["01_measuring"]


@pytest.mark.parametrize(
    "asked", ["mine/01_measuring.ipynb", "mine/01_measuring", "mine/01", "gone/01_measuring.ipynb", "01.ipynb"]
)
def test_a_path_to_another_notebook_never_runs_the_shipped_lab(names, folder, asked):
    (folder.parent / "mine").mkdir()
    put(folder.parent / "mine", "01_measuring")
    with pytest.raises(BadInput, match="'.*01.*' is not the path of a lab, .* in JupyterLab, or choose from: 00_start"):
        names(asked)


def test_a_copy_in_this_folder_is_not_taken_for_the_lab(names, folder, monkeypatch):
    (folder.parent / "mine").mkdir()
    put(folder.parent / "mine", "01_measuring")
    monkeypatch.chdir(folder.parent / "mine")
    with pytest.raises(BadInput, match="'01_measuring.ipynb' is not the path of a lab"):
        names("01_measuring.ipynb")


def test_zero_is_the_first_lab(names):
    assert names("0") == ["00_start_here"]


def test_no_name_means_all_and_a_name_twice_runs_once(names):
    assert names() == ["00_start_here", "01_measuring", "A_mathematics"]
    assert names("a", "00", "A_mathematics") == ["A_mathematics", "00_start_here"]


def test_an_unknown_lab_lists_the_labs(names):
    with pytest.raises(BadInput, match="'07' is not a lab; choose from: 00_start_here, 01_measuring, A_mathematics"):
        names("07")


def test_an_ambiguous_name(names, folder):
    put(folder, "01_more")
    with pytest.raises(BadInput, match="'01' is not one lab only"):
        names("01")


def test_no_notebooks_at_all(folder):
    with pytest.raises(BadInput, match="there is no notebook in .*complete clone"):
        running.find([], folder)


def test_good_and_failing_labs(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    put(
        folder,
        "00_good",
        "import os, sys, labsupport\nprint(os.path.basename(os.getcwd()), sys.executable)",
        "assert os.path.isdir(os.environ['LABSUPPORT_METRICS'])\n1 + 1",
    )
    bad = put(folder, "01_bad", "1", "raise ValueError('first\\nsecond')", "3")
    lines, before = [], bad.read_bytes()
    good, failed = running.run([], folder=folder, save=tmp_path / "out", echo=lines.append)
    assert good.ok and good.cell is None and good.runtime == environment.runtime_name()
    assert (failed.ok, failed.cell, failed.error) == (False, 2, "ValueError: first")
    assert lines == [good, failed]
    assert 'FAILED in cell [2], below "Why?": ValueError: first' in repr(failed)
    saved = nbformat.read(tmp_path / "out" / "00_good.ipynb", 4)
    assert saved.cells[1].outputs[0].text == f"notebooks {sys.executable}\n"
    assert bad.read_bytes() == before


def test_a_failing_cell_is_named_with_the_question_above_it(folder):
    path = put(folder, "00_bad", "", "1", "no_such_name", "3")
    content = nbformat.read(path, 4)
    content.cells.insert(3, new_markdown_cell("Words.\n\n### Exercise: half the bits\n\nMore words."))
    content.cells.insert(5, new_markdown_cell("## Later"))
    nbformat.write(content, path)
    (failed,) = running.run([], folder=folder, echo=None)
    assert 'FAILED in cell [2], below "Exercise: half the bits": NameError: name' in repr(failed)


@pytest.mark.skipif(sys.platform == "win32", reason="a console sends Ctrl-C there")
def test_ctrl_c_ends_the_whole_run(folder):
    put(folder, "00_long", "open('started', 'w').close()\nimport time\nfor _ in range(60): time.sleep(1)")
    put(folder, "01_never", "open('never', 'w').close()")
    code = f"from pathlib import Path; from labsupport.command_line import running; running.run([], folder=Path({str(folder)!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "started").exists() and child.poll() is None:
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert said.rstrip().endswith("KeyboardInterrupt") and not (folder / "never").exists()


def test_a_dead_kernel_is_noticed_and_the_next_lab_runs(folder):
    put(folder, "00_dead", "import sys, os; print('no tactic left', file=sys.__stderr__, flush=True); os._exit(9)")
    put(folder, "01_alive", "1")
    dead, alive = running.run([], folder=folder, echo=None, timeout_s=60)
    assert dead.error.startswith("DeadKernel: the kernel died (a crash in native code, or out of memory)")
    assert (dead.cell, alive.ok) == (1, True)


def test_an_endless_cell_is_stopped(folder):
    put(folder, "00_endless", "while True: pass")
    (only,) = running.run([], folder=folder, echo=None, timeout_s=1)
    assert only.error == "Timeout: the cell ran longer than 1 s"


@pytest.mark.parametrize(
    "text", ['{"cells": [', "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}']
)
def test_a_file_that_is_no_notebook_fails_its_lab_only(folder, tmp_path, text):
    (folder / "00_torn.ipynb").write_text(text)
    put(folder, "01_good", "1")
    lines = []
    torn, good = running.run([], folder=folder, save=tmp_path / "out", echo=lines.append)
    assert (torn.ok, torn.cell, good.ok) == (False, None, True)
    assert re.match("BadInput: .*00_torn.ipynb is not a notebook .*; restore it with: .* reset 00_torn", torn.error)
    assert lines == [torn, good]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["01_good.ipynb"]


def test_a_full_disk_under_save_fails_its_lab_only(folder, tmp_path, monkeypatch):
    put(folder, "00_big", "1 / 0")
    put(folder, "01_big", "1")
    put(folder, "02_small", "1")
    real = os.replace

    def full(source, target):
        if "_big" in str(target):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(running.os, "replace", full)
    failed, big, small = running.run([], folder=folder, save=tmp_path / "out", echo=None)
    assert (failed.cell, failed.ok, big.ok, small.ok) == (1, False, False, True)
    assert re.match("LabError: .*01_big.ipynb cannot be written .No space left", big.error)
    assert re.match("ZeroDivisionError: division by zero; LabError: .* cannot be written", failed.error)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["02_small.ipynb"]


@pytest.mark.parametrize("name", ["notebooks", "notebooks/../notebooks", "link"])
def test_the_notebooks_folder_is_no_place_to_save(folder, tmp_path, name):
    path = put(folder, "00_good", "1")
    before = path.read_bytes()
    if name == "link":
        try:
            (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        except OSError:
            pytest.skip("this system makes no links for this user")
    with pytest.raises(BadInput, match="--save .* is the folder of the notebooks themselves, .*; name another folder"):
        running.run([], folder=folder, echo=None, save=tmp_path / name)
    assert path.read_bytes() == before


def test_a_save_folder_that_cannot_be(folder, tmp_path):
    put(folder, "00_good", "1")
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="--save .* cannot be written .*; name another folder"):
        running.run([], folder=folder, echo=None, save=tmp_path / "file" / "out")


# --- record ---


@pytest.fixture
def recorded(monkeypatch):
    class Calls(list):
        pass

    calls = Calls()
    calls.manifests = []  # how many labs were recorded before each; the repository's own list stays as it is
    module = types.ModuleType("labsupport.recordings")
    module.store = lambda lab, metrics, **more: calls.append((lab, os.listdir(metrics), more))
    monkeypatch.setitem(sys.modules, "labsupport.recordings", module)
    monkeypatch.setattr(sys.modules["labsupport"], "recordings", module, raising=False)
    monkeypatch.setattr("labsupport.exercises.resetting.write_manifest", lambda: calls.manifests.append(len(calls)))
    return calls


def test_record_on_a_gpu_stores_outputs_and_metrics(folder, recorded, monkeypatch):
    stand_in(monkeypatch, environment, "has", lambda *needs: True)
    stand_in(monkeypatch, environment, "runtime_name", lambda: "TensorRT 8.6.0")
    good = put(folder, "00_good", "import os; open(os.environ['LABSUPPORT_METRICS'] + '/m.json', 'w').close()", "6 * 7")
    bad = put(folder, "01_bad", "1 / 0")
    before = bad.read_bytes()
    results = running.run([], folder=folder, store=True, echo=None)
    assert [result.ok for result in results] == [True, False]
    stored = nbformat.read(good, 4)
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == [1, 2]
    assert stored.cells[2].outputs[0].data["text/plain"] == "42"
    assert stored.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert bad.read_bytes() == before
    assert [(lab, files) for lab, files, _ in recorded] == [("00_good", ["m.json"])]
    assert recorded.manifests == [1]
    assert recorded[0][2] == {"command": "python3 -m labsupport record 00_good", "seconds": results[0].seconds}


def test_a_list_that_cannot_be_renewed_loses_no_result(folder, recorded, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labsupport.exercises.resetting.write_manifest", full)
    stand_in(monkeypatch, environment, "has", lambda *needs: True)
    stand_in(monkeypatch, environment, "runtime_name", lambda: "TensorRT 8.6.0")
    put(folder, "00_good", "1")
    lines = []
    (only,) = running.run([], folder=folder, store=True, echo=lines.append)
    assert not only.ok
    assert re.match("LabError: the list of shipped notebooks could not be renewed .OSError: .*--write", only.error)
    assert only.error.endswith(lines[-1])


@pytest.fixture
def no_gpu(monkeypatch):
    stand_in(monkeypatch, environment, "has", lambda *needs: False)
    stand_in(monkeypatch, environment, "why_not", lambda *needs: "no GPU can be used here")
    stand_in(monkeypatch, environment, "runtime_name", lambda: "ONNX Runtime 1.31.1 (CPU)")


def test_record_without_a_gpu_writes_nothing_and_says_so(folder, recorded, no_gpu):
    path = put(folder, "00_good", "1")
    before, lines = path.read_bytes(), []
    running.run([], folder=folder, store=True, echo=lines.append)
    assert lines[0] == "nothing is stored (--processor does): no GPU can be used here"
    assert path.read_bytes() == before and recorded == [] and recorded.manifests == []


def test_record_of_a_processor_replaces_no_outputs_of_a_gpu(folder, recorded, no_gpu):
    lane = "print('This machine  {}')"
    ours, theirs = put(folder, "00_ours", lane.format("no GPU: ONNX Runtime executes")), put(folder, "01_gpu", "1")
    for path, words in ((ours, "no GPU: ONNX Runtime executes"), (theirs, "TensorRT 8.6.0 on NVIDIA H100")):
        stored = nbformat.read(path, 4)
        stored.cells[1].outputs = [nbformat.v4.new_output("stream", text=f"This machine  {words}\n")]
        nbformat.write(stored, path)
    before, lines = theirs.read_bytes(), []
    running.run([], folder=folder, store=True, processor=True, echo=lines.append)
    assert lines[0] == "outputs from a GPU stay as they are: no GPU can be used here"
    assert [lab for lab, _, _ in recorded] == ["00_ours", "01_gpu"] and recorded.manifests == [2]
    assert nbformat.read(ours, 4).cells[1].execution_count == 1 and theirs.read_bytes() == before


def test_a_learners_copy_is_run_by_its_path_and_never_recorded(folder, recorded, monkeypatch):
    put(folder, "00_good", "1 / 0")
    (folder.parent / "work").mkdir()
    mine = put(folder.parent / "work", "00_good", "1")
    monkeypatch.chdir(folder.parent)
    (only,) = running.run(["work/00_good.ipynb"], folder=folder, echo=None)
    assert only.ok and only.lab == "work/00_good"
    with pytest.raises(BadInput, match="00_good.ipynb is your own copy, and record stores the shipped labs; `run`"):
        running.run([str(mine)], folder=folder, store=True, echo=None)
    (shipped,) = running.run(["00"], folder=folder, echo=None)
    assert not shipped.ok and shipped.lab == "00_good"


def test_a_recording_that_is_refused_fails_its_lab_only(folder, recorded, monkeypatch):
    def refuse(lab, metrics, **more):
        raise LabError("resnet18 left its band")

    sys.modules["labsupport.recordings"].store = refuse
    stand_in(monkeypatch, environment, "has", lambda *needs: True)
    stand_in(monkeypatch, environment, "runtime_name", lambda: "TensorRT 8.6.0")
    path = put(folder, "00_good", "1")
    before = path.read_bytes()
    (only,) = running.run([], folder=folder, store=True, echo=None)
    assert (only.ok, only.error) == (False, "LabError: resnet18 left its band")
    assert "FAILED: LabError" in repr(only)
    assert path.read_bytes() == before


def test_normalized_drops_what_belongs_to_the_machine():
    made = notebook("1", "", "2")
    for count, cell in zip((5, 6, 9), made.cells[1:]):
        cell.execution_count = count
        cell.metadata.execution = {"iopub.execute_input": "2026-11-22T10:00:00"}
    made.cells[3].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=9)]
    made.metadata.widgets = {"state": {}}
    made.metadata.language_info = {"name": "python", "version": "3.10.13"}
    clean = running.normalized(made)
    assert [cell.execution_count for cell in clean.cells[1:]] == [1, 6, 2]
    assert clean.cells[3].outputs[0].execution_count == 2
    assert "execution" not in clean.cells[1].metadata and "widgets" not in clean.metadata
    assert "version" not in clean.metadata.language_info
    assert made.cells[1].execution_count == 5


def test_a_failed_write_leaves_the_former_notebook(folder, monkeypatch):
    path = put(folder, "00_good", "1")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.os, "fsync", full)
    with pytest.raises(LabError, match="00_good.ipynb cannot be written .No space left on device.; what was there"):
        running.write(notebook("2"), path)
    assert path.read_bytes() == before
    assert [file.name for file in folder.iterdir()] == ["00_good.ipynb"]


def test_a_result_reads_aloud_and_serializes():
    result = LabRun("01_measuring", True, 12.34, "ONNX Runtime 1.31.1 (CPU)")
    assert repr(result) == "01_measuring             ok  12.3 s  ONNX Runtime 1.31.1 (CPU)"
    assert json.loads(json.dumps(result.as_dict()))["seconds"] == 12.34


def test_a_result_names_the_cells_that_make_a_lab_long():
    result = LabRun("01_measuring", True, 80.0, "a runtime", slowest=((9, 61.2), (4, 7.5), (2, 0.3)))
    assert repr(result).endswith("a runtime  (longest cells: [9] 61 s, [4] 8 s)")


def test_the_time_of_each_cell_is_taken(folder, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    put(folder, "00_cells", "1", "import time; time.sleep(1.5)", "2", "3", "4")
    (only,) = running.run([], folder=folder, echo=None)
    assert len(only.slowest) == 3 and only.slowest[0][0] == 2
    assert [seconds for _, seconds in only.slowest] == sorted((seconds for _, seconds in only.slowest), reverse=True)
