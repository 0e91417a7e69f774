"""Three hundred small graphs drawn by seed: cast, quantized, fixed to a batch and taken apart, against the plain answer.

The judge is ONNX Runtime without any optimization, on the graph as it was drawn.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx_files import off, saved, value

from labsupport import export, precision, quantization
from labsupport.export import surgery

SEEDS = 300
POINTWISE = ("Relu", "Sigmoid", "Tanh", "Softplus", "Abs", "Neg", "HardSwish", "Identity")


class Drawing:
    """A chain of layers on (n, 6, 5, 5) with side branches, whose names are now and then those that tools invent."""

    def __init__(self, seed: int) -> None:
        self.rng, self.nodes, self.weights, self.live = np.random.default_rng(seed), [], [], ["x"]
        for _ in range(int(self.rng.integers(3, 8))):
            self.step()
        self.flat()

    def array(self, *shape):
        spread = np.logspace(-1, 0.3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return (self.rng.standard_normal(shape) * spread / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def name(self, base: str) -> str:
        trap = str(self.rng.choice(["", "", ".fp16", ".computed", ".own", "_quantized", "_scale", ".exact"]))
        name = f"{base}{len(self.nodes)}"
        return f"{self.live[-1]}{trap}" if trap and f"{self.live[-1]}{trap}" not in self.all() else name

    def all(self) -> set:
        return {t for node in self.nodes for t in node.output} | {w.name for w in self.weights} | {"x"}

    def put(self, op: str, reads, **attributes) -> str:
        out = self.name("t")
        given = f"{op}_{self.rng.integers(9)}" if self.rng.random() < 0.3 else ""
        taken = {node.name for node in self.nodes}
        self.nodes.append(helper.make_node(op, reads, [out], "" if given in taken else given, **attributes))
        return out

    def weight(self, values) -> str:
        """A weight as itself, or behind a node: a Constant, an Identity, or a Transpose of the other order."""
        name = f"w{len(self.weights) + len(self.nodes)}"
        kind = self.rng.integers(4)
        if kind == 0:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
            return name
        if kind == 1:
            order = list(range(values.ndim))[::-1]
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values.transpose(order)), name))
            self.nodes.append(helper.make_node("Transpose", [name], [f"{name}t"], perm=order))
            return f"{name}t"
        self.weights.append(numpy_helper.from_array(values, name))
        if kind == 2:
            self.nodes.append(helper.make_node("Identity", [name], [f"{name}i"]))
            return f"{name}i"
        return name

    def step(self) -> None:
        x, kind = self.live[-1], self.rng.integers(5)
        if kind == 0:
            y = self.put("Conv", [x, self.weight(self.array(6, 6, 3, 3)), self.weight(self.array(6))], pads=[1] * 4)
        elif kind == 1:
            y = self.put("Conv", [x, self.weight(self.array(6, 1, 3, 3))], pads=[1] * 4, group=6)
        elif kind == 2:
            y = self.put("Add", [x, str(self.rng.choice(self.live))])
        elif kind == 3:
            y = self.put("Mul", [x, self.weight(self.array(6, 1, 1))])
        else:
            y = self.put(str(self.rng.choice(POINTWISE)), [x])
        self.live.append(y)

    def flat(self) -> None:
        rows = self.put("Flatten", [self.put("GlobalAveragePool", [self.live[-1]])])
        if self.rng.random() < 0.5:
            self.put("Gemm", [rows, self.weight(self.array(4, 6)), self.weight(self.array(4))], transB=1)
        else:
            self.put("MatMul", [rows, self.weight(self.array(6, 4))])
        self.nodes[-1].output[0] = "y"

    def saved(self, folder) -> export.OnnxGraph:
        ends = [value("x", ["n", 6, 5, 5])], [value("y", ["n", 4])]
        return saved(folder, self.nodes, *ends, self.weights, name="drawn")


def plain(graph, feed) -> dict:
    """What ONNX Runtime answers without optimization, by output."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    session = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed)))


@pytest.mark.parametrize("part", range(6))
def test_every_change_of_a_drawn_graph_answers_as_the_graph(part, tmp_path):
    for seed in range(part * SEEDS // 6, (part + 1) * SEEDS // 6):
        graph = Drawing(seed).saved(tmp_path)
        feed = {"x": np.random.default_rng(seed).standard_normal((5, 6, 5, 5)).astype(np.float32)}
        exact = plain(graph, feed)["y"]
        assert np.abs(exact).max() > 1e-6, seed
        cast = precision.cast(graph, path=tmp_path / "cast.onnx")
        assert off(exact, plain(precision.rounded(cast, path=tmp_path / "r.onnx"), feed)["y"]) < 0.02, seed
        wide = {node for node, kind in precision.node_types(cast).items() if kind == "fp32"}
        assert not wide, (seed, wide)  # HardSwish, Softplus and their like have FP16 at opset 17
        fixed = export.at_batch(graph, 5, path=tmp_path / "five.onnx")
        assert fixed.inputs["x"][0] == (5, 6, 5, 5) and fixed.outputs["y"][0] == (5, 4), seed
        np.testing.assert_array_equal(plain(fixed, feed)["y"], exact)
        inner = [node.output[0] for node in graph.model().graph.node if node.op_type not in ("Constant", "Transpose")]
        shown = plain(export.exposed(graph, inner, path=tmp_path / "shown.onnx"), feed)
        assert set(inner) <= set(shown) and (shown["y"] == exact).all(), seed


@pytest.mark.parametrize("target", quantization.TARGETS)
def test_a_quantized_drawn_graph_is_near_and_has_a_scale_for_each_channel(target, tmp_path):
    errors = []
    for seed in range(0, SEEDS, 3):
        graph = Drawing(seed).saved(tmp_path)
        feed = {"x": np.random.default_rng(seed).standard_normal((8, 6, 5, 5)).astype(np.float32)}
        exact = plain(graph, feed)["y"]
        made = quantization.to_qdq(graph, [feed], target=target, method="max", path=tmp_path / "q.onnx")
        errors.append(off(exact, plain(made, feed)["y"]))
        assert errors[-1] < 0.25, seed  # a mean over places that cancels has little left to be near to
        placed = quantization.placement(made)
        assert not placed.wide, (seed, placed.wide)
        model = made.model()
        sizes = {w.name: w.dims[0] for w in model.graph.initializer if len(w.dims) == 1}
        maker = {node.output[0]: node for node in model.graph.node}
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                assert sizes[maker[node.input[1]].input[1]] == (6 if node.op_type == "Conv" else 4), (seed, node.name)
    assert np.median(errors) < 0.02


def test_invented_names_meet_none_of_the_graph(tmp_path):
    names = surgery.Names(Drawing(3).saved(tmp_path).model())
    first, second = names.free("y"), names.free("y")
    assert first == "y_2" and second == "y_3" and names.free("nobody") == "nobody"
    assert names.free("nobody") == "nobody_2"
    onnx.checker.check_model(Drawing(3).saved(tmp_path).model())
