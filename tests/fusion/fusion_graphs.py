"""A graph with a node of which nobody knows the shape of the result."""

from __future__ import annotations

from onnx import helper
from onnx_files import saved, value


def mysterious(folder):
    """x → Mystery → y → Relu → z; the first node, "odd", is of nobody's domain."""
    ends = [[value(name, [1])] for name in "xz"]
    nodes = [
        helper.make_node("Mystery", ["x"], ["y"], name="odd", domain="own"),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    return saved(folder, nodes, *ends, domains=[("own", 1)], name="odd")
