"""Stand-ins for what a room hands on: the room's face and its parts each hold the name, and all of them must meet the stand-in."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def stand_in(monkeypatch: pytest.MonkeyPatch, room: ModuleType, name: str, value: Any) -> None:
    """Put `value` in the place of `name` in the face `room` and in every loaded part of it that has the name."""
    parts = [module for key, module in list(sys.modules.items()) if key.startswith(f"{room.__name__}.")]
    holders = [module for module in (room, *parts) if hasattr(module, name)]
    assert holders, f"{room.__name__} has nothing called {name}"
    for module in holders:
        monkeypatch.setattr(module, name, value)
