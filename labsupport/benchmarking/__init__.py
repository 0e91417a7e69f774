"""The stopwatch: latency on the device and on the host told apart, throughput, memory, energy.

The parts: ``stopwatch`` (the functions), ``measurements`` (what they return), ``memory_meter`` (NVML and the process),
``joules``.
"""

from __future__ import annotations

from labsupport.benchmarking.joules import Energy
from labsupport.benchmarking.measurements import Latency, Ratio, Throughput
from labsupport.benchmarking.memory_meter import memory
from labsupport.benchmarking.stopwatch import device_latency, energy, latency, paired, throughput

__all__ = [
    "Energy", "Latency", "Ratio", "Throughput", "device_latency", "energy", "latency",
    "memory", "paired", "throughput",
]  # fmt: skip
