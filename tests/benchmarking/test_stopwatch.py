"""The stopwatch against fake clocks, fake events and fake runtimes whose true times are known."""

from __future__ import annotations

import mmap
import sys
import types

import numpy as np
import pytest

import labsupport
from labsupport import benchmarking
from labsupport.benchmarking import measurements, stopwatch
from labsupport.benchmarking import memory_meter as memory_module
from labsupport.errors import BadInput, LabError, NotAvailable

MS = 1_000_000  # ns


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    here = types.SimpleNamespace(gpu=None, problem="no GPU", cpu="Test CPU", cores=2)
    fake = types.ModuleType("labsupport.environment")
    fake.machine = lambda: here
    monkeypatch.setitem(sys.modules, "labsupport.environment", fake)
    monkeypatch.setattr(labsupport, "environment", fake, raising=False)
    return here


class Clock:
    """Stands still until somebody works."""

    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns

    def work(self, ms):
        self.ns += round(ms * MS)


class Cpu:
    """A synchronous runtime whose n-th call takes times_ms[n], the last for ever after."""

    device = "cpu"

    def __init__(self, clock, times_ms, name="ort/all"):
        self.clock, self.times_ms, self.name, self.calls, self.closed = clock, list(times_ms), name, 0, False

    def __call__(self, feed):
        self.clock.work(self.times_ms[min(self.calls, len(self.times_ms) - 1)])
        self.calls += 1
        return {"logits": feed}

    def close(self):
        self.closed = True


class Gpu:
    """A runtime that queues work: a call returns after 0.02 ms, synchronize() waits for the rest."""

    device = "cuda"
    stream = "stream 1"

    def __init__(self, clock, kernel_ms, name="TensorRT fp16"):
        self.clock, self.kernel_ms, self.name = clock, kernel_ms, name
        self.done_ns, self.waits, self.bound, self.enqueued = 0, 0, None, 0

    def __call__(self, feed):
        self.enqueue()
        return {"logits": feed}

    def bind(self, feed):
        self.bound = feed

    def enqueue(self):
        self.enqueued += 1
        self.clock.work(0.02)
        self.done_ns = max(self.done_ns, self.clock.ns) + round(self.kernel_ms * MS)

    def synchronize(self):
        self.waits += 1
        self.clock.ns = max(self.clock.ns, self.done_ns)

    def event(self):
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu, self.at_ns = gpu, None

    def record(self, stream):
        assert stream == "stream 1"
        self.at_ns = max(self.gpu.done_ns, self.gpu.clock.ns)

    def synchronize(self):
        self.gpu.clock.ns = max(self.gpu.clock.ns, self.at_ns)

    def elapsed_time(self, stop):
        return (stop.at_ns - self.at_ns) / MS


FEED = {"images": np.ones((8, 3, 4, 4), np.float32)}


def seen(samples_ms, name="ort/all", clock="host", batch=1, machine="Test CPU"):
    return benchmarking.Latency(name, clock, samples_ms, batch, machine)


# What a Latency says about itself


def test_latency_statistics_are_those_of_the_known_samples():
    result = seen(range(1, 101))
    assert result.median_ms == 50.5
    assert result.p90_ms == pytest.approx(90.1)
    assert result.p99_ms == pytest.approx(99.01)
    assert result.iqr_ms == pytest.approx(49.5)
    assert result.spread == pytest.approx(49.5 / 50.5)
    assert result.noisy


def test_repr_reads_aloud_and_prints_only_earned_digits():
    assert repr(seen([9.61, 9.6137, 9.87654, 10.11, 10.1123])) == "ort/all 9.9 ms ±0.5 IQR, n=5"
    assert repr(seen([0.4988, 0.4990, 0.4992, 0.4994, 0.4999], clock="device")) == (
        "ort/all 0.4992 ms ±0.0004 IQR, n=5, device clock"
    )
    assert repr(seen([5, 10, 15, 20])).endswith("NOISY: IQR is 60% of the median")


def test_too_few_samples_are_said_not_hidden():
    one = seen([3.0])
    assert one.noisy and "TOO FEW: fewer than 4 samples show no spread" in repr(one)
    assert seen(range(1, 10)).p90_ms is None and seen(range(1, 11)).p90_ms is not None
    assert seen(range(1, 100)).p99_ms is None
    with pytest.raises(
        BadInput, match=r"p99 needs at least 100 samples and 'ort/all' has 10: measure again with runs=100"
    ):
        seen(range(1, 11)).percentile(99)
    with pytest.raises(BadInput, match="p99.9 needs at least 1000 samples"):
        seen(range(1, 11)).percentile(99.9)
    with pytest.raises(BadInput, match="percentile 100 is not between 0 and 100"):
        seen([1.0]).percentile(100)


