"""A network on its way to the builder: parsed or defined by hand, with its profiles, border formats and types."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from labsupport import environment, export
from labsupport.build.builder_thread import logger
from labsupport.errors import BadInput, BuildError


@dataclass(frozen=True)
class Profile:
    """The shapes one input may take: smallest, the one to tune for, largest (tuples of whole numbers)."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def parse(graph, *, log=None):
    """Parse an ONNX graph into a network definition; returns (builder, network, log). Raises BuildError.

    The network is strongly typed wherever the generation can (10, 11, RTX).
    """
    trt = environment.tensorrt()
    log = log or logger()
    builder = trt.Builder(log)
    network = builder.create_network(flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.path.read_bytes(), str(graph.path)):
        raise BuildError(_parser_complaint(parser, graph))
    if network.num_layers == 0:
        raise BuildError(f"{graph.path.name} gave a network with no layers; export it again")
    return builder, network, log


def flags(trt) -> int:
    """The flags with which this generation makes a network whose types are the graph's own."""
    generation = environment.generation()
    if generation == "8.6":
        return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if generation == "10":
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0  # 11 and RTX: strongly typed, nothing to ask for


def _parser_complaint(parser, graph) -> str:
    """The parser's own reason, the node that it stopped at, and advice where there is any."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [e.desc().strip() for e in errors]
    text = next((t for t in said if t and not t.startswith("Invalid Node")), said[0] if said else "no reason given")
    nodes = graph.model().graph.node
    node = next((nodes[e.node()] for e in errors[:1] if 0 <= e.node() < len(nodes)), None)
    where = f"node {node.name or '(unnamed)'} ({node.op_type})" if node is not None else _odd_input(graph)
    if node is not None and not parser.supports_operator(node.op_type):
        return (
            f"{graph.path.name}: TensorRT has no operator {node.op_type}, wanted by {where}; rewrite it into known "
            "operators or write a plugin (lab 10)"
        )
    newest, version = export.NEWEST_OPSET[environment.generation()], environment.machine().tensorrt
    advice = "rewrite that place of the network, or export it another way"
    if graph.opset > newest:
        target = environment.generation()
        advice = (
            f"the file is opset {graph.opset}, and TensorRT {version} reads opset {newest} and below: "
            f"export.to_onnx(..., target={target!r})"
        )
    return f"{graph.path.name}: the parser stopped at {where}: {text.rstrip('.')}; {advice}"


def _odd_input(graph) -> str:
    """The input or output that TensorRT has no tensor for, where there is one: text, a sequence, more than 8 axes."""
    types = ("string", "sequence", "map", "optional", "double", "complex64", "complex128")
    for name, (shape, dtype) in (*graph.inputs.items(), *graph.outputs.items()):
        if dtype in types or len(shape) > 8:
            return f"{name!r} ({dtype}, {len(shape)} axes; TensorRT has tensors of numbers, of at most 8 axes)"
    return "the graph"


def member(enum, name: str):
    """A member of a TensorRT enumeration by its name; BadInput lists those that this release has."""
    value = getattr(enum, "__members__", {}).get(name)
    if value is None:
        raise BadInput(
            f"{name!r} is no {enum.__name__} of TensorRT {environment.machine().tensorrt}; choose from "
            f"{sorted(enum.__members__)}"
        )
    return value


def set_io_formats(trt, network, io_formats: Mapping):
    """Set type (on 8.6) and layout of named inputs and outputs. Raises BadInput for one that is not there."""
    tensors = {t.name: t for t in _ios(network)}
    for name, (dtype, layout) in (io_formats or {}).items():
        if name not in tensors:
            raise BadInput(f"io_formats names {name!r}, but the network has {list(tensors)}")
        if environment.generation() == "8.6":  # elsewhere the type is the graph's own
            tensors[name].dtype = member(trt.DataType, dtype)
        tensors[name].allowed_formats = 1 << int(member(trt.TensorFormat, layout))


def _ios(network):
    return [network.get_input(i) for i in range(network.num_inputs)] + [
        network.get_output(i) for i in range(network.num_outputs)
    ]


def listed(profiles) -> list:
    """Optimization profiles as a list: one mapping is a list of one, nothing an empty list. Raises BadInput."""
    groups = list(profiles) if isinstance(profiles, (list, tuple)) else [profiles] if profiles else []
    for group in groups:
        for name, profile in group.items() if isinstance(group, Mapping) else ():
            if isinstance(profile, Profile):
                _check_numbers(name, profile)
    return groups


def _check_numbers(name: str, profile: Profile) -> None:
    """Refuse what TensorRT's bindings do not take, or take wrongly: negative, fractional and huge numbers, and text."""
    for field in ("min", "opt", "max"):
        shape = getattr(profile, field)
        whole = isinstance(shape, (tuple, list)) and all(
            isinstance(n, numbers.Integral) and type(n) is not bool for n in shape
        )
        if not whole or not all(-(2**31) <= n < 2**31 for n in shape):
            raise BadInput(
                f"profile of {name!r}: {field}={shape!r}; wanted is a tuple of whole numbers, one an axis, such as "
                "(1, 3, 224, 224)"
            )


