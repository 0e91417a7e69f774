"""Ways through a model: its nodes, those in branches and bodies, and every tensor that it holds."""

from __future__ import annotations

from collections.abc import Iterator


def bodies(node) -> list:
    """The graphs that a node holds: the branches of an If, the body of a Loop or Scan."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def everywhere(nodes) -> Iterator:
    """The nodes, and those in the bodies that they hold."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from everywhere(body.node)


def tensors_of(model) -> Iterator:
    """Every tensor that a model holds: weights, also those of branches, and the values of Constant nodes."""
    yield from model.graph.initializer
    for node in everywhere([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
        for body in bodies(node):
            yield from body.initializer


def external(tensor) -> dict:
    """Where a tensor's values lie beside the graph: its file as "location", and the byte where they "end"; or {}."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_location != tensor.EXTERNAL or "location" not in entries:
        return {}
    return {"location": entries["location"], "end": int(entries.get("offset", 0)) + int(entries.get("length", 0))}
