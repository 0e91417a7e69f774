"""Roads from trained weights to something that answers: one protocol for all, and a table of how they compare.

`road(weights, example) -> runtime`: a road takes weights by name and an example batch, and makes a runtime of them.
The parts: ``journey`` (the protocol), ``mxnet_file`` (weights from a retired framework), ``providers`` (who really
computes in ONNX Runtime), ``tensorflow`` (an import without noise), ``versions`` (which releases fit together, and when
each was last made).
"""

from __future__ import annotations

from labsupport.roads.journey import CLOSE, Function, Road, travel
from labsupport.roads.mxnet_file import MXNET, SHA256, mxnet_graph, mxnet_reference

__all__ = [
    "CLOSE", "MXNET", "SHA256", "Function", "Road", "mxnet_graph", "mxnet_reference", "travel",
]  # fmt: skip
