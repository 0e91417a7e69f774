"""The judge, the stages and the page on a case made by hand: which numbers they take, and where each threshold lies."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_decision import HALF, INT8, NOTHING, change

from labsupport import benchmarking, examining, quantization
from labsupport.errors import BadInput
from labsupport.examining import Limits, Row, baseline, eight_bits, inputs, page
from labsupport.examining.cases import Case, OutOfTime
from labsupport.fusion import roofline


def case_of(answers, *, limits=None, labels=None):
    """A case whose network has these answers, the feeds being their numbers."""
    graph = SimpleNamespace(path=Path("net.onnx"), size_mib=2.0)
    case = object.__new__(Case)  # its maker wants a real network, which nothing here runs
    vars(case).update(graph=graph, limits=limits or Limits(), now=lambda: 0.0, started=0.0)
    feeds = tuple({"x": np.array(i)} for i in range(len(answers)))
    samples = inputs.Samples(feeds, "by hand", True, None if labels is None else np.array(labels))
    vars(case).update(
        samples=samples, expected=list(answers), call_s=0.1, original=lambda feed: answers[int(feed["x"])]
    )
    vars(case)["base"] = case.original
    return case


def floats(*values):
    return [{"y": np.array([value, 0.0], np.float32)} for value in values]


def test_an_error_is_that_of_all_samples_or_of_every_second_one():
    case = case_of(floats(3.0, 4.0, 0.0))

    def run(feed):  # off by 1 in the first sample and by 2 in the second
        answer = dict(case.expected[int(feed["x"])])
        return {"y": answer["y"] + np.float32([[1, 0], [2, 0], [0, 0]][int(feed["x"])])}

    assert case.error_of(run) == pytest.approx(math.sqrt(1 + 4) / 5)
    assert case.error_of(run, calibrated=True) == pytest.approx(2 / 4)
    assert [int(feed["x"]) for feed in case.calibrating] == [0, 2]
    alone = case_of(floats(3.0))
    assert alone.error_of(lambda feed: {"y": np.float32([6, 0])}, calibrated=True) == pytest.approx(1)
    assert alone.error_of(lambda feed: {"y": np.float32([6])}) == math.inf


def test_the_worst_output_counts_and_whole_numbers_only_alone():
    whole, empty = np.array([1, 2, 3, 4]), np.zeros(0, np.float32)
    expected = {"a": np.float32([1, 0]), "b": np.float32([0, 2]), "i": whole}
    case = case_of([expected])
    assert case.error_of(lambda _: {"a": np.float32([1.5, 0]), "b": np.float32([0, 3]), "i": -whole}) == 0.5
    assert case.error_of(lambda _: {"a": np.float32([1.75, 0]), "b": np.float32([0, 3]), "i": whole}) == 0.75
    assert case_of([{"e": empty, "i": whole}]).error_of(lambda _: {"e": empty, "i": np.array([1, 0, 3, 4])}) == 0.25


def test_a_sample_that_no_stage_saw_counts_with_its_whole_error():
    case = case_of(floats(1.0))
    feeds = [{"x": np.array(i)} for i in range(4)]
    case.fresh = list(zip(feeds, floats(3.0, 4.0, 0.0, 5.0)))  # a typical answer is √(50 / 4)

    def run(feed):  # off by 1 in the third, whose own answer is 0
        return {"y": case.fresh[int(feed["x"])][1]["y"] + np.float32([float(feed["x"] == 2), 0])}

    assert case.worst_fresh(run) == pytest.approx(1 / math.sqrt(12.5))
    assert case.worst_fresh(lambda feed: {"y": np.float32([np.nan, 0])}) == math.inf
    assert case.worst_fresh(lambda feed: {"y": np.float32([0])}) == math.inf
    case.fresh = [(feed, {"i": np.arange(4)}) for feed in feeds]
    assert case.worst_fresh(lambda feed: {"i": np.arange(4) % (2 + int(feed["x"]))}) == 0.5
    case.fresh = []
    assert case.worst_fresh(run) == 0.0


def test_fresh_samples_are_others_and_end_with_the_time(monkeypatch):
    case, asked = case_of(floats(*range(24))), []
    case.samples = inputs.Samples(case.samples.feeds[:8], "made", False)
    answer = case.original
    case.original = lambda feed: {"y": np.float32([np.inf])} if feed["x"] == 9 else answer(feed)

    def made(graph, runs, *, count):
        asked.append(count)
        return inputs.Samples(tuple({"x": np.array(i)} for i in range(count)), "made", False)

    monkeypatch.setattr(inputs, "made", made)
    assert [int(feed["x"]) for feed, _ in case.fresh] == [8, *range(10, 24)]  # 9 has no answer to compare with
    assert case.fresh[1][1]["y"][0] == 10 and asked == [24]
    for call_s, left in ((1.2, 18), (5.9, 10), (12.1, 8)):  # two percent of ten minutes are 12 s
        del case.fresh
        case.call_s = call_s
        assert len(case.fresh) == max(0, left - 9) and asked[-1] == (left if left > 8 else asked[-1])


def test_accuracy_is_the_share_of_labels_that_the_first_output_meets():
    answers = [{"y": np.eye(4)[i], "z": np.eye(4)[0]} for i in (0, 1, 2, 3)]
    case = case_of(answers, labels=[0, 1, 2, 0], limits=Limits(keep_accuracy=0.8))
    assert case.accuracy_of(case.original) == 0.75 and case_of(answers).accuracy_of(case.original) is None
    assert case.keeps(change("at", 1, 1.0, accuracy=0.8 * 0.75, error=9.0))
    assert not case.keeps(change("below", 1, 1.0, accuracy=0.59, error=0.0))
    lost = case_of(answers, labels=[3, 3, 3, 0])
    assert lost.accuracy_of(lost.original) == 0 and lost.keeps(change("as bad", 1, 1.0, accuracy=0.0))
    limit = case.limits.error
    assert case.keeps(change("at", 1, 1.0, error=limit)) and not case.keeps(change("over", 1, 1.0, error=limit + 1e-9))


def test_the_clock_lets_pass_what_just_fits():
    case = case_of(floats(1.0), limits=Limits(minutes=2))
    case.now = lambda: 30.0
    assert case.left_s == 90
    case.afford(90, "a stage")
    with pytest.raises(OutOfTime, match="a stage needs about 91 s, and 90 s of the time budget are left.*--minutes 2,"):
        case.afford(90.6, "a stage")
    case.now = lambda: 200.0
    with pytest.raises(OutOfTime, match="and 0 s of the time"):
        case.afford(1, "a stage")


def test_a_change_is_kept_with_its_own_graph_and_judged_by_the_run_that_answers_for_it(monkeypatch):
    case = case_of(floats(1.0))
    after = SimpleNamespace(samples_ms=(1.0, 2.0), machine="here")
    monkeypatch.setattr(benchmarking, "paired", lambda *_, **__: SimpleNamespace(after=after, samples=(3.0,)))
    judged = case.judge("slower", case.original, effort=2, code="code", lab="05", note="n", unproven="u")
    wanted = ("slower", 2, (1.0, 2.0), (3.0,), 0.0, 2.0, "code", "05", "here", None, "n", "", "u")
    assert judged == examining.Candidate(*wanted)
    other = SimpleNamespace(path=Path("a/half.onnx"), size_mib=1.0)
    answers = lambda _: floats(2.0)[0]  # noqa: E731
    half = case.judge("half", case.original, effort=3, code="", lab="05", graph=other, answers=answers)
    assert (half.error, half.file, half.size_mib) == (1.0, "half.onnx", 1.0)


def test_answers_are_kept_of_a_tenth_of_the_time_and_none_may_be_infinite():
    case = case_of(floats(*range(1, 9)), limits=Limits(minutes=1))
    del vars(case)["expected"]
    vars(case)["call_s"] = 2.0  # 6 s are a tenth
    assert len(case.expected) == 3 and len(case.feeds) == 3
    slow = case_of(floats(1.0, 2.0))
    del vars(slow)["expected"]
    vars(slow)["call_s"] = 1e4
    assert len(slow.expected) == 1
    odd = case_of(floats(1.0, math.inf))
    del vars(odd)["expected"]
    with pytest.raises(BadInput, match="answers NaN or infinity in 'y' with by hand"):
        odd.expected


def test_the_heaviest_layers_come_first(monkeypatch):
    steps = [SimpleNamespace(name=name, flops=flops) for name, flops in (("a", 2), ("b", 9), ("c", 5), ("other", 99))]
    monkeypatch.setattr(roofline, "work", lambda _: SimpleNamespace(steps=steps))
    assert eight_bits._heaviest(SimpleNamespace(working=None), ["a", "unknown", "b", "c"]) == ["b", "c", "a", "unknown"]


@pytest.mark.parametrize(
    ("left_s", "layers", "said"),
    [
        (6.66, None, "sensitivity left out: one layer takes 1.0 s and 7 s are left"),
        (6.67, 2, "sensitivity of the 2 heaviest of 4 layers, for want of time"),
        (13.34, 4, "most sensitive: b (Conv), adds 2.5e-01"),
    ],
)
def test_as_many_layers_are_tried_as_the_time_allows(monkeypatch, left_s, layers, said):
    case, row, seen = SimpleNamespace(working=None, left_s=left_s), Row("eight bits"), {}

    class Ranking(list):
        worst = SimpleNamespace(layer="b", op="Conv", cost=0.25)

        def table(self):
            return SimpleNamespace(head=lambda many: SimpleNamespace(_repr_html_=lambda: f"{many} rows"))

    def sensitivity(_, __, ___, *, layers, **options):
        seen.update(layers=layers, options=options)
        return Ranking(SimpleNamespace(layer=name) for name in ("b", "a", "d", "c")[: len(layers)])

    monkeypatch.setattr(quantization, "layers", lambda _: ["a", "b", "c", "d"])
    monkeypatch.setattr(quantization, "sensitivity", sensitivity)
    monkeypatch.setattr(eight_bits, "_heaviest", lambda _, names: sorted(names, reverse=True))
    monkeypatch.setattr(eight_bits, "_greedy", lambda *args: seen.update(greedy=args[-1]))
    eight_bits._mixed(case, row, None, "tensorrt", "max", 1.0)
    assert row.findings[0].text == said
    assert seen.get("layers") == (["d", "c", "b", "a"][:layers] if layers else None)
    if layers:
        assert seen["options"] == {"measure": "error", "target": "tensorrt", "method": "max", "progress": False}
    assert seen.get("greedy") == (["b", "a", "d"][:layers] if layers else None)  # one layer at least stays in INT8
    assert row.tables == (["8 rows"] if layers else [])


def test_the_code_of_eight_bits_calibrates_on_the_same_samples():
    working = SimpleNamespace(path=Path("a/working.onnx"))
    case = SimpleNamespace(samples_file=None, folder=Path("net.examined"), working=working, calibrating=[1, 2, 3])
    code = eight_bits._code(case, "tensorrt", "max", ("a",))
    assert 'export.load("net.examined/working.onnx")' in code and 'np.load("your_samples.npz")' in code
    assert "range(0, 6, 2)" in code and "[i : i + 1]" in code and "exclude=['a']" in code


@pytest.mark.parametrize(("call_s", "runs"), [(1.0, 10), (0.5, 10), (0.25, 20), (0.025, 200), (1e-9, 200)])
def test_a_baseline_takes_five_seconds_within_ten_and_two_hundred_runs(monkeypatch, call_s, runs):
    case, asked = case_of(floats(1.0), limits=Limits(minutes=60)), {}
    vars(case)["call_s"] = call_s
    monkeypatch.setattr(case, "afford", lambda seconds, what: asked.update(seconds=seconds), raising=False)
    monkeypatch.setattr(case, "judge", lambda *_, **options: (options["effort"], options["lab"]), raising=False)
    took = SimpleNamespace(machine="here", median_ms=7.0)
    monkeypatch.setattr(benchmarking, "latency", lambda *_, **options: asked.update(options) or took)
    monkeypatch.setattr(baseline, "_memory", lambda _: "memory")
    monkeypatch.setattr(baseline, "_free_changes", lambda *_: None)
    monkeypatch.setattr(baseline, "_floor", lambda _, __, median_ms: asked.update(median_ms=median_ms))
    row = baseline.stage(case)
    assert (asked["runs"], asked["warmup"], asked["median_ms"]) == (runs, 2, 7.0)
    assert asked["seconds"] == pytest.approx((runs + 12) * call_s) and row.candidates == [(0, "01")]
    assert [finding.lab for finding in row.findings] == ["01", "04"]


@pytest.mark.parametrize(
    ("median_ms", "flops", "bound", "lab"),
    [(15.1, 1e6, "calls of small", "10"), (15.0, 1e6, "memory", "03"), (15.0, 2e6, "arithmetic", "03")],
)
def test_what_binds_a_network(monkeypatch, median_ms, flops, bound, lab):
    """1 MB at 1 GB/s takes 1 ms, 1 MFLOP at 1 GFLOP/s, too; apart 3 ms, five times that are launches."""
    work = SimpleNamespace(bytes_apart=3 * 2**20, bytes_together=1_000_000, flops=flops, steps=[1, 2])
    ceiling = SimpleNamespace(
        gb_per_s=1.0,
        gflop_per_s=1.0,
        floor_ms=lambda _, together=True: max(1.0, flops / 1e6) if together else 3.0,
    )
    monkeypatch.setattr(roofline, "measure", lambda *_, **__: ceiling)
    monkeypatch.setattr(roofline, "work", lambda _: work)
    row = Row("baseline")
    baseline._floor(SimpleNamespace(working=None), row, median_ms)
    assert row.findings[-1].text.startswith(f"what binds it: {bound}") and row.findings[-1].lab == lab
    assert row.findings[0].text == "this machine: 1 GB/s from memory, 1 GFLOP/s in FP32"
    gflop = f"{flops / 1e9:.3g}"
    assert (
        row.findings[1].text == f"the work: {gflop} GFLOP in 2 nodes; 3.0 MiB moved node by node, 1.0 MiB in one kernel"
    )
    assert row.findings[2].text.endswith(f", 3 ms with each node alone; it takes {median_ms:.3g} ms")


def test_a_page_says_what_its_numbers_do_not():
    def said(given, labels):
        case = SimpleNamespace(limits=Limits(), samples=SimpleNamespace(given=given, labels=labels))
        return [text[:12] for text, _ in page._caveats(case, [NOTHING, noted])]

    noted = dataclasses.replace(HALF, note="a note")
    assert said(True, [1]) == ["Gains and er", "FP16: a note"]
    assert said(False, None) == ["Gains and er", "No inputs we", "An error in ", "No labels we", "FP16: a note"]


def test_a_page_gives_the_code_of_every_change_once_and_none_for_doing_nothing():
    case = SimpleNamespace(limits=Limits(budget_ms=9), samples=SimpleNamespace(given=True, labels=None))
    rows = {"baseline": Row("baseline", candidates=[NOTHING]), "eight bits": Row("eight bits", candidates=[HALF, INT8])}
    verdict = examining.decide(page.candidates(rows), case.limits)
    texts = [part["data"] for part in page._decision(case, rows, verdict) if part["kind"] == "text"]
    assert texts == [f"FP16: {verdict.why}", "# FP16", "INT8 again:\n\n# INT8"]
    nothing = examining.decide([NOTHING, HALF], Limits(budget_ms=1))
    texts = [part["data"] for part in page._decision(case, {"a": rows["baseline"]}, nothing) if part["kind"] == "text"]
    assert texts == [f"no change here is enough: {nothing.why}"]
    assert [part["kind"] for part in page._decision(case, rows, None)] == ["text"]


@pytest.mark.parametrize(
    ("file", "budget", "options"),
    [(None, None, ""), (Path("a/data.npz"), 2.5, " --inputs data.npz --budget-ms 2.5")],
)
def test_a_page_names_the_command_that_makes_it_again(file, budget, options):
    case = SimpleNamespace(limits=Limits(budget_ms=budget, minutes=3), samples_file=file)
    case.graph = SimpleNamespace(path=Path("b/net.onnx"))
    wanted = f"python3 -m labsupport examine net.onnx{options} --keep-accuracy 0.99 --minutes 3"
    assert page.command(case) == wanted


def test_a_row_of_a_page_holds_its_findings_tables_and_pictures_in_order():
    row = Row("memory", pictures=[{"data": "p", "words": "w"}], tables=["t"], left_out="no time")
    row.find("a", "read", "02")
    assert page._parts(row) == [
        {"kind": "list", "data": [{"text": "a", "quiet": "(read, lab 02)"}]},
        {"kind": "text", "data": "left out: no time"},
        {"kind": "table", "data": "t"},
        {"kind": "picture", "data": "p", "words": "w"},
    ]
    assert page._lines([("a", "")]) == {"kind": "list", "data": [{"text": "a", "quiet": ""}]}


def test_the_table_of_changes_in_numbers():
    table = examining.table([INT8, HALF, change("do nothing", 0, 10.0, accuracy=0.5)])
    row = table.iloc[1].to_dict()
    assert (row["change"], row["times as fast"], row["MiB"], row["front"]) == (
        "FP16",
        "2.00 (2.00 to 2.01)",
        1.0,
        "yes",
    )
    assert table.iloc[0]["accuracy"] == 0.5 and list(table["front"]) == ["", "yes", "yes"]


def test_a_gain_is_earned_at_five_percent():
    at, below = (dataclasses.replace(HALF, ratios=(gain,) * 4) for gain in (1.05, 1.0499))
    still = dataclasses.replace(NOTHING, ratios=(1.0,))
    assert examining.decide([still, at]).chosen is at and examining.decide([still, below]).chosen is still
    assert examining.decide([dataclasses.replace(still, ratios=(1.05,)), at]).chosen is at
    wide = dataclasses.replace(HALF, name="wide", ratios=(1.0, 1.1, 3.0, 9.0))  # its lower quartile is 1.075
    high = dataclasses.replace(HALF, name="high", ratios=(1.08,))
    assert examining.decide([still, wide, high]).chosen is high
    assert examining.decide([NOTHING], Limits(budget_ms=10)).chosen is NOTHING  # exactly its median
