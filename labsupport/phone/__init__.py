"""Phone runtimes behind the workbook's protocol: ExecuTorch and LiteRT, converted from PyTorch, in FP32 and in INT8.

The parts: ``executorch_runtime`` and ``litert_runtime`` (conversion, quantization, execution) and ``tflite_files`` (what
stands in a `.tflite` file).
"""

from __future__ import annotations

from labsupport.phone.executorch_runtime import ExecuTorch, to_executorch
from labsupport.phone.litert_runtime import LiteRt, quantize_litert, to_litert, true_ranges
from labsupport.phone.tflite_files import Contents, contents

__all__ = [
    "Contents", "ExecuTorch", "LiteRt", "contents", "quantize_litert", "to_executorch", "to_litert", "true_ranges",
]  # fmt: skip
