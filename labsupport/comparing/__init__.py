"""The judge: how far an answer moved, which way a speed-up points, and tables that refuse a speed without an error.

The parts: ``differences`` (errors), ``speedups``, ``tables``, ``pictures`` (bars), ``pareto_front``
(gates), ``drawing`` (what every picture shares), ``timeline`` (what ran when), ``requirements`` (a sealed gate in
numbers) and ``contact_sheet`` (many small pictures).
"""

from __future__ import annotations

from labsupport.benchmarking.measurements import Speedup
from labsupport.comparing.differences import max_error, relative_error, top1_agreement
from labsupport.comparing.drawing import Drawing
from labsupport.comparing.pareto_front import Gate, Limits, front, pareto
from labsupport.comparing.pictures import bars, table
from labsupport.comparing.speedups import speedup

__all__ = [
    "Drawing", "Gate", "Limits", "Speedup", "bars", "front", "max_error", "pareto", "relative_error",
    "speedup", "table", "top1_agreement",
]  # fmt: skip
