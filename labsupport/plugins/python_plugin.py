"""The operator as an IPluginV3 written in Python, for TensorRT 10 and 11: what the builder asks and what the engine
calls.

No engine has run it: TensorRT 8.6 takes plugins in C++ only (that form has run: ``plugin_library``), and TensorRT-RTX
none. It is written to the documented interface; its answers about shapes, types and fields are tested, against
TensorRT-RTX's own classes where they are. Source:
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Plugin/IPluginV3.html
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from labsupport import environment
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.plugins.gated_norm import EPSILON, OP_TYPE

VERSION, NAMESPACE = "1", ""


class Tactic(IntEnum):
    """Ways to compute the same thing, which the builder times against each other; numbers begin at 1."""

    TRITON = 1
    TORCH = 2


class Answers:
    """What the plugin says and does; :func:`plugin_class` joins it with the interfaces of one TensorRT."""

    trt, interfaces, dims_of = None, (), None  # the module and what its releases differ in, set by plugin_class

    def __init__(self, epsilon: float = EPSILON, phase=None):
        for interface in self.interfaces:
            interface.__init__(self)
        self.epsilon, self.phase, self.tactic = float(epsilon), phase, None
        # Core: who it is
        self.plugin_name, self.plugin_version, self.plugin_namespace, self.num_outputs = OP_TYPE, VERSION, NAMESPACE, 1
        # Build: two nodes of this plugin with equal shapes need be timed only once
        self.timing_cache_id = ""

    def get_capability_interface(self, type):
        """One object is core, build and runtime at once."""
        return self

    # --- Build: shapes, types, layouts, tactics ----------------------------------------------------------------------
    def get_output_data_types(self, input_types):
        """y has the type of x."""
        return [input_types[0]]

    def get_output_shapes(self, inputs, shape_inputs, exprBuilder):
        """y has the shape of x, free axes included: dimensions are expressions here, not numbers."""
        return [self.dims_of(inputs[0])]

    def supports_format_combination(self, pos, in_out, num_inputs):
        """Asked for x, gate, weight and y in turn; what stands behind ``pos`` is not settled yet."""
        tensor, first = in_out[pos].desc, in_out[0].desc
        if tensor.format != self.trt.TensorFormat.LINEAR:
            return False
        return tensor.type == first.type if pos else tensor.type in (self.trt.float32, self.trt.float16)

    def configure_plugin(self, inp, out):
        """Nothing depends on the ranges of the profile."""

    def get_valid_tactics(self):
        """All that this machine can run."""
        return [int(tactic) for tactic in Tactic if tactic != Tactic.TRITON or environment.has("triton")]

    # --- Runtime ---------------------------------------------------------------------------------------------------
    def set_tactic(self, tactic):
        """The builder's choice, given again whenever the engine is loaded."""
        self.tactic = Tactic(tactic)

    def on_shape_change(self, inp, out):
        """Nothing is prepared for a shape."""

    def attach_to_context(self, context):
        """Every execution context gets a plugin of its own."""
        return self.clone()

    def get_fields_to_serialize(self):
        """What the engine file keeps; the creator gets it back when the engine is loaded."""
        self._epsilon = np.array([self.epsilon], dtype=np.float32)  # the field points to it and does not copy
        field = self.trt.PluginField("epsilon", self._epsilon, self.trt.PluginFieldType.FLOAT32)
        return self.trt.PluginFieldCollection([field])

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        """Launch on TensorRT's stream, between addresses that TensorRT owns, and return at once."""
        import torch

        tensors = [
            _view(address, desc, self.trt) for address, desc in zip((*inputs, *outputs), (*input_desc, *output_desc))
        ]
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            compute(*tensors, self.epsilon, self.tactic or Tactic.TORCH)

    def clone(self):
        """A copy with the same state."""
        copy = type(self)(self.epsilon, self.phase)
        copy.tactic = self.tactic
        return copy


