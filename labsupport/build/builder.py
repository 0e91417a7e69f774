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
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labsupport import environment, export
from labsupport.build import builder_thread, engines, readback, timing_cache
from labsupport.build import network as network_of
from labsupport.build.engines import Engine
from labsupport.build.recipe import RTX_CAPABILITIES, Recipe, code_of
from labsupport.errors import BadInput, BuildError

# Layers that compute in floating point; the others move or describe data and take no precision.
COMPUTING = (
    "CONVOLUTION",
    "DECONVOLUTION",
    "MATRIX_MULTIPLY",
    "ACTIVATION",
    "POOLING",
    "ELEMENTWISE",
    "UNARY",
    "SCALE",
    "REDUCE",
    "SOFTMAX",
    "NORMALIZATION",
    "FULLY_CONNECTED",
    "LRN",
    "RESIZE",
    "PARAMETRIC_RELU",
)

# what to do about an error that the builder logged, by the first pattern that it fits
REMEDIES = {
    "out of memory|insufficient memory|OutOfMemory": "raise workspace_mib if the requested size is above it; else free "
    "GPU memory (restart other kernels) or lower the batch in the profile",
    "Could not find any implementation|workspace": "raise workspace_mib, or raise optimization_level so that more "
    "kernels are tried",
    "lean": "a version-compatible engine carries the lean runtime: install libnvinfer_lean, or set "
    "EXCLUDE_LEAN_RUNTIME in configure=",
    "profile": "give every free axis a range: profiles={name: Profile(min, opt, max)}",
}

timing_cache_path = timing_cache.path


def engine(
    graph,
    recipe: Recipe | None = None,
    *,
    name: str | None = None,
    rebuild: bool = False,
    progress: bool = True,
    reuse_timings: bool = True,
    **options,
) -> Engine:
    """Build an engine from an ONNX graph (or find the one already built) and read its precision back.

    ``graph`` is an export.OnnxGraph, a path, or a function ``define(trt, network)`` that fills the network by the
    layer API (then ``name`` is required). ``recipe`` says how to build it; its fields can also be written as arguments,
    ``engine(graph, precision="fp16", batch=8)``. ``reuse_timings`` reads and extends the timing cache shared by all
    processes. An engine made with ``configure`` is found again by its ``name`` and the function's code, so give another
    name when its data change. Raises BadInput, BuildError, PrecisionMismatch, NotAvailable.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html
    """
    recipe = _recipe(recipe, options)
    _check_name(name)
    trt = environment.tensorrt()
    environment.require("engine building")
    if callable(graph) and not name:
        raise BadInput("a network defined by the layer API needs name=..., by which its engine is kept")
    if not callable(graph) and not isinstance(graph, export.OnnxGraph):
        graph = export.load(graph)
    target = engines.built_for(recipe.compute_capability)
    target.update(
        version_compatible=recipe.version_compatible, hardware_compatible=recipe.hardware_compatible != "none"
    )
    source = code_of(graph) if callable(graph) else graph.sha256  # once: it reads the whole file
    path = _engine_path(source, name or graph.path.stem, recipe, target)
    again = rebuild or callable(graph)  # a function's weights are not in its code
    if not again and (kept := _kept(path)):
        return kept
    with engines.turn(path):
        if not again and (kept := _kept(path)):  # made while this one waited
            return kept
        return _built(
            _Job(trt, builder_thread.logger(), recipe, reuse_timings), graph, path, name, source, target, progress
        )


def _kept(path: Path) -> Engine | None:
    """The engine built before; a damaged or foreign one is built again, never used."""
    with contextlib.suppress(engines.EngineError):
        return engines.load(path) if path.exists() else None
    return None


def _built(job: _Job, graph, path: Path, name: str | None, source, target: dict, progress: bool) -> Engine:
    recipe = job.recipe
    built = job.build(graph, path.stem, progress)
    facts = {
        "name": name or path.stem.rsplit("-", 1)[0],
        "precision": recipe.precision,
        "built_for": target,
        "options": recipe.plain(),
        "built_from": {"onnx": graph.path.name, "sha256": source} if not callable(graph) else {"layer API": name},
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{key: built[key] for key in ("build_s", "precisions", "evidence", "layers")},
    }
    saved = engines.save(built["plan"], path, facts)
    log = tuple(job.log.messages)
    engines.write_atomically(path.with_suffix(".log"), "\n".join(f"{level:8} {text}" for level, text in log).encode())
    return replace(saved, log=log)


def _recipe(recipe: Recipe | None, options: dict) -> Recipe:
    """The recipe given, else one from the options."""
    if recipe is None or isinstance(recipe, Recipe):
        unknown = [option for option in options if option not in Recipe.__dataclass_fields__]
        if unknown:
            choices = ", ".join([*Recipe.__dataclass_fields__, "name", "rebuild", "progress", "reuse_timings"])
            raise BadInput(f"{unknown[0]!r} is no option of a build; choose from: {choices}")
        return replace(recipe, **options) if recipe is not None else Recipe(**options)
    raise BadInput(f'recipe is a {type(recipe).__name__}; give build.Recipe(...) or options such as precision="fp16"')


def _check_name(name) -> None:
    if name is not None and not re.fullmatch(r"\w[\w.\- ]{0,99}", str(name)):
        raise BadInput(
            f"name={name!r:.120}; an engine's name is part of a file's name: letters, digits, '.', '_' and '-', "
            "100 at most"
        )


# --- one build, from network to bytes -------------------------------------------------------------------------


