"""tools/record_all.py on a made-up tree, with steps that are one line of Python; and each real manifest against this tree."""

from __future__ import annotations

import json
import multiprocessing
import sys
import tarfile
import time
from pathlib import Path

import pytest
from tool_scripts import tool_script

from labsupport import files
from tools import recording_manifest

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDING = "data/recordings/h200-trt8.6/{}.json"


@pytest.fixture
def tool():
    return tool_script("record_all")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("labsupport", "notebooks", "tools", "data/recordings/h200-trt8.6"):
        (root / name).mkdir(parents=True)
    (root / "labsupport" / "module.py").write_text("one = 1\n")
    notebook = {"cells": [{"cell_type": "code", "source": ["1 + 1"], "outputs": []}]}
    (root / "notebooks" / "05_precision.ipynb").write_text(json.dumps(notebook))
    return root


def step(tool, root: Path, name: str, source: str, limit_s: float = 20):
    (root / "tools" / f"{name}.py").write_text(source)
    return tool.Step(name, (f"tools/{name}.py",), "05_precision", limit_s)


def writing(name: str, text: str = "measured") -> str:
    return f"open({RECORDING.format(name)!r}, 'w').write({json.dumps({'it': text})!r})"


def record(tool, tmp_path, root, steps, *words) -> int:
    return tool.main(["--folder", str(tmp_path / "kept"), "--commit", "c1", *words], tuple(steps), root)


def state(tmp_path) -> dict:
    content = json.loads((tmp_path / "kept" / "state.json").read_text())
    assert files.whole(content)
    return {name: entry for name, entry in content.items() if name != files.SEAL}


def test_what_is_done_is_kept_and_not_done_again(tool, tmp_path, tree, capsys):
    steps = [
        step(tool, tree, "a", writing("a")),
        step(tool, tree, "b", writing("b") + "; raise SystemExit('no memory')"),
    ]
    assert record(tool, tmp_path, tree, steps) == 1
    entries = state(tmp_path)
    assert entries["a"]["outcome"] == "ok" and list(entries["a"]["files"]) == [RECORDING.format("a")]
    assert entries["b"]["outcome"] == "failed" and entries["b"]["last_lines"] == ["no memory"]
    assert list(entries["b"]["files"]) == [RECORDING.format("b")], "what a failed step stored is kept, too"
    assert "tried again with --again: b" in capsys.readouterr().out
    (tree / "tools" / "c.py").write_text("raise SystemExit('must not run')")
    assert record(tool, tmp_path, tree, steps) == 1 and state(tmp_path) == entries
    assert record(tool, tmp_path, tree, steps, "--again") == 1 and state(tmp_path)["a"] == entries["a"]


def test_changed_code_is_recorded_anew(tool, tmp_path, tree):
    steps = [step(tool, tree, "a", writing("a"))]
    book = tool.Book(tmp_path / "kept", tree, "c1")
    assert book.waits(steps[0])
    record(tool, tmp_path, tree, steps, "a")
    book = tool.Book(tmp_path / "kept", tree, "c1")
    assert not book.waits(steps[0])
    (tree / "labsupport" / "module.py").write_text("one = 2\n")
    assert book.waits(steps[0])


def test_a_tree_laid_anew_gets_the_results_back(tool, tmp_path, tree):
    steps = [step(tool, tree, "a", writing("a"))]
    record(tool, tmp_path, tree, steps, "a")
    target = tree / RECORDING.format("a")
    target.write_text("as it was shipped")
    assert record(tool, tmp_path, tree, steps, "--apply") == 0
    assert json.loads(target.read_text()) == {"it": "measured"}


def test_a_notebook_with_other_code_keeps_its_outputs(tool, tmp_path, tree, capsys):
    notebook = tree / "notebooks" / "05_precision.ipynb"
    change = "import pathlib; p = pathlib.Path('notebooks/05_precision.ipynb'); p.write_text(p.read_text() + ' ')"
    record(tool, tmp_path, tree, [step(tool, tree, "a", change)], "a")
    other = notebook.read_text().replace("1 + 1", "1 + 2")
    notebook.write_text(other)
    record(tool, tmp_path, tree, [step(tool, tree, "a", change)], "--apply")
    assert notebook.read_text() == other
    assert "left, because the code of notebooks/05_precision.ipynb is another by now" in capsys.readouterr().out


