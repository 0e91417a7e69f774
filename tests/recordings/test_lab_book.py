"""Recordings with a fake machine and folders of their own; and the committed recordings against their bands."""

from __future__ import annotations

import datetime
import json
import math
import os

import pytest
from lab_book_stand_ins import COMMAND, LAPTOP, RATIO, Machine, a_recording, recorded, without, write

from labsupport import recordings
from labsupport.benchmarking.measurements import Latency, Ratio
from labsupport.errors import RecordingError

# record


def test_record_labels_a_plain_number(move, root):
    result = recordings.lab("01_measuring", root).record("resnet18_b32.top1_agreement", 0.998, "fraction", samples=512)
    said = "measured here on NVIDIA H100 80GB HBM3, TensorRT 8.6.0: 0.998 (n=512)"
    assert str(result) == said and repr(result) == f"Same answer as PyTorch FP32 (ResNet-18, batch 32), {said}"
    assert float(result) == 0.998 and result.metric == "resnet18_b32.top1_agreement"
    move(LAPTOP)
    here = recordings.lab("01_measuring", root).record("resnet18_b32.ort_ms", 3.2, "ms")
    assert str(here) == "measured here on Test CPU, ONNX Runtime 1.23.0: 3.2 ms"


def test_record_takes_unit_samples_and_spread_from_a_measurement(move, root):
    latency = Latency("engine", "device", [0.49, 0.5, 0.5, 0.51], 32, "NVIDIA H100")
    book = recordings.lab("01_measuring", root)
    result = book.record("resnet18_b32.trt_fp16_ms", latency)
    assert (result.value, result.unit, result.samples) == (0.5, "ms", 4)
    ratio = Ratio((2.30, 2.31, 2.31, 2.32), latency, latency)
    assert repr(book.record(RATIO, ratio)).endswith("TensorRT 8.6.0: 2.310 × (n=4, spread 0.0022)")
    with pytest.raises(RecordingError, match="b.c was measured in ms, not s; leave unit out or convert the value"):
        book.record("b.c", latency, "s")


@pytest.mark.parametrize(
    "name, value, options, message",
    [
        ("Top1", 1.0, {"unit": "x"}, r"metric name 'Top1' is not like 'resnet18_b32.top1_agreement'"),
        ("a.b.c", 1.0, {"unit": "x"}, r"metric name 'a.b.c' is not like"),
        ("a.b", 1.0, {}, "a.b has no unit; pass unit='ms'"),
        ("a.b", 1.0, {"unit": " "}, "a.b has no unit"),
        ("a.b", math.nan, {"unit": "ms"}, "a.b has the value nan; expected a finite number"),
        ("a.b", math.inf, {"unit": "ms"}, "a.b has the value inf"),
        ("a.b", True, {"unit": "ms"}, "a.b has the value True"),
        ("a.b", "fast", {"unit": "ms"}, "a.b has the value 'fast'"),
        ("a.b", 1.0, {"unit": "ms", "samples": 0}, "a.b has samples=0; expected how many were taken"),
        ("a.b", 1.0, {"unit": "ms", "spread": -1}, "a.b has spread=-1; expected IQR over median"),
    ],
)
def test_record_refuses(live, root, name, value, options, message):
    with pytest.raises(RecordingError, match=message):
        recordings.lab("01_measuring", root).record(name, value, **options)
    assert not live.exists()


def test_record_collects_into_the_folder_of_the_run(live, root):
    book = recordings.lab("01_measuring", root)
    book.record("a.b", 1, "ms")
    book.record("a.c", 2, "ms")
    book.record("a.b", 3, "ms")
    content = json.loads((live / "01_measuring.json").read_text(encoding="utf-8"))
    assert {name: entry["value"] for name, entry in content["metrics"].items()} == {"a.b": 3, "a.c": 2}
    assert [path.name for path in live.iterdir() if path.suffix != ".lock"] == [
        "01_measuring.json"
    ]  # no temporary file left


