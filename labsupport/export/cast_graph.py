"""A graph cast to narrow types, but for the layers that must stay wide."""

from __future__ import annotations

from collections.abc import Iterable

from labsupport.export import casting
from labsupport.export.onnx_graph import OnnxGraph


def cast(graph, to: str = "fp16", *, keep_wide: Iterable[str] = (), keep_io: bool = True, path=None) -> OnnxGraph:
    """The same network with narrow weights and tensors, as strongly typed TensorRT (10, 11, RTX) reads it.

    ``to``: "fp16" or "bf16". ``keep_wide`` names the nodes that stay FP32, with Cast nodes around them; a node that
    reads what one of them writes gets it narrowed, so name the readers too until the numbers are small again.
    ``keep_io`` leaves inputs and outputs FP32. A graph with Q/DQ nodes keeps its codes; its scales, and whatever is not
    INT8, become narrow, which takes opset 19. Returns a new graph. Raises BadInput for a graph that is narrow already,
    an opset below 13, branches and loops, names that are not there, and a scale that the narrow type does not hold.
    """
    return casting.Typed(graph, to, keep_wide).walk(keep_io).saved(path)
