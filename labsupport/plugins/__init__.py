"""An operator that TensorRT does not know: rewritten, built from layers, run as a kernel between engines, or a plugin.

The parts: ``gated_norm`` (the operator and its formula), ``foreign_nodes`` and ``custom_operators`` (graphs),
``operator_layers`` (TensorRT layers), ``cuda_kernels`` and ``triton_kernels`` (one kernel), ``device_runs`` (timing
them), ``examination`` (is an implementation right?), ``python_plugin``, ``decorated_plugin`` and ``plugin_library``
(the three forms of a plugin), ``ahead_of_time`` (the kernel that the decorated one leaves in the engine).

Of the three, the library has run, as an ``IPluginV2DynamicExt`` in TensorRT 8.6 on an H100 (lab 10). Its ``IPluginV3``
and both Python forms, for TensorRT 10 and 11, follow the documented interface; no engine has run them.
"""

from __future__ import annotations

from labsupport.export.foreign_nodes import Unknown, unknown_operators
from labsupport.plugins.ahead_of_time import Ptx, ptx
from labsupport.plugins.bandwidth_sweep import Point, fastest, sweep
from labsupport.plugins.bandwidth_sweep import draw as draw_sweep
from labsupport.plugins.cuda_kernels import SOURCE, CudaKernel, Launch, checked, launch_of, nvcc
from labsupport.plugins.custom_operators import (
    around,
    operator_graph,
    part,
    rewritten,
    with_shapes,
)
from labsupport.plugins.decorated_plugin import decorated_once as decorated
from labsupport.plugins.device_runs import OnDevice, compiled_chain, device_copy, megabytes, triton_kernel
from labsupport.plugins.examination import LAYOUTS, Case, Examination, examine, laid_out
from labsupport.plugins.gated_norm import EPSILON, OP_TYPE, GatedBlock, chain, example, output_shape, reference
from labsupport.plugins.operator_layers import with_layers
from labsupport.plugins.plugin_library import build as build_library
from labsupport.plugins.plugin_library import built_for, headers
from labsupport.plugins.plugin_library import load as load_library
from labsupport.plugins.python_plugin import Answers, creator_class, plugin_class, register, unregister

__all__ = [
    "EPSILON", "LAYOUTS", "OP_TYPE", "SOURCE", "Answers", "Case", "CudaKernel", "Examination", "GatedBlock", "Launch",
    "OnDevice", "Point", "Ptx", "Unknown", "around", "build_library", "built_for", "chain", "checked",
    "compiled_chain", "creator_class", "decorated", "device_copy", "draw_sweep", "examine", "example", "fastest",
    "headers", "laid_out", "launch_of", "load_library", "megabytes", "nvcc", "operator_graph",
    "output_shape", "part", "plugin_class", "ptx", "reference", "register",
    "rewritten", "sweep", "triton_kernel", "unknown_operators", "unregister", "with_layers",
    "with_shapes",
]  # fmt: skip
