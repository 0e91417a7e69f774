"""What the roads from TensorFlow share: an import without the noise, and a Keras export that says what went wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput, NotAvailable
from labsupport.quiet import quietly
from labsupport.roads import versions
from labsupport.roads.terminal import silent_terminal


def load():
    """(tensorflow, keras) on the CPU with one thread, without the lines that importing writes. Raises NotAvailable."""
    versions.require("tensorflow", "tf2onnx")
    first = "tensorflow" not in sys.modules
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quietly(), silent_terminal():
        try:
            import keras
            import tensorflow
        except Exception as error:  # its native libraries raise whatever they like
            raise NotAvailable(f"TensorFlow is installed but does not load ({type(error).__name__}: {error}); "
                               "find out why with: python3 -m labsupport doctor") from error  # fmt: skip
        if first:
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
            tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow, keras


def to_onnx(model, path: str | os.PathLike | None = None) -> export.OnnxGraph:
    """A Keras model as a checked ONNX graph, by Keras's own ``export(format="onnx")``.

    Raises BadInput for what is no Keras model, and for a layer whose TensorFlow operation has no ONNX operator: the
    converter only warns of it and leaves a node in the file that no runtime knows.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise BadInput(
            f"a Keras model is wanted, and a {type(model).__name__} came; build one with keras.Sequential or"
            " keras.Model"
        )
    path = Path(path) if path else export.fresh_folder() / f"{model.name}.onnx"
    own = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in model.layers
        if not type(layer).__module__.startswith("keras.")
    ]
    try:
        with quietly(), silent_terminal():
            model(
                [keras.ops.zeros((1, *shape[1:]), dtype) for shape, dtype in _inputs(model)]
            )  # Keras exports what ran once
            model.export(str(path), format="onnx", verbose=False)
        return export.load(path, exporter="keras")
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        blame = (
            f"its own layers are {', '.join(own)}: write them in keras.ops that ONNX has"
            if own
            else "rewrite the operation that it names"
        )
        raise BadInput(f"Keras could not export {model.name!r} to ONNX: {first}; {blame}") from error


def _inputs(model) -> list[tuple[tuple, str]]:
    """(shape, dtype) of each input; one that is free in an axis but the first gets 1 there."""
    return [(tuple(axis or 1 for axis in tensor.shape), tensor.dtype) for tensor in model.inputs]
