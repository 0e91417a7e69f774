"""Helpers behind the TensorRT lab workbook; import the room you need: ``from labsupport import build``."""

__version__ = "0.1.0"
