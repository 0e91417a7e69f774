"""Building engines: really built by whatever TensorRT this machine has, and every refusal."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections import Counter
from types import SimpleNamespace

import onnx
import pytest
import torch
from faces import stand_in
from onnx_files import saved, value

from labsupport import build, environment, export, models
from labsupport.build import builder, builder_thread, engines, network, readback, recipe, timing_cache
from labsupport.errors import BadInput, BuildError, LabError, NotAvailable, PrecisionMismatch

pytestmark = pytest.mark.skipif(environment.machine().tensorrt is None, reason="no TensorRT: pip install tensorrt-rtx")
needs_gpu = pytest.mark.skipif(not environment.has("engine execution"), reason="needs a GPU that TensorRT runs on")
needs_rtx = pytest.mark.skipif(environment.generation() != "rtx", reason="TensorRT-RTX's CPU builder")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    model = models.article_cnn()
    return export.to_onnx(
        model,
        model.example_input(2),
        target=environment.generation(),
        path=tmp_path_factory.mktemp("onnx") / "cnn.onnx",
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_the_precision_asked_for_is_the_precision_built(graph, precision):
    engine = build.engine(graph, precision=precision, strict=True, batch=(1, 4, 8))
    wanted = "fp16" if precision == "fp16" else "fp32"
    assert engine.precisions[wanted] > 0 and engine.precision == precision
    assert engine.evidence == ("engine inspector" if environment.has("engine execution") else "typed network")
    assert engine.plan() and engine.size_mib > 0.1 and engine.build_s > 0


def test_a_second_build_is_found_and_a_damaged_one_is_built_again(graph):
    first = build.engine(graph, batch=4)
    assert not first.from_cache and build.engine(graph, batch=4).from_cache
    first.path.write_bytes(first.path.read_bytes()[:1000])
    again = build.engine(graph, batch=4)
    assert not again.from_cache and len(again.plan()) > 1000


def test_other_options_are_another_engine(graph):
    a, b = build.engine(graph, batch=4), build.engine(graph, batch=4, optimization_level=1)
    assert a.path != b.path and a.path.exists()


def test_the_build_log_is_kept(graph):
    engine = build.engine(graph, batch=4, rebuild=True)
    assert engine.log and engine.path.with_suffix(".log").read_text(encoding="utf-8").count("\n") >= len(engine.log) - 1


def test_a_network_by_the_layer_api(monkeypatch):
    def double(trt, network):
        x = network.add_input("x", trt.DataType.FLOAT, (4, 4))
        y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
        y.name = "y"
        network.mark_output(y)

    assert build.engine(double, name="double").name == "double"
    with pytest.raises(BadInput, match="needs name="):
        build.engine(double)
    with pytest.raises(BuildError, match="marked no output"):
        build.engine(lambda trt, network: network.add_input("x", trt.DataType.FLOAT, (4,)), name="empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "'half' is not known; choose one of"),
        ({"precision": "int8"}, "no QuantizeLinear nodes.*lab 06"),
        ({"optimization_level": 9}, "levels 0 .fast build. to 5"),
        ({"workspace_mib": 0}, "workspace_mib=0; wanted a whole number of at least 1"),
        ({"workspace_mib": 0.5}, "workspace_mib=0.5; wanted a whole number"),
        ({"hardware_compatible": "all"}, "'all' is not known"),
        ({"profiles": {"pictures": network.Profile((1,), (1,), (1,))}}, r"profiles names \['pictures'\]"),
        ({"profiles": {"images": network.Profile((8, 1, 28, 28), (4, 1, 28, 28), (8, 1, 28, 28))}}, "min ≤ opt ≤ max"),
        (
            {"profiles": {"images": network.Profile((1, 3, 28, 28), (1, 3, 28, 28), (1, 3, 28, 28))}},
            "the network has .-1, 1, 28, 28",
        ),
        ({"io_formats": {"pictures": ("HALF", "LINEAR")}}, "io_formats names 'pictures'"),
        (
            {"io_formats": {"images": ("FLOAT", "ROUND")}},
            "'ROUND' is no TensorFormat of TensorRT .*choose from .*LINEAR",
        ),
        ({"batch": 0}, "batch=0; give one whole number, 1 or more"),
        ({"batch": (1, 2)}, "or three of them"),
        ({"batch": True}, "batch=True"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"optimization_level": 3.0}, "levels 0 .fast build. to 5"),
        ({"profiles": {"images": (1, 2, 3)}}, "give .input name: build.Profile"),
        ({"configure": 5}, "configure is a int; give a function"),
        ({"name": "../../escape"}, "an engine's name is part of a file's name"),
        ({"tactic_sources": ["MAGIC"]}, "'MAGIC' is no TacticSource of TensorRT .*choose from .*JIT_CONVOLUTIONS"),
    ],
)
def test_impossible_options_name_the_choices(graph, options, message):
    with pytest.raises(BadInput, match=message):
        build.engine(graph, **options)


def test_a_batch_that_the_graph_does_not_have_is_not_ignored(tmp_path):
    model = models.article_cnn()
    fixed = export.to_onnx(
        model, model.example_input(2), target=environment.generation(), dynamic=False, path=tmp_path / "fixed.onnx"
    )
    with pytest.raises(BadInput, match="batch=32, but the network's batch is fixed at 2; export it with dynamic=True"):
        build.engine(fixed, batch=32)
    assert build.engine(fixed, batch=2).plan()


@needs_rtx
def test_a_gpu_that_rtx_does_not_know(graph):
    with pytest.raises(BadInput, match=r"compute_capability=\(9, 0\).*choose one of"):
        build.engine(graph, compute_capability=(9, 0))
    with pytest.raises(BadInput, match=r"compute_capability=\(9,\); give a pair such as"):
        recipe.Recipe(compute_capability=(9,))


@needs_rtx
def test_an_fp16_request_that_the_graph_does_not_carry_is_an_error(graph, monkeypatch):
    stand_in(monkeypatch, export, "cast", lambda g: g)  # the cast that silently does nothing
    with pytest.raises(PrecisionMismatch, match="asked for fp16, but the typed network shows fp32"):
        build.engine(graph, precision="fp16", batch=4)
    assert not list((environment.cache_dir() / "engines").glob("*.plan")), "a wrong engine must not be kept"


def test_a_mismatch_is_an_error_for_every_precision():
    with pytest.raises(PrecisionMismatch, match="asked for fp16, but the engine inspector shows fp32×3.*strict=True"):
        readback.demand("fp16", Counter(fp32=3), "engine inspector", "net", "8.6")
    with pytest.raises(PrecisionMismatch, match="asked for fp32, but .* shows fp16×2, fp32×1"):
        readback.demand("fp32", Counter(fp16=2, fp32=1), "engine inspector", "net", "11")
    with pytest.raises(PrecisionMismatch, match="asked for int8"):
        readback.demand("int8", Counter(fp16=2), "engine inspector", "net", "8.6")
    for precision, read in [
        ("fp16", {"fp16": 1, "fp32": 9}),
        ("tf32", {"fp32": 2}),
        ("as-is", {"int8": 1}),
        ("int8", {"int8": 1, "fp16": 1}),
    ]:
        readback.demand(precision, Counter(read), "engine inspector", "net", "11")


def test_a_region_that_cannot_be_read_is_no_proof():
    region = {
        "Name": "{ForeignNode[a...b]}",
        "LayerType": "Myelin",
        "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
        "Outputs": [{"Format/Datatype": "Row major linear FP32"}],
    }
    narrow = {**region, "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
    free = {"Name": "pool", "LayerType": "CaskPooling", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}
    assert readback.read_precisions([region, narrow, free]) == {"region": 1, "fp16": 1, "unread": 1}
    with pytest.raises(
        PrecisionMismatch, match="region×1. what runs inside a Myelin region cannot be read; pass strict=True"
    ):
        readback.demand("fp16", Counter(region=1), "engine inspector", "net", "8.6")
    readback.demand("fp16", Counter(region=1), "engine inspector", "net", "8.6", strict=True)
    readback.demand("fp16", Counter(region=1), "engine inspector", "net", "11")
    readback.demand("fp16", Counter(unread=4), "engine inspector", "net", "8.6", strict=True)
    with pytest.raises(PrecisionMismatch, match="unread×4. the 8.6 builder may keep FP32 kernels"):
        readback.demand("fp16", Counter(unread=4), "engine inspector", "net", "8.6")


@pytest.mark.parametrize(
    "layers, calibrator, scales",
    [
        (("CONVOLUTION", "ACTIVATION"), None, False),
        (("QUANTIZE", "DEQUANTIZE", "CONVOLUTION"), None, True),
        (("CONVOLUTION",), object(), True),
    ],
)
def test_as_is_allows_int8_only_where_there_are_scales(layers, calibrator, scales):
    """The 8.6 builder that may use INT8 and finds no scale anywhere gives up with a calibration failure."""
    types = [SimpleNamespace(type=SimpleNamespace(name=name)) for name in layers]
    network = SimpleNamespace(num_layers=len(types), get_layer=types.__getitem__)
    assert builder._Job._has_scales(network, SimpleNamespace(int8_calibrator=calibrator)) is scales
    for precision in ("fp16", "fp32"):
        with pytest.raises(PrecisionMismatch, match="no layer whose type it tells"):
            readback.demand(precision, Counter(), "engine inspector", "net", "8.6", strict=True)


def test_precisions_are_read_from_every_inspector_schema():
    conv86 = {
        "Name": "conv",
        "LayerType": "CaskConvolution",
        "Weights": {"Type": "Half", "Count": 864},
        "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
    }
    copy86 = {"Name": "copy", "LayerType": "Reformat", "Outputs": [{"Format/Datatype": "Channel major FP16 format"}]}
    pool86 = {
        "Name": "pool",
        "LayerType": "CaskPooling",
        "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    }
    conv11 = {"Name": "conv", "LayerType": "gemm", "Outputs": [{"Name": "y", "Format": "LINEAR", "DataType": "BF16"}]}
    pooled = {
        "Name": "conv + pool",
        "LayerType": "CaskConvActPool",
        "ConvWeights": {"Type": "Int8", "Count": 9},
        "Outputs": [{"Format/Datatype": "Row major linear FP32"}],
    }
    again = {**conv86, "Name": "conv [profile 1]"}  # a second optimization profile lists every layer again
    read = readback.read_precisions([conv86, copy86, pool86, conv11, pooled, again, "name only"])
    assert read == {"fp16": 1, "int8": 2, "bf16": 1}


def test_an_operator_that_tensorrt_has_not(tmp_path):
    operator = onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="com.example")
    ends = [value("x", [1, 4])], [value("y", [1, 4])]
    odd = saved(tmp_path, [operator], *ends, domains=[("com.example", 1)], name="odd")
    with pytest.raises(BuildError, match=r"odd.onnx: .*odd \(Frobnicate\).*(plugin|lab 10)"):
        build.engine(odd)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\0" * 200, b"\x89PNG" + b"\0" * 99])
def test_files_the_parser_would_swallow_never_reach_it(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="model.onnx"):
        build.engine(path)


def test_a_builder_that_gives_nothing_is_explained(graph, monkeypatch):
    monkeypatch.setattr(builder_thread, "build", lambda *a, **k: None)
    with pytest.raises(BuildError, match="the builder stopped: .*"):
        build.engine(graph, batch=4)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "Error Code 2: OutOfMemory (Requested size was 99)",
            "raise workspace_mib if the requested size is above it; else free GPU memory",
        ),
        ("Could not find any implementation for node conv", "raise workspace_mib"),
        ("x: dynamic input is missing dimensions in profile 0", "give every free axis a range"),
        ("something else", "see the whole log"),
        ("libnvinfer_lean.so: cannot open", "EXCLUDE_LEAN_RUNTIME"),
    ],
)
def test_what_the_builder_says_is_turned_into_what_to_do(said, hint):
    job = builder._Job(None, type("Log", (), {"errors": lambda self: [said]})(), build.Recipe(), True)
    assert hint in job._complaint("net") and said in job._complaint("net")


def test_the_first_error_is_the_cause():
    said = [
        "1: [myelinCache.h] Myelin error from unknown graph",
        "The timing cache will not be used!",
        "conv has no weights",
        "Assertion engine != nullptr failed",
    ]
    job = builder._Job(None, type("Log", (), {"errors": lambda self: said})(), build.Recipe(), True)
    assert "conv has no weights" in job._complaint("net")


def test_no_gpu_is_said_before_the_builder_is_asked(graph, monkeypatch):
    bare = environment.Machine(
        tensorrt="11.0.0.114", tensorrt_product="tensorrt", generation="11", problem="no NVIDIA driver was found"
    )
    stand_in(monkeypatch, environment, "machine", lambda: bare)
    stand_in(monkeypatch, environment, "tensorrt", lambda: object())
    with pytest.raises(
        NotAvailable,
        match="TensorRT 11.0.0.114 builds on the GPU it builds for; no GPU.*TensorRT-RTX builds without one",
    ):
        build.engine(graph, batch=4)


def test_a_network_by_the_layer_api_is_built_anew(graph):
    """Its weights are not in its code: an engine found by the code could hold yesterday's weights."""

    def constant(value):
        def define(trt, network):
            import numpy as np

            x = network.add_input("x", trt.DataType.FLOAT, (4, 4))
            c = network.add_constant((4, 4), np.full((4, 4), value, np.float32)).get_output(0)
            network.mark_output(network.add_elementwise(x, c, trt.ElementWiseOperation.SUM).get_output(0))

        return define

    assert not build.engine(constant(1.0), name="added").from_cache
    assert not build.engine(constant(2.0), name="added").from_cache