@pytest.mark.parametrize("samples", [[], [float("nan")], [-1.0]])
def test_impossible_samples_are_refused(samples):
    with pytest.raises(BadInput, match="a latency needs finite samples of 0 ms or more"):
        seen(samples)


def test_unknown_clock_lists_the_choices():
    with pytest.raises(BadInput, match=r"clock='gpu' is not known; choose one of \['host', 'device'\]"):
        seen([1.0], clock="gpu")


def test_noise_threshold_is_ten_percent():
    assert not seen([99, 100, 100, 101]).noisy
    assert seen([90, 95, 105, 110]).spread > 0.1 and seen([90, 95, 105, 110]).noisy


def test_latency_as_metric_and_rate():
    result = seen([2.0] * 4, batch=8)
    assert result.as_metric() == {"value": 2.0, "unit": "ms", "samples": 4, "spread": 0.0}
    assert result.items_per_s == 4000


@pytest.mark.parametrize(
    "value, uncertainty, text",
    [
        (9.8765, 0.5, "9.9"),
        (2.3123, 0.03, "2.31"),
        (12345.6, 900, "12300"),
        (0.49912, 0.0002, "0.4991"),
        (3.14159, 0, "3.142"),
        (8.4, 5, "8.4"),
        (0.0, 1, "0"),
        (float("inf"), 1, "inf"),
    ],
)
def test_earned_digits(value, uncertainty, text):
    assert measurements.earned(value, uncertainty) == text


# latency


def test_latency_leaves_the_warm_up_out_and_counts_it():
    clock = Clock()
    run = Cpu(clock, [500, 80, 10, 11, 12, 11])
    result = benchmarking.latency(run, FEED, runs=4, warmup=2, now=clock)
    assert result.samples_ms == (10.0, 11.0, 12.0, 11.0)
    assert (result.name, result.clock, result.batch, result.machine) == ("ort/all", "host", 8, "Test CPU, 2 cores")
    assert run.calls == 6


def test_warm_up_lasts_at_least_as_long_as_asked():
    clock = Clock()
    run = Cpu(clock, [50])
    benchmarking.latency(run, FEED, runs=1, warmup=1, warmup_ms=200, now=clock)
    assert run.calls == 5


def test_latency_waits_for_the_device_before_it_reads_the_clock():
    clock = Clock()
    result = benchmarking.latency(Gpu(clock, 5), FEED, runs=4, warmup=3, now=clock)
    assert result.samples_ms == (5.02,) * 4  # 0.02 would be the launch alone


@pytest.mark.parametrize("where", ["device", "feed", "outputs"])
def test_latency_synchronizes_cuda_wherever_it_finds_it(monkeypatch, where):
    torch = types.ModuleType("torch")
    waits = []
    torch.cuda = types.SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setitem(sys.modules, "torch", torch)
    on_gpu = types.SimpleNamespace(is_cuda=True, shape=(2, 3))

    def run(feed):
        return on_gpu if where == "outputs" else 0

    if where == "device":
        run.device = "cuda:0"
    result = benchmarking.latency(run, {"x": on_gpu if where == "feed" else np.ones((2, 3))}, runs=3, warmup=1)
    assert len(waits) == 1 + 2 * 3  # after the warm-up, then before and after every call
    assert result.name == "run" and result.batch == 2


def test_plain_arrays_and_scalars_have_a_batch_too():
    assert benchmarking.latency(len, np.ones((5, 2)), runs=1, warmup=0).batch == 5
    assert benchmarking.latency(abs, 3, runs=1, warmup=0).batch == 1
    assert benchmarking.latency(abs, 3, runs=1, warmup=0, batch=4, name="mine").batch == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": 0}, r"runs=0: expected a whole number of 1 or more"),
        ({"runs": 2.5}, r"runs=2.5: expected a whole number"),
        ({"warmup": -1}, r"warmup=-1: expected a whole number of 0 or more"),
    ],
)
def test_latency_refuses_impossible_counts(options, message):
    with pytest.raises(BadInput, match=message):
        benchmarking.latency(abs, 3, **options)


# device_latency


@pytest.mark.parametrize("batch", [-3, 0, "x", 1.5, True])
@pytest.mark.parametrize("measure", [benchmarking.latency, benchmarking.device_latency])
def test_latency_refuses_an_impossible_batch(measure, batch):
    gpu = Gpu(Clock(), 1.0)
    with pytest.raises(BadInput, match=f"batch={batch!r}: expected a whole number of 1 or more"):
        measure(gpu, np.zeros((2, 3)), runs=1, warmup=0, batch=batch)
    assert gpu.enqueued == 0  # said before any time was spent
    assert benchmarking.latency(abs, 3, runs=1, warmup=0, batch=np.int64(4)).batch == 4


