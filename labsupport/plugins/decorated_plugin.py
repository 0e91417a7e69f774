"""The operator as a plugin by decorators (``tensorrt.plugin``, from TensorRT 10.6 on): three functions, no class.

Kernels compiled ahead of time came with 10.9. No engine has run it: no machine at hand has a TensorRT that takes it;
only the kernel that it hands over has been launched, without TensorRT (lab 10). ``register`` reads the annotations of
the functions, so this module does not postpone them (no ``from __future__ import annotations``), and they are defined
once TensorRT is there. Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/pluginGuide.html
"""

# mypy: disable-error-code="name-defined"
# `trtp` is an argument, and its types stand in annotations that tensorrt.plugin reads

import importlib

from labsupport import environment
from labsupport.errors import NotAvailable
from labsupport.plugins import ahead_of_time
from labsupport.plugins.gated_norm import DOMAIN, OP_TYPE

PLUGIN_ID = f"{DOMAIN}::{OP_TYPE}"
WARPS = {1: 4, 2: 8, 3: 16}  # tactic → warps a row
_decorated: list = []


def decorated_once(trtp=None, trt=None):
    """The plugin by decorators; see ``??plugins.decorated_plugin.decorated``. Raises NotAvailable where it is not to
    be had.
    """
    if trtp is not None:
        return decorated(trtp, trt)
    if not _decorated:  # the name can be registered once, and a cell may be run twice
        _decorated.append(decorated(None, trt))
    return _decorated[0]


def decorated(trtp=None, trt=None):
    """Define and register the plugin; returns ``tensorrt.plugin.op.workbook.GatedRmsNorm``, for ``network.add_plugin``.

    ``trtp`` is the module ``tensorrt.plugin``. Raises NotAvailable where it is not to be had.
    """
    trt = trt or environment.tensorrt()
    if trtp is None:
        environment.require(">=10")
        if environment.generation() == "rtx":
            raise NotAvailable("TensorRT-RTX takes no plugins; rewrite the graph instead: plugins.rewritten")
        try:
            trtp = importlib.import_module(trt.__name__ + ".plugin")
        except ImportError as error:
            raise NotAvailable(
                f"TensorRT {trt.__version__} has no plugins by decorators ({error}); use the class instead: "
                "plugins.register"
            ) from error
    if not hasattr(trtp, "aot_impl"):
        raise NotAvailable(
            "this TensorRT's decorators cannot compile ahead of time; use the class instead: plugins.register"
        )

    @trtp.register(PLUGIN_ID)
    def describe(x: trtp.TensorDesc, gate: trtp.TensorDesc, weight: trtp.TensorDesc, epsilon: float) -> trtp.TensorDesc:
        return x.like()  # shape and type of y, as expressions in those of x

    @trtp.autotune(PLUGIN_ID)
    def combinations(
        x: trtp.TensorDesc, gate: trtp.TensorDesc, weight: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        # x, gate, weight, y: all FP32 or all FP16; three tactics each
        return [trtp.AutoTuneCombination("FP32|FP16, FP32|FP16, FP32|FP16, FP32|FP16", "LINEAR", list(WARPS))]

    @trtp.aot_impl(PLUGIN_ID)
    def kernel(
        x: trtp.TensorDesc,
        gate: trtp.TensorDesc,
        weight: trtp.TensorDesc,
        epsilon: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        return compiled(trtp, x, epsilon, tactic, half=x.dtype == trt.float16)

    return getattr(getattr(trtp.op, DOMAIN), OP_TYPE)


def compiled(trtp, x, epsilon: float, tactic: int, *, half: bool):
    """The Triton kernel as PTX, its launch and its whole-number arguments, as expressions in the shape of x.

    The engine carries the PTX: neither Python nor Triton is needed where it runs. TensorRT calls it with the addresses
    of the inputs, then these whole numbers, then the address of the output, and with nothing else.
    """
    columns = x.shape_expr[-1]
    if not columns.is_constant:
        raise NotAvailable(
            f"{OP_TYPE} ahead of time: the last axis of x is free, and the kernel is compiled for one row length; fix "
            "that axis in the profile or in the graph"
        )
    kernel = ahead_of_time.ptx(
        columns.constant_value(), dtype="float16" if half else "float32", epsilon=epsilon, warps=WARPS[tactic]
    )
    launch = trtp.KernelLaunchParams()
    launch.grid_x = x.shape_expr.numel() // columns  # one program a row
    launch.block_x, launch.shared_mem = kernel.threads, kernel.shared_bytes
    whole_numbers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(columns)] * 3)  # TensorRT's tensors are packed
    return kernel.name, kernel.text, launch, whole_numbers
