"""Types as wishes: TensorRT 8.6 layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from labsupport import build, environment
from labsupport.errors import BadInput


def weakly(keep_wide: Iterable[str] = (), *, prefer: bool = False) -> Callable:
    """A ``configure=`` for build.engine on TensorRT 8.6: every computing layer FP16 but those that stay wide.

    8.6 types are wishes of layers, not of tensors: a wide layer needs its precision and its output type set. ``prefer``
    lets the builder refuse a wish with a warning; otherwise it must obey or fail. Give the engine a ``name`` of its
    own: the cache cannot see which layers are in the list.
    """
    if isinstance(keep_wide, str) or not isinstance(keep_wide, Iterable):
        raise BadInput(f"keep_wide={keep_wide!r} is no list; give a list of layer names, an empty one for none")
    wide = frozenset(keep_wide)

    def configure(trt, builder, network, config):
        environment.require("8.6")
        there = {network.get_layer(i).name for i in range(network.num_layers)}
        if wide - there:
            raise BadInput(
                f"keep_wide names {sorted(wide - there)}, and the network has no such layer; its layers are called "
                "as the graph's nodes"
            )
        flags = trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS
        config.clear_flag(flags[prefer])
        config.set_flag(flags[not prefer])
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type.name not in build.COMPUTING:
                continue
            layer.precision = trt.DataType.FLOAT if layer.name in wide else trt.DataType.HALF
            if layer.name in wide:
                layer.set_output_type(0, trt.DataType.FLOAT)

    return configure