def profile_groups(network, profiles, batch) -> list:
    """The optimization profiles to add: those given, or one of the free batch. Raises BadInput."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = {t.name: tuple(t.shape) for t in inputs if -1 in tuple(t.shape)}
    shapes = sorted(t.name for t in inputs if t.is_shape_tensor)  # their values are shapes, and need a range, too
    if profiles:
        groups = listed(profiles)
        for group in groups:
            unknown, missing = set(group) - {t.name for t in inputs}, {*free, *shapes} - set(group)
            if unknown or missing:
                also = f", and those whose values are shapes {shapes}" if shapes else ""
                raise BadInput(
                    f"profiles names {sorted(group)}, but the inputs with free axes are {sorted(free)}{also}"
                )
        return groups
    if shapes:
        raise BadInput(
            f"the values of {shapes} are a shape; say their ranges: profiles={{{shapes[0]!r}: Profile(min, opt, max)}}"
        )
    if not free:
        fixed = next((tuple(t.shape)[:1] for t in inputs), ())
        if batch is not None and fixed and batch not in (fixed[0], (fixed[0],) * 3):
            raise BadInput(
                f"batch={batch!r}, but the network's batch is fixed at {fixed[0]}; export it with dynamic=True"
            )
        return []
    if any(-1 in shape[1:] for shape in free.values()):
        raise BadInput(
            f"{free} has free axes beside the first; say their ranges: profiles={{name: Profile(min, opt, max)}}"
        )
    low, best, high = (batch, batch, batch) if isinstance(batch, int) else batch or (1, 1, 1)
    return [{name: Profile((low, *shape[1:]), (best, *shape[1:]), (high, *shape[1:])) for name, shape in free.items()}]


def add_profile(builder, config, network, mapping):
    """Add one optimization profile: ranges of shapes, and of the values of inputs that are shapes themselves."""
    profile = builder.create_optimization_profile()
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    for name, p in mapping.items():
        values = inputs[name].is_shape_tensor
        shape = tuple(inputs[name].shape)
        wanted = (-1,) * (math.prod(shape) if values else 0) or shape
        ordered = all(a <= b <= c for a, b, c in zip(p.min, p.opt, p.max))
        fits = all(
            len(s) == len(wanted) and all((values or d >= 0) if w == -1 else w == d for w, d in zip(wanted, s))
            for s in (p.min, p.opt, p.max)
        )
        if not (ordered and fits):
            what = f"{wanted and len(wanted)} value(s)" if values else f"{shape} (-1 is free)"
            raise BadInput(
                f"profile of {name!r} is {p}; the network has {what}, and min ≤ opt ≤ max must hold on every axis"
            )
        if values:
            profile.set_shape_input(name, list(p.min), list(p.opt), list(p.max))
        else:
            profile.set_shape(name, tuple(p.min), tuple(p.opt), tuple(p.max))
    if config.add_optimization_profile(profile) < 0:
        raise BadInput(f"the builder refused the profile {mapping}; every input with a free axis needs min ≤ opt ≤ max")


def layer_types(network) -> Counter:
    """Types of a strongly typed network's layers; on 8.6 they are only wishes, and the engine is asked instead."""
    counts: Counter = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if (
            layer.type.name in ("CONSTANT", "SHUFFLE", "SHAPE", "CAST", "IDENTITY", "GATHER", "CONCATENATION")
            or not layer.num_outputs
        ):
            continue
        counts[short_type(layer.get_output(0).dtype.name)] += 1
    return counts


def short_type(text: str) -> str:
    """A type as this package writes it, such as "fp16", from any of the names that TensorRT has for it."""
    text = text.lower()
    table = (
        ("bf16", "bf16"),
        ("bfloat", "bf16"),
        ("fp16", "fp16"),
        ("half", "fp16"),
        ("int8", "int8"),
        ("fp8", "fp8"),
        ("fp4", "fp4"),
        ("int4", "int4"),
        ("fp32", "fp32"),
        ("float", "fp32"),
        ("int32", "int32"),
        ("int64", "int64"),
        ("bool", "bool"),
    )
    return next((short for mark, short in table if mark in text), text)
