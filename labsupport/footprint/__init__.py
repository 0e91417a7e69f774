"""Where a network's bytes go: how long each tensor lives, the least memory that takes, and what a served one holds.

A plan of addresses follows from the lifetimes alone, so all of it is computed from an ONNX graph without a GPU. The
parts: ``tensor_lifetimes``, ``arenas`` (address plans), ``memory_drawing``, ``builder_bill`` (what TensorRT says it
needs), ``shipped`` (weights and activations of a version) and ``served`` (what a process really holds, measured).
"""

from __future__ import annotations

from labsupport.export import at_batch
from labsupport.footprint.arenas import Arena, arena
from labsupport.footprint.builder_bill import Bill, bill
from labsupport.footprint.memory_drawing import draw_arena, draw_lifetimes
from labsupport.footprint.served import Ledger, held_mib, serve_engine, serve_session
from labsupport.footprint.tensor_lifetimes import (
    Lifetimes,
    Tensor,
    lifetimes,
    of_engine,
    schedule,
)

__all__ = [
    "Arena", "Bill", "Ledger", "Lifetimes", "Tensor", "arena", "at_batch", "bill", "draw_arena", "draw_lifetimes",
    "held_mib", "lifetimes", "of_engine", "schedule", "serve_engine",
    "serve_session",
]  # fmt: skip
