"""What a served network holds, stage by stage, in a process of its own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faces import stand_in
from footprint_graphs import MIB_FLOATS, graph_of
from onnx import TensorProto, helper
from onnx_files import node, saved, value

from labsupport import environment, export, footprint
from labsupport.benchmarking import memory_meter as memory
from labsupport.build import engines
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.footprint import served

ON_GPU = footprint.Ledger(
    "net in TensorRT", (("libraries", 100.4, None), ("weights", 2.0, 50.2), ("context", -1.0, 30.0)), memory.OWN
)


def test_a_ledger_adds_up_host_and_gpu_apart():
    assert ON_GPU.host_mib == pytest.approx(101.4) and ON_GPU.gpu_mib == pytest.approx(80.2)
    assert ON_GPU["weights"] == 50.2 and ON_GPU["libraries"] == 100.4
    assert ON_GPU.rows()[-1] == {"stage": "together", "host MiB": 101, "GPU MiB": 80}
    assert repr(ON_GPU) == "Ledger(net in TensorRT: host 101 MiB, GPU 80 MiB (this process) after 3 stages)"
    with pytest.raises(
        BadInput, match=r"has no stage 'activations'; its stages are \['libraries', 'weights', 'context'\]"
    ):
        ON_GPU["activations"]


def test_a_ledger_without_a_gpu_has_no_gpu_column():
    on_host = footprint.Ledger("net", (("weights", 7.0, None),))
    assert on_host.gpu_mib is None and on_host.rows() == [
        {"stage": "weights", "host MiB": 7},
        {"stage": "together", "host MiB": 7},
    ]
    assert repr(on_host) == "Ledger(net: host 7 MiB after 1 stages)"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Ten tensors of 8 MiB in a row, of which two at a time are alive."""
    names = [f"t{i}" for i in range(11)]
    nodes = [helper.make_node("Neg", [before], [after]) for before, after in zip(["x", *names[:-1]], names)]
    return graph_of(tmp_path_factory.mktemp("chain"), nodes, {"t10": TensorProto.FLOAT}, width=8 * MIB_FLOATS)


def test_a_session_that_reuses_memory_holds_less_than_one_that_keeps_it(chain):
    lives = footprint.lifetimes(chain)
    assert (lives.total_mib, lives.peak_mib) == (80, 16)
    usual = footprint.serve_session(chain, (1,), optimization="off")
    kept = footprint.serve_session(
        export.exposed(chain, [f"t{i}" for i in range(10)]), (1,), optimization="off", keep_outputs=True
    )
    assert [stage for stage, _, _ in usual.lines] == ["Python and ONNX Runtime", "weights", "run 1, batch 1"]
    assert usual.lines[0][1] > 10 and usual.gpu_mib is None
    assert kept["run 1, batch 1"] > 70 > 2 * usual["run 1, batch 1"] > 16


def test_a_feed_is_what_goes_in(tmp_path):
    """16 MiB of answers for the large feed, of a graph whose names are the ones that np.savez takes for itself."""
    axes = ["rows", 1024]
    graph = saved(tmp_path, [node("Relu", ["file"], "y", "relu")], [value("file", axes)], [value("y", axes)])

    def answers_mib(rows):
        feed = {"file": np.ones((rows, 1024), np.float32)}
        return footprint.serve_session(graph, feed=feed, keep_outputs=True).lines[2][1]

    assert answers_mib(4096) - answers_mib(1) > 14


