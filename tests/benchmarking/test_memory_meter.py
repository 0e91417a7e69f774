"""Whose GPU memory is it: NVML's figure for this process where there is one, and a plain word where there is not."""

from __future__ import annotations

import os
import sys
import types

import pytest

from labsupport import benchmarking, environment
from labsupport.benchmarking import memory_meter as memory
from labsupport.errors import NotAvailable

MIB = 2**20


class NVMLError(Exception):
    pass


def process(mib, pid=None):
    return types.SimpleNamespace(
        pid=os.getpid() if pid is None else pid, usedGpuMemory=None if mib is None else mib * MIB
    )


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 900 MiB in use; ``gpu(processes)`` says who NVML books them on, ``reserved`` what PyTorch knows of."""

    def make(*processes, reserved=0, error=None):
        def running(device):
            if error:
                raise NVMLError(error)
            return list(processes)

        nvml = types.ModuleType("pynvml")
        nvml.NVMLError, nvml.nvmlInit, nvml.nvmlDeviceGetHandleByIndex = NVMLError, lambda: None, lambda index: index
        nvml.nvmlDeviceGetMemoryInfo = lambda device: types.SimpleNamespace(used=900 * MIB)
        nvml.nvmlDeviceGetComputeRunningProcesses = running
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(memory, "_torch_gpu_uuid", lambda: None)
        monkeypatch.setattr(memory, "_pytorch_mib", lambda: reserved)
        monkeypatch.setattr(memory, "whole_gpu_mib", lambda: (900.0, ""))

    return make


def test_this_process_is_told_apart_from_its_neighbors(gpu):
    gpu(process(300, pid=1), process(512), reserved=200)
    now = memory.memory_now()
    assert (now.gpu_mib, now.gpu_scope) == (512, "this process")
    assert repr(now).endswith("GPU 512 MiB (this process)")


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        ([], {}),  # a container: the list holds nobody, or only numbers of the host
        ([process(300, pid=1)], {}),
        ([process(None)], {}),  # Windows' own driver model
        ([process(100)], {"reserved": 200}),  # somebody else under our number
        ([process(512)], {"error": "Function Not Found"}),
    ],
    ids=["empty list", "strangers only", "no figure", "too small to be ours", "NVML refuses"],
)
def test_where_nvml_cannot_tell_the_whole_gpu_is_read_and_said_so(gpu, processes, options):
    gpu(*processes, **options)
    now = memory.memory_now()
    assert (now.gpu_mib, now.gpu_scope) == (900, "the whole GPU")
    assert repr(now).endswith("GPU 900 MiB (the whole GPU)")


def test_without_nvml_the_whole_gpu_is_read(gpu, monkeypatch):
    gpu(process(512))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert memory.memory_now().gpu_scope == memory.WHOLE


def test_a_difference_is_of_one_scope(monkeypatch):
    def measured(*uses):
        readings = iter(uses)
        monkeypatch.setattr(memory, "memory_now", lambda: next(readings))
        with benchmarking.memory("engine") as used:
            pass
        return used

    own = measured(memory.MemoryUse(1, 100, "", memory.OWN), memory.MemoryUse(2, 130, "", memory.OWN))
    assert repr(own) == "engine: host +1 MiB, GPU +30 MiB (this process)" and own.as_metric()["value"] == 30
    mixed = measured(memory.MemoryUse(1, 900), memory.MemoryUse(2, 130, "", memory.OWN))
    assert mixed.gpu_mib is None and mixed.as_row() == {"host MiB": 1, "GPU MiB": None}
    reason = "at first it was that of the whole GPU, at the end that of this process"
    assert repr(mixed) == f"engine: host +1 MiB, no GPU figure ({reason})"
    with pytest.raises(NotAvailable, match=f"no GPU memory was measured .{reason}.; record host_mib"):
        mixed.as_metric()


def test_a_figure_that_was_missing_at_first_is_named():
    used = memory.MemoryMeter("engine")
    used.before, used.after = memory.MemoryUse(1, None, "NVML sees no GPU"), memory.MemoryUse(2, 900)
    assert used.gpu_mib is None and repr(used) == "engine: host +1 MiB, no GPU figure (NVML sees no GPU)"


@pytest.mark.skipif(not environment.has("gpu"), reason="needs a GPU")
def test_what_this_process_allocates_is_counted_on_the_gpu():
    import torch

    torch.ones(1, device="cuda")  # the first kernel of a kind loads its module, which stays on the GPU
    with benchmarking.memory("tensor") as used:
        held = torch.ones(64 * 2**18, device="cuda")
    assert held.is_cuda and used.gpu_mib == pytest.approx(64, abs=8)
    assert used.after.gpu_scope in (memory.OWN, memory.WHOLE)
