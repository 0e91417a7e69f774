"""Eight bits: scales by hand, calibration, explicit Q/DQ for each runtime, and which layers to keep wide.

Every transform returns a new object and leaves its argument, and its file, alone. The parts: ``scales`` (arithmetic on
arrays), ``calibration`` (histograms and thresholds), ``fit_graphs`` (which graphs), ``qdq`` (nodes in the graph),
``sensitivity`` (which layers), ``conversions`` (what a border costs) and ``int8_calibrator`` (how TensorRT 8.6 and 10
quantize without Q/DQ). Beside it stand ``qat`` (training with rounding, on ``folded_networks``) and ``modelopt_road``
(the same by NVIDIA's package).
"""

from __future__ import annotations

from labsupport.export import at_batch
from labsupport.quantization.calibration import METHODS, Calibration, Histogram, collect, histogram
from labsupport.quantization.calibration_drawing import draw_thresholds
from labsupport.quantization.conversion_cost import conversions
from labsupport.quantization.int8_calibrator import entropy_calibrator
from labsupport.quantization.layer_costs import LayerCost, Sensitivity, sensitivity
from labsupport.quantization.qdq import TARGETS, Placement, calibrate, layers, placement, to_qdq
from labsupport.quantization.scales import (
    FORMATS,
    Noise,
    Scale,
    dequantize,
    fake_quantize,
    measured_noise,
    quantize,
    scale_of,
)

__all__ = [
    "FORMATS", "METHODS", "TARGETS", "Calibration", "Histogram", "LayerCost", "Noise", "Placement", "Scale",
    "Sensitivity", "at_batch", "calibrate", "collect", "conversions", "dequantize", "draw_thresholds",
    "entropy_calibrator", "fake_quantize", "histogram", "layers", "measured_noise", "placement",
    "quantize", "scale_of", "sensitivity", "to_qdq",
]  # fmt: skip
