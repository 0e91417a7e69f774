"""An ONNX graph as plain nodes and names: who computes which tensor, what hangs on constants or on shapes alone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput
from labsupport.export import onnx_graph
from labsupport.fusion.plan_schema import dtype_of

# They read a tensor's shape and not its values.
SHAPE_READERS = ("Shape", "Size")


@dataclass(frozen=True)
class Node:
    """One ONNX operator: its name, what it reads and writes, and a digest of its attributes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: str = ""
    domain: str = ""

    @property
    def random(self) -> bool:
        """Whether it draws: two of them are never the same, and nothing is known before it runs."""
        return self.op.startswith("Random") or self.op in ("Bernoulli", "Multinomial")

    def __repr__(self) -> str:
        return f"{self.op} {self.name}"


@dataclass(frozen=True)
class NodeGraph:
    """The nodes of an ONNX file in execution order, without its weights, so that it fits beside a recorded plan.

    ``types`` maps a tensor or a weight to (dtype, shape) where the file or ONNX's shape inference says so.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: frozenset[str] = frozenset()
    types: Mapping[str, tuple] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)  # what a fused node ends in, by the node's name

    def __repr__(self) -> str:
        return f"NodeGraph({len(self.nodes)} nodes, {len(self.inputs)} inputs, {len(self.outputs)} outputs)"

    @functools.cached_property
    def by_name(self) -> dict[str, Node]:
        """Node by name."""
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def place(self) -> dict[str, int]:
        """Place of a node in execution order, by name."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    @functools.cached_property
    def producer(self) -> dict[str, Node]:
        """The node that writes a tensor."""
        return {tensor: node for node in self.nodes for tensor in node.outputs if tensor}

    @functools.cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read a tensor."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                readers.setdefault(tensor, []).append(node)
        return readers

    @functools.cached_property
    def constant_nodes(self) -> frozenset[str]:
        """Nodes that hang on constants alone; random generators, which read nothing, are not among them."""
        tensors, names = set(self.constants) | {""}, set()
        for node in self.nodes:
            if not node.random and all(tensor in tensors for tensor in node.inputs):
                names.add(node.name)
                tensors.update(node.outputs)
        return frozenset(names)

    @functools.cached_property
    def shape_nodes(self) -> frozenset[str]:
        """Nodes that hang on tensors' shapes (and constants) but on no tensor's values."""
        tensors, names = set(self.constants) | {""}, set()
        for node in self.nodes:
            if node.name in self.constant_nodes:
                tensors.update(node.outputs)
            elif node.op in SHAPE_READERS or all(tensor in tensors for tensor in node.inputs) and node.inputs:
                names.add(node.name)
                tensors.update(node.outputs)
        return frozenset(names)

    @functools.cached_property
    def dead_nodes(self) -> frozenset[str]:
        """Nodes whose result reaches no output of the graph."""
        alive = self.ancestors(self.outputs, until=())
        return frozenset(node.name for node in self.nodes if node.name not in alive)

    @functools.cached_property
    def twins(self) -> dict[str, tuple[str, ...]]:
        """Node → the others with the same operator, attributes and inputs: common subexpressions are computed once."""
        groups: dict[tuple, list[Node]] = {}
        renamed: dict[str, str] = {}
        for node in self.nodes:
            if node.random or node.op == "Constant":
                continue
            key = (
                node.op,
                node.domain,
                tuple(renamed.get(i, i) for i in node.inputs),
                node.attributes,
                len(node.outputs),
            )
            group = groups.setdefault(key, [])
            if group:
                renamed.update(zip(node.outputs, group[0].outputs, strict=True))
            group.append(node)
        return {
            n.name: tuple(m.name for m in group if m is not n)
            for group in groups.values()
            if len(group) > 1
            for n in group
        }

    def ancestors(self, tensors: Iterable[str], *, until: Iterable[str], over=lambda node: True) -> set[str]:
        """Names of the nodes behind ``tensors``, not looking behind the tensors ``until``.

        ``over(node)`` says whether to take a node and look behind it.
        """
        stop, names, todo = set(until), set(), list(tensors)
        while todo:
            node = self.producer.get(todo.pop())
            if node is None or node.name in names or not over(node):
                continue
            names.add(node.name)
            todo += [tensor for tensor in node.inputs if tensor and tensor not in stop]
        return names

    def descendants(self, tensors: Iterable[str]) -> set[str]:
        """Names of the nodes that ``tensors`` flow into."""
        names, todo = set(), list(tensors)
        while todo:
            for node in self.readers.get(todo.pop(), []):
                if node.name not in names:
                    names.add(node.name)
                    todo += node.outputs
        return names

    def as_dict(self) -> dict:
        """Plain values for JSON; ``nodes_of`` reads them back."""
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "constants": sorted(self.constants),
            "nodes": [[n.name, n.op, list(n.inputs), list(n.outputs), n.attributes] for n in self.nodes],
            "types": {n: [dtype, list(shape)] for n, (dtype, shape) in self.types.items() if n not in self.constants},
        }