@pytest.mark.parametrize("limit_s, minutes, outcome", [(1, 9, "failed"), (60, 0.52, "cut off")])
def test_a_step_that_does_not_end_is_stopped(tool, tmp_path, tree, limit_s, minutes, outcome):
    steps = [step(tool, tree, "a", "import time; time.sleep(60)", limit_s)]
    assert record(tool, tmp_path, tree, steps, "--minutes", str(minutes)) == (1 if outcome == "failed" else 3)
    entry = state(tmp_path)["a"]
    assert entry["outcome"] == outcome and entry["seconds"] < 10
    longer = 1.5 if outcome == "cut off" else 1  # it would have gone on
    assert tool.Book(tmp_path / "kept", tree).expected_s(steps[0]) == longer * entry["seconds"]


def test_no_step_begins_that_does_not_fit(tool, tmp_path, tree, capsys):
    steps = [step(tool, tree, "a", writing("a")), step(tool, tree, "b", writing("b"), 500)]
    assert record(tool, tmp_path, tree, steps, "--minutes", "1") == 3
    assert list(state(tmp_path)) == ["a"]
    assert "call 1:\n  b                              250 s" in capsys.readouterr().out


def test_the_plan_fills_calls_in_order(tool, tmp_path, tree):
    steps = [step(tool, tree, name, "", limit_s) for name, limit_s in (("a", 400), ("b", 300), ("c", 900), ("d", 60))]
    book = tool.Book(tmp_path / "kept", tree)
    calls = [call.split() for call in tool.planned(steps, book, 9).split("call ")[1:]]
    assert [[word for word in call if word in "abcd"] for call in calls] == [["a", "b"], ["c", "d"]]


def test_a_recorded_time_is_the_estimate(tool, tmp_path, tree):
    metrics = {"metrics": {"lab.seconds": {"value": 128.0}}}
    (tree / RECORDING.format("05_precision")).write_text(json.dumps(metrics))
    assert tool.Book(tmp_path / "kept", tree).expected_s(tool._lab("05_precision")) == 128


def test_fresh_takes_older_recordings_away(tool, tmp_path, tree):
    old, other = tree / RECORDING.format("old"), tree / "data/recordings/h100-trt8.6/old.json"
    other.parent.mkdir()
    record(tool, tmp_path, tree, [step(tool, tree, "a", writing("a"))], "a")
    old.write_text("{}")
    other.write_text("{}")
    record(tool, tmp_path, tree, [step(tool, tree, "a", writing("a"))], "--apply", "--fresh")
    assert not old.exists() and other.exists() and (tree / RECORDING.format("a")).exists()


def test_the_archive_has_what_goes_home(tool, tmp_path, tree):
    executed = tmp_path / "kept" / "executed"
    executed.mkdir(parents=True)
    for name in ("a", "b"):
        (executed / f"{name}.ipynb").write_text("{}")
    steps = [step(tool, tree, "a", writing("a")), step(tool, tree, "b", "raise SystemExit(1)")]
    record(tool, tmp_path, tree, steps, "--pack", str(tmp_path / "all.tgz"))
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert sorted(archive.getnames()) == sorted(
            ["a.log", "b.log", "executed/b.ipynb", "state.json", f"tree/{RECORDING.format('a')}"]
        )


def test_a_call_that_is_ended_ends_its_step_and_has_packed_the_one_before(tool, tmp_path, tree):
    mark = tmp_path / "alive"
    slow = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(mark)!r}).write_text(str(time.time()))\n    time.sleep(0.05)"
    steps = [step(tool, tree, "a", writing("a")), step(tool, tree, "b", slow)]
    words = ["--folder", str(tmp_path / "kept"), "--commit", "c1", "--pack", str(tmp_path / "all.tgz")]
    child = multiprocessing.get_context("fork").Process(target=tool.main, args=(words, tuple(steps), tree))
    child.start()
    while not mark.exists() and child.is_alive():
        time.sleep(0.05)
    child.terminate()
    child.join(20)
    assert child.exitcode == 143
    last = mark.read_text()
    time.sleep(0.3)
    assert mark.read_text() == last, "the step goes on"
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert f"tree/{RECORDING.format('a')}" in archive.getnames()


