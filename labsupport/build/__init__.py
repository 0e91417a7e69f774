"""ONNX to engine: the room where the TensorRT generations differ.

TensorRT 8.6 has weakly typed networks: builder flags allow a precision, the builder picks. From 10 on a network can be
strongly typed, and in 11 and TensorRT-RTX it always is: the types in the graph are the types in the engine. Either way
the precision is read back after the build, because an engine silently built in FP32 is this field's worst bug. The
parts: ``recipe`` (how), ``builder`` (one build), ``builder_thread`` (where it runs, its logger), ``network`` (parser,
profiles), ``readback`` (types of an engine), ``engines`` (files with a sidecar) and ``timing_cache``.
"""

from __future__ import annotations

from labsupport.build.builder import COMPUTING, engine, timing_cache_path
from labsupport.build.builder_thread import logger
from labsupport.build.engines import Engine, load
from labsupport.build.network import Profile, parse
from labsupport.build.readback import read_precisions
from labsupport.build.recipe import HARDWARE, PRECISIONS, RTX_CAPABILITIES, Recipe

__all__ = [
    "COMPUTING", "HARDWARE", "PRECISIONS", "RTX_CAPABILITIES", "Engine", "Profile", "Recipe", "engine", "load",
    "logger", "parse", "read_precisions", "timing_cache_path",
]  # fmt: skip
