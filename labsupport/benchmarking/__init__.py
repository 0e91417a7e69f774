"""The stopwatch: latency on the device and on the host told apart, throughput, stages, memory, energy.

The parts: ``stopwatch`` (the functions), ``measurements`` (what they return), ``memory_meter`` (NVML and the process),
``joules``.
"""

from __future__ import annotations

from labsupport.benchmarking.joules import Energy
from labsupport.benchmarking.measurements import Latency, Ratio, Stages, Throughput
from labsupport.benchmarking.memory_meter import memory
from labsupport.benchmarking.stopwatch import batch_sweep, device_latency, energy, latency, paired, stages, throughput

__all__ = [
    "Energy", "Latency", "Ratio", "Stages", "Throughput", "batch_sweep", "device_latency", "energy", "latency",
    "memory", "paired", "stages", "throughput",
]  # fmt: skip
