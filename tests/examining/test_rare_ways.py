"""The rare ways of each stage: what stops one, what is said then, and the small words and sizes in between."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import convnet, saved, value
from onnx import helper
from test_decision import HALF
from test_stages_by_hand import case_of, floats

from labsupport import build, environment, examining, export, fusion, quantization, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.examining import (
    Row,
    baseline,
    cases,
    eight_bits,
    examination,
    identity,
    inputs,
    kernels,
    memory_peak,
    sixteen_bits,
    smaller,
    sources,
    working_copy,
)  # fmt: skip
from labsupport.fusion import roofline


def texts(row):
    return [finding.text for finding in row.findings]


def test_findings_changes_and_examinations_read_aloud():
    row = Row("memory")
    row.find("a", "read", "04")
    assert repr(row.findings[0]) == "[read] a (lab 04)"
    half = dataclasses.replace(HALF, ratios=(1.0, 2.0, 4.0))
    assert repr(half) == "FP16: 2× (1.5 to 3), error 1.0e-03"
    row.candidates.append(half)
    assert repr(row) == f"memory:\n  [read] a (lab 04)\n  {half}"
    rows = {"a": Row("a", left_out="no time"), "b": Row("b", left_out="no room"), "c": Row("c", left_out="no time")}
    made = examination.Examination({**rows, "d": row}, None, Path("r.html"), ("d",))
    assert made.left_out == {"a": "no time", "b": "no room", "c": "no time"} and made.candidates == [half]
    assert repr(made).splitlines() == [
        "kept from an earlier run: d",
        "left out, a, c: no time",
        "left out, b: no room",
        "decision: no decision: nothing could be measured",
        "report: r.html",
    ]


@pytest.mark.parametrize(
    ("error", "left_out", "retry", "failed"),
    [
        (cases.OutOfTime("late"), "late", True, False),
        (LabError("no"), "no", False, False),
        (
            ValueError("odd\nmore"),
            "an error that this tool did not foresee, ValueError: odd; please report it",
            False,
            True,
        ),
    ],
)
def test_a_stage_that_stops_says_how(monkeypatch, error, left_out, retry, failed):
    def stage(case):
        raise error

    monkeypatch.setitem(examination.STAGES, "memory", stage)
    clock = iter([1.0, 3.257])
    row = examination._run(SimpleNamespace(afford=lambda *_: None, now=lambda: next(clock)), "memory")
    assert (row.left_out, row.retry, row.failed, row.seconds) == (left_out, retry, failed, 2.26)


def test_a_stage_wants_a_second():
    case = case_of(floats(1.0), limits=examining.Limits(minutes=0.5 / 60))
    row = examination._run(case, "memory")
    assert row.retry and "stage 'memory' needs about 1 s" in row.left_out


def asked_of_a_parser(monkeypatch, why_not="", size_mib=1.0, runnable=False):
    monkeypatch.setattr(environment, "why_not", lambda what: why_not)
    monkeypatch.setattr(environment, "has", lambda what: False)
    machine = SimpleNamespace(tensorrt_product="TensorRT", tensorrt="11.0", cores=1)
    monkeypatch.setattr(environment, "machine", lambda: machine)
    monkeypatch.setattr(build, "parse", lambda graph: (None, SimpleNamespace(num_layers=6), None))
    engine = SimpleNamespace(build_s=1.25, size_mib=2.0, runnable_here=runnable)
    monkeypatch.setattr(build, "engine", lambda graph, **options: asked.update(options) or engine)
    asked, row = {}, Row("identity")
    case = SimpleNamespace(
        graph=SimpleNamespace(size_mib=size_mib), working=None, afford=lambda s, _: asked.update(s=s)
    )
    identity._parser(case, row)
    return texts(row), asked


def test_what_a_parser_was_not_asked_is_said(monkeypatch):
    assert asked_of_a_parser(monkeypatch, why_not="no builder")[0] == ["TensorRT was not asked: no builder"]
    said = "TensorRT 11.0 was not asked: the file is larger than 512 MiB"
    assert asked_of_a_parser(monkeypatch, size_mib=512.1)[0] == [said]


@pytest.mark.parametrize(("runnable", "tail"), [(True, ""), (False, "; nothing here can run it")])
def test_a_parser_and_a_builder_are_asked_where_there_is_no_gpu(monkeypatch, runnable, tail):
    said, asked = asked_of_a_parser(monkeypatch, size_mib=512.0, runnable=runnable)
    assert said == [
        "TensorRT 11.0: the parser accepts it, 6 layers",
        f"TensorRT 11.0: the working copy builds in 1.2 s at level 1, 2.00 MiB{tail}",
    ]
    assert asked == {"s": 20, "precision": "as-is", "optimization_level": 1, "progress": False}


def test_who_a_network_is_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_parser", lambda *_: None)
    nodes = [helper.make_node(f"Op{i}", [f"t{i}"], [f"t{i + 1}"], domain="acme", name=f"n{i}") for i in range(6)]
    nodes.append(helper.make_node("Neg", ["t6"], ["y"]))
    path = saved(tmp_path / "net.onnx", nodes, [value("t0", ["n", 4])], [value("y", ["n", 4])])
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, str(path))
    with examining.case_of(path) as case:
        said = texts(identity.stage(case))
    assert said[0] == "7 nodes of 7 operators: " + ", ".join(f"Op{i}×1" for i in range(6)) + ", Neg×1"
    assert said[1].startswith("opset 17, 0.00 MiB, weights fp32, written by an exporter that does not say")
    assert said[2:5] == [
        "takes t0 fp32 (n, 4)",
        "answers y fp32 (n, 4)",
        "free axes in t0: TensorRT wants a profile for each",
    ]
    assert len([text for text in said if text.startswith("operator outside of ONNX")]) == 5
    assert said[-1].startswith("ONNX Runtime: ")


@pytest.mark.parametrize("feeds", [True, False])
def test_samples_that_a_network_does_not_take_are_told_by_the_stages_that_need_them(network, monkeypatch, feeds):
    monkeypatch.setattr(identity, "_parser", lambda *_: None)
    if not feeds:
        monkeypatch.setattr(inputs, "WHOLE", ())
        monkeypatch.setattr(inputs, "made", lambda *_: (_ for _ in ()).throw(BadInput("none fit")))
    with examining.case_of(network) as case:
        said = texts(identity.stage(case))[-1]
    assert said.startswith("inputs: 8 samples made from") if feeds else said == "inputs: none that it accepts"


def test_the_four_commonest_reasons_of_lone_kernels_are_said(monkeypatch, network):
    from collections import Counter

    reasons = Counter({f"reason {i}": 9 - i for i in range(6)})
    monkeypatch.setattr(kernels, "_alone", lambda plan: reasons)
    with examining.case_of(network) as case:
        said = texts(kernels.stage(case))
    assert [text for text in said if "alone" in text] == [
        f"{9 - i} pointwise kernels stand alone: reason {i}" for i in range(4)
    ]
    assert "every node accounted for: yes" in said


def test_the_xray_of_a_stage_times_five_runs_of_the_first_sample(monkeypatch, network):
    asked = []
    monkeypatch.setattr(fusion, "profile", lambda run, feed, **options: asked.append((feed, options)) or {})
    plan = SimpleNamespace(
        accounts=lambda: SimpleNamespace(complete=False), graph=SimpleNamespace(nodes=[1, 2], outputs=[]), inserted=[1],
        launched=[SimpleNamespace(kind="layout", nodes=())], total_ms=None,
    )  # fmt: skip
    plan.graph.nodes = [SimpleNamespace(inputs=[], outputs=[])] * 2
    monkeypatch.setattr(fusion, "xray", lambda *_, **__: plan)
    case = SimpleNamespace(call_s=0.5, afford=lambda s, _: asked.append(s), working=network, feeds=["first", "second"])
    row = kernels.stage(case)
    assert asked == [20.0, ("first", {"runs": 5, "warmup": 2})] and not row.pictures
    assert texts(row) == [
        "2 nodes run as 1 kernels: layout×1",
        "every node accounted for: no",
        "1 kernels only copy or convert",
    ]


class Scan(list):
    keep_wide: list = []

    def __init__(self, faults):
        super().__init__([SimpleNamespace(node="n", own_error=0.5)] * 3)
        self.faults = faults

    def table(self, worst):
        return SimpleNamespace(_repr_html_=lambda: "table")


def test_eight_faults_of_the_first_sample_are_named(monkeypatch):
    faults = [SimpleNamespace(node=f"/layers/n{i}", op="Exp", cause="overflow", own_error=0.25) for i in range(9)]
    case = SimpleNamespace(feeds=[1, 2, 3, 4], working=None, now=lambda: 0.0, left_s=1.0)
    found, seen = Row("sixteen bits"), []
    monkeypatch.setattr(sixteen_bits.layerwise, "scan", lambda _, feed: seen.append(feed) or Scan(faults))
    sixteen_bits._scanned(case, found)
    assert texts(found) == [f"FP16 breaks n{i} (Exp): overflow, own error 2.5e-01" for i in range(8)]
    assert seen == [1, 2, 3] and found.tables == ["table"]
    sound = Row("sixteen bits")
    monkeypatch.setattr(sixteen_bits.layerwise, "scan", lambda *_: Scan([]))
    sixteen_bits._scanned(case, sound)
    assert texts(sound) == ["FP16 breaks none of 3 computing nodes by itself"]


@pytest.mark.parametrize(
    ("plain", "repaired", "said", "offered"),
    [
        (0.01, None, [], ("plain", [])),  # at the limit nothing is kept wide
        (0.02, 0.005, ["with 1 nodes kept FP32: relative error 5.0e-03"], ("repaired", ["n"])),
        (
            np.inf,
            np.inf,
            [
                "with 1 nodes kept FP32: relative error inf",
                "FP16 answers NaN or infinity here even so; BF16 or a rewritten formula is the way",
            ],
            None,
        ),
    ],
)
def test_sixteen_bits_are_repaired_beyond_the_limit(monkeypatch, plain, repaired, said, offered):
    seen = []
    monkeypatch.setattr(sixteen_bits, "_cast", lambda case, keep: "plain")
    monkeypatch.setattr(sixteen_bits, "_error", lambda case, graph: plain)
    monkeypatch.setattr(sixteen_bits, "_scanned", lambda case, row: ["n"])
    monkeypatch.setattr(sixteen_bits, "_repaired", lambda case, keep: ("repaired", repaired))
    monkeypatch.setattr(sixteen_bits, "_offer", lambda case, row, half, keep: seen.append((half, keep)))
    asked = []
    limits = SimpleNamespace(error=0.01)
    case = SimpleNamespace(call_s=0.5, afford=lambda seconds, _: asked.append(seconds), limits=limits)
    row = sixteen_bits.stage(case)
    assert texts(row)[1:] == said and seen == ([offered] if offered else []) and asked == [30.0]


def test_a_half_that_does_not_load_is_said(monkeypatch):
    def runtime(*_, **__):
        raise LabError("no such kernel")

    class Rounded:
        def __init__(self, *_, **__): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

    monkeypatch.setattr(sixteen_bits.runtimes, "OnnxRuntime", Rounded)
    monkeypatch.setattr(sixteen_bits.precision, "rounded", lambda half: half)
    folder, working = Path("net.examined"), SimpleNamespace(path=Path("working.onnx"))
    row = Row("sixteen bits")
    sixteen_bits._offer(SimpleNamespace(folder=folder, working=working, runtime=runtime), row, None, ["n"])
    assert texts(row) == ["the FP16 graph does not load here: no such kernel"] and not row.candidates


def test_a_session_that_computes_in_sixteen_bits_proves_its_time(network, monkeypatch):
    said = sixteen_bits._computed_wide(export.cast(network))
    assert said.startswith("ONNX Runtime computes it in FP32 here") or said == ""
    monkeypatch.setattr(sixteen_bits.precision, "node_types", lambda path: {"a": "fp32", "b": "fp16"})
    assert sixteen_bits._computed_wide(export.load(network)) == ""
    monkeypatch.setattr(sixteen_bits.precision, "node_types", lambda path: {"a": "fp32"})
    assert sixteen_bits._computed_wide(export.load(network)).startswith("ONNX Runtime computes it in FP32 here")


def test_a_sensitivity_that_runs_out_of_time_is_said_and_a_graph_that_answers_nan_costs_a_million(monkeypatch):
    costs, left = [], iter([100.0, 1.0, 0.5])

    def sensitivity(graph, ranges, evaluate, **options):
        costs.append(evaluate("one"))
        evaluate("two")

    monkeypatch.setattr(quantization, "layers", lambda _: ["a", "b"])
    monkeypatch.setattr(quantization, "sensitivity", sensitivity)
    monkeypatch.setattr(eight_bits, "_error", lambda *_: np.inf)
    monkeypatch.setattr(eight_bits, "_heaviest", lambda _, names: names)

    class Case:
        working = None
        left_s = property(lambda self: next(left))

    row = Row("eight bits")
    eight_bits._mixed(Case(), row, None, "tensorrt", "max", 1.0)
    assert costs == [1e6] and texts(row) == [
        "sensitivity stopped: the time budget ended among the layers; run it again with more --minutes"
    ]


def test_without_shapes_layers_are_tried_in_running_order(monkeypatch):
    def work(_):
        raise BadInput("no shapes")

    monkeypatch.setattr(roofline, "work", work)
    case = SimpleNamespace(working=None)
    assert eight_bits._heaviest(case, ("b", "a")) == ["b", "a"]
    row = Row("less")
    smaller._channels(case, row)
    assert texts(row) == ["operations cannot be counted: no shapes"]


@pytest.mark.parametrize(
    ("given", "few", "feeds", "said"),
    [
        (True, 32, 64, "calibrated on 32 real samples; errors are those of 32 others"),
        (True, 31, 62, "calibrated on 31 real samples, and 32 real ones are the least; errors are those of 31 others"),
        (False, 32, 64, "calibrated on 32 made samples, and 32 real ones are the least; errors are those of 32 others"),
        (True, 1, 1, "calibrated on 1 real samples, and 32 real ones are the least; errors are those of the same one"),
    ],
)
@pytest.mark.parametrize("keeps", [True, False])
def test_eight_bits_say_what_they_rest_on(monkeypatch, given, few, feeds, said, keeps):
    asked, mixed = [], []
    errors, clock = {"entropy": 0.02, "max": 0.01}, iter([1.0, 5.0])
    monkeypatch.setattr(quantization, "calibrate", lambda graph, samples, target: asked.append((len(samples), target)))
    monkeypatch.setattr(quantization, "to_qdq", lambda graph, ranges, *, method, **options: method)
    placed = SimpleNamespace(quantized="abc", wide="d")
    monkeypatch.setattr(quantization, "placement", lambda path: asked.append(path.name) or placed)
    monkeypatch.setattr(eight_bits, "_error", lambda case, method: errors[method])
    monkeypatch.setattr(eight_bits, "_code", lambda case, target, best, wide: (target, best, wide))
    monkeypatch.setattr(eight_bits, "_offer", lambda case, row, *told: row.candidates.append(told))
    monkeypatch.setattr(eight_bits, "_mixed", lambda *told: mixed.append(told[3:]))
    case = SimpleNamespace(
        call_s=0.5, afford=lambda seconds, _: asked.append(seconds), working=None, calibrating=[0] * few,
        feeds=[0] * feeds, samples=SimpleNamespace(given=given), folder=Path("f"), now=lambda: next(clock),
        keeps=lambda change: keeps,
    )  # fmt: skip
    row = eight_bits.stage(case)
    assert asked == [22.0, (few, "onnxruntime"), "int8_max.onnx"]
    assert texts(row) == [
        said,
        "all layers in INT8, entropy calibration: relative error 2.0e-02",
        "all layers in INT8, max calibration: relative error 1.0e-02",
        "3 of 4 layers quantized",
    ]
    assert row.candidates == [(Path("f/int8_max.onnx"), "INT8, max", 4, ("onnxruntime", "max", ()))]
    assert mixed == ([] if keeps else [("onnxruntime", "max", 2.0)])


def test_other_files_of_networks(tmp_path, monkeypatch):
    import torch

    (tmp_path / "net.pt2").write_bytes(b"a")
    program = SimpleNamespace(example_inputs=None)
    monkeypatch.setattr(torch.export, "load", lambda path: program)
    with pytest.raises(BadInput, match="net.pt2 holds no example inputs; export it again"):
        sources.graph_of(tmp_path / "net.pt2", tmp_path)
    program.example_inputs = ((torch.ones(1),), {})

    def export_fails(*_, **__):
        raise ValueError("step\nmore")

    monkeypatch.setattr(torch.onnx, "export", export_fails)
    with pytest.raises(LabError, match="PyTorch cannot export net.pt2: step; export the module itself with"):
        sources.graph_of(tmp_path / "net.pt2", tmp_path)
    loaded = {}

    def load_model(path, compile):
        loaded.update(path=path, compile=compile)
        return "model"

    keras = SimpleNamespace(saving=SimpleNamespace(load_model=load_model))
    monkeypatch.setattr(sources.keras_models, "keras_here", lambda: (keras, "torch"))
    monkeypatch.setattr(sources.keras_models, "from_keras", lambda model, path: (model, path.name))
    assert sources.graph_of(tmp_path / "net.H5", tmp_path) == (("model", "net.onnx"), None)
    assert loaded == {"path": str(tmp_path / "net.H5"), "compile": False}


@pytest.mark.parametrize(
    ("off", "told"),
    [
        ([0.0, 0.5], "ONNX Runtime's basic rewrites change the answer and were not kept"),
        ([1e-3, 1e-3], "ONNX Runtime's basic rewrites: 6 → 6 nodes"),  # at the limit it is the same network
        ([0.0, BadInput("no such operator")], "ONNX Runtime's basic rewrites were not kept: no such operator"),
    ],
)
def test_rewrites_are_kept_where_they_keep_the_answer(network, tmp_path, monkeypatch, off, told):
    graph, feed = export.load(network), {"x": np.ones((1, 3, 16, 16), np.float32)}
    with runtimes.OnnxRuntime(graph) as run:
        answer = run(feed)
    steps = iter(off)

    def measured(*_, **__):
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        return step

    monkeypatch.setattr(working_copy, "_off", measured)
    copy, story = working_copy.working(graph, feed, answer, tmp_path)
    assert story == ["shapes fixed to those of the first sample", told]
    assert copy.path.name == ("working.onnx" if "→" in told else "fixed.onnx")


def test_an_answer_of_another_shape_is_off_without_end(network):
    feed = {"x": np.ones((1, 3, 16, 16), np.float32)}
    assert working_copy._off(export.load(network), feed, {"y": np.ones((2, 5), np.float32)}) == np.inf


@pytest.mark.parametrize(("opset", "lifted"), [(12, 17), (13, 13)])
def test_old_operator_sets_are_lifted(tmp_path, opset, lifted):
    graph = export.load(convnet(tmp_path / "net.onnx", opset=opset))
    feed = {"x": np.ones((2, 3, 16, 16), np.float32)}
    copy = working_copy.fixed(graph, feed, {"y": np.ones((2, 5), np.float32)}, tmp_path)
    assert copy.opset == lifted and copy.inputs["x"][0] == (2, 3, 16, 16) and copy.outputs["y"][0] == (2, 5)


def test_what_no_converter_lifts_is_named(tmp_path, monkeypatch):
    def convert(*_):
        raise RuntimeError("unknown operator")

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    graph = export.load(convnet(tmp_path / "net.onnx", opset=11))
    with pytest.raises(LabError, match=r"net.onnx is opset 11, and .* does not bring it to 17 \(unknown operator\)"):
        working_copy.fixed(graph, {}, {}, tmp_path)


@pytest.mark.parametrize(("many", "pictures"), [(0, 0), (1, 1), (400, 1), (401, 0)])
def test_up_to_four_hundred_lifetimes_are_drawn(monkeypatch, many, pictures):
    lives = SimpleNamespace(total_mib=1.0, peak_mib=0.5, steps=(), tensors=[0] * many)
    monkeypatch.setattr(memory_peak.footprint, "lifetimes", lambda graph: lives)
    takes = SimpleNamespace(weights_mib=1.0, activations_mib=2.0)
    monkeypatch.setattr(memory_peak.shipped, "shipped", lambda graph, kind: takes)
    drawing = SimpleNamespace(_repr_png_=lambda: b"", text="")
    monkeypatch.setattr(memory_peak.footprint, "draw_lifetimes", lambda *_, **__: drawing)
    row = memory_peak.stage(SimpleNamespace(working=None))
    assert len(row.pictures) == pictures and len(row.findings) == 3


@pytest.mark.parametrize(("size_mib", "said"), [(2049.0, "has 2.0 GiB: .*beyond 2 GiB only"), (3072.0, "has 3.0 GiB")])
def test_what_is_not_copied_is_said_with_its_size(size_mib, said):
    case = case_of(floats(1.0))
    case.graph.size_mib = size_mib
    with pytest.raises(BadInput, match=said):
        _ = case.working


def test_inputs_stored_in_a_models_file_are_its_own():
    case = case_of(floats(1.0))
    del vars(case)["samples"]
    vars(case).update(samples_file=None, example={"x": 1})
    assert (
        case.samples.given
        and case.samples.feeds == ({"x": 1},)
        and case.samples.origin == "the example inputs stored in the model's file"
    )


def test_another_kind_of_runtime_is_refused():
    with pytest.raises(BadInput, match="kind='int4' is not known; choose one of .'fp32', 'fp16', 'int8'"):
        case_of(floats(1.0)).runtime(None, "int4")


@pytest.mark.parametrize(("cores", "gpu", "threads"), [(1, False, []), (2, False, [2]), (8, True, None)])
def test_what_costs_nothing_is_tried(monkeypatch, cores, gpu, threads):
    monkeypatch.setattr(environment, "has", lambda what: gpu)
    monkeypatch.setattr(environment, "machine", lambda: SimpleNamespace(cores=cores))
    asked, judged = [], []

    class Run:
        def __init__(self, graph, threads=1, name=""):
            asked.append((threads, name))

        def __enter__(self): ...
        def __exit__(self, *_): ...

    monkeypatch.setattr(baseline.runtimes, "OnnxRuntime", Run)

    def judge(name, run, **told):
        judged.append((name, told["effort"], told["lab"], told.get("note", "")))
        return SimpleNamespace(error=0.125)

    working = SimpleNamespace(path=Path("net.examined/working.onnx"))
    case = SimpleNamespace(graph=SimpleNamespace(path=Path("net.onnx")), working=working, story=["a", "b"], judge=judge)
    row = Row("baseline")
    baseline._free_changes(case, row)
    if threads is None:
        assert not judged and not row.findings
    else:
        assert asked == [*((n, "two threads") for n in threads), (1, "shapes fixed")]
        assert judged == [*(("two threads", 1, "01", "") for _ in threads), ("shapes fixed", 2, "03", "a; b")]
        assert texts(row) == ["the working copy: a; b; error 1.2e-01"] and len(row.candidates) == len(judged)
