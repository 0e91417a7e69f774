"""Every test gets a cache, a signing key and a progress file of its own and one thread, so that none depends on another.

All of it is set per test, never at import: nbval runs the notebooks in the same process, and their kernels inherit
what it holds (LABSUPPORT_METRICS among it).
"""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("LABSUPPORT_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for variable in ("LABSUPPORT_READY", "LABSUPPORT_METRICS"):  # the command that runs these tests sets them
        monkeypatch.delenv(variable, raising=False)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