def test_a_damaged_state_is_said(tool, tmp_path, tree):
    record(tool, tmp_path, tree, [step(tool, tree, "a", writing("a"))], "a")
    path = tmp_path / "kept" / "state.json"
    path.write_text(path.read_text().replace('"ok"', '"failed"'))
    with pytest.raises(SystemExit, match="state.json is damaged; delete it"):
        tool.Book(tmp_path / "kept", tree)


def test_an_unknown_step_is_said(tool, tmp_path, tree):
    with pytest.raises(SystemExit, match="no step is called 77; --plan lists them"):
        record(tool, tmp_path, tree, [step(tool, tree, "a", "")], "77")


def test_the_last_call_writes_a_manifest_that_holds(tool, tmp_path, tree):
    steps = [step(tool, tree, "a", writing("a")), step(tool, tree, "b", writing("b"))]
    assert record(tool, tmp_path, tree, steps) == 0
    (path,) = (tree / "data" / "recordings").glob("manifest-*.json")
    names = ["a", "b"]
    assert recording_manifest.problems(path, tree, names) == []
    assert recording_manifest.problems(path, tree, [*names, "c"]) == ["c was not recorded"]
    (tree / RECORDING.format("a")).write_text("{}")
    (tree / RECORDING.format("b")).unlink()
    assert recording_manifest.problems(path, tree, names) == [
        f"{RECORDING.format('a')} was changed after it was recorded",
        f"{RECORDING.format('b')} is missing",
    ]


@pytest.mark.parametrize(
    "key, value, said", [("commit", "c2", "not of one commit: c1, c2"), ("changed", True, "changed")]
)
def test_a_manifest_of_two_states_is_refused(tool, tmp_path, tree, key, value, said):
    steps = [step(tool, tree, "a", writing("a"))]
    record(tool, tmp_path, tree, steps)
    (path,) = (tree / "data" / "recordings").glob("manifest-*.json")
    content = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps(content))
    assert recording_manifest.problems(path, tree, ["a"]) == [f"{path.name} was changed by hand"]
    del content[files.SEAL]
    path.write_text(json.dumps(files.sealed(content)))
    (problem,) = recording_manifest.problems(path, tree, ["a"])
    assert said in problem


def test_every_tool_and_lab_has_a_step(tool):
    labs = {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert {step.lab for step in tool.STEPS} == labs
    assert {step.name for step in tool.STEPS if step.words[0] == "-m"} == labs
    apart = {"record_lab09_gpus.py", "record_labB.py"}  # several GPUs; TensorFlow on a processor
    tools = {path.name for path in (REPOSITORY / "tools").glob("record_lab*.py")} - apart
    assert {Path(step.words[0]).name for step in tool.STEPS if step.words[0] != "-m"} == tools
    assert len({step.name for step in tool.STEPS}) == len(tool.STEPS)


def test_a_tool_runs_before_its_lab(tool):
    places = {step.name: place for place, step in enumerate(tool.STEPS)}
    for step in tool.STEPS:
        if step.words[0] != "-m":
            assert places[step.name] < places[step.lab], step.name


def test_each_manifest_of_this_tree_holds(tool):
    found = sorted((REPOSITORY / "data" / "recordings").glob("manifest-*.json"))
    if not found:
        pytest.skip("nothing was recorded whole yet: tools/record_all.py writes the manifest on a machine with a GPU")
    for path in found:
        assert recording_manifest.problems(path, REPOSITORY, [step.name for step in tool.STEPS]) == []


def test_it_runs_as_a_script(tmp_path):
    import subprocess

    command = [sys.executable, str(REPOSITORY / "tools" / "record_all.py"), "--plan", "--folder", str(tmp_path), "05"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0 and "record_lab05" in said.stdout and "05_precision" in said.stdout, said.stderr
