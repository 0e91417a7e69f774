"""What machine this is: GPU, driver, which TensorRT and which generation of its API. Standard library only.

The parts: ``machines`` (the probe), ``needs`` (what a cell may ask for, and why it is missing), ``description`` (this
machine in words), ``folders`` (caches), ``bars`` (progress), ``hardware`` (driver and GPUs), ``packages`` (installed
versions, without importing them).
"""

from __future__ import annotations

from labsupport.environment.bars import bar
from labsupport.environment.description import Description, describe, lane, machine_class, runtime_name
from labsupport.environment.folders import cache_dir, headless
from labsupport.environment.machines import (
    DRIVER_FOR_CUDA,
    GENERATIONS,
    INSTALL_CPU,
    INSTALL_GPU,
    PRODUCTS,
    REPOSITORY,
    TITLES,
    Machine,
    generation,
    machine,
)
from labsupport.environment.needs import CAPABILITIES, NEEDS, RTX_REFUSES, has, require, tensorrt, why_not

__all__ = [
    "CAPABILITIES", "DRIVER_FOR_CUDA", "GENERATIONS", "INSTALL_CPU", "INSTALL_GPU", "NEEDS", "PRODUCTS", "REPOSITORY",
    "RTX_REFUSES", "TITLES", "Description", "Machine", "bar", "cache_dir", "describe", "generation", "has", "headless",
    "lane", "machine", "machine_class", "require", "runtime_name", "tensorrt", "why_not",
]  # fmt: skip