def test_sessions_name_their_stages_and_can_share_one_arena(chain):
    apart, together = (
        footprint.serve_session(
            chain, (1, 1), sessions=2, shared_arena=shared, optimization="off", enable_mem_pattern=False
        )
        for shared in (False, True)
    )
    assert [stage for stage, _, _ in apart.lines][1:4] == [
        "session 1, weights",
        "session 1, run 1, batch 1",
        "session 1, run 2, batch 1",
    ]
    assert together["session 2, run 1, batch 1"] < 8 < apart["session 2, run 1, batch 1"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"enable_mem_patern": False},
            r"\['enable_mem_patern'\] is not an option; choose from \['enable_cpu_mem_arena'",
        ),
        (
            {"shrink": True, "enable_cpu_mem_arena": False},
            "exclude each other: without an arena there is nothing to shrink",
        ),
        (
            {"optimization": "most"},
            r"'most' is not an option;.*optimization from \['off', 'basic', 'extended', 'all'\]",
        ),
    ],
)
def test_impossible_session_options_are_refused(chain, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        footprint.serve_session(chain, **options)


@pytest.mark.parametrize("options", [{"shrink": True}, {"enable_cpu_mem_arena": False}, {"enable_mem_reuse": False}])
def test_a_served_session_is_asked_for_what_was_wanted(chain, monkeypatch, options):
    asked = {}
    monkeypatch.setattr(served, "_apart", lambda job, feed: asked.update(job) or ((), memory.OWN))
    footprint.serve_session(chain, (1, 4), optimization="basic", **options)
    shrink = options.pop("shrink", False)
    wanted = {"serve": "session", "path": str(chain.path), "batches": [1, 4], "sessions": 1, "shared_arena": False}
    wanted |= {"shrink": shrink, "keep_outputs": False, "level": "ORT_ENABLE_BASIC", "options": options}
    assert asked == wanted


def test_a_served_process_that_fails_says_its_last_words(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(
        LabError, match=r"that was to serve broken.onnx ended with code 1: .*; load the file in this notebook"
    ):
        footprint.serve_session(tmp_path / "broken.onnx")


def test_serving_an_engine_needs_a_gpu(monkeypatch):
    stand_in(monkeypatch, environment, "machine", lambda: environment.Machine(problem="none was found"))
    with pytest.raises(NotAvailable, match="TensorRT"):
        footprint.serve_engine(SimpleNamespace(name="net", path="net.plan"))


class FakeContext:
    def __init__(self, runs=True):
        self.shapes, self.addresses, self.runs = {}, {}, runs

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        return self.shapes.get(name, (self.shapes["images"][0], 10))

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        return self.runs and len(self.addresses) == 2


class FakeTrt:
    """As much of TensorRT as serving needs; `runs` is what its context answers."""

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, runs=True):
        self.context = FakeContext(runs)

    def Runtime(self, log):
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self)

    num_io_tensors = 2

    def get_tensor_name(self, i):
        return ("logits", "images")[i]  # outputs may come first

    def get_tensor_mode(self, name):
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name):
        return (-1, 3, 4, 4) if name == "images" else (-1, 10)

    def get_tensor_dtype(self, name):
        return SimpleNamespace(itemsize=4)

    def create_execution_context(self):
        return self.context


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU on which each look finds 10 MiB more in use, and whose buffers lie in host memory; hands out whose it is."""
    from labsupport import build

    used, zeros, scopes = [100], torch.zeros, [memory.WHOLE]

    def now():
        used[0] += 10
        return memory.MemoryUse(500.0, used[0], "", scopes[min(len(scopes), used[0] // 10 - 10) - 1])

    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: zeros(*shape, dtype=options.get("dtype")))
    monkeypatch.setattr(memory, "memory_now", now)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=1, synchronize=lambda: None))
    stand_in(monkeypatch, build, "logger", lambda minimum: SimpleNamespace(errors=lambda: ["profile 0 ends at 8"]))
    monkeypatch.setattr(engines, "load", lambda path: SimpleNamespace(plan=lambda: b"plan"))
    return scopes


def reported(trt, monkeypatch, tmp_path) -> dict:
    stand_in(monkeypatch, environment, "tensorrt", lambda: trt)
    asked, told = tmp_path / "job.json", tmp_path / "lines.json"
    asked.write_text(json.dumps({"serve": "engine", "path": "net.plan", "batch": 8, "gpu_before": 90.0}))
    served._report(str(asked), str(told))
    return json.loads(told.read_text())


def test_the_stages_of_a_served_engine(fake_gpu, monkeypatch, tmp_path):
    trt = FakeTrt()
    report = reported(trt, monkeypatch, tmp_path)
    lines = report["lines"]
    assert report["gpu_scope"] == "the whole GPU"
    assert [stage for stage, _, _ in lines] == [
        "Python, PyTorch and TensorRT",
        "CUDA context",
        "TensorRT runtime",
        "plan file in memory",
        "weights: plan deserialized",
        "plan file released",
        "context: activations, scratch",
        "inputs and outputs",
        "first inference (2 buffers bound)",
    ]
    assert [gpu for _, _, gpu in lines] == [None, 20, 10, 10, 10, 10, 10, 10, 10]
    assert lines[0][1] > 50  # the first stage counts all that is resident, the others what they add
    assert trt.context.shapes == {"images": (8, 3, 4, 4)} and set(trt.context.addresses) == {"images", "logits"}


def test_where_nvml_tells_processes_apart_the_first_stage_starts_at_nothing(fake_gpu, monkeypatch, tmp_path):
    fake_gpu[:] = [memory.OWN]
    report = reported(FakeTrt(), monkeypatch, tmp_path)
    assert report["gpu_scope"] == "this process" and [gpu for _, _, gpu in report["lines"]] == [None, 110, *[10] * 7]


def test_figures_of_two_scopes_are_not_subtracted(fake_gpu, monkeypatch, tmp_path):
    fake_gpu[:] = [memory.OWN, memory.OWN, memory.WHOLE]
    with pytest.raises(
        LabError, match="figure was first that of this process, then that of the whole GPU; serve the engine again"
    ):
        reported(FakeTrt(), monkeypatch, tmp_path)


def test_an_engine_that_does_not_run_says_why(fake_gpu, monkeypatch):
    stand_in(monkeypatch, environment, "tensorrt", lambda: FakeTrt(runs=False))
    with pytest.raises(
        LabError, match=r"could not run net.plan: profile 0 ends at 8; is batch 9 inside the engine's profile\?"
    ):
        list(served._engine_marks({"path": "net.plan", "batch": 9}))


def test_held_memory_is_the_gpus_or_this_process(monkeypatch):
    monkeypatch.setattr(memory, "memory_now", lambda: memory.MemoryUse(200.0, 300.0))
    assert footprint.held_mib() == 200 and footprint.held_mib("cuda") == 300


def test_freed_memory_is_not_held():
    before = footprint.held_mib()
    blocks = [bytearray(b"x" * 2**20) for _ in range(64)]
    during = footprint.held_mib()
    blocks.clear()
    assert during - before > 50 and footprint.held_mib() - before < 30


def test_what_a_process_is_asked_where_nothing_is_said(monkeypatch, chain):
    asked = []
    monkeypatch.setattr(served, "_apart", lambda job, feed=None: asked.append((job, feed)) or ((("a", 1.0, None),), ""))
    assert footprint.serve_session(chain).name == f"{chain.path.name} in ONNX Runtime"
    assert asked == [
        (
            {
                "serve": "session", "path": str(chain.path), "batches": [1], "sessions": 1, "shared_arena": False,
                "shrink": False, "keep_outputs": False, "level": "ORT_ENABLE_EXTENDED", "options": {},
            },
            None,
        )
    ]  # fmt: skip
    footprint.serve_session(chain.path, (2, 3), shrink=True, feed={"x": 1}, enable_cpu_mem_arena=True)
    job, feed = asked[1]
    assert (job["batches"], job["shrink"], job["options"], feed) == (
        [2, 3],
        True,
        {"enable_cpu_mem_arena": True},
        {"x": 1},
    )
