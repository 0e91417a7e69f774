"""A whole examination: every stage, nothing changed, every claim with its evidence, and what was measured holds."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import convnet

from labsupport import comparing, examining, files, precision, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.examining import cases, examination, journal


def test_each_stage_has_findings_and_none_was_left_out(examined):
    _, _, made = examined
    assert list(made.rows) == list(examining.STAGES)
    assert made.left_out == {} and not any(row.failed for row in made.rows.values())
    assert all(row.findings for row in made.rows.values())


def test_the_model_is_unchanged_and_everything_lies_beside_it(examined):
    path, before, made = examined
    assert path.read_bytes() == before
    assert made.report.parent == path.parent / "net.examined"
    assert {file.name for file in path.parent.iterdir()} == {"net.onnx", "data.npz", "net.examined"}


def test_the_page_needs_nothing_beside_it_and_labels_every_claim(examined):
    _, _, made = examined
    page = made.report.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|(src|href)=\"(?!data:)", page)
    items = re.findall(r"<li>.*?</li>", page)
    claims = [item for item in items if "lab" in item]
    assert claims and all(re.search(r"\((measured|estimate|read), lab|\(lab ", item) for item in claims)
    for row in made.rows.values():
        assert page.count("<img") >= len(row.pictures)
    assert "python3 -m labsupport examine net.onnx --inputs data.npz --keep-accuracy 0.9" in page


def test_a_session_holds_what_a_process_of_its_own_says(examined):
    """In a process that ran before it would seem to cost nothing."""
    _, _, made = examined
    (said,) = [finding.text for finding in made.rows["baseline"].findings if "answered once holds" in finding.text]
    assert 1 < float(re.search(r"holds ([\d.]+) MiB in a process of its own", said)[1]) < 100


def test_a_floor_of_single_nodes_lies_above_that_of_one_kernel(examined):
    """Each node alone moves its own inputs and outputs; here they take longer than the arithmetic."""
    _, _, made = examined
    (said,) = [finding.text for finding in made.rows["baseline"].findings if finding.text.startswith("floor")]
    floor, apart = map(float, re.search(r"floor ([\d.e-]+) ms, ([\d.e-]+) ms with each node alone", said).groups())
    assert 1.2 * floor < apart


def test_the_changes_are_ordered_by_effort_and_start_with_doing_nothing(examined):
    _, _, made = examined
    efforts = [each.effort for each in made.candidates]
    assert efforts == sorted(efforts) and made.candidates[0].name == "do nothing"
    of_kind = {each.name.partition(",")[0]: each.effort for each in made.candidates if "wide" not in each.name}
    assert of_kind["FP16"] == 3 and of_kind["INT8"] == 4  # half precision needs no data, eight bits need samples
    assert made.candidates[0].error == 0
    assert any(each.name.startswith("INT8") for each in made.candidates)
    assert any(each.name.startswith("FP16") for each in made.candidates)


def test_each_stated_error_is_that_of_the_file_that_was_kept(examined):
    path, _, made = examined
    folder, images = made.report.parent, np.load(path.parent / "data.npz")["x"]

    def answers(file, *, rounded=False):
        with runtimes.OnnxRuntime(precision.rounded(file) if rounded else file) as run:
            return np.concatenate([run(image[None])["y"] for image in images])

    expected = answers(path)
    stated = {each.name: each.error for each in made.candidates}
    for name, error in stated.items():
        if name.startswith("INT8, ") and "wide" not in name:
            got = answers(folder / f"int8_{name.removeprefix('INT8, ')}.onnx")
            assert comparing.relative_error(expected[1::2], got[1::2]) == pytest.approx(
                error, rel=1e-3
            )  # not calibrated
        if name == "FP16":
            got = answers(folder / "fp16.onnx", rounded=True)
            assert comparing.relative_error(expected, got) == pytest.approx(error, rel=0.05)


def test_what_did_not_hold_the_limit_is_refused_with_the_number(examined):
    _, _, made = examined
    for each in made.candidates:
        if each.error > 0.1 + 1e-9:
            assert made.verdict.refused[each.name] == f"error {each.error:.1e}, allowed 1.0e-01"


def test_a_second_run_measures_nothing_again(examined, monkeypatch):
    path, _, made = examined
    monkeypatch.setattr(examination, "_run", None)  # it would fail
    again = examining.examine(path, inputs=path.parent / "data.npz", limits=examining.Limits(keep_accuracy=0.9))
    assert again.reused == tuple(examining.STAGES)
    assert again.candidates == made.candidates
    assert "kept from an earlier run: identity, baseline" in repr(again)


def test_another_limit_decides_anew_from_what_was_measured(examined):
    path, _, _ = examined
    strict = examining.Limits(budget_ms=1e-9, keep_accuracy=0.9)
    again = examining.examine(path, inputs=path.parent / "data.npz", limits=strict)
    assert again.reused == tuple(examining.STAGES)
    assert again.verdict.chosen is None and "comes nearest" in again.verdict.why


def test_another_model_under_the_same_name_is_examined_from_the_start(network):
    examining.examine(network, stages=["identity"], progress=False)
    convnet(network, batch=1)
    assert examining.examine(network, stages=["identity"], progress=False).reused == ()


def test_a_damaged_journal_is_begun_anew(network):
    first = examining.examine(network, stages=["identity"], progress=False)
    for damage in (b"", b"{", b'{"key": 1}', b"[]", b'{"key": null, "stages": {"identity": 3}}'):
        (first.report.parent / journal.NAME).write_bytes(damage)
        assert examining.examine(network, stages=["identity"], progress=False).reused == ()


def test_interrupted_and_on_again(network, monkeypatch):
    def interrupted(case):
        raise KeyboardInterrupt

    stages = ["identity", "memory", "pruning and cuts"]
    with monkeypatch.context() as patch:
        patch.setitem(examination.STAGES, "memory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            examining.examine(network, stages=stages, progress=False)
    again = examining.examine(network, stages=stages, progress=False)
    assert again.reused == ("identity",) and again.left_out == {}


def test_a_budget_that_is_too_short_says_what_was_left_out_and_is_tried_again(network):
    short = examining.examine(network, limits=examining.Limits(minutes=1e-6), progress=False)
    assert set(short.left_out) == set(examining.STAGES)
    assert all("of the time budget are left; run it again with more" in why for why in short.left_out.values())
    assert short.verdict is None and "Nothing could be measured" in short.report.read_text(encoding="utf-8")
    longer = examining.examine(network, stages=["identity"], progress=False)
    assert longer.reused == () and longer.left_out == {}


def test_a_network_that_takes_an_hour_is_not_waited_for(network):
    case = cases.case_of(network, limits=examining.Limits(minutes=1))
    case.__dict__["call_s"] = 3600.0
    with pytest.raises(cases.OutOfTime, match="'x' needs about .* s, and .* s of the time budget are left"):
        case.judge("x", case.original, effort=1, code="", lab="01")


def test_a_full_disk_is_named_and_the_model_stays(network, monkeypatch):
    def full(path, data, *, mode=None):
        raise OSError(28, "No space left on device")

    before = network.read_bytes()
    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(LabError, match="cannot be written to .No space left on device.; name another one with --save"):
        examining.examine(network, progress=False)
    assert network.read_bytes() == before


def test_the_disk_fills_up_between_two_stages(network, monkeypatch):
    real, written = files.replace, []

    def second_time_full(path, data, *, mode=None):
        written.append(path.name)
        if written.count(journal.NAME) > 1:
            raise OSError(28, "No space left on device")
        return real(path, data, mode=mode)

    monkeypatch.setattr(files, "replace", second_time_full)
    with pytest.raises(LabError, match="free some space, or name another folder with --save"):
        examining.examine(network, stages=["identity", "memory"], progress=False)
    monkeypatch.undo()
    assert examining.examine(network, stages=["identity", "memory"], progress=False).reused == ("identity",)


def test_a_folder_that_cannot_be_made(network, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(LabError, match="name another one with --save"):
        examining.examine(network, save=tmp_path / "taken")


def test_an_error_that_nobody_foresaw_is_said_and_the_others_go_on(network, monkeypatch):
    def broken(case):
        raise ZeroDivisionError("seven by nought")

    monkeypatch.setitem(examination.STAGES, "identity", broken)
    made = examining.examine(network, stages=["identity", "memory"], progress=False)
    assert "did not foresee, ZeroDivisionError: seven by nought" in made.left_out["identity"]
    assert made.rows["identity"].failed and made.rows["memory"].findings


def test_a_stage_that_does_not_exist(network):
    with pytest.raises(BadInput, match="there is no stage 'fusing'; choose from"):
        examining.examine(network, stages=["fusing"])


def test_more_than_two_gib_are_not_copied(network, monkeypatch):
    monkeypatch.setattr(cases, "LARGEST_MIB", network.stat().st_size / 2**21)
    made = examining.examine(network, stages=["identity", "baseline", "memory"], progress=False)
    assert "only identity and baseline are examined" in made.left_out["memory"]
    assert made.verdict.chosen is not None and made.rows["baseline"].candidates


@pytest.mark.parametrize(
    "limits, told",
    [
        ({"budget_ms": 0}, "--budget-ms 0: wanted is a number above 0"),
        ({"budget_ms": float("inf")}, "--budget-ms inf"),
        ({"keep_accuracy": 1.5}, "--keep-accuracy 1.5: wanted is a share above 0 and at most 1"),
        ({"keep_accuracy": True}, "keep_accuracy=True; wanted a number such as 0.99"),
        ({"minutes": -1}, "--minutes -1"),
        ({"minutes": "3"}, "minutes='3'; wanted a number"),
    ],
)
def test_limits_that_make_no_sense(limits, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        examining.Limits(**limits)
