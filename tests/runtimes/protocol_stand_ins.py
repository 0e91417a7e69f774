"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

from labsupport import environment

on_gpu = environment.has("engine execution")
KINDS = ["torch", "onnxruntime"] + (["tensorrt", "tensorrt graph", "torch graph"] if on_gpu else [])