def test_device_latency_reads_events_not_the_host_clock():
    clock = Clock()
    gpu = Gpu(clock, 0.5)
    result = benchmarking.device_latency(gpu, FEED, runs=20, warmup=3, event=gpu.event, now=clock)
    assert result.clock == "device" and gpu.bound is FEED
    assert result.samples_ms[1:] == pytest.approx((0.5,) * 19)
    assert gpu.enqueued == 23


def test_device_latency_shares_one_pair_of_events_among_many_enqueues():
    clock = Clock()
    gpu = Gpu(clock, 0.5)
    result = benchmarking.device_latency(gpu, FEED, runs=5, warmup=1, enqueues=10, event=gpu.event, now=clock)
    assert result.median_ms == pytest.approx(0.5, rel=0.05) and gpu.enqueued == 51
    with pytest.raises(BadInput, match="enqueues=0: expected a whole number of 1 or more"):
        benchmarking.device_latency(gpu, FEED, enqueues=0, event=gpu.event)


def test_device_latency_on_a_cpu_runtime_names_the_right_call():
    message = (
        r"device_latency needs a runtime on a GPU; 'ort/all' runs on cpu and has no bind, enqueue, stream: use latency"
    )
    with pytest.raises(NotAvailable, match=message):
        benchmarking.device_latency(Cpu(Clock(), [1]), FEED)
    gpu = Gpu(Clock(), 1)
    gpu.device = "cpu"
    with pytest.raises(NotAvailable, match="'TensorRT fp16' runs on cpu and has no CUDA queue"):
        benchmarking.device_latency(gpu, FEED)


# paired


class Drifting(Cpu):
    """Its machine slows down by 1 % with every call of anybody."""

    slowdown = 1.0

    def __call__(self, feed):
        Drifting.slowdown *= 1.01
        self.clock.work(self.times_ms[0] * Drifting.slowdown)
        return feed


def test_paired_finds_the_true_ratio_on_a_drifting_machine():
    clock = Clock()
    before, after = Drifting(clock, [2.31], "torch fp16 graph"), Drifting(clock, [1.0], "TensorRT fp16 graph")
    Drifting.slowdown = 1.0
    ratio = benchmarking.paired(before, after, FEED, rounds=30, runs_per_round=1, warmup=0, now=clock)
    assert ratio.median == pytest.approx(2.31, rel=1e-3)
    assert len(ratio.samples) == 30 and len(ratio.before.samples_ms) == 60
    # the pooled medians would be off if the sides had been timed one after the other
    assert ratio.before.median_ms / ratio.after.median_ms == pytest.approx(2.31, rel=0.02)


def test_ratio_repr_carries_its_direction():
    before, after = seen([2.0] * 4, "torch fp16 graph"), seen([1.0] * 4, "TensorRT fp16 graph")
    faster = benchmarking.Ratio(tuple([2.28, 2.295, 2.31, 2.325, 2.34] * 6), before, after)
    assert repr(faster) == "2.31× faster (torch fp16 graph → TensorRT fp16 graph), IQR 0.03, 30 rounds"
    slower = benchmarking.Ratio((0.49, 0.5, 0.5, 0.51), before, after)
    assert repr(slower).startswith("2.00× slower (torch fp16 graph → TensorRT fp16 graph), IQR 0.02")
    same = benchmarking.Ratio((0.97, 1.0, 1.02, 1.05), before, before)
    assert repr(same).startswith("no difference beyond the noise: 1.01× (torch fp16 graph → torch fp16 graph)")
    assert float(faster) == 2.31
    assert faster.as_metric() == {"value": 2.31, "unit": "×", "samples": 30, "spread": pytest.approx(0.03 / 2.31)}


def test_paired_on_the_device_clock_binds_both_feeds():
    clock = Clock()
    before, after = Gpu(clock, 1.0, "fp32"), Gpu(clock, 0.25, "fp16")
    half = FEED["images"].astype(np.float16)
    ratio = benchmarking.paired(
        before, after, FEED, feed_after=half, rounds=6, runs_per_round=9, clock="device", event=before.event, now=clock
    )
    assert before.bound is FEED and after.bound is half
    assert ratio.before.clock == "device" and len(ratio.samples) == 6


