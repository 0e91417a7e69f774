"""How `test` spreads its work, what it says beforehand, and what it leaves out where files run side by side."""

from __future__ import annotations

import json
import os
import time

import pytest

from labsupport import recordings
from labsupport.command_line import testing


@pytest.fixture
def cores(monkeypatch):
    def there(number):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(number)), raising=False)

    there(2)
    return there


def test_files_share_the_cores_up_to_four(cores):
    assert testing.workers([], alone=False, gpu=False) == 2
    cores(1)
    assert testing.workers([], alone=False, gpu=False) == 1
    cores(64)
    assert testing.workers([], alone=False, gpu=False) == 4


@pytest.mark.parametrize("rest", [["-n", "3"], ["-n0"], ["--dist=no"], ["--dist", "load"], ["-p", "no:xdist"]])
def test_who_chooses_processes_is_left_alone(cores, rest):
    assert testing.workers(rest, alone=False, gpu=False) == 1
    assert "loadfile" not in testing.command(rest)


def test_timings_get_the_machine_for_themselves(cores, monkeypatch):
    assert testing.workers([], alone=True, gpu=False) == 1
    assert testing.workers([], alone=False, gpu=True) == 1
    monkeypatch.setattr(testing.importlib.util, "find_spec", lambda name: None)  # no pytest-xdist
    assert testing.workers([], alone=False, gpu=False) == 1


def test_a_file_stays_in_one_process_and_the_quick_ones_leave_notebooks_out():
    command = testing.command([], at_once=3)
    assert command[command.index("-n") :][:4] == ["-n", "3", "--dist", "loadfile"]
    assert command[-2:] == ["tests", "notebooks"]
    quick = testing.command([], fast=True)
    assert quick[quick.index("not slow") - 1] == "-m" and quick[-1] == "tests" and "notebooks" not in quick


def test_the_plan_counts_notebooks_and_estimates_from_what_is_recorded(tmp_path, monkeypatch):
    for folder in ("notebooks", "data/recordings/cpu-ort1.31", "data/recordings/h100-trt8.6"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("00_a", "01_b"):
        (tmp_path / f"notebooks/{name}.ipynb").write_text("{}")
        metrics = {"metrics": {"lab.seconds": {"value": 90.0}}}
        (tmp_path / f"data/recordings/cpu-ort1.31/{name}.json").write_text(json.dumps(metrics))
    (tmp_path / "data/recordings/h100-trt8.6/00_a.json").write_text(json.dumps({"metrics": {}}))
    (tmp_path / "data/recordings/cpu-ort1.31/02_c.json").write_text("no JSON")
    monkeypatch.setattr(testing, "REPOSITORY", tmp_path)
    monkeypatch.setattr(testing, "LAST_RUN", tmp_path / ".labcache/test_seconds.json")
    said = testing.plan([], fast=False, at_once=2)
    assert said.startswith("testing all unit tests and 2 notebooks, 2 files at once: about 4 min")  # (300 + 180) / 2
    testing.note(time.monotonic() - 200, fast=False, at_once=2)
    assert testing.plan([], fast=False, at_once=2).endswith("the last such run here took 3 min")
    assert "one file at a time: about 2 min" in testing.plan(["-x"], fast=True, at_once=1)  # of another kind of run
    assert testing.plan(["-k", "fusion"], fast=False, at_once=2) == ""


def test_a_note_that_cannot_be_kept_fails_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(testing, "LAST_RUN", tmp_path / "file" / "test_seconds.json")
    testing.note(time.monotonic(), fast=False, at_once=1)
    assert testing._last_runs() == {}


def test_speeds_are_judged_alone_and_answers_always(tmp_path):
    metric = {"value": 9.0, "unit": "×", "samples": 1, "spread": None}
    answer = {"value": 0.1, "unit": "fraction", "samples": 1, "spread": None}
    live = {"metrics": {"a.fast_over_slow": metric, "a.accuracy": answer}}
    (tmp_path / "live").mkdir()
    (tmp_path / "live/00_a.json").write_text(json.dumps(live))
    bands = {"*": {"a.fast_over_slow": [1, 2], "a.accuracy": [0.9, 1.0]}}
    (tmp_path / "bands.json").write_text(json.dumps(bands))
    alone = recordings.check_live(tmp_path / "live", tmp_path)
    beside = recordings.check_live(tmp_path / "live", tmp_path, speeds=False)
    assert [said.split(" is ")[0].rpartition(": ")[2] for said in alone] == ["a.fast_over_slow", "a.accuracy"]
    assert len(beside) == 1 and "a.accuracy is 0.1" in beside[0]
