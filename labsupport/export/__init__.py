"""PyTorch to ONNX, the one interchange format, and what every room does to a graph: read, check, write, cast.

The parts: ``exporters`` (torch's two roads), ``onnx_graph`` (a checked file), ``cast_graph`` and ``casting`` (narrow
types), ``qdq_nodes`` (pairs of Quantize and Dequantize), ``foreign_nodes`` (operators that ONNX does not know).
"""

from __future__ import annotations

from labsupport.export.cast_graph import cast
from labsupport.export.exporters import DEFAULT_OPSET, EXPORTERS, NEWEST_OPSET, to_half, to_onnx
from labsupport.export.onnx_graph import OnnxGraph, another_file, float_type, fresh_folder, load, save, scratch_folder

__all__ = [
    "DEFAULT_OPSET", "EXPORTERS", "NEWEST_OPSET", "OnnxGraph", "another_file", "cast", "float_type", "fresh_folder",
    "load", "save", "scratch_folder", "to_half", "to_onnx",
]  # fmt: skip
