"""Phone runtimes behind the workbook's protocol: ExecuTorch and LiteRT, converted from PyTorch, in FP32 and in INT8.

The parts: ``executorch_runtime`` and ``litert_runtime`` (conversion, quantization, execution), ``executorch_child``
(other numbers of threads), ``tflite_files`` (what stands in a `.tflite` file) and ``silence`` (converters that talk).
"""

from __future__ import annotations

from labsupport.phone.executorch_child import executorch_latency
from labsupport.phone.executorch_runtime import ExecuTorch, to_executorch, use_threads
from labsupport.phone.litert_runtime import LiteRt, quantize_litert, to_litert, true_ranges
from labsupport.phone.silence import silently
from labsupport.phone.tflite_files import Contents, contents

__all__ = [
    "Contents", "ExecuTorch", "LiteRt", "contents", "executorch_latency", "quantize_litert", "silently",
    "to_executorch", "to_litert", "true_ranges", "use_threads",
]  # fmt: skip