def test_a_function_without_source_builds(monkeypatch):
    made = {}
    exec(
        compile(
            "def define(trt, network):\n x = network.add_input('x', trt.DataType.FLOAT, (4, 4))\n"
            " network.mark_output(network.add_activation(x, trt.ActivationType.RELU).get_output(0))",
            "<cell>",
            "exec",
        ),
        made,
    )
    assert build.engine(made["define"], name="no_source", configure=lambda trt, builder, network, config: None).plan()


def test_a_function_with_a_class_inside_has_one_name_in_every_process():
    """Its code object's repr holds an address; an engine kept by it would never be found again."""
    source = "def configure(trt, builder, network, config):\n class Inside:\n  def step(self): return 1\n"
    source += " return Inside, config.first"
    names = []
    for _ in range(2):
        made = {}
        exec(compile(source, "<cell>", "exec"), made)
        names.append(recipe.code_of(made["configure"]))
    for change in (("return 1", "return 2"), ("first", "second")):
        exec(compile(source.replace(*change), "<cell>", "exec"), made)
        assert names[0] == names[1] != recipe.code_of(made["configure"])


def test_a_hardware_level_that_a_release_lacks(monkeypatch):
    old = type("trt", (), {"HardwareCompatibilityLevel": type("Level", (), {"NONE": 0, "AMPERE_PLUS": 1})})
    with pytest.raises(BadInput, match="has no hardware_compatible='same_compute_capability'"):
        builder._hardware_level(old, "same_compute_capability")


