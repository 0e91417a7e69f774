"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import dataclasses
import json

RATIO = "resnet18_b32.trt_fp16_graph_over_torch_fp16_graph"
COMMAND = "python3 -m labsupport record 01_measuring"


@dataclasses.dataclass(frozen=True)
class Machine:
    python: str = "3.10.12"
    cpu: str = "Test CPU"
    cores: int = 16
    gpu: str | None = "NVIDIA H100 80GB HBM3"
    driver: str | None = "580.159.04"
    cuda: str | None = "13.0"
    tensorrt: str | None = "8.6.0"
    generation: str | None = "8.6"
    torch: str | None = "2.11.0"
    onnxruntime: str | None = "1.23.0"
    compute_capability: tuple = (9, 0)
    problem: str | None = None


H100 = (Machine(), "h100-trt8.6")
LAPTOP = (Machine(gpu=None, driver=None, cuda=None, tensorrt="1.7.1", generation="rtx"), "cpu-ort1.23")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def a_recording(**changes):
    facts = {key: value for key, value in dataclasses.asdict(Machine()).items() if value is not None}
    metrics = {
        RATIO: {"value": 2.3123, "unit": "×", "samples": 30, "spread": 0.02},
        "lab.seconds": {"value": 118.2, "unit": "s", "samples": 1, "spread": None},
    }
    whole = {"machine": facts, "date": "2026-11-22", "command": COMMAND, "metrics": metrics, **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def recorded(root, **changes):
    return write(root / "h100-trt8.6" / "01_measuring.json", a_recording(**changes))


def without(*keys):
    return {key: value for key, value in a_recording()["machine"].items() if key not in keys}