def test_record_without_a_run_writes_nothing(move, root, tmp_path):
    recordings.lab("01_measuring", root).record("a.b", 1, "ms")
    assert {path.name for path in tmp_path.iterdir()} <= {"recordings"}


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {"machine_class": "cpu-ort1.23", "metrics": {}},
            "holds results of cpu-ort1.23 and this machine is h100-trt8.6",
        ),
        ({"metrics": 3}, "01_measuring.json is not a file of live metrics; give LABSUPPORT_METRICS an empty folder"),
        ("{", "cannot be read"),
    ],
)
def test_record_refuses_a_folder_of_something_else(live, root, content, message):
    before = write(live / "01_measuring.json", content).read_bytes()
    with pytest.raises(RecordingError, match=message):
        recordings.lab("01_measuring", root).record("a.b", 1, "ms")
    assert (live / "01_measuring.json").read_bytes() == before


def test_lab_names_are_checked():
    with pytest.raises(RecordingError, match=r"lab name '../elsewhere' is not like '01_measuring'"):
        recordings.lab("../elsewhere")


# replay


def test_replay_carries_its_label(root):
    recorded(root)
    one = recordings.lab("01_measuring", root).replay(RATIO)
    label = "recorded on NVIDIA H100 80GB HBM3, TensorRT 8.6.0, 2026-11-22"
    assert repr(one) == str(one) == f"{one.title}, {label}: 2.31 × (n=30, spread 0.02)"
    assert float(one) == 2.3123 and one.command == COMMAND


def test_replay_of_a_whole_lab_is_a_table_with_a_caption(root):
    recorded(root)
    whole = recordings.lab("01_measuring", root).replay()
    lines = repr(whole).splitlines()
    assert lines[0] == "01_measuring, recorded on NVIDIA H100 80GB HBM3, TensorRT 8.6.0, 2026-11-22"
    assert lines[1:] == [
        f"  by {COMMAND}",
        "  TensorRT FP16 over PyTorch FP16, both as CUDA graphs (ResNet-18, batch 32)  2.31 × (n=30, spread 0.02)",
    ]
    assert len(whole) == 2, "lab.seconds is kept, and not shown"
    assert whole.frame().loc["lab.seconds", "value"] == 118.2
    page = whole._repr_html_()
    assert ">01_measuring, recorded on" in page and page.count("recorded on") == 1 and "lab.seconds" not in page
    assert RATIO not in page and [*whole][0].metric == RATIO
    with pytest.raises(RecordingError, match=rf"has no recorded 'a.b' on h100-trt8.6; recorded are \['{RATIO}'"):
        whole["a.b"]


def test_replay_prefers_the_newest_gpu(root):
    recorded(root)
    newer = a_recording(date="2027-01-02")
    newer["machine"]["gpu"] = "NVIDIA GeForce RTX 5090"
    write(root / "rtx5090-trt8.6" / "01_measuring.json", newer)
    write(root / "cpu-ort1.23" / "01_measuring.json", a_recording(date="2027-05-05"))
    book = recordings.lab("01_measuring", root)
    assert book.replay(RATIO).machine == "NVIDIA GeForce RTX 5090"
    assert book.replay(RATIO, machine_class="h100-trt8.6").date == "2026-11-22"
    assert "ONNX Runtime 1.23.0" in repr(book.replay(RATIO, machine_class="cpu-ort1.23"))


def on_h200(root, date, metric):
    recording = a_recording(date=date, metrics={metric: {"value": 3, "unit": "ms", "samples": 1, "spread": None}})
    recording["machine"]["gpu"] = "NVIDIA H200"
    return write(root / "h200-trt8.6" / "01_measuring.json", recording)


def test_replay_takes_a_metric_from_the_next_gpu_that_has_it(root):
    recorded(root)
    on_h200(root, "2027-01-02", "a.b")
    book = recordings.lab("01_measuring", root)
    assert book.replay("a.b").label == "recorded on NVIDIA H200, TensorRT 8.6.0, 2027-01-02"
    assert book.replay(RATIO).label == "recorded on NVIDIA H100 80GB HBM3, TensorRT 8.6.0, 2026-11-22"
    assert [each.metric for each in book.replay()] == ["a.b"], "the whole lab is one machine's"
    with pytest.raises(RecordingError, match=rf"has no recorded '{RATIO}' on h200-trt8.6; recorded are \['a.b'\]"):
        book.replay(RATIO, machine_class="h200-trt8.6")
    everything = f"'a.b', 'lab.seconds', '{RATIO}'"
    with pytest.raises(RecordingError, match=rf"'a.c' on h200-trt8.6 or h100-trt8.6; recorded are \[{everything}\]"):
        book.replay("a.c")


