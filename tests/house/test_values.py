"""Results are values: nobody changes them under another's hands, and those that hold arrays are not compared by ==."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

import labsupport

ROOMS = ("examining", "export", "footprint", "fusion", "precision", "quantization")
GROWING = {"Row"}  # a stage adds to it what it finds


def classes():
    for room in ROOMS:
        package = importlib.import_module(f"labsupport.{room}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for each in vars(module).values():
                if isinstance(each, type) and dataclasses.is_dataclass(each) and each.__module__ == module.__name__:
                    yield pytest.param(each, id=f"{room}.{each.__name__}")


@pytest.mark.parametrize("kind", list(classes()))
def test_a_result_is_a_value(kind):
    assert kind.__dataclass_params__.frozen is (kind.__name__ not in GROWING)
    arrays = any("ndarray" in str(field.type) for field in dataclasses.fields(kind))
    assert kind.__dataclass_params__.eq is not (arrays or kind.__name__ == "Calibration")  # of histograms


def test_all_rooms_are_looked_at():
    assert len(list(classes())) > 40 and labsupport.__name__ == "labsupport"
