"""Bands, plans and sessions of recordings."""

from __future__ import annotations

import json
import os

import pytest
from lab_book_stand_ins import COMMAND, LAPTOP, RATIO, a_recording, recorded, write

from labsupport import recordings
from labsupport.errors import RecordingError
from labsupport.recordings import provenance

# bands


BANDS = {
    "h100-trt8.6": {
        RATIO: [1.9, 4.0],
        "01_measuring/lab.seconds": [0, 300],
        "lab.seconds": [0, 1],
        "why": {RATIO: "1.92 to 1.97 seen"},
    },
    "h100-*": {RATIO: [100, 200]},
    "cpu-*": {"lab.seconds": [0, 60]},
}


def test_committed_recordings_keep_their_bands():
    assert recordings.check_recorded() == []


def test_check_recorded_wants_a_band_for_every_metric(root):
    recorded(root)
    complaints = recordings.check_recorded(root)
    assert len(complaints) == 2
    assert complaints[0] == (
        f"01_measuring on h100-trt8.6: {RATIO} = 2.3123 × has no band; "
        f'add "{RATIO}": [low, high] under "h100-trt8.6" in data/recordings/bands.json'
    )


def test_check_recorded_holds_metrics_to_the_most_particular_band(root):
    recorded(root)
    write(root / "bands.json", BANDS)
    assert recordings.check_recorded(root) == []
    recorded(root, metrics={RATIO: {"value": 1.7, "unit": "×"}})
    assert recordings.check_recorded(root) == [
        f"01_measuring on h100-trt8.6: {RATIO} is 1.7 ×, outside its band 1.9 to 4 (1.92 to 1.97 seen)"
    ]


def test_check_recorded_reports_broken_recordings_and_plans(root):
    recorded(root, command="")
    write(root / "plans" / "block.json", {"plan": {"Layers": []}})
    complaints = recordings.check_recorded(root)
    assert "01_measuring.json lacks command" in complaints[0] and "plan 'block' lacks machine_class" in complaints[1]


@pytest.mark.parametrize(
    "bands, message",
    [
        (
            {"cpu-*": {"a.b": [2, 1]}},
            r"bands.json: 'a.b' of 'cpu-\*' is \[2, 1\]; a band is \[low, high\] with low <= high",
        ),
        ({"cpu-*": {"a.b": 3}}, r"'a.b' of 'cpu-\*' is 3"),
        ({"cpu-*": {"a.b": ["1", 2]}}, "a band is"),
        ({"cpu-*": []}, r"'cpu-\*' holds no mapping"),
        ([], "'bands.json' holds no mapping"),
        ("{", "bands.json cannot be read"),
    ],
)
def test_broken_bands_are_refused(root, bands, message):
    write(root / "bands.json", bands)
    with pytest.raises(RecordingError, match=message):
        recordings.check_recorded(root)


def test_check_live_uses_the_bands_of_this_machine(live, root, move):
    write(root / "bands.json", BANDS)
    move(LAPTOP)
    book = recordings.lab("01_measuring", root)
    book.record("lab.seconds", 75, "s")
    book.record("new.metric", 1, "ms")  # without a band: check_recorded asks for one, not the learner's test run
    assert recordings.check_live(live, root) == [
        "01_measuring on cpu-ort1.23: lab.seconds is 75 s, outside its band 0 to 60"
    ]
    book.record("lab.seconds", 50, "s")
    assert recordings.check_live(live, root) == []


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "cannot be read"),
        ([], "is not a file of live metrics"),
        ({}, "is not a file of live metrics"),
        ({"metrics": {"a.b": {"value": 1}}}, "a.b has no unit"),
    ],
)
def test_check_live_reports_damaged_files(live, root, content, complaint):
    write(live / "01_measuring.json", content)
    (found,) = recordings.check_live(live, root)
    assert complaint in found


def test_check_live_of_nothing_is_quiet(move, root, tmp_path):
    assert recordings.check_live(tmp_path / "nowhere", root) == []


# plans


PLAN = '{"Layers": [{"Name": "conv1 + relu1", "Metadata": "[ONNX Layer: conv1]\x1f[ONNX Layer: relu1]"}]}'


