"""What the stages choose, worked out by hand: nodes kept wide, layers kept FP32, kernels that stand alone, rounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import saved, weight
from onnx import helper
from onnx_files import value

from labsupport import export, precision, quantization
from labsupport.examining import cases, eight_bits, kernels, sixteen_bits
from labsupport.examining.rows import Row


@pytest.fixture
def chain(tmp_path):
    """x → first → second → third → y, and beside it x → aside → z; ``third`` reads ``aside``, too."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Neg", ["x"], ["z"], name="aside"),
        helper.make_node("Sqrt", ["a"], ["b"], name="second"),
        helper.make_node("Mul", ["b", "w"], ["c"], name="scaled"),
        helper.make_node("Add", ["c", "z"], ["y"], name="third"),
    ]
    ends = [value("x", [1, 4])], [value("y", [1, 4])]
    return export.load(saved(tmp_path / "chain.onnx", nodes, *ends, [weight("w", 4)]))


@pytest.mark.parametrize(
    ("names", "readers", "makers"),
    [
        (["first"], ["first", "second"], ["first"]),
        (["second"], ["second", "scaled"], ["first", "second"]),
        (["third"], ["third"], ["first", "aside", "second", "scaled", "third"]),
        (["aside", "first"], ["first", "aside", "second", "third"], ["first", "aside"]),
    ],
)
def test_what_is_kept_wide_beside_a_node(chain, names, readers, makers):
    assert sixteen_bits._with_readers(chain, names) == readers
    assert sixteen_bits._with_makers(chain, names) == makers


@pytest.mark.parametrize(
    ("errors", "tried", "kept", "error"),
    [
        ({1: 0.004}, 1, ["second"], 0.004),  # the node alone holds the limit: nothing more is tried
        ({1: 0.010}, 1, ["second"], 0.010),  # at the limit it is held
        ({1: 0.2, 2: 0.009}, 2, ["second", "scaled"], 0.009),
        ({1: 0.2, 2: 0.05, 3: 0.3}, 3, ["second", "scaled"], 0.05),  # none holds it: the best of all
        ({1: 0.03, 2: 0.05, 3: 0.04}, 3, ["second"], 0.03),
    ],
)
def test_a_repair_takes_the_first_that_holds_else_the_best(chain, monkeypatch, errors, tried, kept, error):
    widths = {("second",): 1, ("second", "scaled"): 2, ("first", "second"): 3}
    seen = []
    monkeypatch.setattr(sixteen_bits, "_cast", lambda case, keep: widths[tuple(keep)])
    monkeypatch.setattr(sixteen_bits, "_error", lambda case, width: seen.append(width) or errors[width])
    keep = ["second"]
    case = SimpleNamespace(working=chain, limits=SimpleNamespace(error=0.01))
    graph, found = sixteen_bits._repaired(case, keep)
    assert (found, keep, len(seen)) == (error, kept, tried)
    assert graph == widths[tuple(kept)]


def scans(monkeypatch, *samples):
    """Each sample's scan: (nodes to keep wide, own error of every node)."""

    class Scan(list):
        def __init__(self, keep, errors):
            super().__init__(SimpleNamespace(node=name, own_error=error) for name, error in errors.items())
            self.keep_wide, self.faults = keep, []

        def table(self, worst):
            return SimpleNamespace(_repr_html_=lambda: f"<table {worst}>")

    given = iter(samples)
    monkeypatch.setattr(sixteen_bits.layerwise, "scan", lambda graph, feed: Scan(*next(given)))


def waiting(steps, left_s=100.0):
    clock = iter(steps)
    return SimpleNamespace(feeds=[{}] * 5, working=None, now=lambda: next(clock), left_s=left_s)


def test_what_any_of_three_samples_breaks_is_kept_wide_once(monkeypatch):
    scans(monkeypatch, (["a"], {"a": 1.0}), (["b", "a"], {"b": 1.0}), (["c"], {"c": 1.0}))
    row = Row("sixteen bits")
    assert sixteen_bits._scanned(waiting([0, 1, 1, 2, 2, 3]), row) == ["a", "b", "c"]
    assert row.tables == ["<table 8>"]  # of the first sample


def test_without_a_culprit_the_worst_quarter_of_the_first_sample_stays_wide(monkeypatch):
    errors = {name: place / 10 for place, name in enumerate("abcdefghijkl")}
    scans(monkeypatch, ([], errors), ([], {"z": 9.0}), ([], {}))
    assert sixteen_bits._scanned(waiting([0, 1, 1, 2, 2, 3]), Row("sixteen bits")) == ["l", "k", "j"]


def test_a_scan_that_takes_more_than_a_tenth_of_the_time_is_the_last(monkeypatch):
    scans(monkeypatch, (["a"], {"a": 1.0}), (["b"], {"b": 1.0}), (["c"], {"c": 1.0}))
    assert sixteen_bits._scanned(waiting([0, 9, 9, 20], left_s=100.0), Row("sixteen bits")) == ["a", "b"]


