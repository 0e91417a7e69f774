"""A model of a test, saved as a graph."""

from __future__ import annotations

from onnx import helper

from labsupport import export


def saved(folder, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return export.save(model, folder / "net.onnx")
