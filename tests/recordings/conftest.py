"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

import sys
import types

import pytest
from lab_book_stand_ins import H100, write

import labsupport


@pytest.fixture
def move(monkeypatch):
    """Continue on another machine."""
    fake = types.ModuleType("labsupport.environment")

    def to(place):
        fake.machine, fake.machine_class = (lambda: place[0]), (lambda: place[1])

    to(H100)
    monkeypatch.setitem(sys.modules, "labsupport.environment", fake)
    monkeypatch.setattr(labsupport, "environment", fake, raising=False)
    monkeypatch.delenv("LABSUPPORT_METRICS", raising=False)
    return to


@pytest.fixture
def live(move, tmp_path, monkeypatch):
    """The folder of a recording run."""
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path / "live"))
    return tmp_path / "live"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "recordings"
    write(folder / "bands.json", {"h100-trt8.6": {}, "cpu-*": {}})
    return folder
