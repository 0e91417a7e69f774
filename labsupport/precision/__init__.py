"""Types of a network: cast narrow but for the layers that must stay wide, prescribed layer by layer, and judged.

The parts: ``type_reports`` (which types a graph or engine has), ``scores``, ``rounding`` (a
graph that rounds as FP16 does), ``layerwise`` (which node breaks), ``number_formats``, ``nvidia_autocast``,
``raw_pixels`` (a network that overflows). The caster itself is `export.cast`, because the builder uses it too.
"""

from __future__ import annotations

from labsupport.export import cast
from labsupport.precision.nvidia_autocast import autocast
from labsupport.precision.rounding import rounded
from labsupport.precision.scores import Score, accuracy
from labsupport.precision.type_reports import MOVERS, node_types, read_back, types

__all__ = [
    "MOVERS", "Score", "accuracy", "autocast", "cast", "node_types", "read_back", "rounded", "types",
]  # fmt: skip
