"""ONNX Runtime: which nodes each of its kernels computes."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
from plan_samples import LEVELS, onnx_file

from labsupport import fusion, runtimes


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["resnet18", "article", "mobilenet", "encoder"])
def test_onnx_runtime_conserves_nodes(workpieces, name, level):
    run = runtimes.OnnxRuntime(workpieces[name], optimization=level)
    plan = fusion.xray(run)
    books = plan.accounts()
    assert books.balanced and books.complete and not books.split, books
    assert len(plan.kernels) == run.executed.nodes
    if level == "off":
        assert all(len(kernel.nodes) == 1 for kernel in plan.kernels)


def test_onnx_runtime_fuses_by_level(workpieces):
    plans = {level: fusion.xray(runtimes.OnnxRuntime(workpieces["resnet18"], optimization=level)) for level in LEVELS}
    assert not plans["basic"].together("/conv1/Conv", "/Relu") and plans["extended"].together("/conv1/Conv", "/Relu")
    block = ("/layer1/layer1.0/conv2/Conv", "/layer1/layer1.0/Add", "/layer1/layer1.0/Relu_1")
    assert not plans["extended"].together(*block)
    if not any("nchwc" in kernel.tactic for kernel in plans["all"].kernels):
        pytest.skip("this processor has no vector layout in ONNX Runtime")
    assert plans["all"].together(*block)
    copies = plans["all"].inserted
    assert [k.layer_type for k in copies] == ["ReorderOutput"] and not plans["extended"].inserted


def test_gelu_and_skip_normalization_are_seen_whole(workpieces):
    plan = fusion.xray(runtimes.OnnxRuntime(workpieces["encoder"], optimization="extended"))
    gelu = plan.kernel_of("/layers/layers.0/Erf")
    assert gelu.layer_type == "BiasGelu" and [n.rsplit("/")[-1] for n in gelu.nodes] == [
        "Add",
        "Div",
        "Erf",
        "Add_1",
        "Mul",
        "Mul_1",
    ]
    norm = plan.kernel_of("/layers/layers.0/norm1/LayerNormalization")
    older = onnxruntime.__version__.startswith("1.23.")  # the last for Python 3.10 leaves the sum before this one alone
    assert norm.layer_type == ("LayerNormalization" if older else "SkipLayerNormalization")
    assert len(norm.nodes) == (1 if older else 3) and norm.precision_in == "fp32"


def test_a_second_reader_is_seen_to_forbid_fusion(tmp_path):
    w = np.full((4, 3, 3, 3), 0.1, np.float32)
    nodes = [("c", "Conv", ["x", "w"], ["y"], {}), ("r", "Relu", ["y"], ["z"], {})]
    alone = onnx_file(tmp_path / "a.onnx", nodes, [("x", [1, 3, 8, 8])], [("z", [1, 4, 6, 6])], {"w": w})
    read = onnx_file(
        tmp_path / "b.onnx", nodes, [("x", [1, 3, 8, 8])], [("z", [1, 4, 6, 6]), ("y", [1, 4, 6, 6])], {"w": w}
    )
    assert fusion.xray(runtimes.OnnxRuntime(alone, optimization="extended")).together("c", "r")
    assert not fusion.xray(runtimes.OnnxRuntime(read, optimization="extended")).together("c", "r")


@pytest.mark.parametrize("level", LEVELS)
def test_codes_made_unsigned_stay_with_their_own_kernel(tmp_path, level):
    nodes = [
        ("q", "QuantizeLinear", ["x", "s", "z"], ["codes"], {}),
        ("dq", "DequantizeLinear", ["codes", "s", "z"], ["back"], {}),
        ("c", "Conv", ["back", "w"], ["y"], {}),
    ]
    weights = {"s": np.float32(0.02), "z": np.int8(0), "w": np.full((3, 2, 3, 3), 0.1, np.float32)}
    weights = {name: np.asarray(value) for name, value in weights.items()}
    graph = onnx_file(tmp_path / "g.onnx", nodes, [("x", [2, 2, 5, 5])], [("y", [2, 3, 3, 3])], weights)
    plan = fusion.xray(runtimes.OnnxRuntime(graph, optimization=level))
    assert plan.accounts().complete and plan.kernel_of("q").nodes == ("q",) and plan.kernel_of("dq").nodes == ("dq",)


def test_identities_twins_and_dead_ends_are_named_not_guessed(tmp_path):
    nodes = [
        ("e1", "Exp", ["x"], ["a"], {}),
        ("e2", "Exp", ["x"], ["b"], {}),
        ("s", "Sin", ["b"], ["c"], {}),
        ("i", "Identity", ["a"], ["d"], {}),
        ("m", "Add", ["c", "d"], ["y"], {}),
        ("dead", "Cos", ["x"], ["nobody"], {}),
        ("k", "Constant", [], ["unused"], {"value_float": 1.0}),
    ]
    graph = onnx_file(tmp_path / "g.onnx", nodes, [("x", [4])], [("y", [4])])
    run = fusion.xray(runtimes.OnnxRuntime(graph, optimization="basic")).accounts()
    assert run.balanced and run.complete
    twin = ({"e1", "e2"} & set(run.removed)).pop()
    assert run.removed[twin] == f"computes the same as {'e2' if twin == 'e1' else 'e1'}"
    books = fusion.xray({"Layers": ["e1", "s", "m"]}, graph=graph).accounts()
    assert books.balanced and books.complete and books.removed["e2"] == "computes the same as e1"
    assert books.removed["dead"] == "nobody reads its result" and books.removed["i"] == "hands its input on unchanged"
    assert books.folded["k"].startswith("hangs on constants alone")


def test_accounts_do_not_close_when_a_kernel_is_withheld(workpieces):
    plan = fusion.xray(runtimes.OnnxRuntime(workpieces["article"], optimization="off"))
    broken = copy.copy(plan)
    object.__setattr__(broken, "kernels", plan.kernels[1:])
    books = broken.accounts()
    assert books.unplaced == plan.kernels[0].nodes and not books.complete and books.balanced


def test_quantized_graph_books_scales(tmp_path):
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": np.full((4, 3, 3, 3), 0.1, np.float32)}
    nodes = [
        ("q", "QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
        ("d", "DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
        ("qw", "QuantizeLinear", ["w", "s", "z"], ["wq"], {}),
        ("dw", "DequantizeLinear", ["wq", "s", "z"], ["wd"], {}),
        ("c", "Conv", ["xd", "wd"], ["y"], {}),
    ]
    graph = onnx_file(tmp_path / "q.onnx", nodes, [("x", [1, 3, 8, 8])], [("y", [1, 4, 6, 6])], weights)
    plan = fusion.xray({"Layers": ["q", "w + qw + c"]}, graph=graph)
    books = plan.accounts()
    assert books.balanced and books.complete
    assert books.moved == {"d": "its scale went into the kernels beside it"} and set(books.folded) == {"dw"}
    assert plan.kernel_of("c").nodes == ("qw", "c")
