"""The network behind lab 02's softmax exercise, and a reader that computes in NumPy what was added to it."""

from __future__ import annotations

import numpy as np

from labsupport.exercises.answers import Wrong

CLASSES = 10


def small_network(trt, network) -> list[np.ndarray]:
    """Pooling and one dense layer, (N, 1, 28, 28) → logits (N, 10), marked as the output; returns its weights."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, 49)).astype(np.float32)
    bias = rng.normal(size=(1, CLASSES)).astype(np.float32)
    images = network.add_input("images", trt.float32, (-1, 1, 28, 28))
    pool = network.add_pooling_nd(images, trt.PoolingType.MAX, (4, 4))
    pool.stride_nd = (4, 4)
    flat = network.add_shuffle(pool.get_output(0))
    flat.reshape_dims = (0, -1)
    kernel = network.add_constant(weight.shape, weight).get_output(0)
    as_is, transposed = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    dense = network.add_matrix_multiply(flat.get_output(0), as_is, kernel, transposed)
    shift = network.add_constant(bias.shape, bias).get_output(0)
    logits = network.add_elementwise(dense.get_output(0), shift, trt.ElementWiseOperation.SUM).get_output(0)
    logits.name = "logits"
    network.mark_output(logits)
    return [weight, bias]


def layers_by_output(network) -> dict[str, tuple[int, str, object]]:
    """(place, kind, layer) by what it makes; kinds are read here, since a downcast layer answers `type` differently."""
    layers = ((i, network.get_layer(i)) for i in range(network.num_layers))
    return {layer.get_output(0).name: (i, layer.type.name, layer) for i, layer in layers}


def only_new_output(network, layers: dict, before: int) -> str:
    """Name of the network's single output, which an added layer makes; else Wrong."""
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    if network.num_layers == before:
        raise Wrong("the network has the layers it had: nothing was added to it.")
    if not outputs:
        raise Wrong("the network has no output now; call network.mark_output(tensor) for the probabilities.")
    if len(outputs) > 1:
        raise Wrong(
            f"the network has {len(outputs)} outputs, {', '.join(outputs)}; "
            "network.unmark_output(logits) takes the old one away."
        )
    if layers[outputs[0]][0] < before:
        raise Wrong(f"the only output is still {outputs[0]!r}; mark what your layer makes, and unmark the logits.")
    return outputs[0]


def evaluate(trt, layers: dict, name: str, cache: dict[str, np.ndarray]) -> np.ndarray:
    """The value of a tensor from the known ones, in NumPy: a network can be judged where no engine can run."""
    if name in cache:
        return cache[name]
    _, kind, layer = layers.get(name, (0, "NONE", None))
    if kind in ("NONE", "MATRIX_MULTIPLY", "SHUFFLE", "POOLING"):
        raise Wrong(f"the output is made of {name!r}, not of the logits: start from network.get_output(0).")
    values = [evaluate(trt, layers, layer.get_input(i).name, cache) for i in range(layer.num_inputs)]
    return _computed(trt, kind, layer, values)


def _computed(trt, kind: str, layer, values: list[np.ndarray]) -> np.ndarray:
    classes = {
        "SOFTMAX": trt.ISoftMaxLayer,
        "UNARY": trt.IUnaryLayer,
        "REDUCE": trt.IReduceLayer,
        "ELEMENTWISE": trt.IElementWiseLayer,
        "ACTIVATION": trt.IActivationLayer,
        "CONSTANT": trt.IConstantLayer,
    }
    if kind in ("IDENTITY", "CAST"):
        return values[0]
    if kind not in classes:
        raise Wrong(f"the checker cannot follow a layer {kind}; a single softmax layer is enough here.")
    layer.__class__ = classes[kind]  # get_layer returns the base class, although the object is the derived one
    if kind == "SOFTMAX":
        return _softmax(values[0], _axes(layer.axes, values[0]))
    if kind == "CONSTANT":
        return np.asarray(layer.weights, np.float64).reshape(tuple(layer.shape))
    name = (layer.type if kind == "ACTIVATION" else layer.op).name
    if kind == "REDUCE" and name in ("SUM", "MAX"):
        reduce = np.sum if name == "SUM" else np.max
        return reduce(values[0], axis=_axes(layer.axes, values[0]), keepdims=layer.keep_dims)
    functions = {
        "EXP": np.exp,
        "LOG": np.log,
        "RECIP": np.reciprocal,
        "SUM": np.add,
        "SUB": np.subtract,
        "PROD": np.multiply,
        "DIV": np.divide,
        "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
    }
    if name not in functions:
        raise Wrong(f"the checker cannot follow a layer {kind} {name}; a single softmax layer is enough here.")
    return functions[name](*values)


def _axes(mask: int, values: np.ndarray) -> tuple[int, ...]:
    return tuple(axis for axis in range(values.ndim) if mask >> axis & 1)


def _softmax(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axes, keepdims=True))
    return powers / powers.sum(axis=axes, keepdims=True)


def compare_with_softmax(logits: np.ndarray, got: np.ndarray) -> None:
    """Wrong, with the likeliest slip named, unless `got` is the softmax of the logits (N, classes) over the classes."""
    if got.shape != logits.shape:
        raise Wrong(f"of logits {logits.shape} the network makes {got.shape}; each class should get one number.")
    if np.allclose(got, _softmax(logits, (1,)), atol=1e-6):
        return
    if np.allclose(got, _softmax(logits, (0,)), atol=1e-6):
        raise Wrong(
            "the softmax runs over axis 0, the batch: its columns sum to 1 and its rows do not. `axes` is a "
            "bit mask, and axes = 1 means bit 0."
        )
    sums = got.sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-4):
        raise Wrong(f"the first image's ten numbers sum to {sums[0]:.2f}; probabilities of exclusive classes sum to 1.")
    raise Wrong("each row sums to 1, but the numbers are not the softmax of the logits: exp(x) / sum(exp(x)).")