def nodes_of(source) -> NodeGraph:
    """The nodes of an export.OnnxGraph, an ``onnx.ModelProto``, an ONNX path, or of what ``as_dict`` wrote.

    A node without a name is called ``node_of_<first output>``, as TensorRT's parser calls it. Raises BadInput.
    """
    if isinstance(source, NodeGraph):
        return source
    if isinstance(source, Mapping):
        return _from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        source = export.load(Path(source))
    if isinstance(source, export.OnnxGraph):
        return _read(str(source.path), source.path.stat().st_mtime_ns)
    if hasattr(source, "graph") and hasattr(source.graph, "node"):
        return _from_model(source)
    raise BadInput(
        f"graph is a {type(source).__name__}; pass an export.OnnxGraph, the path of an ONNX file or an onnx.ModelProto"
    )


@functools.lru_cache(maxsize=16)
def _read(path: str, changed: int) -> NodeGraph:
    import onnx

    # the weights' values are in the way of nothing here, but a file with external data may stand without them
    return _from_model(onnx.load(path, load_external_data=False))


def _from_model(model) -> NodeGraph:
    graph = model.graph
    sparse = (tensor.values.name for tensor in graph.sparse_initializer)
    constants = frozenset([*(tensor.name for tensor in graph.initializer), *sparse])
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    nodes, seen = [], set()
    for proto in graph.node:
        name = proto.name or f"node_of_{proto.output[0] if proto.output else len(nodes)}"
        while name in seen:  # ONNX asks for unique names and not every exporter complies
            name += "'"
        seen.add(name)
        told = _told(proto, opsets.get(proto.domain, 1))
        bodies = sorted(attribute.SerializeToString(deterministic=True) for attribute in told)
        digest = hashlib.sha1(b"".join(bodies), usedforsecurity=False).hexdigest()[:12] if bodies else ""
        reads = (*proto.input, *_captured(proto))
        nodes.append(Node(name, proto.op_type, reads, tuple(proto.output), digest, proto.domain))
    pairs = [(node.name, a) for node, proto in zip(nodes, graph.node, strict=True) for a in proto.attribute]
    activations = {name: a.s.decode(errors="replace") for name, a in pairs if a.name == "activation"}
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    return NodeGraph(tuple(nodes), inputs, outputs, constants, _types(model), activations)


def _told(proto, opset: int) -> list:
    """The attributes that are no defaults: ONNX Runtime writes defaults out, and exporters may or may not."""
    import onnx

    if not proto.attribute or not onnx.defs.has(proto.op_type, opset, proto.domain):
        return list(proto.attribute)
    attributes = onnx.defs.get_schema(proto.op_type, opset, proto.domain).attributes
    value = onnx.helper.get_attribute_value
    usual = {name: value(each.default_value) for name, each in attributes.items() if each.default_value.name}
    return [each for each in proto.attribute if each.name not in usual or value(each) != usual[each.name]]


def _captured(proto) -> list[str]:
    """Tensors of the outer graph that the bodies of an If or a Loop read."""
    outer = []
    for attribute in proto.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = (
                {i.name for i in body.input}
                | {t.name for t in body.initializer}
                | {o for n in body.node for o in n.output}
            )
            reads = [i for n in body.node for i in (*n.input, *_captured(n))]
            outer += [name for name in reads if name and name not in own]
    return list(dict.fromkeys(outer))


def _types(model) -> dict[str, tuple]:
    import onnx

    try:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        for tensor in bare.graph.initializer:  # shapes of weights are enough; small ones hold shapes themselves
            if tensor.ByteSize() > 4096:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        graph = onnx.shape_inference.infer_shapes(bare).graph
    except Exception:  # operators that ONNX does not know, as ONNX Runtime's own: types are then what the file says
        graph = model.graph
    name_of = onnx.TensorProto.DataType.Name
    weights = {t.name: (dtype_of(name_of(t.data_type)), tuple(t.dims)) for t in model.graph.initializer}
    return weights | {
        value.name: onnx_graph.spec_of(value)[::-1]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }


def _from_dict(source: Mapping) -> NodeGraph:
    try:
        nodes = tuple(Node(_text(n), _text(op), _texts(i), _texts(o), _text(a)) for n, op, i, o, a in source["nodes"])
        types = {
            name: (_text(dtype), tuple(map(_axis, shape))) for name, (dtype, shape) in source.get("types", {}).items()
        }
        ends = (_texts(source[key]) for key in ("inputs", "outputs", "constants"))
        inputs, outputs, constants = ends
        return NodeGraph(nodes, inputs, outputs, frozenset(constants), types)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        keys = json.dumps(sorted(map(str, source)))[:200]
        raise BadInput(
            f"this node list is not one that NodeGraph.as_dict() wrote: it has {keys} ({type(error).__name__}: {error})"
        ) from None


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is not a name")
    return value


def _texts(values) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{str(values)[:40]} is not a list of names")
    return tuple(map(_text, values))


def _axis(value) -> int | str:
    if type(value) not in (int, str):
        raise TypeError(f"{str(value)[:40]} is not a length")
    return value
