"""Nodes whose operator ONNX does not define, wherever they stand: in the graph, in a loop's body, in a function's."""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.export import onnx_graph
from labsupport.export.onnx_graph import bodies, everywhere

__all__ = ["Unknown", "bodies", "everywhere", "unknown_operators"]

STANDARD = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(frozen=True)
class Unknown:
    """A node whose operator is in no standard, and whether the graph brings a body for it."""

    node: str
    op_type: str
    domain: str
    has_body: bool
    inside: str = ""  # the loop, branch or function whose body it stands in; "" for a node of the graph itself

    def __repr__(self) -> str:
        body = "the graph brings a body for it" if self.has_body else "nobody says what it computes"
        place = f" (in the body of {self.inside})" if self.inside else ""
        return f"{self.node}{place}: {self.domain or 'ai.onnx'}::{self.op_type}, {body}"


def unknown_operators(graph) -> tuple[Unknown, ...]:
    """Nodes whose operator ONNX does not define at the graph's opset; needs no TensorRT and no GPU.

    The bodies of If, Loop and Scan are looked into as well, and those of the functions that the graph brings and calls.
    """
    model = onnx_graph.load(graph).model()
    functions = {(function.domain, function.name): function for function in model.functions}
    operators, called = [], set()

    def look(nodes, opsets, inside):
        for node in nodes:
            where, function = node.name or node.output[0], functions.get((node.domain, node.op_type))
            if not _standard(node, opsets):
                operators.append(Unknown(where, node.op_type, node.domain, function is not None, inside))
            if function is not None and (node.domain, node.op_type) not in called:
                called.add((node.domain, node.op_type))  # once, however often it is called
                look(function.node, _opsets(function), f"function {node.op_type}")
            for body in bodies(node):
                look(body.node, opsets, where)

    look(model.graph.node, _opsets(model), "")
    return tuple(operators)


def _standard(node, opsets) -> bool:
    from onnx import defs

    domain = "" if node.domain == "ai.onnx" else node.domain
    return node.domain in STANDARD and domain in opsets and defs.has(node.op_type, opsets[domain], domain)


def _opsets(owner) -> dict:
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in owner.opset_import}
