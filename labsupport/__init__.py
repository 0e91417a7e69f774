"""Helpers behind the TensorRT lab workbook; import the room you need: ``from labsupport import build``."""

from labsupport import guards

__version__ = "0.1.0"
guards.install()