def compute(x, gate, weight, y, epsilon: float, tactic: Tactic) -> None:
    """Write y by one of the tactics; packed tensors."""
    from labsupport.plugins.gated_norm import chain

    if tactic == Tactic.TORCH:
        y.copy_(chain(x, gate, weight, epsilon))
        return
    from labsupport.plugins import triton_kernels

    triton_kernels.gated_rms_norm(x, gate, weight, epsilon, out=y)


def _view(address: int, desc, trt):
    """A torch tensor over memory that TensorRT owns: the address and the shape, no copy."""
    import torch

    code, dtype = ("<f4", "float32") if desc.type == trt.float32 else ("<f2", "float16")

    class Memory:
        __cuda_array_interface__ = {"shape": tuple(desc.dims), "typestr": code, "data": (address, False), "version": 3}

    if math.prod(tuple(desc.dims)) == 0:  # an empty tensor has no address
        return torch.empty(tuple(desc.dims), dtype=getattr(torch, dtype), device="cuda")
    return torch.as_tensor(Memory(), device="cuda")


def plugin_class(trt):
    """The plugin for one TensorRT module. Raises NotAvailable before TensorRT 10."""
    environment.require(">=10")
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    return type(OP_TYPE, (Answers, *bases), {"trt": trt, "interfaces": bases, "dims_of": trt.DimsExprs})


def creator_class(trt):
    """The creator, which the parser finds by name, version and namespace and gives the node's attributes to."""
    environment.require(">=10")
    plugin = plugin_class(trt)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self):
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = OP_TYPE, VERSION, NAMESPACE
            epsilon = trt.PluginField("epsilon", np.array([], dtype=np.float32), trt.PluginFieldType.FLOAT32)
            self.field_names = trt.PluginFieldCollection([epsilon])

        def create_plugin(self, name, fc, phase):
            return plugin(epsilon_of(fc), phase)

    return Creator


def epsilon_of(fields) -> float:
    """epsilon from a node's attributes or an engine's fields, 1e-5 where it is not among them. Raises BadInput."""
    given = {field.name: field.data for field in fields}
    unknown = sorted(set(given) - {"epsilon"})
    if unknown:
        raise BadInput(f"{OP_TYPE} takes the attribute 'epsilon' and got {unknown}; it would be ignored without a word")
    epsilon = float(np.asarray(given.get("epsilon", EPSILON)).reshape(-1)[0])
    if not epsilon > 0:
        raise BadInput(
            f"{OP_TYPE}: epsilon={epsilon}; it keeps a row of zeros from dividing by zero and must be above 0"
        )
    return epsilon


_registered: dict = {}


def register(trt=None):
    """Put the creator into this process's registry; the parser then knows the operator. Raises NotAvailable, LabError.

    An engine that holds the plugin can be loaded only by a process that has registered it as well.
    """
    trt = trt or environment.tensorrt()
    if environment.generation() == "rtx":
        raise NotAvailable(
            "TensorRT-RTX takes no plugins: its parser finds the creator and then ends the process. Rewrite the graph "
            "instead: plugins.rewritten"
        )
    if OP_TYPE in _registered:
        return _registered[OP_TYPE]
    creator = creator_class(trt)()
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise LabError(
            f"a plugin {OP_TYPE}, version {VERSION}, is registered already, perhaps by the C++ library; restart the "
            "kernel to use this one"
        )
    _registered[OP_TYPE] = creator  # the registry does not keep Python objects alive
    return creator


def unregister(trt=None) -> bool:
    """Take the creator out again, so that another plugin of its name can be loaded; False where there was none.

    Close every engine that holds the plugin first: TensorRT does not count who still uses it.
    """
    creator = _registered.pop(OP_TYPE, None)
    if creator is None:
        return False
    trt = trt or environment.tensorrt()
    if not trt.get_plugin_registry().deregister_creator(creator):
        raise LabError(
            f"TensorRT did not let go of the plugin {OP_TYPE}; restart the kernel to load another of this name"
        )
    return True
