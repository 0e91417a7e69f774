"""Eight bits: scales by hand, calibration, explicit Q/DQ for each runtime, and which layers to keep wide.

Every transform returns a new object and leaves its argument, and its file, alone. The parts: ``scales`` (arithmetic on
arrays), ``calibration`` (histograms and thresholds), ``qdq`` (nodes in the graph), ``sensitivity`` (which layers), and
``int8_calibrator`` (how TensorRT 8.6 and 10 quantize without Q/DQ).
"""

from __future__ import annotations

from labsupport.calibration import METHODS, Calibration, Histogram, collect, histogram
from labsupport.int8_calibrator import entropy_calibrator
from labsupport.qdq import TARGETS, Placement, calibrate, layers, placement, to_qdq
from labsupport.scales import (
    FORMATS,
    Noise,
    Scale,
    dequantize,
    fake_quantize,
    measured_noise,
    predicted_noise,
    quantize,
    scale_of,
)
from labsupport.sensitivity import LayerCost, Mixed, Sensitivity, choose_mixed, sensitivity

__all__ = [
    "FORMATS", "METHODS", "TARGETS", "Calibration", "Histogram", "LayerCost", "Mixed", "Noise", "Placement", "Scale",
    "Sensitivity", "calibrate", "choose_mixed", "collect", "dequantize", "entropy_calibrator", "fake_quantize",
    "histogram", "layers", "measured_noise", "placement", "predicted_noise", "quantize", "scale_of", "sensitivity",
    "to_qdq",
]  # fmt: skip
