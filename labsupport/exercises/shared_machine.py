"""Whether a measurement can be judged at all: in a room that shares cores and GPUs, it may show the neighbors."""

from __future__ import annotations

import os
from typing import Any

from labsupport.exercises.answers import NotAttempted

BUSY_SPREAD = 1.0  # IQR over median; a quiet machine stays below a tenth


def judge_quiet(measured: Any) -> None:
    """Raise NotAttempted where a measurement spreads so far that it shows other work on the machine."""
    spread = getattr(measured, "spread", None)
    if callable(getattr(measured, "as_metric", None)) and spread is None:
        spread = measured.as_metric().get("spread")
    if isinstance(spread, (int, float)) and spread > BUSY_SPREAD:
        raise NotAttempted(
            f"the measured values differ by {spread:.0%} of their median{_load()}: this machine is too busy to judge a "
            "speed. Run the measuring cell again when it is quiet; nothing counts against you."
        )


def _load() -> str:
    """How many processes want a core, where the system tells."""
    if not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f", and {load:.0f} processes want its {cores} cores" if load > cores else ""