def test_a_plan_keeps_its_provenance(move, tmp_path):
    saved = recordings.save_plan("block.fp32", PLAN, tmp_path, command=COMMAND)
    loaded = recordings.load_plan("block.fp32", tmp_path)
    assert loaded == saved
    assert repr(loaded).startswith("plan block.fp32 recorded on NVIDIA H100 80GB HBM3, TensorRT 8.6.0, 20")
    assert "\x1f" in loaded.plan["Layers"][0]["Metadata"]  # 8.6 writes raw control characters
    content = json.loads((tmp_path / "block.fp32.json").read_text(encoding="utf-8"))
    assert content["command"] == COMMAND and content["machine"]["gpu"] == "NVIDIA H100 80GB HBM3"


def test_a_plan_built_without_a_gpu_names_its_builder(move, tmp_path):
    move(LAPTOP)
    assert "Test CPU, TensorRT-RTX 1.7.1" in repr(recordings.save_plan("block", PLAN, tmp_path))


def test_plans_of_a_run_reach_the_recordings_through_store(live, root):
    recordings.save_plan("block.fp32", PLAN)
    assert (live / "plans" / "block.fp32.json").exists()
    recordings.store("01_measuring", live, command=COMMAND, seconds=1, root=root)
    assert recordings.load_plan("block.fp32", root / "plans").plan["Layers"]


def test_a_plan_outside_a_recording_run_replaces_nothing(move, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "recordings")
    assert recordings.save_plan("block.fp32", PLAN).plan["Layers"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("block", "", "plan 'block' is empty: the engine inspector gave no text; build the engine with detailed"),
        ("block", None, "plan 'block' is empty"),
        ("block", "Layer(1)", "plan 'block' is not JSON .*LayerInformationFormat.JSON"),
        ("block", "{}", "plan 'block' lists nothing: it is '{}'; expected layers"),
        ("block", "3", "plan 'block' lists nothing"),
        ("../block", PLAN, "plan name '../block' is not like 'resnet18_b32.fp16'"),
    ],
)
def test_malformed_plans_are_refused(live, name, text, message):
    with pytest.raises(RecordingError, match=message):
        recordings.save_plan(name, text)
    assert not live.exists()


def test_load_plan_says_what_is_there_and_what_is_lacking(move, tmp_path):
    recordings.save_plan("block", PLAN, tmp_path)
    with pytest.raises(RecordingError, match=r"there is no recorded plan 'blok'; recorded are \['block'\]"):
        recordings.load_plan("blok", tmp_path)
    content = json.loads((tmp_path / "block.json").read_text(encoding="utf-8"))
    content.pop("sha256")
    write(tmp_path / "block.json", {**content, "date": "", "plan": {}})
    with pytest.raises(RecordingError, match=r"plan 'block' lacks date \(as 2026-11-22\), plan; record it again"):
        recordings.load_plan("block", tmp_path)


def test_a_session_stores_what_was_measured_even_when_a_later_step_fails(tmp_path, monkeypatch):
    monkeypatch.delenv("LABSUPPORT_METRICS", raising=False)
    monkeypatch.setattr(
        provenance,
        "here",
        lambda command: {
            key: value
            for key, value in {**a_recording(), "command": command, "machine_class": "h100-trt8.6"}.items()
            if key != "metrics"
        },
    )
    with (
        pytest.raises(ZeroDivisionError),
        recordings.session("01_measuring", command="python3 tools/x.py", root=tmp_path) as book,
    ):
        book.record("net.gain", 2.0, "×")
        assert float(recordings.lab("01_measuring", tmp_path).replay("net.gain")) == 2.0, (
            "at once, whatever ends the script"
        )
        1 / 0
    assert float(recordings.lab("01_measuring", tmp_path).replay("net.gain")) == 2.0
    assert recordings.lab("01_measuring", tmp_path).replay().command == "python3 tools/x.py"
    assert [each.metric for each in recordings.lab("01_measuring", tmp_path).replay()] == ["net.gain"], (
        "a script does not time the lab"
    )
    assert "LABSUPPORT_METRICS" not in os.environ


def test_a_session_leaves_the_metrics_to_whoever_asked_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path / "live"))
    with recordings.session("01_measuring", command="python3 tools/x.py", root=tmp_path / "recordings") as book:
        book.record("net.gain", 2.0, "×")
    assert (tmp_path / "live" / "01_measuring.json").exists() and not (tmp_path / "recordings").exists()
