"""A graph walked from input to output while its tensors change type, and Cast nodes put where two types meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from labsupport import errors
from labsupport.errors import BadInput, LabError, first_line, one_of
from labsupport.export import constant_folding, large_constants, onnx_graph, surgery
from labsupport.export.qdq_nodes import LAYERS, QDQ

LOW = ("fp16", "bf16")
OLDEST_OPSET = 13  # the first in which every common operator takes BF16 as well as FP16
RETYPED = ("Cast", "ConstantOfShape", "DequantizeLinear")  # their type stands in an attribute that is written anew
NARROW_SCALES_OPSET = 19  # the first whose Q/DQ nodes take narrow tensors and scales

# They take FP16 by ONNX's schemas, and TensorRT wants their sizes and boxes in FP32.
ALWAYS_WIDE = ("Resize", "RoiAlign")


def model_of(graph):
    """(OnnxGraph, its ModelProto with a name on every node), after the checks that any change of type needs.

    Raises BadInput for a graph that is narrow already, too old, or that holds branches or loops.
    """
    graph = onnx_graph.load(graph)
    kind = onnx_graph.float_type(graph)
    if kind != "fp32":  # weights kept narrow and widened by a Cast are FP32 for their layer
        kind = onnx_graph.weight_type(constant_folding.with_plain_weights(graph.model(), LAYERS), graph.inputs)
    if kind != "fp32":
        said = "computes in FP64" if kind == "fp64" else f"is {kind} already"
        raise BadInput(f"{graph.path.name} {said}; hand in the FP32 graph, from which every other precision is made")
    if graph.opset < OLDEST_OPSET:
        raise BadInput(
            f"{graph.path.name} is opset {graph.opset}; operators take FP16 and BF16 side by side from opset "
            f"{OLDEST_OPSET} on: export it again with opset=17"
        )
    model = surgery.plain(graph.model())
    for node in model.graph.node:
        if onnx_graph.bodies(node):
            raise BadInput(
                f"{graph.path.name}: {node.name} ({node.op_type}) holds a branch or a loop, into which these tools do "
                "not look; export the network without it"
            )
    return graph, model


def known(names: Iterable[str], graph, model) -> frozenset[str]:
    """The node names to keep wide, after a check that each is there. Raises BadInput with the nearest names."""
    if isinstance(names, str):
        raise BadInput(f"keep_wide={names!r} is one text; give a list of node names, such as [{names!r}]")
    nodes = [node.name for node in model.graph.node]
    for name in (names := list(names)):
        if name not in nodes:
            near = difflib.get_close_matches(str(name), nodes, 3, 0.4) or nodes[:3]
            raise BadInput(
                f"keep_wide names {name!r}, and {graph.path.name} has no such node; did you mean one of {near}?"
            )
    return frozenset(names)


def low_type(to: str):
    """(ONNX type number, NumPy dtype) of a low precision. Raises BadInput."""
    import numpy as np

    one_of(LOW, to=to)
    import ml_dtypes
    import onnx

    return (onnx.TensorProto.FLOAT16, np.float16) if to == "fp16" else (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16)


def _at_opset(model, opset: int, name: str):
    """The model rewritten for a newer opset; as it is, where it has that or one beyond."""
    import onnx

    if next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter's own types
        raise LabError(
            f"{name} cannot be rewritten for opset {opset}, in which Q/DQ nodes take narrow scales: "
            f"{first_line(error)}; export it at that opset"
        ) from error


def _formal(parameters, place: int):
    """The formal parameter of an operator that an argument fills; the last may be there any number of times."""
    return parameters[min(place, len(parameters) - 1)]


class Walk:
    """One pass over a graph's nodes that writes the nodes of a new graph; a subclass says what a change of type is."""

    scales: Iterable[str] = ()

    def __init__(self, graph, to: str, keep_wide: Iterable[str]):
        import onnx

        self.low, self.dtype = low_type(to)
        self.graph, self.model = model_of(graph)
        self.suffix, self.wide = to, known(keep_wide, self.graph, self.model)
        if any(
            node.op_type in QDQ for node in self.model.graph.node
        ):  # a Cast between a DequantizeLinear and its layer would part them
            self.model = _at_opset(self.model, NARROW_SCALES_OPSET, self.graph.path.name)
            self.scales = {node.input[1] for node in self.model.graph.node if node.op_type in QDQ}
        self.names = surgery.Names(self.model)
        self.weights = {w.name: w for w in self.model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
        listed = surgery.values_of(self.model)
        self.floats = {n for n, v in listed.items() if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        self.floats |= set(self.weights)
        # Sequences and the like have no type to change, and of an unknown type nobody can say whether it may.
        tensors = {n for n, v in listed.items() if v.type.HasField("tensor_type") and v.type.tensor_type.elem_type}
        written = {name for node in self.model.graph.node for name in node.output if name}
        self.untyped = (written | set(listed)) - tensors
        self.opsets = {o.domain: o.version for o in self.model.opset_import}
        if not self.floats:
            raise BadInput(
                f"{self.graph.path.name} has no FP32 tensor, so there is nothing to cast; its precision is its own"
            )
        self._keep_inside()
        self.is_low: set[str] = set()
        self.made: dict[tuple[str, bool], str] = {}
        self.nodes: list = []
        self.new_weights: list = []

    def _keep_inside(self) -> None:
        """Clamp the masks, and keep the nodes wide, whose constants the low type does not hold, and say so."""
        self.bounds, wide = large_constants.outside(self.model, self.dtype, self.scales)
        nodes = {node.name: node for node in self.model.graph.node}
        told = {name: why for name, why in wide.items() if name not in self.wide and self.narrows(nodes[name])}
        self.wide |= wide.keys()
        if told:
            name, why = next(iter(told.items()))
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            errors.warn(
                f"{self.graph.path.name}: {name} ({nodes[name].op_type}) stays FP32{more}, because {self.suffix} does "
                f"not hold {why}; a reader that gets its result in {self.suffix} may overflow: name it in keep_wide"
            )
        weights = {weight.name for weight in self.model.graph.initializer}
        readers = large_constants.Readers(self.model)
        given = (value.name for value in self.model.graph.input)
        self.given_masks = {name for name in given if name in self.floats and readers.joins(name, weights)}

    def narrow_places(self, node) -> tuple[set[int], set[int]]:
        """Which inputs and outputs of a node, by place, take the low type: none of them where it is to stay FP32.

        ONNX's schemas tell: IsInf, CumSum or Celu take no FP16 in older opsets, Resize takes it for its images alone.
        """
        touched = [t for t in (*node.input, *node.output) if t in self.floats]
        wide = node.name in self.wide or node.op_type in ALWAYS_WIDE
        if wide or not touched or self.untyped & {*node.input, *node.output}:
            return set(), set()
        ins, outs = ({i for i, t in enumerate(ts) if t in self.floats} for ts in (node.input, node.output))
        schema = self._schema(node)
        if schema is None:  # an operator of somebody's own, which no schema limits
            return ins, outs
        low = {i for i in ins if self._takes(schema, _formal(schema.inputs, i))}
        linked = {_formal(schema.inputs, i).type_str for i in low}
        retyped = node.op_type in RETYPED
        writes = {i for i in outs if retyped or _formal(schema.outputs, i).type_str in linked}
        # A node whose results would all stay FP32 gains nothing by narrow inputs, unless it writes no floats at all.
        return (low, writes) if writes or not outs else (set(), set())

    def narrows(self, node) -> bool:
        """Whether a node is to compute in the low precision."""
        return any(self.narrow_places(node))

    def _schema(self, node):
        from onnx import defs

        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self.opsets or not defs.has(node.op_type, self.opsets[domain], domain):
            return None
        return defs.get_schema(node.op_type, self.opsets[domain], domain)

    @staticmethod
    def _takes(schema, formal) -> bool:
        """Whether a formal parameter's type may be the low one. TensorRT takes BF16 wherever ONNX has FP16."""
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return "tensor(float16)" in allowed.get(formal.type_str, [formal.type_str])

    def weight(self, name: str) -> str:
        """The low-precision twin of a weight."""
        import numpy as np
        import onnx

        exact = onnx.numpy_helper.to_array(self.weights[name])
        if name in self.bounds:
            exact = large_constants.clamped(exact, self.bounds[name])
        values = self.narrow(exact)
        if name in self.scales and not (values.all() and np.isfinite(values.astype(np.float32)).all()):
            raise BadInput(
                f"{self.graph.path.name}: the scale {name} runs from {np.abs(exact).min():.2g} to "
                f"{np.abs(exact).max():.2g}, which {self.suffix} does not hold; quantize with that layer in exclude, "
                "or cast to='bf16'"
            )
        twin = self.names.free(f"{name}.{self.suffix}")
        self.new_weights.append(onnx.numpy_helper.from_array(values, twin))
        return twin

    def narrow(self, exact):
        """The values of a weight as its twin holds them."""
        import numpy as np

        with np.errstate(over="ignore"):
            return exact.astype(self.dtype)

    def read(self, tensor: str, low: bool) -> str:
        """The name under which a node reads a tensor in the type it wants."""
        if tensor not in self.floats or (tensor in self.is_low) == low:
            return tensor
        key = (tensor, low)
        if key not in self.made and tensor in self.weights:
            self.made[key] = self.weight(tensor)
        elif key not in self.made:
            self.made[key] = self.names.free(f"{tensor}.{self.suffix if low else 'fp32'}")
            self.change(tensor, self.made[key], low)  # type: ignore[attr-defined]
        return self.made[key]

    def cast(self, source: str, target: str, kind: int) -> None:
        """Append one Cast node."""
        import onnx

        self.nodes.append(
            onnx.helper.make_node("Cast", [source], [target], name=self.names.free(f"{target}/Cast"), to=kind)
        )

    def saved(self, path=None) -> onnx_graph.OnnxGraph:
        """Put the new nodes and weights into the model, drop what nobody reads, and save it."""
        body = self.model.graph
        written = {t for node in self.nodes for t in node.output} - self.is_low
        told = [value for value in body.value_info if value.name in written]  # what ONNX may not find out by itself
        del body.node[:], body.value_info[:]
        body.node.extend(self.nodes)
        body.value_info.extend(told)
        body.initializer.extend(self.new_weights)
        read = {t for node in body.node for t in node.input} | {o.name for o in body.output}
        used = [w for w in body.initializer if w.name in read]
        del body.initializer[:]
        body.initializer.extend(used)
        folder = onnx_graph.fresh_folder()
        return onnx_graph.save(
            self.model,
            onnx_graph.another_file(path or folder / f"{self.graph.path.stem}.{self.suffix}.onnx", self.graph),
        )


class Typed(Walk):
    """Types as strongly typed TensorRT reads them: narrow weights and tensors, Cast nodes where the type changes."""

    def change(self, tensor, target, low):
        import numpy as np
        import onnx

        if low and tensor in self.given_masks:  # −1e9 would be −inf, and a softmax of nothing but −inf is NaN
            limit, inside = large_constants.most(self.dtype) / 2, self.names.free(f"{tensor}.inside")
            ends = [self.names.free(f"{inside}/{side}") for side in ("least", "most")]
            for end, number in zip(ends, (-limit, limit)):
                self.new_weights.append(onnx.numpy_helper.from_array(np.array(number, np.float32), end))
            name = self.names.free(f"{inside}/Clip")
            self.nodes.append(onnx.helper.make_node("Clip", [tensor, *ends], [inside], name=name))
            tensor = inside
        self.cast(tensor, target, self.low if low else onnx.TensorProto.FLOAT)

    def walk(self, keep_io: bool) -> Typed:
        """Write the nodes of the typed graph."""
        import onnx

        border = {o.name for o in self.model.graph.output}
        if not keep_io:
            for value in (*self.model.graph.input, *self.model.graph.output):
                if value.name in self.floats:
                    value.type.tensor_type.elem_type = self.low
            self.is_low |= {v.name for v in self.model.graph.input if v.name in self.floats}
        if not self.wide and not any(map(self.narrows, self.model.graph.node)):
            ops = sorted({node.op_type for node in self.model.graph.node})
            why = f"no operator in it takes {self.suffix} at its opset: {', '.join(ops)}"
            if self.untyped:
                why = f"ONNX cannot tell the type of {sorted(self.untyped)[0]!r}, so it stays as it is"
            raise BadInput(f"{self.graph.path.name}: {why}")
        for node in self.model.graph.node:
            (reads, writes), new = self.narrow_places(node), onnx.NodeProto()
            new.CopyFrom(node)
            new.input[:] = [self.read(t, i in reads) if t else t for i, t in enumerate(node.input)]
            self._retype(new, bool(writes))
            self.nodes.append(new)
            for place, tensor in enumerate(node.output):
                low = place in writes
                if tensor in self.floats and tensor in border and low == keep_io:
                    # the border keeps its name and gets a Cast before it; inside, the tensor has another
                    new.output[place] = self.names.free(f"{tensor}.computed")
                    self.cast(new.output[place], tensor, onnx.TensorProto.FLOAT if keep_io else self.low)
                    self.made[(tensor, keep_io)] = new.output[place]
                    if not keep_io:
                        self.is_low.add(tensor)
                elif tensor in self.floats and low:
                    self.is_low.add(tensor)
        return self

    def _retype(self, node, low: bool) -> None:
        """A Cast to FP32 and a filled tensor carry their type in an attribute."""
        import numpy as np
        import onnx

        if low and node.op_type == "ConstantOfShape" and not node.attribute:  # left out, it fills with FP32 zeros
            zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for attribute in node.attribute if low else ():
            typed = (node.op_type, attribute.name) in (("Cast", "to"), ("DequantizeLinear", "output_dtype"))
            if typed and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = self.low
            if node.op_type == "ConstantOfShape" and attribute.name == "value":
                number = onnx.numpy_helper.to_array(attribute.t)
                if node.output[0] in self.bounds:
                    number = large_constants.clamped(number, self.bounds[node.output[0]])
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(number.astype(self.dtype)))
