"""The roads from Keras: a model goes to ONNX whole, and what cannot go is named. Skipped without TensorFlow."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from labsupport import comparing, runtimes
from labsupport.errors import BadInput, NotAvailable
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
    monkeypatch.setitem(sys.modules, "keras", None)  # importing it raises ImportError
    with pytest.raises(NotAvailable, match="installed but does not load .*doctor"):
        road.load()


def test_a_keras_model_goes_to_onnx_with_its_answers(frameworks):
    _, keras = frameworks
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Conv2D(3, 3), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    images = np.random.default_rng(0).standard_normal((5, 8, 8, 2)).astype(np.float32)
    graph = road.to_onnx(model)
    assert graph.exporter == "keras"
    with runtimes.OnnxRuntime(graph) as run:
        (answer,) = run(images).values()
    assert comparing.relative_error(model.predict(images, verbose=0), answer) < 1e-5


def test_a_custom_layer_whose_operation_onnx_lacks_is_named(frameworks):
    tensorflow, keras = frameworks

    class LogGamma(keras.layers.Layer):
        def call(self, x):
            return tensorflow.math.lgamma(x)

    with pytest.raises(BadInput, match=r"(?s)Lgamma.*its own layers are .*\(LogGamma\)"):
        road.to_onnx(keras.Sequential([keras.Input((4,)), LogGamma()]))


def test_a_custom_layer_of_known_operations_goes_through(frameworks):
    _, keras = frameworks

    class Doubled(keras.layers.Layer):
        def call(self, x):
            return keras.ops.relu(x) * 2

    x = np.array([[-1.0, 2.0]], np.float32)
    with runtimes.OnnxRuntime(road.to_onnx(keras.Sequential([keras.Input((2,)), Doubled()]))) as run:
        assert next(iter(run(x).values())).tolist() == [[0, 4]]


@pytest.mark.parametrize("junk", [None, 3, "model.keras", [1]])
def test_what_is_no_keras_model_is_refused(frameworks, junk):
    with pytest.raises(BadInput, match="a Keras model is wanted"):
        road.to_onnx(junk)
