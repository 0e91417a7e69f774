"""DLA, auxiliary streams, several GPUs, and the tools that record them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from faces import stand_in
from tool_scripts import tool_script

from labsupport import environment, placement
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.placement import cluster

# --- who is there -----------------------------------------------------------------------------------------------


class Config:
    def __init__(self):
        self.flags = []

    def set_flag(self, flag):
        self.flags.append(flag)


def test_dla_is_configured_where_it_is():
    trt = SimpleNamespace(DeviceType=SimpleNamespace(DLA="dla"), BuilderFlag=SimpleNamespace(GPU_FALLBACK="fallback"))
    config = Config()
    placement.on_dla(1)(trt, SimpleNamespace(num_DLA_cores=2), None, config)
    assert (config.default_device_type, config.DLA_core, config.flags) == ("dla", 1, ["fallback"])
    strict = Config()
    placement.on_dla(0, fallback=False)(trt, SimpleNamespace(num_DLA_cores=1), None, strict)
    assert strict.flags == []


def test_dla_says_plainly_where_there_is_none():
    with pytest.raises(NotAvailable, match="has no DLA cores, and core 0 was asked for; DLAs are part of Jetson"):
        placement.on_dla(0)(None, SimpleNamespace(num_DLA_cores=0), None, Config())
    with pytest.raises(NotAvailable, match="has 1 DLA core, and core 1"):
        placement.on_dla(1)(None, SimpleNamespace(num_DLA_cores=1), None, Config())


@pytest.mark.parametrize("core", [-1, 0.5, "0", True])
def test_dla_cores_are_numbered(core):
    with pytest.raises(BadInput, match="numbered from 0|core=.*; wanted a whole number"):
        placement.on_dla(core)


def test_auxiliary_streams_are_configured():
    config = Config()
    placement.auxiliary(3)(None, None, None, config)
    assert config.max_aux_streams == 3
    with pytest.raises(BadInput, match="streams=-1"):
        placement.auxiliary(-1)


# --- several GPUs -----------------------------------------------------------------------------------------------


def test_no_gpu_for_data_parallel(monkeypatch):
    stand_in(monkeypatch, environment, "has", lambda *needs: False)
    assert cluster.devices() == ()
    with pytest.raises(NotAvailable, match="CPU workers in a pool.Pool"):
        cluster.choose([0])


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stand_in(monkeypatch, environment, "has", lambda *needs: True)
    stand_in(monkeypatch, environment, "machine", lambda: SimpleNamespace(gpus=4))


def test_gpus_are_chosen_by_index(four_gpus, monkeypatch):
    assert cluster.choose(None) == ("0", "1", "2", "3") and cluster.choose([2, 0]) == ("2", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert cluster.devices() == ("5", "7") and cluster.choose([1]) == ("7",)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ([4], "device 4: this machine has 4 GPUs, numbered from 0"),
        ([-1], "device -1"),
        (["0"], "device '0'"),
        ([], "one at least"),
        ([1, 1], "each GPU once"),
    ],
)
def test_a_wrong_device_index_is_refused(four_gpus, wanted, message):
    with pytest.raises(BadInput, match=message):
        cluster.choose(wanted)


class Pipe:
    def __init__(self, said):
        self.said, self.sent, self.closed = list(said), [], False

    def poll(self, seconds):
        return bool(self.said)

    def recv(self):
        if self.said[0] is EOFError:
            raise EOFError
        return self.said.pop(0)

    def send(self, message):
        self.sent.append(message)

    def close(self):
        self.closed = True


class Process:
    def join(self, seconds=None):
        pass

    def is_alive(self):
        return False


def gpu_workers(*pipes):
    workers = object.__new__(cluster.GpuWorkers)
    workers.names, workers.batch = tuple(str(n) for n in range(len(pipes))), 10
    workers._workers = [(Process(), pipe) for pipe in pipes]
    workers._answers = [np.zeros(3), np.array([0, 0.5, 0])][: len(pipes)]
    return workers


def test_rates_of_gpus_are_added_over_one_wall_clock():
    workers = gpu_workers(
        Pipe([{"batches": 100, "start": 5.0, "stop": 6.0}]), Pipe([{"batches": 90, "start": 5.5, "stop": 7.0}])
    )
    rate = workers.rate(feed="device", seconds=1)
    assert (
        rate.items_per_s == pytest.approx(190 * 10 / 2.0)
        and rate.each == (1000.0, pytest.approx(600.0))
        and rate.max_difference == 0.5
    )
    assert rate.gpus == 2 and "2 GPUs, batch 10, fed from the device" in repr(rate) and rate.as_metric()["samples"] == 2
    assert all(pipe.sent[0][0] == "device" for _, pipe in workers._workers)


@pytest.mark.parametrize(
    "said, message",
    [
        ([EOFError], "died before it answered"),
        ([], "has been silent"),
        (["EngineError: too old"], "could not start: EngineError"),
    ],
)
def test_a_gpu_worker_that_fails_is_named(said, message):
    with pytest.raises(LabError, match=f"worker on GPU 0 .*{message}"):
        gpu_workers(Pipe(said)).rate()


def test_gpu_workers_that_do_not_come_about_are_ended(monkeypatch):
    closed = []

    def interrupted(self, name, pipe):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "choose", lambda wanted: ("0",))
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    monkeypatch.setattr(cluster.multiprocessing, "get_context", lambda how: SimpleContext())
    monkeypatch.setattr(cluster.GpuWorkers, "_hear", interrupted)
    monkeypatch.setattr(cluster.GpuWorkers, "close", lambda self: closed.append(len(self._workers)))
    with pytest.raises(KeyboardInterrupt):
        cluster.GpuWorkers(type("Engine", (), {"path": "x"}), batch=1)
    assert closed == [1]


class SimpleContext:
    def Pipe(self):  # noqa: N802
        return Pipe([]), Pipe([])

    def Process(self, **options):  # noqa: N802
        process = Process()
        process.start = lambda: None
        return process


def test_a_worker_is_given_the_time_that_it_was_told_to_work():
    pipe = Pipe([{"batches": 1, "start": 0.0, "stop": 300.0}])
    pipe.poll = lambda seconds: seconds > 300  # the answer comes after the stretch that was asked for
    assert gpu_workers(pipe).rate(seconds=300).items_per_s == pytest.approx(10 / 300)
    silent = Pipe([])
    with pytest.raises(LabError, match="has been silent for 420 s"):
        gpu_workers(silent).rate(seconds=300)
    assert silent.closed


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 3601, True, "1", None])
def test_a_rate_wants_a_bounded_time(seconds):
    pipe = Pipe([])
    with pytest.raises(BadInput, match="give a time above 0 and up to 3600 s|seconds=.*; wanted a number"):
        gpu_workers(pipe).rate(seconds=seconds)
    assert not pipe.sent


@pytest.mark.parametrize(
    "options, message",
    [
        ({"feed": "disk"}, "choose one of"),
        ({"gpus": 3}, "gpus=3; give 1 to 1, as many as were started"),
        ({"gpus": 0}, "gpus=0"),
    ],
)
def test_gpu_rates_refuse_nonsense(options, message):
    with pytest.raises(BadInput, match=message):
        gpu_workers(Pipe([])).rate(**options)


# --- the tool that records them ---------------------------------------------------------------------------------


class FakeWorkers:
    def __init__(self, engine, *, batch):
        self.batch = batch

    def rate(self, gpus, *, feed, seconds):
        return cluster.GpuRate(feed, self.batch, 1000.0 * gpus * (0.95 if gpus > 1 else 1.0), (1000.0,) * gpus, 0.0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    "gpus, expected",
    [
        (1, {}),
        (2, {"two_gpus.throughput_over_one": 1.9, "two_gpus.throughput_over_one_device_resident": 1.9}),
        (4, {"two_gpus.throughput_over_one": 1.9, "gpus4.throughput_over_one": 3.8}),
    ],
)
def test_the_gpu_tool_records_a_ratio_per_number_of_gpus(monkeypatch, tmp_path, capsys, gpus, expected):
    import json

    record = tool_script("record_lab09_gpus")
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(record, "engine", lambda: "engine")
    monkeypatch.setattr(cluster, "devices", lambda: tuple(map(str, range(gpus))))
    monkeypatch.setattr(cluster, "GpuWorkers", FakeWorkers)
    record.main()
    metrics = json.loads((tmp_path / "09c_cuts.json").read_text(encoding="utf-8"))["metrics"]
    assert {name: metrics[name]["value"] for name in expected} == pytest.approx(expected)
    assert ("two_gpus.throughput_over_one" in metrics) == (gpus > 1) and metrics["one_gpu.host_fed_rate"][
        "value"
    ] == 1000


def test_the_gpu_tool_keeps_what_it_has_when_it_is_ended(monkeypatch, tmp_path, capsys):
    import json

    from labsupport import recordings

    class Ended(FakeWorkers):
        def rate(self, gpus, *, feed, seconds):
            if feed == cluster.FEEDS[1]:
                raise SystemExit("ended from outside")
            return FakeWorkers.rate(self, gpus, feed=feed, seconds=seconds)

    record, stored, open_session = tool_script("record_lab09_gpus"), tmp_path / "stored", recordings.session
    monkeypatch.delenv("LABSUPPORT_METRICS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(recordings, "session", lambda lab, *, command: open_session(lab, command=command, root=stored))
    monkeypatch.setattr(record, "engine", lambda: "engine")
    monkeypatch.setattr(cluster, "devices", lambda: ("0", "1"))
    monkeypatch.setattr(cluster, "GpuWorkers", Ended)
    with pytest.raises(SystemExit):
        record.main()
    whole = json.loads(next(stored.glob("*/09c_cuts.json")).read_text(encoding="utf-8"))
    assert set(whole["metrics"]) == {"one_gpu.host_fed_rate", "two_gpus.throughput_over_one"}
    assert whole["command"] == "CUDA_VISIBLE_DEVICES=0,1 python3 tools/record_lab09_gpus.py" and whole["machine"]


def test_the_cut_tool_tells_a_slower_core_from_a_wrong_model(tmp_path, monkeypatch):
    import json

    from labsupport import recordings
    from labsupport.benchmarking.measurements import Latency
    from labsupport.placement import cuts

    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    ends = tuple(cuts.Cut(name, (1,), 1.0, after) for after, name in enumerate(("frame", "middle", "logits")))
    model = cuts.CostModel(ends, (4.0, 4.0), (2.0, 1.0), (3.0, 1.0, 1.0))  # 6, 6 and 8 ms
    frame, middle = (
        {
            "cut": ends[place],
            "latency": Latency("", "host", (ms,), 1, ""),
            "beside": Latency("", "host", (whole,), 1, ""),
        }
        for place, ms, whole in ((0, 6.0, 8.0), (1, 10.0, 16.0))
    )  # the core is half as fast the second time
    record, book = tool_script("record_lab09"), recordings.lab("09c_cuts")
    record.record(book, model, [frame])
    record.record(book, model, [frame, middle])
    metrics = json.loads((tmp_path / "09c_cuts.json").read_text(encoding="utf-8"))["metrics"]
    values = {name.removeprefix("placement."): entry["value"] for name, entry in metrics.items()}
    assert values["cost_model_worst_error"] == pytest.approx(0.4) and values["cost_model_error"] == pytest.approx(0.2)
    assert values["cost_model_worst_error_same_speed"] == values["cost_model_error_same_speed"] == 0
    assert (
        values["core_slowed_at_most"] == 2
        and values["chosen_cut_over_best"] == 1
        and values["chosen_cut_over_all_on_gpu"] == 1
    )
    assert all(entry["samples"] in (1, 2) for entry in metrics.values())


def test_the_best_and_the_chosen_cut_are_timed_in_turns(tmp_path, capsys):
    from labsupport import export, models, runtimes
    from labsupport.placement import cuts

    network, made = models.resnet18(width=8, size=32, classes=4), []

    def make(part):
        made.append(runtimes.OnnxRuntime(part))
        return made[-1]

    graph = export.to_onnx(network, network.example_input(1), dynamic=False)
    places = cuts.natural(graph)
    found = tool_script("record_lab09").against(
        graph, places[2], places[3], make, make, network.example_input(1).numpy()
    )
    assert (
        0 < found["value"] <= 1
        and found["samples"] == 15
        and found["unit"] == "fraction"
        and len(made) == 4
        and all(run.closed for run in made)
    )
    assert "in turns with the best, layer1.0/Relu_1" in capsys.readouterr().out


def test_the_cut_tool_measures_every_cut(monkeypatch, tmp_path, capsys):
    import json

    from labsupport import build, models, recordings, runtimes
    from labsupport.placement import transfers

    record = tool_script("record_lab09")
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(build, "engine", lambda graph, **options: graph)
    monkeypatch.setattr(runtimes, "TensorRt", lambda graph, cuda_graph: runtimes.OnnxRuntime(graph))
    monkeypatch.setattr(transfers, "link", lambda run, sizes: lambda mib: 0.1 * mib)
    network = models.resnet18(width=8, size=32, classes=4)
    from labsupport import export

    monkeypatch.setattr(
        record,
        "camera",
        lambda: (export.to_onnx(network, network.example_input(1), dynamic=False), network.example_input(1).numpy()),
    )
    paired = []
    monkeypatch.setattr(
        record,
        "against",
        lambda graph, chosen, best, *rest: paired.append((chosen, best)) or {"value": 0.9, "unit": "fraction"},
    )
    record.cuts_of_the_camera(recordings.lab("09c_cuts"), record.elapsed.seconds())
    metrics = json.loads((tmp_path / "09c_cuts.json").read_text(encoding="utf-8"))["metrics"]
    share = metrics["placement.chosen_cut_over_best"]  # where another cut came out quicker, both are timed in turns
    assert (share["value"], share["samples"]) == ((0.9, None) if paired else (1, 13)) and all(
        chosen != best for chosen, best in paired
    )
    assert metrics["placement.cost_model_error"]["samples"] == 13
    assert metrics["placement.cost_model_error"]["value"] <= metrics["placement.cost_model_worst_error"]["value"]
    said = capsys.readouterr().out
    assert "the aim of a median error of at most 20%: as predicted " in said and "; at the core's speed " in said
