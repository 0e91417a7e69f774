"""What the roads from TensorFlow share: an import without the lines that it writes, on the CPU with one thread."""

from __future__ import annotations

import sys

from labsupport.export import keras_models
from labsupport.roads import versions


def load():
    """(tensorflow, keras) on the CPU with one thread, without the lines that importing writes. Raises NotAvailable."""
    versions.require("tensorflow", "tf2onnx")
    first = "tensorflow" not in sys.modules
    keras, _ = keras_models.keras_here()
    import tensorflow

    if first:
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return tensorflow, keras
