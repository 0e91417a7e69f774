"""Keras to ONNX: which backend computes, answers that agree, the layer at fault; and what is said where Keras is
missing.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from labsupport import comparing, runtimes
from labsupport.errors import BadInput, NotAvailable
from labsupport.export import keras_models

HERE = importlib.util.find_spec("keras") is not None
needs_keras = pytest.mark.skipif(not HERE, reason="Keras is not installed")


def test_without_keras_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(keras_models.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in keras_models.missing()
    with pytest.raises(NotAvailable, match="Keras is not installed.*pip install"):
        keras_models.keras_here()


def test_a_backend_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(keras_models.importlib.util, "find_spec", lambda name: object() if name == "keras" else None)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(NotAvailable, match="Keras computes by tensorflow, which is not installed"):
        keras_models.keras_here()
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(NotAvailable, match="TensorFlow or PyTorch, which is not installed"):
        keras_models.keras_here()


@pytest.fixture(scope="module")
def keras():
    return keras_models.keras_here()[0]


@needs_keras
def test_a_model_and_its_graph_agree(keras):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((12, 12, 3)), layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
         layers.MaxPooling2D(), layers.Flatten(), layers.Dense(5)]
    )  # fmt: skip
    graph = keras_models.from_keras(model)
    feed = np.random.default_rng(0).standard_normal((4, 12, 12, 3)).astype(np.float32)
    (answers,) = runtimes.OnnxRuntime(graph)(feed).values()
    assert comparing.max_error(model.predict(feed, verbose=0), answers) < 1e-4
    assert graph.opset == keras_models.OPSET and graph.exporter == "keras"


@needs_keras
def test_a_model_of_two_inputs_and_a_free_axis_goes_whole(keras):
    tokens, scale = keras.Input((None,), dtype="int32"), keras.Input((1,))
    model = keras.Model([tokens, scale], keras.ops.cast(tokens, "float32") * scale)
    feed = {"tokens": np.array([[1, 2, 3]], np.int32), "scale": np.array([[2.0]], np.float32)}
    with runtimes.OnnxRuntime(keras_models.from_keras(model)) as run:
        (answers,) = run(dict(zip(run.graph.inputs, feed.values()))).values()
    assert answers.tolist() == [[2, 4, 6]]


@needs_keras
def test_a_layer_that_onnx_lacks_is_named(keras):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="fine"), layers.Lambda(lambda x: keras.ops.svd(x)[1], name="odd"),
         layers.Flatten(), layers.Dense(2)]
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"ONNX lacks what layer 'odd' \(Lambda\) computes.*Write that layer with other"):
        keras_models.from_keras(model)


@needs_keras
def test_what_is_no_model_or_has_no_shape_is_refused(keras):
    for junk in (None, 3, "model.keras", [1]):
        with pytest.raises(BadInput, match=f"a {type(junk).__name__} came; wanted is a Keras model"):
            keras_models.from_keras(junk)
    with pytest.raises(BadInput, match="was never built"):
        keras_models.from_keras(keras.Sequential([keras.layers.Dense(2)]))
