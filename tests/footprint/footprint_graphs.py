"""Small graphs whose tensors have a size in whole MiB."""

from __future__ import annotations

from onnx import TensorProto, helper

from labsupport import export

MIB_FLOATS = 2**18  # values of four bytes that make one MiB


def graph_of(tmp_path, nodes, outputs, *, inputs=("x",), width=MIB_FLOATS, weights=(), batch="batch", name="net"):
    """A saved ONNX graph over tensors of shape (batch, width)."""
    value = [helper.make_tensor_value_info(each, TensorProto.FLOAT, [batch, width]) for each in inputs]
    ends = [helper.make_tensor_value_info(each, kind, [batch, None]) for each, kind in outputs.items()]
    model = helper.make_model(
        helper.make_graph(nodes, name, value, ends, list(weights)),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return export.save(model, tmp_path / f"{name}.onnx")
