"""Results with their provenance: written on a GPU, shown elsewhere under their label, held within bands.

The parts: ``lab_book`` (what a lab records and replays), ``metrics`` (one result, a table of them), ``names`` (metrics
in words), ``provenance`` (machine, versions, date), ``bands`` (expected limits), ``plans`` (recorded inspector files).
"""

from __future__ import annotations

from labsupport.recordings.bands import check_live, check_recorded
from labsupport.recordings.lab_book import LabBook, lab, session, store
from labsupport.recordings.metrics import Measured, Recorded, Replay
from labsupport.recordings.plans import RecordedPlan, load_plan, save_plan

__all__ = [
    "LabBook", "Measured", "Recorded", "RecordedPlan", "Replay", "check_live", "check_recorded", "lab", "load_plan",
    "save_plan", "session", "store",
]  # fmt: skip