def test_paired_refuses_what_cannot_be_compared():
    clock = Clock()
    run = Cpu(clock, [1])
    with pytest.raises(BadInput, match="before gets batch 8, after batch 4; feed both the same batch"):
        benchmarking.paired(run, run, FEED, feed_after=FEED["images"][:4])
    with pytest.raises(BadInput, match=r"clock='gpu' is not known; choose one of \['host', 'device'\]"):
        benchmarking.paired(run, run, FEED, clock="gpu")
    with pytest.raises(NotAvailable, match=r"paired\(clock='device'\) needs a runtime on a GPU.*clock='host'"):
        benchmarking.paired(run, run, FEED, clock="device")
    with pytest.raises(BadInput, match="idle took 0 ms by the clock; give it more work"):
        benchmarking.paired(run, Cpu(clock, [0], "idle"), FEED, now=clock)
    with pytest.raises(BadInput, match="rounds=0"):
        benchmarking.paired(run, run, FEED, rounds=0)


# throughput, sweep, stages


def test_throughput_counts_items_by_the_wall_clock():
    clock = Clock()
    result = benchmarking.throughput(Cpu(clock, [10]), FEED, seconds=1.0, now=clock)
    assert (result.calls, result.seconds) == (100, 1.0)
    assert result.items_per_s == 800 and result.spread == pytest.approx(0)
    assert repr(result) == "ort/all 800.0 items/s, batch 8, 1 in flight, 100 calls"
    assert result.as_metric()["unit"] == "items/s"


def test_throughput_says_when_the_rate_was_uneven():
    clock = Clock()
    result = benchmarking.throughput(Cpu(clock, [5] * 60 + [20] * 100), FEED, seconds=1.0, now=clock)
    assert "NOISY" in repr(result)


def test_requests_in_flight_hide_the_launches():
    clock = Clock()
    one = Gpu(clock, 0.1)
    alone = benchmarking.throughput(one, FEED, seconds=0.1, now=clock)
    two = Gpu(clock, 0.1)
    ahead = benchmarking.throughput(two, FEED, seconds=0.1, in_flight=2, event=two.event, now=clock)
    assert alone.items_per_s == pytest.approx(8 / 0.12e-3, rel=0.01)
    assert ahead.items_per_s == pytest.approx(8 / 0.10e-3, rel=0.01)
    assert two.enqueued == ahead.calls + 10  # the warm-up


def test_throughput_refusals():
    run = Cpu(Clock(), [1])
    with pytest.raises(BadInput, match="seconds=0: throughput needs a positive stretch of time"):
        benchmarking.throughput(run, FEED, seconds=0)
    with pytest.raises(NotAvailable, match=r"throughput\(in_flight=4\) needs a runtime on a GPU.*in_flight=1"):
        benchmarking.throughput(run, FEED, in_flight=4)
    with pytest.raises(BadInput, match="in_flight=0"):
        benchmarking.throughput(run, FEED, in_flight=0)


def test_batch_sweep_has_an_error_beside_every_latency():
    def run(feed):
        return feed + 0.5

    rows = benchmarking.batch_sweep(
        run,
        lambda batch: np.zeros((batch, 2)),
        (1, 4),
        runs=2,
        warmup=0,
        error=lambda feed, outputs: float(np.abs(outputs - feed).max()),
    )
    assert [(row["latency"].batch, row["max error"]) for row in rows] == [(1, 0.5), (4, 0.5)]


def test_batch_sweep_takes_one_runtime_per_batch():
    clock = Clock()
    runs = {1: Cpu(clock, [1], "b1"), 8: Cpu(clock, [1], "b8")}
    rows = benchmarking.batch_sweep(runs, lambda batch: np.zeros((batch, 2)), (1, 8), runs=1, error=lambda *_: 0.0)
    assert [row["latency"].name for row in rows] == ["b1", "b8"]
    with pytest.raises(BadInput, match=r"no runtime for batch 2; the mapping holds batches \[1, 8\]"):
        benchmarking.batch_sweep(runs, lambda batch: np.zeros((batch, 2)), (2,), error=lambda *_: 0.0)
    with pytest.raises(BadInput, match="clock='wall' is not known"):
        benchmarking.batch_sweep(runs, None, (), error=None, clock="wall")


def test_stages_are_four_separate_facts():
    clock = Clock()
    run = Cpu(clock, [51.2, 0.5])

    def build():
        clock.work(30_400)
        return "engine"

    def load(engine):
        assert engine == "engine"
        clock.work(18)
        return run

    facts = benchmarking.stages(build, load, FEED, runs=8, warmup=2, now=clock)
    assert (facts.build_s, facts.load_ms, facts.first_call_ms, facts.steady_ms) == (30.4, 18.0, 51.2, 0.5)
    assert repr(facts) == "ort/all: build 30 s, load 18 ms, first call 51 ms, steady 0.5000 ms"
    assert run.closed


