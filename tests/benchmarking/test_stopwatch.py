"""The stopwatch against fake clocks, fake events and fake runtimes whose true times are known."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from stopwatch_stand_ins import FEED, Clock, Cpu, Gpu

from labsupport import benchmarking
from labsupport.benchmarking import measurements
from labsupport.errors import BadInput, NotAvailable


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
        ({"runs": 0}, r"runs=0; wanted a whole number of at least 1"),
        ({"runs": 2.5}, r"runs=2.5; wanted a whole number"),
        ({"warmup": -1}, r"warmup=-1; wanted a whole number of at least 0"),
    ],
)
def test_latency_refuses_impossible_counts(options, message):
    with pytest.raises(BadInput, match=message):
        benchmarking.latency(abs, 3, **options)


# device_latency


@pytest.mark.parametrize("batch", [-3, 0, "x", 1.5, True])
def test_latency_refuses_an_impossible_batch(batch):
    gpu = Gpu(Clock(), 1.0)
    with pytest.raises(BadInput, match=f"batch={batch!r}; wanted a whole number of at least 1"):
        benchmarking.latency(gpu, np.zeros((2, 3)), runs=1, warmup=0, batch=batch)
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
    with pytest.raises(BadInput, match="enqueues=0; wanted a whole number of at least 1"):
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
