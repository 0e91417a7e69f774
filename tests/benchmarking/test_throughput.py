"""Throughput, memory and energy, on clocks that stand still."""

from __future__ import annotations

import mmap
import sys
import types

import numpy as np
import pytest
from stopwatch_stand_ins import FEED, Clock, Cpu, Gpu

from labsupport import benchmarking
from labsupport.benchmarking import memory_meter as memory_module
from labsupport.benchmarking import stopwatch
from labsupport.errors import BadInput, LabError, NotAvailable

# throughput


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


def test_the_time_of_what_still_waits_in_the_queue_counts():
    clock = Clock()
    run = Gpu(clock, 40)
    result = benchmarking.throughput(run, FEED, seconds=0.1, in_flight=4, warmup=0, event=run.event, now=clock)
    assert result.calls >= 4 and result.seconds >= 0.040 * result.calls  # one GPU runs one after the other
    assert result.items_per_s <= 8 / 0.040


def test_the_spread_of_a_rate_is_a_share_of_the_rate_of_the_whole():
    result = benchmarking.Throughput("run", 60, 2.0, 8, 1, (100.0, 200.0, 260.0, 290.0, 900.0), "here")
    assert result.items_per_s == 240 and result.spread == pytest.approx(90 / 240)
    assert result.as_metric() == {"value": 240, "unit": "items/s", "samples": 60, "spread": result.spread}


def test_a_rate_has_the_digits_that_the_spread_of_its_times_leaves():
    """0.1 % of spread earns four digits, 30 % two."""
    for times, shown in (((9.13, 9.134, 9.13, 9.12), 876.2), ((9.13, 12, 9.13, 7.5), 880.0)):
        latency = benchmarking.Latency("run", "host", times, 8, "here")
        assert latency.as_row()["items/s"] == pytest.approx(shown)