# memory and energy


def test_memory_reports_what_the_block_still_holds(monkeypatch):
    readings = iter([memory_module.MemoryUse(100, 1000), memory_module.MemoryUse(160, 1045)])
    monkeypatch.setattr(memory_module, "memory_now", lambda: next(readings))
    with benchmarking.memory("engine") as used:
        with pytest.raises(LabError, match="still running; read it after its `with` block"):
            used.host_mib
    assert (used.host_mib, used.gpu_mib) == (60, 45)
    assert repr(used) == "engine: host +60 MiB, GPU +45 MiB (the whole GPU)"
    assert used.as_metric() == {"value": 45, "unit": "MiB", "samples": 1, "spread": None}


def test_memory_without_a_gpu_says_why(monkeypatch):
    monkeypatch.setattr(memory_module, "whole_gpu_mib", lambda: (None, "NVML sees no GPU: not found"))
    with benchmarking.memory("engine") as used:
        held = np.frombuffer(mmap.mmap(-1, 32 * 2**20), np.uint8)  # not from the heap, which may have kept free pages
        held.fill(1)
    assert used.host_mib > 16 and held.size
    assert "no GPU figure (NVML sees no GPU" in repr(used)
    with pytest.raises(NotAvailable, match="no GPU memory was measured .*record host_mib with unit='MiB'"):
        used.as_metric()


def test_energy_divides_the_counter_by_the_calls(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "energy_counter", lambda device: (lambda: clock.ns / 1e9 * 300, ""))
    gpu = Gpu(clock, 9.98)
    used = benchmarking.energy(gpu, FEED, seconds=2.0, now=clock)
    assert used.joules_per_inference == pytest.approx(3.0) and used.watts == pytest.approx(300)
    assert repr(used) == "TensorRT fp16 3 J per call of batch 8, 300 W over 200 calls"
    assert used.as_metric()["unit"] == "J"


def test_energy_without_a_counter_invents_nothing(monkeypatch):
    used = benchmarking.energy(Cpu(Clock(), [1]), FEED)
    assert used.joules_per_inference is None and used.watts is None
    assert "energy not measured, the network runs on the CPU" in repr(used)
    with pytest.raises(NotAvailable, match="no energy was measured for 'ort/all'"):
        used.as_metric()
    with pytest.raises(BadInput, match="seconds=0.1: the energy counter moves in steps of up to 100 ms"):
        benchmarking.energy(Cpu(Clock(), [1]), FEED, seconds=0.1)


class NVMLError(Exception):
    pass


def fake_nvml(monkeypatch, **calls):
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = NVMLError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = lambda index: f"gpu {index}"
    vars(nvml).update(calls)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(memory_module, "_torch_gpu_uuid", lambda: None)


def refuse(*_):
    raise NVMLError("Not Supported")


def test_energy_counter_reads_millijoules(monkeypatch):
    from labsupport.benchmarking.joules import energy_counter

    fake_nvml(monkeypatch, nvmlDeviceGetTotalEnergyConsumption=lambda device: 1500)
    counter, why_not = energy_counter("cuda")
    assert counter() == 1.5 and why_not == ""
    fake_nvml(monkeypatch, nvmlDeviceGetTotalEnergyConsumption=refuse)
    assert energy_counter("cuda") == (None, "this GPU has no energy counter: Not Supported")
    fake_nvml(monkeypatch, nvmlInit=refuse)
    assert energy_counter("cuda") == (None, "NVML sees no GPU: Not Supported")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter("cuda") == (None, "package nvidia-ml-py is not installed")


def test_gpu_memory_comes_from_nvml_when_torch_has_no_cuda(monkeypatch):
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    fake_nvml(monkeypatch, nvmlDeviceGetMemoryInfo=lambda device: types.SimpleNamespace(used=512 * 2**20))
    assert memory_module.whole_gpu_mib() == (512, "")
    fake_nvml(monkeypatch, nvmlDeviceGetMemoryInfo=refuse)
    assert memory_module.whole_gpu_mib() == (None, "NVML gives no memory figure: Not Supported")


def test_a_gpu_and_the_cpu_beside_it_are_two_machines(machine):
    machine.gpu, machine.problem = "NVIDIA Test", None
    names = [stopwatch._machine(type("Run", (), {"device": device})()) for device in ("cuda", "cpu")]
    assert names == ["NVIDIA Test", "Test CPU, 2 cores"]
