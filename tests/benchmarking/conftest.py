"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

import sys
import types

import pytest

import labsupport


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    here = types.SimpleNamespace(gpu=None, problem="no GPU", cpu="Test CPU", cores=2)
    fake = types.ModuleType("labsupport.environment")
    fake.machine = lambda: here
    monkeypatch.setitem(sys.modules, "labsupport.environment", fake)
    monkeypatch.setattr(labsupport, "environment", fake, raising=False)
    return here
