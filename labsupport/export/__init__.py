"""PyTorch to ONNX, the one interchange format, and what every room does to a graph: read, check, write, cast.

The parts: ``exporters`` (torch's two roads), ``keras_models`` (Keras's), ``frozen_values`` (what tracing froze),
``onnx_graph`` (a checked file), ``node_walks``, ``surgery`` (names, shapes, inner tensors, batch), ``cast_graph`` and
``casting`` (narrow types), ``constant_folding`` (weights behind nodes), ``qdq_nodes`` (Quantize and Dequantize),
``foreign_nodes`` (operators that ONNX does not know).
"""

from __future__ import annotations

from labsupport.export.cast_graph import cast
from labsupport.export.exporters import DEFAULT_OPSET, EXPORTERS, NEWEST_OPSET, to_onnx
from labsupport.export.onnx_graph import OnnxGraph, another_file, float_type, fresh_folder, load, save, scratch_folder
from labsupport.export.surgery import at_batch, exposed

__all__ = [
    "DEFAULT_OPSET", "EXPORTERS", "NEWEST_OPSET", "OnnxGraph", "another_file", "at_batch", "cast", "exposed",
    "float_type", "fresh_folder", "load", "save", "scratch_folder", "to_onnx",
]  # fmt: skip