def test_an_unwritable_cache_names_the_variable(graph, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LABSUPPORT_CACHE", str(blocked / "cache"))
    with pytest.raises(LabError, match="LABSUPPORT_CACHE"):
        build.engine(graph, batch=4)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------


class SlowBuilder:
    """Builds for as long as its monitor lets it."""

    def build_serialized_network(self, network, config):
        for step in range(400):
            time.sleep(0.01)
            if config.progress_monitor and not config.progress_monitor.step_complete("tactics", step):
                return None
        return b"finished"


@needs_rtx
def test_ctrl_c_stops_the_builder_and_keeps_what_was_saved(graph, monkeypatch):
    kept = build.engine(graph, batch=4)
    wait = threading.Event.wait

    def interrupted(self, timeout=None):
        if timeout == 0.1:
            monkeypatch.setattr(threading.Event, "wait", wait)
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", interrupted)
    config = type("Config", (), {"progress_monitor": None})()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        builder_thread.build(environment.tensorrt(), SlowBuilder(), None, config, "net", False)
    assert time.monotonic() - started < 3, "the builder went on to its end"
    assert engines.load(kept.path).plan() == kept.plan()


# --- the timing cache -------------------------------------------------------------------------------------------


class FakeCache:
    """Stands for ITimingCache: a set of lines."""

    def __init__(self, data: bytes):
        self.lines = set(data.split())

    def combine(self, other, ignore_mismatch):
        self.lines |= other.lines

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.lines))