def greedy(monkeypatch, needed, worst_first, *, fresh_needed=0, left_s=100.0, minutes=2.0):
    """`_greedy` where ``needed`` wide layers hold the limit, on new samples ``fresh_needed``; (row, what was offered)."""
    offered = []

    def error(case, wide, *, fresh=False):
        return 0.01 if len(wide) >= max(needed, fresh_needed if fresh else 0) else 0.05

    monkeypatch.setattr(quantization, "to_qdq", lambda *_, exclude, **options: list(exclude))
    monkeypatch.setattr(eight_bits, "_error", error)
    monkeypatch.setattr(eight_bits, "_code", lambda case, target, method, wide: f"wide={wide}")
    monkeypatch.setattr(eight_bits, "_offer", lambda case, row, path, name, effort, code: offered.append((name, code)))
    limits = SimpleNamespace(error=0.01, minutes=minutes)
    case = SimpleNamespace(folder=Path("."), working=None, limits=limits, left_s=left_s)
    row = Row("eight bits")
    eight_bits._greedy(case, row, {}, "onnxruntime", "max", worst_first)
    return [finding.text for finding in row.findings], offered


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_the_fewest_layers_that_hold_the_limit_stay_wide(monkeypatch, needed):
    said, offered = greedy(monkeypatch, needed, ["a", "b", "c"])
    assert said == [f"{needed} layers kept FP32: relative error 1.0e-02"]
    assert offered == [(f"INT8, {needed} layers wide", f"wide={['a', 'b', 'c'][:needed]}")]


def test_a_mix_that_new_samples_refuse_is_not_offered(monkeypatch):
    assert greedy(monkeypatch, 1, ["a", "b", "c"], fresh_needed=3)[1] == [
        ("INT8, 3 layers wide", "wide=['a', 'b', 'c']")
    ]


def test_where_no_mix_holds_the_limit_none_is_offered(monkeypatch):
    said, offered = greedy(monkeypatch, 9, ["a", "b"])
    assert said == ["no mix holds the limit: 2 layers wide still err by 5.0e-02"] and not offered


def test_a_mix_leaves_three_tenths_of_the_time_to_the_other_stages(monkeypatch):
    assert greedy(monkeypatch, 2, ["a", "b"], left_s=35.9)[0] == [
        "no mix holds the limit: 1 layers wide still err by 5.0e-02"
    ]
    assert greedy(monkeypatch, 2, ["a", "b"], left_s=36.0)[1]


def test_why_pointwise_kernels_stand_alone():
    links = [
        ("conv", "Conv", ["x"], ["a"]),
        ("reads input", "Relu", ["x"], ["b"]),
        ("one of two", "Sigmoid", ["a"], ["d"]),
        ("the other", "Tanh", ["a"], ["e"]),
        ("after tanh", "Neg", ["e"], ["f"]),
        ("after output", "Abs", ["f"], ["g"]),
    ]
    nodes = [SimpleNamespace(name=n, op=op, inputs=i, outputs=o) for n, op, i, o in links]
    graph = SimpleNamespace(nodes=nodes, outputs=["f", "g"], by_name={node.name: node for node in nodes})
    alone = [SimpleNamespace(kind="pointwise", nodes=(name,)) for name, *_ in links[1:]]
    others = [SimpleNamespace(kind="convolution", nodes=("conv",)), SimpleNamespace(kind="pointwise", nodes=("a", "b"))]
    assert kernels._alone(SimpleNamespace(graph=graph, launched=[*others, *alone])) == {
        "they read the network's input": 1,
        "what they read has a second reader, so it must be written to memory": 2,
        "what they read is an output of the network": 1,
        "no kernel here joins Tanh with them": 1,
    }


@pytest.mark.parametrize(
    ("call_s", "rounds", "worst"), [(1e-5, 15, 0.2), (0.05, 7, 0.0), (0.125, 3, 0.5), (2.0, 3, 0.2)]
)
def test_a_comparison_takes_three_seconds_and_at_least_three_rounds(monkeypatch, call_s, rounds, worst):
    asked = {}

    def paired(before, after, feed, **options):
        asked.update(options)
        return SimpleNamespace(after=SimpleNamespace(samples_ms=(1.0,), machine="m"), samples=(2.0,))

    monkeypatch.setattr(cases.benchmarking, "paired", paired)
    case = SimpleNamespace(
        call_s=call_s, feeds=[{}], base="base", error_of=lambda run, calibrated: 0.25,
        worst_fresh=lambda run: worst, accuracy_of=lambda run: None,
        afford=lambda seconds, what: asked.update(seconds=seconds, what=what), graph=SimpleNamespace(size_mib=3.0),
    )  # fmt: skip
    change = cases.Case.judge(case, "FP16", "run", effort=3, code="code", lab="05")
    assert asked["rounds"] == rounds and (asked["runs_per_round"], asked["warmup"]) == (2, 2)
    assert asked["seconds"] == pytest.approx(8 * (rounds + 1) * call_s) and asked["what"] == "timing 'FP16'"
    assert (change.ratios, change.error, change.size_mib, change.file) == ((2.0,), max(worst, 0.25), 3.0, "")


def test_a_repaired_graph_keeps_its_nodes_wide(chain):
    """What `_repaired` hands on is a graph that computes the named nodes in FP32."""
    graph = precision.cast(chain, keep_wide=["second"])
    types = precision.node_types(graph)
    assert types["second"] == "fp32"
    assert {types[name] for name in ("first", "aside", "scaled", "third")} == {"fp16"}
