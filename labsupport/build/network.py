"""A network on its way to the builder: parsed or defined by hand, with its profiles, border formats and types."""

from __future__ import annotations

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
    generation = environment.generation()
    if generation == "8.6":
        return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if generation == "10":
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0  # 11 and RTX: strongly typed, nothing to ask for


def _parser_complaint(parser, graph) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    text = errors[0].desc() if errors else "no reason given"
    node = next((n for e in errors[:1] for i, n in enumerate(graph.model().graph.node) if i == e.node()), None)
    where = f"node {node.name or '(unnamed)'} ({node.op_type})" if node is not None else "the graph"
    known = (
        f"TensorRT {environment.machine().tensorrt} reads opset {export.NEWEST_OPSET[environment.generation()]} "
        "and below"
    )
    if node is not None and not parser.supports_operator(node.op_type):
        return (
            f"{graph.path.name}: TensorRT has no operator {node.op_type}, wanted by {where}; rewrite it into "
            "known operators or write a plugin (lab 10)"
        )
    return (
        f"{graph.path.name}: the parser stopped at {where}: {text.strip()}. The file is opset {graph.opset}; {known}: "
        f"export.to_onnx(..., target={environment.generation()!r})"
    )


def member(enum, name: str):
    """A member of a TensorRT enumeration by its name; BadInput lists those that this release has."""
    found = getattr(enum, "__members__", {}).get(name)
    if found is None:
        raise BadInput(
            f"{name!r} is no {enum.__name__} of TensorRT {environment.machine().tensorrt}; choose from "
            f"{sorted(enum.__members__)}"
        )
    return found


def set_io_formats(trt, network, io_formats: Mapping):
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
    """Optimization profiles as a list: one mapping is a list of one, nothing an empty list."""
    return list(profiles) if isinstance(profiles, (list, tuple)) else [profiles] if profiles else []


def profile_groups(network, profiles, batch) -> list:
    free = {
        t.name: tuple(t.shape)
        for t in (network.get_input(i) for i in range(network.num_inputs))
        if -1 in tuple(t.shape)
    }
    if profiles:
        groups = listed(profiles)
        for group in groups:
            unknown, missing = (
                set(group) - {network.get_input(i).name for i in range(network.num_inputs)},
                set(free) - set(group),
            )
            if unknown or missing:
                raise BadInput(f"profiles names {sorted(group)}, but the inputs with free axes are {sorted(free)}")
        return groups
    if not free:
        fixed = next((tuple(network.get_input(i).shape)[:1] for i in range(network.num_inputs)), ())
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
    profile = builder.create_optimization_profile()
    for name, p in mapping.items():
        shape = next(
            tuple(network.get_input(i).shape) for i in range(network.num_inputs) if network.get_input(i).name == name
        )
        ordered = all(a <= b <= c for a, b, c in zip(p.min, p.opt, p.max))
        fits = all(len(s) == len(shape) and all(w in (-1, d) for w, d in zip(shape, s)) for s in (p.min, p.opt, p.max))
        if not (ordered and fits):
            raise BadInput(
                f"profile of {name!r} is {p}; the network has {shape} (-1 is free), and min ≤ opt ≤ max must hold on "
                "every axis"
            )
        profile.set_shape(name, p.min, p.opt, p.max)
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
