"""Q/DQ where channels lie elsewhere than usual, beside norms that nobody folds, and of inputs that are handed out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_files import model_of, saved
from torch import nn

from labsupport import build, environment, export, quantization, runtimes
from labsupport.errors import BadInput
from labsupport.export import qdq_nodes
from labsupport.quantization import kept_wide

RNG = np.random.default_rng(23)


def value(name, *shape):
    return helper.make_tensor_value_info(name, T.FLOAT, list(shape))


def spread(*shape, axis=0):
    """Normal numbers that grow tenfold and more along one axis."""
    size = np.logspace(-2, 0.3, shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def weight(name, values):
    return numpy_helper.from_array(values, name)


def run(graph, feed, level="off"):
    with runtimes.OnnxRuntime(graph, optimization=level) as session:
        return session(feed)


def scales(graph) -> dict:
    """Weight → (how many scales it has, along which axis)."""
    nodes = graph.model().graph.node
    sizes = {w.name: w.dims[0] if w.dims else 1 for w in graph.model().graph.initializer}
    axis = {
        n.input[1]: next((a.i for a in n.attribute if a.name == "axis"), 1) for n in nodes if "Dequant" in n.op_type
    }
    return {name.removesuffix("_scale"): (sizes[name], axis[name]) for name in axis}


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_a_weight_on_the_left_has_a_scale_for_each_row_and_one_of_three_axes_for_each_column(target, tmp_path):
    left, stack = spread(6, 4), spread(1, 5, 7, axis=2)
    nodes = [
        helper.make_node("MatMul", ["left", "x"], ["h"], "left"),
        helper.make_node("MatMul", ["h", "stack"], ["y"], "stacked"),
    ]
    graph = saved(
        tmp_path,
        nodes,
        [value("x", "n", 4, 5)],
        [value("y", "n", 6, 7)],
        [weight("left", left), weight("stack", stack)],
    )
    x = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    made = quantization.to_qdq(graph, [x], target=target, method="max")
    found = scales(made)
    stacked = target == "tensorrt"  # ONNX Runtime has no kernel for a stack with scales of its own
    assert found["left"] == (6, 0) and found.get("stack") == ((7, 2) if stacked else None)
    assert quantization.placement(made).quantized == (("left", "stacked") if stacked else ("left",))
    values = {w.name: numpy_helper.to_array(w) for w in made.model().graph.initializer}
    np.testing.assert_allclose(values["left_scale"], np.abs(left).max(1) / 127, rtol=1e-5)
    if stacked:
        np.testing.assert_allclose(values["stack_scale"], np.abs(stack).max((0, 1)) / 127, rtol=1e-5)
    exact = run(graph, {"x": x})["y"]
    for level in ("off",) if stacked else ("off", "all"):
        answer = run(made, {"x": x}, level)["y"]
        assert np.linalg.norm(answer - exact) < 0.02 * np.linalg.norm(exact), level
    one = quantization.to_qdq(graph, [x], target=target, method="max", per_channel=False)
    assert scales(one)["left"][0] == 1


def normed(folder):
    """A normalization over two axes, a convolution in groups with a bias turned round, and a batch norm in front."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s", "b"], ["l"], "norm", axis=2),
        helper.make_node("BatchNormalization", ["l", "bs", "bb", "bm", "bv"], ["n"], "before"),
        helper.make_node("Conv", ["n", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("ConvTranspose", ["c", "t", "tb"], ["y"], "turned", group=2),
    ]
    arrays = {
        "s": spread(4, 5) + 1, "b": spread(4, 5), "bs": spread(6) + 1, "bb": spread(6), "bm": spread(6),
        "bv": np.abs(spread(6)) + 0.5, "w": spread(8, 6, 3, 3), "t": spread(8, 3, 2, 2), "tb": spread(6),
    }  # fmt: skip
    return saved(
        folder, nodes, [value("x", "n", 6, 4, 5)], [value("y", "n", 6, 5, 6)], [weight(n, a) for n, a in arrays.items()]
    )


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_norms_that_nobody_folds_stay_as_they_are(target, tmp_path):
    graph = normed(tmp_path)
    x = RNG.standard_normal((3, 6, 4, 5)).astype(np.float32)
    made = quantization.to_qdq(graph, [x], target=target, method="max")
    placed = quantization.placement(made)
    assert placed.quantized == (("conv", "turned") if target == "tensorrt" else ("conv",))
    exact = run(graph, {"x": x})["y"]
    for level in ("off", "all"):
        answer = run(made, {"x": x}, level)["y"]
        assert np.linalg.norm(answer - exact) < 0.03 * np.linalg.norm(exact), level


class Unfolded(nn.Module):
    """A batch norm before its convolution, as in DenseNet, and one behind a dense layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)
        self.dense, self.flat = nn.Linear(8, 6), nn.BatchNorm1d(6)
        for norm in (self.norm, self.flat):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        return self.flat(self.dense(torch.relu(self.conv(torch.relu(self.norm(x)))).mean((2, 3))))


def test_batch_norms_are_refused_where_a_convolution_could_take_them_in(tmp_path):
    torch.manual_seed(0)
    net, x = Unfolded().eval(), torch.randn(8, 3, 6, 6)
    graph = export.to_onnx(net, x, path=tmp_path / "net.onnx")
    assert graph.ops["BatchNormalization"] == 2  # no exporter can fold them
    for target in quantization.TARGETS:
        made = quantization.to_qdq(graph, [x.numpy()], target=target, method="max")
        exact, answer = net(x).detach().numpy(), run(made, {"input": x.numpy()})["output"]
        assert np.linalg.norm(answer - exact) < 0.03 * np.linalg.norm(exact), target
        assert len(quantization.placement(made).quantized) == 2
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    graph = export.to_onnx(block, x, fold_batchnorm=False, path=tmp_path / "block.onnx")
    with pytest.raises(BadInput, match=r"BatchNormalization×1 behind convolutions.*fold_batchnorm=True, or let ONNX"):
        quantization.to_qdq(graph, [x.numpy()])
    folded = export.load(runtimes.OnnxRuntime(graph, optimization="basic").executed.path)  # as the message says
    made = quantization.to_qdq(folded, [x.numpy()], method="max")
    exact = block(x).detach().numpy()
    assert np.linalg.norm(run(made, {"input": x.numpy()})["output"] - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_an_input_that_is_handed_out_stays_what_it_is(target, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")]
    graph = saved(
        tmp_path, nodes, [value("x", "n", 4)], [value("y", "n", 5), value("x", "n", 4)], [weight("w", spread(4, 5))]
    )
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    known = quantization.calibrate(graph, [x], target="onnxruntime")
    assert known["x"].counts.sum() == x.size  # each number once
    made = quantization.to_qdq(graph, [x], target=target, method="max")
    assert list(made.outputs) == ["y", "x"] and quantization.placement(made).quantized == ("layer",)
    answer = run(made, {"x": x})
    assert (answer["x"] == x).all() and np.abs(answer["y"] - run(graph, {"x": x})["y"]).max() < 0.05


@pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT that builds here")
def test_tensorrt_takes_scales_along_these_axes(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["left", "x"], ["h"], "left"),
        helper.make_node("MatMul", ["h", "stack"], ["y"], "stacked"),
    ]
    weights = [weight("left", spread(6, 4)), weight("stack", spread(1, 5, 7, axis=2))]
    graph = saved(tmp_path, nodes, [value("x", 2, 4, 5)], [value("y", 2, 6, 7)], weights)
    made = quantization.to_qdq(graph, [RNG.standard_normal((2, 4, 5)).astype(np.float32)], method="max")
    assert build.engine(made, precision="int8", optimization_level=0, progress=False).precisions["int8"]


@pytest.mark.parametrize(
    "borders, wide",
    [((0, 6), False), ((-1, 3), False), (("", 6), False), ((0, ""), False), ((1, 3), True), ((-1, -0.5), True)],
)
def test_a_clip_that_lets_zero_pass_is_no_hindrance(tmp_path, borders, wide):
    """Codes reach from the border to the other and always hold zero; where zero is cut off they would clip too little."""
    names = [name if border != "" else "" for name, border in zip(("low", "high"), borders)]
    numbers = [weight(name, np.float32(border)) for name, border in zip(names, borders) if name]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "layer"),
        helper.make_node("Clip", ["h", *names], ["y"], "clip"),
    ]
    graph = saved(tmp_path, nodes, [value("x", "n", 4)], [value("y", "n", 5)], [weight("w", spread(4, 5)), *numbers])
    assert qdq_nodes.stays_wide(graph.model()) == ({"clip"} if wide else set())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_table_is_uneven_along_the_axis_that_is_looked_up(tmp_path, axis):
    for uneven in (0, 1):
        table = np.ones((6, 5), np.float32) * np.logspace(-3, 0, (6, 5)[uneven]).reshape([(-1, 1), (1, -1)][uneven])
        table = table.astype(np.float32)
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["h"], "lookup", axis=axis),
            helper.make_node("MatMul", ["h", "w"], ["y"], "layer"),
        ]
        ids = helper.make_tensor_value_info("ids", T.INT64, [3])
        weights = [weight("table", table), weight("w", spread(5 if axis == 0 else 3, 4))]
        graph = saved(tmp_path, nodes, [ids], [value("y", None, 4)], weights)
        assert kept_wide.lookups(graph.model()) == ({"lookup"} if uneven == axis else set())


@pytest.mark.parametrize(
    ("bias", "settings", "plain"),
    [
        (np.float32([0.5]), {"beta": 2.0}, [1.0] * 5),  # one number for all columns, and a factor
        (np.float32([0.5]), {"beta": 2.0, "transB": 1}, [1.0] * 5),
        (np.float32([1, 2, 3, 4, 5]), {"beta": 0.5}, [0.5, 1, 1.5, 2, 2.5]),
        (np.float32([[1, 2, 3, 4, 5]]), {"beta": 3.0}, [3, 6, 9, 12, 15]),
        (np.float32([1, 2, 3, 4, 5]), {}, None),  # plain already
        (np.float32([[1], [2]]), {"beta": 2.0}, None),  # a number a row is no bias of the columns
    ],
)
def test_the_bias_of_a_product_becomes_one_number_a_column(bias, settings, plain):
    shape = (5, 3) if settings.get("transB") else (3, 5)
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), "w"), numpy_helper.from_array(bias, "b")]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense", **settings)
    model = model_of([node], [value("x", 2, 3)], [value("y", 2, 5)], weights)
    qdq_nodes.plain_biases(model)
    (node,) = model.graph.node
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    beta = next((each.f for each in node.attribute if each.name == "beta"), 1.0)
    if plain is None:
        assert node.input[2] == "b" and beta == settings.get("beta", 1.0)
    else:
        assert held[node.input[2]].tolist() == plain and beta == 1.0
