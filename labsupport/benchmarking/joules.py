"""Joule per inference, from the GPU's energy counter where it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from labsupport.benchmarking.memory_meter import nvml_device
from labsupport.errors import NotAvailable


@dataclass(frozen=True, repr=False)
class Energy:
    """Joules of the whole GPU board over `inferences` calls; `joules` None and `why_not` where nothing measured it."""

    name: str
    joules: float | None
    inferences: int
    seconds: float
    batch: int
    machine: str
    why_not: str

    @property
    def joules_per_inference(self) -> float | None:
        """Per call, that is per batch; divide by `batch` for one item."""
        return None if self.joules is None else self.joules / self.inferences

    @property
    def watts(self) -> float | None:
        return None if self.joules is None else self.joules / self.seconds

    def as_metric(self) -> dict:
        if self.joules is None:
            raise NotAvailable(
                f"no energy was measured for {self.name!r}: {self.why_not}; record it on a GPU with NVML"
            )
        return {"value": self.joules_per_inference, "unit": "J", "samples": self.inferences, "spread": None}

    def as_row(self) -> dict:
        joules = self.joules_per_inference
        return {"runtime": self.name, "J/inference": None if joules is None else float(f"{joules:.2g}")}

    def __repr__(self) -> str:
        if self.joules is None:
            return f"{self.name}: energy not measured, {self.why_not}"
        return (
            f"{self.name} {self.joules_per_inference:.2g} J per call of batch {self.batch}, "
            f"{self.watts:.0f} W over {self.inferences} calls"
        )


def energy_counter(device: str) -> tuple[Callable[[], float] | None, str]:
    """A function that reads the GPU's total energy in joules, or None and why this run has none."""
    if not device.startswith("cuda"):
        return None, "the network runs on the CPU and NVML counts the GPU's energy only"
    handle, why_not = nvml_device()
    if handle is None:
        return None, why_not
    import pynvml

    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"this GPU has no energy counter: {error}"
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, ""
