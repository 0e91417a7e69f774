"""The tool that records lab 08: choices on validation, reports on test, nothing lost when time or a worker ends."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest

from labsupport import data, distillation, recordings
from labsupport.errors import LabError
from labsupport.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
WORTH = {"alone": 0.70, "smoothed": 0.75, "taught": 0.76}


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("record_lab08", ROOT / "tools" / "record_lab08.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "record_lab08", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(module.elapsed, "STARTED", time.monotonic())
    return module


def told(job):
    """A made-up accuracy: that of the way, a little more for each seed, less for another setting than the chosen one."""
    off = sum(value is not None for value in (job.temperature, job.alpha, job.smoothing)) * 0.01
    return WORTH[job.way] + (0.02 * job.seed if job.way == "taught" and job.split == "test" else 0) - off


class AtOnce:
    """In place of the pool: every job is done when it is asked for."""

    def __init__(self, answer=told):
        self.answer, self.jobs = answer, []

    def submit(self, call, job):
        self.jobs.append(job)
        future = futures.Future()
        try:
            if (found := self.answer(job)) is not None:
                future.set_result(found)
        except Exception as error:
            future.set_exception(error)
        return future


def metrics(folder):
    file = folder / "08_distillation.json"
    return json.loads(file.read_text())["metrics"] if file.exists() else {}


def run(tool, pool, seconds=60.0):
    return tool.measure(tool.Bench(pool, tool.Size(), seconds), recordings.lab(tool.LAB))


def cells():
    content = json.loads((ROOT / "notebooks" / "08_distillation.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_every_subject_that_the_lab_replays_is_recorded(tool, tmp_path):
    assert run(tool, AtOnce()) == []
    asked = {
        name
        for source in cells()
        for call in re.findall(r"(?m)^told_by_tool\((.*)\)", source)
        for name in ast.literal_eval(f"({call},)")
    }
    assert len(asked) >= 10
    assert asked <= {name.split(".")[0] for name in metrics(tmp_path)}


def test_gains_are_means_over_seeds_with_their_deviation(tool, tmp_path):
    run(tool, AtOnce())
    found = metrics(tmp_path)
    gain, points = found["labels240.gain_points"], range(6, 46, 2)  # of 20 seeds
    assert gain["value"] == pytest.approx(25) and gain["samples"] == 20 and gain["unit"] == "points"
    assert gain["spread"] * gain["value"] == pytest.approx(np.std(points, ddof=1))
    assert found["wrong_labels240.gain_over_smoothing_points"]["value"] == pytest.approx(20)
    assert found["patient240.gain_points"]["samples"] == found["labels960.gain_points"]["samples"] == 3
    assert found["labels240.smoothing_gain_points"]["spread"] == pytest.approx(0)


def test_a_deviation_beside_a_mean_of_zero_is_left_out(tool, tmp_path):
    run(tool, AtOnce(lambda job: 0.5))
    gain = metrics(tmp_path)["labels240.gain_points"]
    assert gain["value"] == 0 and gain["spread"] is None


def test_what_is_chosen_is_chosen_on_validation_with_other_seeds(tool):
    pool = AtOnce()
    run(tool, pool)
    tried = [job for job in pool.jobs if job.split == "validation"]
    reported = [job for job in pool.jobs if job.split == "test"]
    assert not {job.seed for job in tried} & {job.seed for job in reported} and len(tried) + len(reported) == len(
        pool.jobs
    )
    assert all(
        job.temperature is job.alpha is job.smoothing is None and job.learning_rate == tool.LEARNING_RATE
        for job in reported
    )
    assert {job.alpha for job in tried if job.labels == "wrong_labels" and job.way == "taught"} == set(tool.ALPHAS)
    assert len(set(pool.jobs)) == len(pool.jobs), "a student was trained twice"


def test_the_chosen_settings_are_among_the_tried_ones_and_those_of_the_lab(tool):
    for chosen in tool.CHOSEN.values():
        assert (
            chosen["temperature"] in tool.TEMPERATURES
            and chosen["alpha"] in tool.ALPHAS
            and chosen["smoothing"] in tool.SMOOTHINGS
        )
    assert tool.LEARNING_RATE in tool.RATES and all(
        weight in tool.HINT_WEIGHTS[kind] for kind, weight in tool.HINTS.items()
    )
    source, clean = "\n".join(cells()), tool.CHOSEN["labels"]
    settings = f'{{"temperature": {clean["temperature"]}, "alpha": {clean["alpha"]}}}, {clean["smoothing"]}'
    assert f"chosen, smoothing = {settings}" in source
    assert 'budget = {"epochs": 45, "batch_size": 50, "learning_rate": 4e-2,' in source and tool.LEARNING_RATE == 4e-2


def test_when_the_time_is_over_what_was_known_stays(tool, tmp_path, capsys):
    pool = AtOnce(lambda job: None if job.split == "validation" else told(job))
    assert run(tool, pool, seconds=0.2) == []
    found = metrics(tmp_path)
    assert found["labels240.gain_points"]["samples"] == 20 and not [
        name for name in found if name.startswith(("validation", "patient"))
    ]
    assert "the time is over in validation_temperature" in capsys.readouterr().out
    assert all(future.done() for future in tool.Bench(pool, tool.Size(), 1).asked.values())


def test_jobs_that_nobody_has_begun_are_taken_back_when_the_time_is_over(tool):
    bench = tool.Bench(AtOnce(lambda job: None), tool.Size(), 0.1)
    tool.measure(bench, recordings.lab(tool.LAB))
    assert bench.asked and all(future.cancelled() for future in bench.asked.values())


def test_a_step_that_fails_is_told_and_the_others_go_on(tool, tmp_path, capsys):
    def fails(job):
        if job.labels == "wrong_labels" and job.split == "validation":
            raise LabError("the loss became nan")
        return told(job)

    assert run(tool, AtOnce(fails)) == ["validation_alpha_wrong", "validation_smoothing_wrong"]
    assert "validation_alpha_wrong failed: LabError: the loss became nan" in capsys.readouterr().out
    assert "hints_features.gain_over_soft_labels" in metrics(tmp_path)


def test_a_worker_that_dies_ends_the_recording_with_what_was_known(tool, tmp_path):
    def dies(job):
        if job.split == "validation":
            raise tool.BrokenProcessPool("a process was terminated")
        return told(job)

    assert run(tool, AtOnce(dies)) == ["validation_temperature and all after it"]
    assert metrics(tmp_path)["labels240.gain_points"]["samples"] == 20


def test_every_fourth_label_is_another_one_drawn_by_the_seed(tool):
    labels = np.arange(240, dtype=np.int64) % 15
    split = data.Split(np.zeros((240, 8, 8, 3), np.uint8), labels, tuple("abcdefghijklmno"))
    jobs = [tool.Job("alone", seed, "test", 240, 1, labels="wrong_labels") for seed in (0, 1)]
    first, second = (tool.mislabeled(split, job).labels for job in jobs)
    assert (np.flatnonzero(first != labels) == np.arange(0, 240, 4)).all() and (first != second).any()
    assert tool.mislabeled(split, tool.Job("alone", 0, "test", 240, 1)) is split and (split.labels == labels).all()


def test_the_workers_train_what_the_job_says(tool, monkeypatch, tmp_path):
    few = data.road_signs(16, per_class=10).train.take(30)
    large = distillation.staged_cnn(width=4, depth=2, seed=7)
    monkeypatch.setattr(tool, "_material", {})
    tool.hand_out(tmp_path / "material.npz", {"train": few, "validation": few, "test": few}, large)
    tool.prepare(tmp_path / "material.npz", few.classes, {"width": 4, "depth": 2})
    assert checkpoints.fingerprint(tool._material["teacher"]) == checkpoints.fingerprint(large)
    assert not tool._material["teacher"].training and not any(
        p.requires_grad for p in tool._material["teacher"].parameters()
    )
    seen = []
    monkeypatch.setattr(
        tool.distillation,
        "distill",
        lambda *args, **given: seen.append(given) or tool.training.fit(args[0], args[2], epochs=1),
    )
    for way, hint in (
        ("alone", None),
        ("smoothed", None),
        ("taught", None),
        ("taught", tool.the_hint("features", 1.0)),
    ):
        assert 0 <= tool.accuracy(tool.Job(way, 0, "test", 30, 1, labels="wrong_labels", hint=hint)) <= 1
    assert [given["alpha"] for given in seen] == [0.9, 0.9] and [len(given["hints"]) for given in seen] == [0, 1]


def test_small_records_nothing_and_a_failure_is_the_exit_status(tool, monkeypatch, tmp_path):
    class Workers:
        def __init__(self, *given):
            self.given = given

        def __enter__(self):
            return AtOnce()

        def __exit__(self, *what):
            return None

    monkeypatch.setattr(tool, "workers", Workers)
    tool.main(["--small"])
    assert not metrics(tmp_path)
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(tool, "measure", lambda bench, book: ["duels"])
    with pytest.raises(SystemExit, match="failed: duels"):
        tool.main([])
