"""ONNX to engine: the room where the TensorRT generations differ.

TensorRT 8.6 has weakly typed networks: builder flags allow a precision, the builder picks. From 10 on a network can
be strongly typed, and in 11 and TensorRT-RTX it always is: the types in the graph are the types in the engine. Either
way the precision is read back after the build, because an engine silently built in FP32 is this field's worst bug.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from labsupport import environment, export
from labsupport.build import builder_thread, engines, readback, timing_cache
from labsupport.build import network as network_of
from labsupport.build.builder_thread import logger
from labsupport.build.engines import Engine, load
from labsupport.errors import BadInput, BuildError
from labsupport.build.network import Profile, parse
from labsupport.build.readback import read_precisions


PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "as-is")
HARDWARE = ("none", "ampere_plus", "same_compute_capability")

# Where a TensorRT-RTX engine is built for a GPU that is not there: the generations its builder knows by name.
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))

# Layers that compute in floating point; the others move or describe data and take no precision.
COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "ACTIVATION", "POOLING", "ELEMENTWISE", "UNARY", "SCALE", "REDUCE",
             "SOFTMAX", "NORMALIZATION", "FULLY_CONNECTED", "LRN", "RESIZE", "PARAMETRIC_RELU")

timing_cache_path = timing_cache.path


def engine(
    graph,
    *,
    precision: str = "fp32",
    strict: bool = False,
    profiles: Mapping[str, Profile] | list[Mapping[str, Profile]] | None = None,
    batch: int | tuple[int, int, int] | None = None,
    workspace_mib: int = 1024,
    optimization_level: int = 3,
    reuse_timings: bool = True,
    tactic_sources: list[str] | None = None,
    io_formats: Mapping[str, tuple[str, str]] | None = None,
    version_compatible: bool = False,
    hardware_compatible: str = "none",
    compute_capability: tuple[int, int] | None = None,
    configure: Callable | None = None,
    name: str | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> Engine:
    """Build an engine from an ONNX graph (or find the one already built) and read its precision back.

    ``graph`` is an export.OnnxGraph, a path, or a function ``define(trt, network)`` that fills the network by the
    layer API (then ``name`` is required). ``precision``: "fp32" (TF32 off), "tf32", "fp16", "bf16", "int8" (the graph
    has Q/DQ, or ``configure`` sets a calibrator on 8.6) or "as-is" (types as in the graph; 8.6 may also use FP16, and
    INT8 where there are scales). ``strict`` makes the 8.6
    builder obey it in every computing layer instead of choosing by speed; later generations always obey the graph.
    ``profiles`` maps input → Profile, or is a list of such mappings; ``batch`` is the short form: one number or (min,
    opt, max) for the free first axis. ``io_formats`` maps a tensor to (DataType name, TensorFormat name).
    ``optimization_level`` 0–5. ``reuse_timings`` reads and extends the timing cache shared by all processes.
    ``configure(trt, builder, network, config)`` runs last, for what has no argument here; such an engine is found again
    by its ``name`` and the function's code, so give another name when its data change.
    Raises BadInput, BuildError, PrecisionMismatch, NotAvailable.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html
    """
    _check_options(precision, optimization_level, workspace_mib, hardware_compatible)
    _check_shapes_and_names(batch, profiles, compute_capability, configure, name)
    trt = environment.tensorrt()
    environment.require("engine building")
    if callable(graph) and not name:
        raise BadInput("a network defined by the layer API needs name=..., by which its engine is kept")
    if not callable(graph) and not isinstance(graph, export.OnnxGraph):
        graph = export.load(graph)
    options = {
        "strict": strict, "profiles": _plain_profiles(profiles), "batch": batch, "workspace_mib": workspace_mib, "optimization_level": optimization_level,
        "tactic_sources": tactic_sources, "io_formats": {k: list(v) for k, v in (io_formats or {}).items()},
        "version_compatible": version_compatible, "hardware_compatible": hardware_compatible,
        "configure": _code(configure), "compute_capability": compute_capability,
    }
    target = engines.built_for(compute_capability)
    target.update(version_compatible=version_compatible, hardware_compatible=hardware_compatible != "none")
    source = _code(graph) if callable(graph) else graph.sha256  # once: it reads the whole file
    path = _engine_path(source, name or graph.path.stem, precision, options, target)
    if not rebuild and path.exists() and not callable(graph):  # a function's weights are not in its code
        with contextlib.suppress(engines.EngineError):  # a damaged or foreign one is built again, never used
            return engines.load(path)
    job = _Job(trt, builder_thread.logger(), precision, options, profiles, batch, configure, reuse_timings, compute_capability)
    built = job.build(graph, path.stem, progress)
    facts = {
        "name": name or path.stem.rsplit("-", 1)[0], "precision": precision, "built_for": target, "options": options,
        "built_from": {"onnx": graph.path.name, "sha256": source} if not callable(graph) else {"layer API": name},
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    saved = engines.save(built["plan"], path, {**facts, **{k: built[k] for k in ("build_s", "precisions", "evidence", "layers")}})
    log = tuple(job.log.messages)
    engines.write_atomically(path.with_suffix(".log"), "\n".join(f"{level:8} {text}" for level, text in log).encode())
    return replace(saved, log=log)


# --- one build, from network to bytes -------------------------------------------------------------------------


@dataclass
class _Job:
    trt: object
    log: object
    precision: str
    options: dict
    profiles: object
    batch: object
    configure: Callable | None
    reuse_timings: bool
    compute_capability: tuple[int, int] | None

    def build(self, graph, stem: str, progress: bool) -> dict:
        trt, generation = self.trt, environment.generation()
        builder, network = self._network(graph, stem)
        config = builder.create_builder_config()
        self._configure(builder, network, config)
        typed = network_of.layer_types(network)
        cache_path = timing_cache.path() if self.reuse_timings and generation != "rtx" else None
        before = timing_cache.read(trt, config, cache_path, self.log)
        start = time.perf_counter()
        plan = builder_thread.build(trt, builder, network, config, stem, progress)
        build_s = time.perf_counter() - start
        if plan is None:
            raise BuildError(self._complaint(stem))
        data = bytes(plan)
        if cache_path:
            timing_cache.merge(config, cache_path, before)
        layers = readback.inspect(trt, data, self.log) if environment.has("engine execution") else []
        read = readback.read_precisions(layers) if layers else typed
        evidence = "engine inspector" if layers else "typed network"
        readback.demand(self.precision, read, evidence, stem, generation, strict=self.options["strict"])
        return {"plan": data, "build_s": round(build_s, 3), "precisions": dict(read), "evidence": evidence, "layers": layers}

    def _network(self, graph, stem):
        trt, generation = self.trt, environment.generation()
        if callable(graph):
            builder = trt.Builder(self.log)
            network = builder.create_network(network_of.flags(trt))
            graph(trt, network)
            if network.num_outputs == 0:
                raise BuildError(f"{stem}: the function marked no output; call network.mark_output(tensor)")
            return builder, network
        if self.precision == "int8" and not graph.ops.get("QuantizeLinear") and self.configure is None:
            raise BadInput(
                f"{graph.path.name} has no QuantizeLinear nodes, so there are no scales to build INT8 from; quantize it first (lab 06)"
            )
        if generation != "8.6" and self.precision in ("fp16", "bf16") and export.float_type(graph) == "fp32":
            if self.precision == "bf16":
                raise BadInput(f"{graph.path.name} is an FP32 graph; strongly typed TensorRT takes BF16 from the graph: cast it first (lab 05)")
            graph = export.to_half(graph)
        builder, network, _ = network_of.parse(graph, log=self.log)
        return builder, network

    def _configure(self, builder, network, config):
        trt, options, generation = self.trt, self.options, environment.generation()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mib"] << 20)
        config.builder_optimization_level = options["optimization_level"]
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it nobody can read the precisions back
        # TF32 is on by default and would make "fp32" mean 10 bits of mantissa.
        (config.set_flag if self.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        if generation == "8.6":
            self._weak_flags(config)
        if options["version_compatible"]:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options["hardware_compatible"] != "none":
            config.hardware_compatibility_level = _hardware_level(trt, options["hardware_compatible"])
        if generation == "rtx":
            here = environment.machine().compute_capability
            # A GPU that RTX does not serve (a data-center part) is no target; without one, a common desktop part is.
            capability = self.compute_capability or (here if here in RTX_CAPABILITIES else (8, 9))
            config.num_compute_capabilities = 1
            config.set_compute_capability(_capability(trt, capability), 0)
        if options["tactic_sources"] is not None:
            config.set_tactic_sources(sum(1 << int(network_of.member(trt.TacticSource, s)) for s in options["tactic_sources"]))
        network_of.set_io_formats(trt, network, options["io_formats"])
        for mapping in network_of.profile_groups(network, self.profiles, self.batch):
            network_of.add_profile(builder, config, network, mapping)
        if options["strict"] and generation == "8.6":
            self._obey(network, config)
        if self.configure:
            self.configure(trt, builder, network, config)
        if generation == "8.6" and self.precision == "as-is" and self._has_scales(network, config):
            config.set_flag(trt.BuilderFlag.INT8)

    @staticmethod
    def _has_scales(network, config) -> bool:
        """Whether anything says how to compute in INT8; the 8.6 builder that may use it and finds no scales stops."""
        quantized = any(network.get_layer(i).type.name in ("QUANTIZE", "DEQUANTIZE") for i in range(network.num_layers))
        return quantized or config.int8_calibrator is not None

    def _weak_flags(self, config):
        trt = self.trt
        if self.precision in ("fp16", "int8", "as-is"):
            config.set_flag(trt.BuilderFlag.FP16)
        if self.precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if self.precision == "bf16":
            raise BadInput("TensorRT 8.6 has no BF16; choose fp16, or use TensorRT 10 or newer")

    def _obey(self, network, config):
        """Pin every computing layer to the precision asked for; the builder then has no faster FP32 kernel to fall back on."""
        trt = self.trt
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        wanted = {"fp16": trt.DataType.HALF, "fp32": trt.DataType.FLOAT, "tf32": trt.DataType.FLOAT}.get(self.precision)
        for i in range(network.num_layers if wanted is not None else 0):
            layer = network.get_layer(i)
            if layer.type.name in COMPUTING:
                layer.precision = wanted

    def _complaint(self, stem: str) -> str:
        # The first error is the cause; what follows reports that there is no engine. A refused timing cache costs time only.
        errors = [text for text in self.log.errors() if not re.search(r"myelinCache|timing cache", text)]
        last = errors[0] if errors else "it gave no reason"
        hint = "see the whole log with verbosity in build.logger('VERBOSE')"
        if re.search(r"out of memory|insufficient memory|OutOfMemory", last, re.IGNORECASE):
            hint = "raise workspace_mib if the requested size is above it; else free GPU memory (restart other kernels) or lower the batch in the profile"
        elif re.search(r"Could not find any implementation|workspace", last, re.IGNORECASE):
            hint = "raise workspace_mib, or raise optimization_level so that more kernels are tried"
        elif re.search(r"lean", last, re.IGNORECASE):
            hint = "a version-compatible engine carries the lean runtime: install libnvinfer_lean, or set EXCLUDE_LEAN_RUNTIME in configure="
        elif re.search(r"profile", last, re.IGNORECASE):
            hint = "give every free axis a range: profiles={name: Profile(min, opt, max)}"
        return f"{stem}: the builder stopped: {last.strip()}; {hint}"


def _check_options(precision, optimization_level, workspace_mib, hardware_compatible):
    if precision not in PRECISIONS:
        raise BadInput(f"precision={precision!r} is not a precision; choose one of {list(PRECISIONS)}")
    if type(optimization_level) is not int or optimization_level not in range(6):
        raise BadInput(f"optimization_level={optimization_level!r}; TensorRT has levels 0 (fast build) to 5 (fast engine)")
    if not isinstance(workspace_mib, int) or workspace_mib < 1:
        raise BadInput(f"workspace_mib={workspace_mib!r}; give a whole number of MiB, 1 or more")
    if hardware_compatible not in HARDWARE:
        raise BadInput(f"hardware_compatible={hardware_compatible!r} is not a level; choose one of {list(HARDWARE)}")


def _capability(trt, capability: tuple[int, int]):
    if tuple(capability) not in RTX_CAPABILITIES:
        known = ", ".join(f"({a}, {b})" for a, b in RTX_CAPABILITIES)
        raise BadInput(f"compute_capability={capability} is not one TensorRT-RTX builds for; choose one of {known}")
    return getattr(trt.ComputeCapability, f"SM{capability[0]}{capability[1]}")


def _check_shapes_and_names(batch, profiles, compute_capability, configure, name):
    sizes = batch if isinstance(batch, tuple) else (batch,) * 3
    if batch is not None and not (len(sizes) == 3 and all(type(n) is int and n >= 1 for n in sizes)):
        raise BadInput(f"batch={batch!r}; give one whole number, 1 or more, or three of them: (smallest, usual, largest)")
    groups = network_of.listed(profiles)
    if not all(isinstance(group, Mapping) and all(isinstance(p, Profile) for p in group.values()) for group in groups):
        raise BadInput(f"profiles={profiles!r}; give {{input name: build.Profile(min, opt, max)}}, or a list of such mappings")
    if compute_capability is not None and environment.generation() != "rtx":
        raise BadInput(f"compute_capability={compute_capability!r}: only TensorRT-RTX builds for another GPU than the one here; leave it out")
    if compute_capability is not None and not (isinstance(compute_capability, (tuple, list)) and len(compute_capability) == 2):
        raise BadInput(f"compute_capability={compute_capability!r}; give a pair such as (8, 9)")
    if configure is not None and not callable(configure):
        raise BadInput(f"configure is a {type(configure).__name__}; give a function configure(trt, builder, network, config)")
    if name is not None and not re.fullmatch(r"[\w][\w.\- ]*", str(name)):
        raise BadInput(f"name={name!r}; an engine's name is part of a file's name: letters, digits, '.', '_' and '-'")


def _hardware_level(trt, name: str):
    level = getattr(trt.HardwareCompatibilityLevel, name.upper(), None)
    if level is None:
        raise BadInput(f"TensorRT {environment.machine().tensorrt} has no hardware_compatible={name!r}; choose 'ampere_plus', or use TensorRT 10 or newer")
    return level


def _plain_profiles(profiles):
    return [{name: [list(p.min), list(p.opt), list(p.max)] for name, p in group.items()} for group in network_of.listed(profiles)]


def _code(function: Callable | None) -> str | None:
    """What a function does, as its compiled code: the source of a notebook cell cannot always be found again."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function) if function else None
    return hashlib.sha256(repr(_plain_code(code)).encode()).hexdigest()


def _plain_code(code) -> tuple:
    # a function or class inside is itself a code object, whose repr holds an address that differs in every process
    constants = tuple(_plain_code(c) if isinstance(c, type(code)) else c for c in code.co_consts)
    return code.co_code, code.co_names, constants


def _engine_path(source, stem, precision, options, target) -> Path:
    key = json.dumps([source, precision, options, target], sort_keys=True, default=str)
    return environment.cache_dir() / "engines" / f"{stem}.{precision}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.plan"