class FakeConfig:
    def __init__(self, accepts=True):
        self.accepts, self.cache = accepts, None

    def create_timing_cache(self, data):
        return FakeCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        if self.accepts or not cache.lines:
            self.cache = cache
            return True
        return False

    def get_timing_cache(self):
        return self.cache


def _build_with_cache(file, line: bytes, pause: float = 0.0):
    config = FakeConfig()
    before = timing_cache.read(None, config, file, None)
    time.sleep(pause)
    config.cache.lines.add(line)
    timing_cache.merge(config, file, before)


def _many(file, name, count):
    for i in range(count):
        _build_with_cache(file, f"{name}{i}".encode(), 0.002)


def test_two_builders_at_once_lose_nothing(tmp_path):
    file = tmp_path / "timing" / "x.cache"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_many, args=(file, name, 8)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    assert set(file.read_bytes().split()) == {f"{n}{i}".encode() for n in "ab" for i in range(8)}


def test_a_cache_of_another_tensorrt_is_left_out_with_a_word(tmp_path):
    file = tmp_path / "x.cache"
    file.write_bytes(b"old")
    said = []
    log = type("Log", (), {"log": lambda self, severity, text: said.append(text)})()
    config = FakeConfig(accepts=False)
    trt = environment.tensorrt()
    assert timing_cache.read(trt, config, file, log) == b"" and config.cache.lines == set()
    assert said and "another TensorRT or GPU" in said[0]