@dataclass
class _Job:
    trt: Any
    log: Any
    recipe: Recipe
    reuse_timings: bool

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
        readback.demand(self.recipe.precision, read, evidence, stem, generation, strict=self.recipe.strict)
        return {
            "plan": data,
            "build_s": round(build_s, 3),
            "precisions": dict(read),
            "evidence": evidence,
            "layers": layers,
        }

    def _network(self, graph, stem):
        trt, generation = self.trt, environment.generation()
        if callable(graph):
            builder = trt.Builder(self.log)
            network = builder.create_network(network_of.flags(trt))
            graph(trt, network)
            if network.num_outputs == 0:
                raise BuildError(f"{stem}: the function marked no output; call network.mark_output(tensor)")
            return builder, network
        if self.recipe.precision == "int8" and not graph.ops.get("QuantizeLinear") and self.recipe.configure is None:
            raise BadInput(
                f"{graph.path.name} has no QuantizeLinear nodes, so there are no scales to build INT8 from; quantize "
                "it first (lab 06)"
            )
        if generation != "8.6" and self.recipe.precision in ("fp16", "bf16") and export.float_type(graph) == "fp32":
            if self.recipe.precision == "bf16":
                raise BadInput(
                    f"{graph.path.name} is an FP32 graph; strongly typed TensorRT takes BF16 from the graph: cast it "
                    "first (lab 05)"
                )
            graph = export.cast(graph)
        builder, network, _ = network_of.parse(graph, log=self.log)
        return builder, network

    def _configure(self, builder, network, config):
        trt, recipe, generation = self.trt, self.recipe, environment.generation()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
        config.builder_optimization_level = recipe.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it nobody can read the precisions back
        # TF32 is on by default and would make "fp32" mean 10 bits of mantissa.
        (config.set_flag if self.recipe.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        if generation == "8.6":
            self._weak_flags(config)
        if recipe.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if recipe.hardware_compatible != "none":
            config.hardware_compatibility_level = _hardware_level(trt, recipe.hardware_compatible)
        if generation == "rtx":
            here = environment.machine().compute_capability
            # A GPU that RTX does not serve (a data-center part) is no target; without one, a common desktop part is.
            capability = self.recipe.compute_capability or (here if here in RTX_CAPABILITIES else (8, 9))
            config.num_compute_capabilities = 1
            config.set_compute_capability(_capability(trt, capability), 0)
        if recipe.tactic_sources is not None:
            config.set_tactic_sources(
                sum(1 << int(network_of.member(trt.TacticSource, s)) for s in recipe.tactic_sources)
            )
        network_of.set_io_formats(trt, network, recipe.io_formats)
        for mapping in network_of.profile_groups(network, self.recipe.profiles, self.recipe.batch):
            network_of.add_profile(builder, config, network, mapping)
        if recipe.strict and generation == "8.6":
            self._obey(network, config)
        if self.recipe.configure:
            self.recipe.configure(trt, builder, network, config)
        if generation == "8.6" and self.recipe.precision == "as-is" and self._has_scales(network, config):
            config.set_flag(trt.BuilderFlag.INT8)

    @staticmethod
    def _has_scales(network, config) -> bool:
        """Whether anything says how to compute in INT8; the 8.6 builder that may use it and finds no scales stops."""
        quantized = any(network.get_layer(i).type.name in ("QUANTIZE", "DEQUANTIZE") for i in range(network.num_layers))
        return quantized or config.int8_calibrator is not None

    def _weak_flags(self, config):
        trt = self.trt
        if self.recipe.precision in ("fp16", "int8", "as-is"):
            config.set_flag(trt.BuilderFlag.FP16)
        if self.recipe.precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if self.recipe.precision == "bf16":
            raise BadInput("TensorRT 8.6 has no BF16; choose fp16, or use TensorRT 10 or newer")

    def _obey(self, network, config):
        """Pin every computing layer to the precision asked for; the builder then has no faster FP32 kernel to fall
        back on.
        """
        trt = self.trt
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        types = {"fp16": trt.DataType.HALF, "fp32": trt.DataType.FLOAT, "tf32": trt.DataType.FLOAT}
        wanted = types.get(self.recipe.precision)
        for i in range(network.num_layers if wanted is not None else 0):
            layer = network.get_layer(i)
            if layer.type.name in COMPUTING:
                layer.precision = wanted

    def _complaint(self, stem: str) -> str:
        # The first error is the cause; what follows reports that there is no engine. A refused timing cache costs time
        # only.
        errors = [text for text in self.log.errors() if not re.search(r"myelinCache|timing cache", text)]
        last = errors[0] if errors else "it gave no reason"
        hint = next(
            (hint for cause, hint in REMEDIES.items() if re.search(cause, last, re.IGNORECASE)),
            "see the whole log with verbosity in build.logger('VERBOSE')",
        )
        return f"{stem}: the builder stopped: {last.strip()}; {hint}"


def _capability(trt, capability: tuple[int, int]):
    if tuple(capability) not in RTX_CAPABILITIES:
        choices = ", ".join(f"({a}, {b})" for a, b in RTX_CAPABILITIES)
        raise BadInput(f"compute_capability={capability} is not one TensorRT-RTX builds for; choose one of {choices}")
    return getattr(trt.ComputeCapability, f"SM{capability[0]}{capability[1]}")


def _hardware_level(trt, name: str):
    level = getattr(trt.HardwareCompatibilityLevel, name.upper(), None)
    if level is None:
        raise BadInput(
            f"TensorRT {environment.machine().tensorrt} has no hardware_compatible={name!r}; choose 'ampere_plus', "
            "or use TensorRT 10 or newer"
        )
    return level


def _engine_path(source, stem: str, recipe: Recipe, target: dict) -> Path:
    key = json.dumps([source, recipe.precision, recipe.plain(), target], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return environment.cache_dir() / "engines" / f"{stem}.{recipe.precision}-{digest}.plan"
