"""TensorFlow's import, and Keras layers of one's own on their way to ONNX. Skipped without TensorFlow."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from labsupport import runtimes
from labsupport.errors import BadInput, NotAvailable
from labsupport.export import keras_models
from labsupport.roads import tensorflow as road
from labsupport.roads import versions


@pytest.fixture(scope="module")
def frameworks():
    lacking = versions.lacking("tensorflow", "tf2onnx")
    if lacking:
        pytest.skip(lacking)
    return road.load()


def test_without_tensorflow_the_road_is_closed_with_the_way_to_open_it(monkeypatch):
    monkeypatch.setattr(versions, "package_version", lambda name: None)
    monkeypatch.setattr(
        versions,
        "lacking",
        lambda *names, version_of=None: f"{names[0]} is not installed; get it with: python3 -m pip install tensorflow",
    )
    with pytest.raises(NotAvailable, match="tensorflow is not installed"):
        road.load()


def test_a_tensorflow_that_does_not_load_is_told_apart_from_none(monkeypatch):
    monkeypatch.setattr(versions, "require", lambda *names: None)
    monkeypatch.setattr(keras_models.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "keras", None)  # importing it raises ImportError
    with pytest.raises(NotAvailable, match="installed and does not load with tensorflow .*doctor"):
        road.load()


def test_a_custom_layer_whose_operation_onnx_lacks_is_named(frameworks):
    tensorflow, keras = frameworks

    class LogGamma(keras.layers.Layer):
        def call(self, x):
            return tensorflow.math.lgamma(x)

    with pytest.raises(BadInput, match=r"layer 'log_gamma\w*' \(LogGamma\) computes.*Lgamma"):
        keras_models.from_keras(keras.Sequential([keras.Input((4,)), LogGamma()]))


def test_a_custom_layer_of_known_operations_goes_through(frameworks):
    _, keras = frameworks

    class Doubled(keras.layers.Layer):
        def call(self, x):
            return keras.ops.relu(x) * 2

    x = np.array([[-1.0, 2.0]], np.float32)
    with runtimes.OnnxRuntime(keras_models.from_keras(keras.Sequential([keras.Input((2,)), Doubled()]))) as run:
        assert next(iter(run(x).values())).tolist() == [[0, 4]]
