"""A graph with a node of which nobody knows the shape of the result."""

from __future__ import annotations

from onnx import TensorProto, helper

from labsupport import export


def mysterious(folder):
    """x → Mystery → y → Relu → z; the first node, "odd", is of nobody's domain."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xz"]
    nodes = [
        helper.make_node("Mystery", ["x"], ["y"], name="odd", domain="own"),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    return export.save(model, folder / "odd.onnx")