@needs_gpu
def test_a_second_build_measures_nothing_new(graph):
    build.engine(graph, precision="fp16", strict=True, batch=4, rebuild=True)
    size = timing_cache.path().stat().st_size
    build.engine(graph, precision="fp16", strict=True, batch=4, rebuild=True)
    assert timing_cache.path().stat().st_size == size, "the second build measured something the first had measured"


def test_sidecar_says_what_it_was_built_from_and_for(graph):
    engine = build.engine(graph, batch=(1, 4, 8))
    facts = json.loads(engines.sidecar_path(engine.path).read_text())
    assert facts["built_from"] == {"onnx": "cnn.onnx", "sha256": graph.sha256}
    assert facts["built_for"]["version"] == environment.machine().tensorrt and facts["options"]["batch"] == [1, 4, 8]


def test_half_graphs_build_as_they_are(tmp_path):
    model = models.article_cnn().half()
    graph = export.to_onnx(
        model, model.example_input(2).half(), target=environment.generation(), path=tmp_path / "half.onnx"
    )
    assert export.float_type(graph) == "fp16" and all(p.dtype == torch.half for p in model.parameters())
    assert build.engine(graph, precision="fp16", strict=True, batch=4).precisions["fp16"] > 0


def test_the_logger_tells_its_last_error():
    trt, log = environment.tensorrt(), build.logger("WARNING")
    assert log.last_error() == "no reason given"
    for severity, text in (
        (trt.ILogger.Severity.ERROR, "first"),
        (trt.ILogger.Severity.ERROR, "second"),
        (trt.ILogger.Severity.WARNING, "mild"),
    ):
        log.log(severity, text)
    assert log.errors() == ["first", "second"] and log.last_error() == "second"


def test_a_recipe_and_its_fields_as_arguments_find_the_same_engine(graph):
    written = build.engine(graph, build.Recipe(batch=2, optimization_level=0), progress=False)
    assert build.engine(graph, batch=2, optimization_level=0, progress=False).path == written.path
    other = build.engine(graph, build.Recipe(batch=2, optimization_level=0), optimization_level=1, progress=False)
    assert other.path != written.path  # an argument beside a recipe changes that field only
    assert other.sidecar["options"]["batch"] == 2 and other.sidecar["options"]["optimization_level"] == 1


def test_a_recipe_is_checked_when_it_is_written_and_cannot_be_changed(graph):
    with pytest.raises(BadInput, match="precision='fp8' is not known"):
        build.Recipe(precision="fp8")
    with pytest.raises(AttributeError):
        build.Recipe().precision = "fp16"
    with pytest.raises(BadInput, match="'precison' is no option of a build; choose from: precision, strict"):
        build.engine(graph, precison="fp16")
    with pytest.raises(BadInput, match="recipe is a str; give build.Recipe"):
        build.engine(graph, "fp16")
