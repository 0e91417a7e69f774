"""NVIDIA's AutoCast: a graph cast narrow by a tool that looks at the ranges itself and tells its choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from labsupport import export
from labsupport.environment.packages import settle_distutils
from labsupport.errors import BadInput, LabError, NotAvailable, first_line
from labsupport.export import casting
from labsupport.quiet import quietly


def autocast(
    graph, feed, *, to: str = "fp16", keep_wide: Iterable[str] = (), data_max: float = 512.0
) -> export.OnnxGraph:
    """Cast a graph with nvidia-modelopt's AutoCast, which keeps nodes FP32 whose tensors it sees beyond ``data_max``.

    ``feed`` is calibration data, an array or a mapping, in the shapes the graph takes; ``keep_wide`` adds nodes of your
    own. Inputs and outputs stay FP32. Returns a new graph; ``precision.node_types`` reads its choice from it. Raises
    BadInput like ``precision.cast``, for NaN in the feed and for a feed that does not fit, NotAvailable without
    nvidia-modelopt. Source: https://nvidia.github.io/Model-Optimizer/guides/8_autocast.html
    """
    casting.low_type(to)
    graph, model = casting.model_of(graph)
    wide = casting.known(keep_wide, graph, model)
    if not data_max > 0:
        raise BadInput(f"data_max={data_max!r}; give the largest magnitude that may become narrow, such as 512")
    arrays = _checked(graph, feed)
    folder = export.fresh_folder()
    out = export.another_file(folder / f"{graph.path.stem}.autocast-{to}.onnx", graph)
    try:
        settle_distutils()
        from modelopt.onnx.autocast import convert_to_mixed_precision
        from polygraphy.logger import G_LOGGER  # AutoCast talks through it, beside the loggers of Python
    except ImportError as error:
        raise NotAvailable(
            f"AutoCast comes with nvidia-modelopt, which does not load ({error}); "
            "get it with: python3 -m pip install nvidia-modelopt onnxslim"
        ) from error
    np.savez(folder / "feed.npz", **arrays)
    named = export.save(model, folder / graph.path.name)
    try:
        with quietly(), G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            cast = convert_to_mixed_precision(
                str(named.path),
                low_precision_type=to,
                nodes_to_exclude=[f"{re.escape(n)}$" for n in sorted(wide)],
                data_max=data_max,
                keep_io_types=True,
                calibration_data=str(folder / "feed.npz"),
                providers=["cpu"],
            )
    except Exception as error:
        raise LabError(
            f"AutoCast could not cast {graph.path.name} to {to}: {first_line(error)}; cast it by hand with "
            f"precision.cast(graph, {to!r})"
        ) from error
    return export.save(cast, out)


def _checked(graph, feed) -> dict:
    arrays = dict(feed) if isinstance(feed, Mapping) else {next(iter(graph.inputs)): feed}
    if set(arrays) != set(graph.inputs):
        raise BadInput(f"the feed has {sorted(arrays)}, {graph.path.name} takes {sorted(graph.inputs)}")
    for name, array in arrays.items():
        arrays[name] = array = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
        wanted = graph.inputs[name][0]
        if array.ndim != len(wanted) or any(
            isinstance(w, int) and w != d for w, d in zip(wanted, array.shape, strict=True)
        ):
            raise BadInput(f"the feed's {name!r} has shape {array.shape}; {graph.path.name} takes {wanted}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(
                f"the feed's {name!r} holds NaN or infinity; calibrate with the data that the network will see"
            )
    return arrays
