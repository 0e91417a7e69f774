"""Small graphs whose tensors have a size in whole MiB."""

from __future__ import annotations

from onnx_files import saved, value

MIB_FLOATS = 2**18  # values of four bytes that make one MiB


def graph_of(tmp_path, nodes, outputs, *, inputs=("x",), width=MIB_FLOATS, weights=(), batch="batch", name="net"):
    """A saved ONNX graph over tensors of shape (batch, width)."""
    ends = [value(each, [batch, None], kind) for each, kind in outputs.items()]
    return saved(tmp_path, nodes, [value(each, [batch, width]) for each in inputs], ends, list(weights), name=name)