def test_recorded_metrics_are_told_a_line_each_and_those_that_lack_with_their_command(root):
    book = recordings.lab("01_measuring", root)
    assert book.recorded(RATIO) is None
    assert book.told("a.b") == "not recorded yet: B (a); `python3 -m labsupport record 01` does that on a GPU machine"
    recorded(root)
    on_h200(root, "2027-01-02", "a.b")
    assert book.recorded("a.b") == book.replay("a.b") and book.recorded(RATIO) == book.replay(RATIO)
    assert book.told("a.b", "a.c", RATIO, "a.d", command="python3 tools/x.py").splitlines() == [
        book.replay("a.b").label,
        f"  {'B (a)':<{len(book.replay(RATIO).title)}}  3 ms (n=1)",
        book.replay(RATIO).label,
        f"  {book.replay(RATIO).title}  2.31 × (n=30, spread 0.02)",
        "not recorded yet: C (a); D (a); `python3 tools/x.py` does that on a GPU machine",
    ]
    (root / "h200-trt8.6" / "01_measuring.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecordingError, match="lacks"):
        book.recorded(RATIO)  # what is broken is not taken for what is missing


def test_replay_prefers_an_h100_on_the_same_day(root):
    recorded(root)
    on_h200(root, "2026-11-22", RATIO)
    write(root / "a100-trt8.6" / "01_measuring.json", a_recording())
    book = recordings.lab("01_measuring", root)
    assert book.replay().machine_class == "h100-trt8.6" and float(book.replay(RATIO)) == 2.3123


def test_replay_says_where_to_get_a_missing_recording(root):
    book = recordings.lab("01_measuring", root)
    with pytest.raises(RecordingError, match="no recording from a GPU; `python3 -m labsupport record 01_measuring`"):
        book.replay()
    write(root / "cpu-ort1.23" / "01_measuring.json", a_recording())
    with pytest.raises(RecordingError, match=r"recorded are \['cpu-ort1.23'\], pass one as machine_class"):
        book.replay()
    with pytest.raises(RecordingError, match="there is no recording .*a100-trt8.6/01_measuring.json"):
        book.replay(machine_class="a100-trt8.6")
    write(root / "h100" / "01_measuring.json", a_recording())
    with pytest.raises(RecordingError, match="machine class 'h100' names no runtime; expected one like h100-trt8.6"):
        book.replay(machine_class="h100")


@pytest.mark.parametrize(
    "changes, lacks",
    [
        ({"machine": ...}, "lacks machine;"),
        ({"machine": without("gpu")}, r"lacks machine\.gpu;"),
        (
            {"machine": without("driver", "tensorrt", "python")},
            r"lacks machine\.driver, machine\.python, machine\.tensorrt;",
        ),
        ({"date": ...}, r"lacks date \(as 2026-11-22\);"),
        ({"date": "yesterday"}, r"lacks date \(as 2026-11-22\);"),
        ({"command": " "}, "lacks command;"),
        ({"metrics": {}}, "lacks metrics;"),
        ({"metrics": {"a.b": {"value": 1}}}, "a.b has no unit"),
        ({"metrics": {"a.b": 1}}, "a.b has the value None"),
    ],
)
def test_a_recording_without_provenance_is_refused(root, changes, lacks):
    recorded(root, **changes)
    with pytest.raises(
        RecordingError,
        match=f"h100-trt8.6/01_measuring.json:? ?.*{lacks}.*record it again with"
        if lacks.endswith(";")
        else f"01_measuring.json: {lacks}",
    ):
        recordings.lab("01_measuring", root).replay(machine_class="h100-trt8.6")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_recording_is_refused(root, text):
    write(root / "h100-trt8.6" / "01_measuring.json", text)
    with pytest.raises(
        RecordingError, match="h100-trt8.6/01_measuring.json (cannot be read|lacks machine, date, command, metrics)"
    ):
        recordings.lab("01_measuring", root).replay(machine_class="h100-trt8.6")


# store


def test_store_writes_the_recording_and_replay_reads_it(live, root):
    recordings.lab("01_measuring", root).record(RATIO, 2.31, "×", samples=30, spread=0.02)
    path = recordings.store("01_measuring", live, command=COMMAND, seconds=118.2, root=root)
    assert path == root / "h100-trt8.6" / "01_measuring.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["machine"]["tensorrt"] == "8.6.0" and "problem" not in content["machine"]
    assert content["date"] == datetime.date.today().isoformat() and content["command"] == COMMAND
    assert content["metrics"]["lab.seconds"] == {"value": 118.2, "unit": "s", "samples": 1, "spread": None}
    assert float(recordings.lab("01_measuring", root).replay(RATIO)) == 2.31


def test_store_keeps_what_this_run_did_not_measure_with_its_own_date(live, root):
    recorded(root, date="2026-01-01", command="earlier")
    recordings.lab("01_measuring", root).record("a.b", 1, "ms")
    path = recordings.store("01_measuring", live, command=COMMAND, seconds=100, root=root)
    entry = json.loads(path.read_text(encoding="utf-8"))["metrics"][RATIO]
    assert (entry["value"], entry["date"], entry["command"]) == (2.3123, "2026-01-01", "earlier")
    kept = recordings.lab("01_measuring", root).replay(RATIO)
    assert kept.date == "2026-01-01" and "2026-01-01: 2.31 ×" in repr(kept)
    assert "recorded on NVIDIA H100 80GB HBM3, TensorRT 8.6.0, 2026-01-01" in repr(
        recordings.lab("01_measuring", root).replay()
    )


@pytest.mark.parametrize(
    "fault, message",
    [
        (lambda live: write(live / "01_measuring.json", "{"), "cannot be read"),
        (
            lambda live: write(
                live / "01_measuring.json", {"machine_class": "h100-trt8.6", "metrics": {"a.b": {"value": 1}}}
            ),
            "a.b has no unit",
        ),
        (
            lambda live: write(live / "01_measuring.json", {"machine_class": "cpu-ort1.23", "metrics": {}}),
            "holds results of cpu-ort1.23 and this machine is h100-trt8.6",
        ),
        (
            lambda live: write(live / "plans" / "block.json", {"plan": {"Layers": []}}),
            "plan 'block' lacks machine_class",
        ),
    ],
)
def test_store_keeps_the_old_file_when_anything_is_wrong(live, root, fault, message):
    before = recorded(root).read_bytes()
    fault(live)
    with pytest.raises(RecordingError, match=message):
        recordings.store("01_measuring", live, command=COMMAND, seconds=1, root=root)
    assert (root / "h100-trt8.6" / "01_measuring.json").read_bytes() == before
    assert len(list((root / "h100-trt8.6").glob("*.json"))) == 1


def test_store_refuses_results_without_provenance(live, root, move):
    with pytest.raises(RecordingError, match="the results of 01_measuring lack command and were not stored"):
        recordings.store("01_measuring", live, command="", seconds=1, root=root)
    move((Machine(driver=None), "h100-trt8.6"))
    with pytest.raises(RecordingError, match=r"lack machine\.driver and were not stored"):
        recordings.store("01_measuring", live, command=COMMAND, seconds=1, root=root)
    with pytest.raises(RecordingError, match="lab.seconds has the value inf"):
        recordings.store("01_measuring", live, command=COMMAND, seconds=math.inf, root=root)


def test_a_failed_write_leaves_the_old_file_and_no_litter(live, root, monkeypatch):
    before = recorded(root).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        RecordingError, match="cannot be written .*No space left on device.*the old file, if any, is as it was"
    ):
        recordings.store("01_measuring", live, command=COMMAND, seconds=1, root=root)
    folder = root / "h100-trt8.6"
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == ["01_measuring.json"]
    assert (folder / "01_measuring.json").read_bytes() == before
