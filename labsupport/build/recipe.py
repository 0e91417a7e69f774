"""How an engine is built: everything that decides what comes out, checked when it is written down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from labsupport import environment
from labsupport.build import network as network_of
from labsupport.build.network import Profile
from labsupport.errors import BadInput, at_least, one_of

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "as-is")
HARDWARE = ("none", "ampere_plus", "same_compute_capability")

# Where a TensorRT-RTX engine is built for a GPU that is not there: the generations its builder knows by name.
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class Recipe:
    """All that decides what the builder makes from a graph; two equal recipes and graphs share one engine.

    ``precision``: "fp32" (TF32 off), "tf32", "fp16", "bf16", "int8" (the graph has Q/DQ, or ``configure`` sets a
    calibrator on 8.6) or "as-is" (types as in the graph; 8.6 may also use FP16, and INT8 where there are scales).
    ``strict`` makes the 8.6 builder obey it in every computing layer; later generations always obey the graph.
    ``profiles`` maps input → Profile, or is a list of such mappings; ``batch`` is the short form: one number or (min,
    opt, max) for the free first axis. ``io_formats`` maps a tensor to (DataType name, TensorFormat name).
    ``optimization_level`` 0–5. ``configure(trt, builder, network, config)`` runs last, for what has no field here.
    Raises BadInput.
    """

    precision: str = "fp32"
    strict: bool = False
    profiles: Mapping[str, Profile] | list[Mapping[str, Profile]] | None = None
    batch: int | tuple[int, int, int] | None = None
    workspace_mib: int = 1024
    optimization_level: int = 3
    tactic_sources: list[str] | None = None
    io_formats: Mapping[str, tuple[str, str]] | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"
    compute_capability: tuple[int, int] | None = None
    configure: Callable | None = None

    def __post_init__(self) -> None:
        _check_options(self.precision, self.optimization_level, self.workspace_mib, self.hardware_compatible)
        _check_shapes(self.batch, self.profiles, self.compute_capability, self.configure)

    def plain(self) -> dict:
        """The fields but ``precision`` as JSON can hold them; what an engine's key and its sidecar are made of."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "precision"}
        return {
            **kept,
            "profiles": _plain_profiles(self.profiles),
            "io_formats": {name: list(pair) for name, pair in (self.io_formats or {}).items()},
            "configure": code_of(self.configure),
        }


def _check_options(precision, optimization_level, workspace_mib, hardware_compatible):
    one_of(PRECISIONS, precision=precision)
    if type(optimization_level) is not int or optimization_level not in range(6):
        raise BadInput(
            f"optimization_level={optimization_level!r}; TensorRT has levels 0 (fast build) to 5 (fast engine)"
        )
    at_least(workspace_mib=workspace_mib)
    one_of(HARDWARE, hardware_compatible=hardware_compatible)


def _check_shapes(batch, profiles, compute_capability, configure):
    sizes = batch if isinstance(batch, tuple) else (batch,) * 3
    if batch is not None and not (len(sizes) == 3 and all(type(n) is int and n >= 1 for n in sizes)):
        raise BadInput(
            f"batch={batch!r}; give one whole number, 1 or more, or three of them: (smallest, usual, largest)"
        )
    groups = network_of.listed(profiles)
    if not all(isinstance(group, Mapping) and all(isinstance(p, Profile) for p in group.values()) for group in groups):
        raise BadInput(
            f"profiles={profiles!r}; give {{input name: build.Profile(min, opt, max)}}, or a list of such mappings"
        )
    if compute_capability is not None and environment.generation() != "rtx":
        raise BadInput(
            f"compute_capability={compute_capability!r}: only TensorRT-RTX builds for another GPU than the one here; "
            "leave it out"
        )
    if compute_capability is not None and not (
        isinstance(compute_capability, (tuple, list)) and len(compute_capability) == 2
    ):
        raise BadInput(f"compute_capability={compute_capability!r}; give a pair such as (8, 9)")
    if configure is not None and not callable(configure):
        raise BadInput(
            f"configure is a {type(configure).__name__}; give a function configure(trt, builder, network, config)"
        )


def _plain_profiles(profiles):
    return [
        {name: [list(p.min), list(p.opt), list(p.max)] for name, p in group.items()}
        for group in network_of.listed(profiles)
    ]


def code_of(function: Callable | None) -> str | None:
    """What a function does, as its compiled code: the source of a notebook cell cannot always be found again."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function) if function else None
    return hashlib.sha256(repr(_plain_code(code)).encode()).hexdigest()


def _plain_code(code) -> tuple:
    # a function or class inside is itself a code object, whose repr holds an address that differs in every process
    constants = tuple(_plain_code(c) if isinstance(c, type(code)) else c for c in code.co_consts)
    return code.co_code, code.co_names, constants
