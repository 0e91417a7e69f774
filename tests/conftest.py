"""Every test gets a cache of its own and one thread, so that none depends on the machine or on another."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
for variable in ("LABSUPPORT_READY", "LABSUPPORT_METRICS"):  # set by the command that runs these tests
    os.environ.pop(variable, None)

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
