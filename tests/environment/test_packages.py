"""Packages that stand in each other's way."""

from __future__ import annotations

import os
import sys
import types

import pytest

from labsupport.environment.packages import settle_distutils

VARIABLE = "SETUPTOOLS_USE_DISTUTILS"


@pytest.fixture
def late(monkeypatch):
    """A process that has not imported setuptools yet, under a Python with a distutils of its own."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "setuptools", raising=False)
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))


def test_setuptools_leaves_pythons_distutils_alone(late):
    settle_distutils()
    assert os.environ.pop(VARIABLE) == "stdlib"


def test_a_choice_a_loaded_setuptools_and_a_newer_python_stay_as_they_are(late, monkeypatch):
    monkeypatch.setenv(VARIABLE, "local")
    settle_distutils()
    assert os.environ[VARIABLE] == "local"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setitem(sys.modules, "setuptools", types.ModuleType("setuptools"))
    settle_distutils()
    monkeypatch.delitem(sys.modules, "setuptools")
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))  # it has no distutils; setuptools' is the only one
    settle_distutils()
    assert VARIABLE not in os.environ
