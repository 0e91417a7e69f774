"""Keras to ONNX: which backend computes, Keras's own exporter without its log lines, and the layer at fault where it
fails.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from labsupport.errors import BadInput, NotAvailable, first_line
from labsupport.export.onnx_graph import OnnxGraph, fresh_folder, load
from labsupport.quiet import natively, quietly

BACKENDS = ("tensorflow", "torch")
INSTALL = (
    "python3 -m pip install 'labsupport[tensorflow]', or for the torch backend alone: python3 -m pip install keras"
)
OPSET = 17  # every target reads it


def missing() -> str:
    """Why there is no Keras road here; "" where there is one."""
    if importlib.util.find_spec("keras") is None:
        return f"Keras is not installed, so its road is closed here; open it with: {INSTALL}"
    return ""


def keras_here():
    """(keras, its backend): TensorFlow where it is installed, else PyTorch; KERAS_BACKEND decides if it is set.

    Raises NotAvailable where Keras, or the backend that KERAS_BACKEND names, is missing or does not load.
    """
    if missing():
        raise NotAvailable(missing())
    wanted = os.environ.get("KERAS_BACKEND") or next(
        (name for name in BACKENDS if importlib.util.find_spec(name)), None
    )
    if wanted is None or importlib.util.find_spec(wanted) is None:
        raise NotAvailable(
            f"Keras computes by {wanted or 'TensorFlow or PyTorch'}, which is not installed; get it with: {INSTALL}"
        )
    os.environ["KERAS_BACKEND"] = wanted
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quietly(), natively(1, 2):
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                import tensorflow

                # TensorFlow takes all memory of every GPU that it sees, and TensorRT would find none
                tensorflow.config.set_visible_devices([], "GPU")
        except Exception as error:  # native libraries raise whatever they like
            raise NotAvailable(
                f"Keras is installed and does not load with {wanted} ({type(error).__name__}: {error}); find out why "
                "with: python3 -m labsupport doctor"
            ) from error
    return keras, keras.backend.backend()


def from_keras(model, *, path: str | Path | None = None) -> OnnxGraph:
    """Keras's own export, checked like any other graph: the converter only warns of an operation that ONNX lacks.

    Raises BadInput for what is no built Keras model, and for a layer that ONNX cannot express, by its name.
    Source: https://keras.io/api/models/model_saving_apis/export/
    """
    keras, backend = keras_here()
    if not isinstance(model, keras.Model):
        raise BadInput(f"a {type(model).__name__} came; wanted is a Keras model, such as keras.Sequential([...])")
    if not model.built:
        raise BadInput(
            f"{model.name} was never built, so its shapes are unknown; begin it with keras.Input(shape), or call it "
            "once"
        )
    path = Path(path) if path else fresh_folder() / f"{model.name}.onnx"
    try:
        return _exported(keras, model, path)
    except Exception as error:  # tf2onnx and torch.onnx raise types of their own, and some write a graph that is none
        guilty = next((layer for layer in model.layers if _fails(keras, layer)), None)
        name = f"layer {guilty.name!r} ({type(guilty).__name__})" if guilty is not None else f"model {model.name!r}"
        raise BadInput(
            f"ONNX lacks what {name} computes, so Keras ({backend}) could not export it: {first_line(error)}. "
            "Write that layer with other operations, or keep it outside of the network"
        ) from error


def _exported(keras, model, path: Path) -> OnnxGraph:
    with quietly(), natively(1, 2):
        # the exporters refuse a model that was never called; an axis that is free gets 1
        model([keras.ops.zeros([axis or 1 for axis in each.shape], each.dtype) for each in model.inputs])
        model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)
    return load(path, exporter="keras")


def _fails(keras, layer) -> bool:
    """Whether a layer alone cannot be exported."""
    if isinstance(layer, keras.layers.InputLayer):
        return False
    try:
        shape = layer.input.shape[1:]
        _exported(keras, keras.Sequential([keras.Input(shape), layer]), fresh_folder() / "layer.onnx")
    except Exception:  # the same many types as above; the first layer that raises is named
        return True
    return False
