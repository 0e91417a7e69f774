"""What a kernel of ONNX Runtime is said to hold is what its numbers say, on networks that the runtime rewrites."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from by_value import faults
from onnx import TensorProto, helper, numpy_helper
from plan_samples import LEVELS, onnx_file

from labsupport import export, fusion, quantization, runtimes
from labsupport.fusion import executed_nodes, executed_plan, executed_values
from labsupport.fusion.onnx_nodes import nodes_of

draw = np.random.default_rng(7)


def w(*shape):
    return (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def conv(name, source, channels):
    return name, "Conv", [source, f"{name}.w", f"{name}.b"], [f"{name}.y"], {"pads": [1] * 4}, channels


def network(path, nodes, inputs, output, weights=(), **options):
    """A file of nodes; those of ``conv`` bring their weights."""
    weights = dict(weights)
    for node in nodes:
        if len(node) == 6:
            weights |= {f"{node[0]}.w": w(node[5][1], node[5][0], 3, 3), f"{node[0]}.b": w(node[5][1])}
    return onnx_file(path, [node[:5] for node in nodes], inputs, [output], weights, **options)


def silu(path):
    nodes = []
    for name, source, ins in (("a", "x", 3), ("b", "a.z", 12), ("c", "s", 12)):
        nodes += [conv(name, source, (ins, 12))]
        nodes += [(f"{name}.g", "Sigmoid", [f"{name}.y"], [f"{name}.g"], {})]
        nodes += [(f"{name}.m", "Mul", [f"{name}.y", f"{name}.g"], [f"{name}.z"], {})]
        nodes += [("add", "Add", ["a.z", "b.z"], ["s"], {})] if name == "b" else []
    return network(path, nodes, [("x", [2, 3, 9, 9])], ("c.z", [2, 12, 9, 9]))


def plain(path, named=True):
    nodes = [
        conv("a", "x", (3, 10)),
        ("r", "Relu", ["a.y"], ["r.y"], {}),
        ("p", "MaxPool", ["r.y"], ["p.y"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        conv("b", "p.y", (10, 10)),
        ("s", "Add", ["b.y", "p.y"], ["s.y"], {}),
        ("q", "Relu", ["s.y"], ["q.y"], {}),
        ("g", "GlobalAveragePool", ["q.y"], ["g.y"], {}),
        ("f", "Flatten", ["g.y"], ["f.y"], {}),
        ("h", "Gemm", ["f.y", "h.w"], ["y"], {}),
    ]
    nodes = nodes if named else [("", *node[1:]) for node in nodes]
    extra = {"h.w": w(10, 5)} | ({} if named else {"a.w": w(10, 3, 3, 3), "a.b": w(10)})
    extra |= {} if named else {"b.w": w(10, 10, 3, 3), "b.b": w(10)}
    nodes = nodes if named else [node[:5] for node in nodes]
    return network(path, nodes, [("x", [2, 3, 12, 12])], ("y", [2, 5]), extra)


def int8(path):
    samples = [draw.standard_normal((2, 3, 12, 12)).astype(np.float32) for _ in range(4)]
    return quantization.to_qdq(plain(path.with_suffix(".fp32.onnx")), samples, target="onnxruntime", path=path)


def linear_3d(path):
    nodes = [
        ("m", "MatMul", ["x", "m.w"], ["m.y"], {}),
        ("a", "Add", ["m.y", "a.b"], ["a.y"], {}),
        ("t", "Tanh", ["a.y"], ["t.y"], {}),
        ("n", "MatMul", ["t.y", "n.w"], ["n.y"], {}),
        ("c", "Add", ["n.y", "c.b"], ["y"], {}),
    ]
    weights = {"m.w": w(16, 24), "a.b": w(24), "n.w": w(24, 5), "c.b": w(5)}
    return network(path, nodes, [("x", [2, 10, 16])], ("y", [2, 10, 5]), weights)


def activations(path):
    nodes = [
        conv("a", "x", (3, 8)),
        ("h", "HardSwish", ["a.y"], ["h.y"], {}),
        ("k", "Mul", ["h.y", "k.c"], ["k.y"], {}),
        ("k1", "Sigmoid", ["k.y"], ["k1.y"], {}),
        ("k2", "Mul", ["h.y", "k1.y"], ["k2.y"], {}),
        ("m", "Mish", ["k2.y"], ["m.y"], {}),
        ("n", "GroupNormalization", ["m.y", "n.s", "n.b"], ["n.y"], {"num_groups": 2}),
        conv("z", "n.y", (8, 4)),
    ]
    weights = {"k.c": np.array(1.702, np.float32), "n.s": w(8) + 1, "n.b": w(8)}
    return network(path, nodes, [("x", [1, 3, 7, 7])], ("z.y", [1, 4, 7, 7]), weights, opset=21)


def functions(path):
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Mul", ["b", "a"], ["c"])]
    body += [helper.make_node("Exp", ["c"], ["d"])]
    function = helper.make_function("mine", "F", ["a"], ["d"], body, [helper.make_opsetid("", 18)])
    nodes = [("f", "F", ["x"], ["h"], {"domain": "mine"}), ("e", "Neg", ["h"], ["n"], {})]
    nodes += [("f2", "F", ["n"], ["y"], {"domain": "mine"})]
    return network(path, nodes, [("x", [3, 4])], ("y", [3, 4]), opset=18, functions=[function])


def halves(path):
    nodes = [("g0", "Gather", ["x", "i0"], ["a"], {"axis": 1}), ("g1", "Gather", ["x", "i1"], ["b"], {"axis": 1})]
    nodes += [("s", "Sub", ["a", "b"], ["y"], {})]
    weights = {"i0": np.array(0), "i1": np.array(1)}
    return network(path, nodes, [("x", [3, 2, 5])], ("y", [3, 5]), weights)


def branch(path):
    """An If whose condition is a constant: the runtime puts the branch in its place."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 6])  # noqa: E731
    then = [helper.make_node("Exp", ["x"], ["t1"]), helper.make_node("Sin", ["t1"], ["t2"])]
    other = [helper.make_node("Neg", ["x"], ["o1"])]
    bodies = {
        "then_branch": helper.make_graph(then, "then", [], [value("t2")]),
        "else_branch": helper.make_graph(other, "else", [], [value("o1")]),
    }
    nodes = [("i", "If", ["true"], ["b"], bodies), ("r", "Tanh", ["b"], ["y"], {})]
    return network(path, nodes, [("x", [2, 6])], ("y", [2, 6]), {"true": np.array(True)})


def half(path):
    graph = plain(path.with_suffix(".fp32.onnx"))
    from labsupport import precision

    return precision.cast(graph, "fp16", path=path)


NETWORKS = [silu, plain, int8, linear_3d, activations, functions, halves, branch, half]


def feed_of(graph):
    kinds = {"fp16": np.float16}
    return {
        name: draw.standard_normal(shape).astype(kinds.get(dtype, np.float32))
        for name, (shape, dtype) in graph.inputs.items()
    }


def checked(graph, level, loose=0.0):
    """The X-ray of a graph at a level, after its numbers have borne it out and no kernel that works was left empty."""
    run = runtimes.OnnxRuntime(graph, optimization=level)
    plan = fusion.xray(run)
    assert not faults(plan, graph.path, run.executed.path, feed_of(graph), loose), level
    books = plan.accounts()
    assert books.balanced and books.complete, books
    empty = {kernel.layer_type for kernel in plan.launched if not kernel.nodes}
    assert empty <= {"ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Transpose"}, empty
    return plan


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_every_kernel_holds_what_its_numbers_say(make, tmp_path):
    graph = make(tmp_path / "net.onnx")
    loose = 0.3 if make is int8 else 0.02 if make is half else 0.0
    for level in LEVELS:
        checked(graph, level, loose)


@pytest.mark.parametrize("level", LEVELS)
def test_the_workbooks_networks_hold_what_their_numbers_say(workpieces, level):
    for name in ("resnet18", "article", "mobilenet"):
        run = runtimes.OnnxRuntime(workpieces[name], optimization=level)
        shape = [2 if isinstance(axis, str) else axis for axis in next(iter(run.graph.inputs.values()))[0]]
        feed = {next(iter(run.graph.inputs)): draw.standard_normal(shape).astype(np.float32)}
        plan = fusion.xray(run)
        assert plan.accounts().complete and not faults(plan, run.graph.path, run.executed.path, feed), name


def test_who_swallowed_whom(tmp_path):
    plan = checked(linear_3d(tmp_path / "l.onnx"), "all")
    gemms = [kernel.nodes for kernel in plan.kernels if kernel.layer_type == "Gemm"]
    assert gemms == [("m", "a"), ("n", "c")]
    plan = checked(silu(tmp_path / "s.onnx"), "all")
    gelus = [kernel.nodes for kernel in plan.kernels if kernel.layer_type == "QuickGelu"]
    assert gelus == [("a.g", "a.m"), ("b.g", "b.m"), ("c.g", "c.m")] and plan.kernel_of("add").nodes == ("add",)
    plan = checked(int8(tmp_path / "q.onnx"), "all", 0.3)
    convolutions = [kernel for kernel in plan.kernels if kernel.layer_type == "QLinearConv"]
    holders = [node for kernel in convolutions for node in kernel.nodes if plan.graph.by_name[node].op == "Conv"]
    assert holders == ["a", "b"]


def test_one_node_in_several_kernels_is_split_and_ends_in_the_last(tmp_path):
    plan = checked(functions(tmp_path / "f.onnx"), "basic")
    homes = {node: [k for k in plan.kernels if node in k.nodes] for node in ("f", "e", "f2")}
    assert {node: len(kernels) for node, kernels in homes.items()} == {"f": 3, "e": 1, "f2": 3}
    assert [list(k.ends.values()) for k in homes["f2"]] == [[], [], ["y"]] and set(plan.accounts().split) == {"f", "f2"}
    plan = checked(branch(tmp_path / "b.onnx"), "basic")
    assert [k.layer_type for k in plan.kernels if k.nodes == ("i",)] == ["Exp", "Sin"] and not plan.kernel_of(
        "r"
    ).inferred


def test_without_values_a_doubt_stays_a_doubt(tmp_path, monkeypatch):
    """Four kernels between two tensors with known names: nobody can say which node is in which."""
    graph = silu(tmp_path / "s.onnx")
    run = runtimes.OnnxRuntime(graph, optimization="all")
    blind = fusion.xray(run.executed, graph=nodes_of(graph))  # nodes alone cannot be run
    books = blind.accounts()
    assert not books.complete and books.balanced and "compute what nobody knows" in repr(books)
    assert {k.layer_type for k in blind.kernels if k.doubtful} >= {"QuickGelu"} and books.unplaced
    assert set(books.unowned) == {k.name for k in blind.kernels if k.doubtful}
    monkeypatch.setattr(executed_values, "_feeds", lambda inputs: iter(()))
    assert not fusion.xray(run).accounts().complete  # no data that the network takes


def test_a_kernel_that_computes_and_names_no_node_is_never_a_copy(tmp_path):
    """TensorRT's plans: a layer of the builder's own may be a copy, and a convolution without a node is none."""
    graph = linear_3d(tmp_path / "l.onnx")
    border = {"Inputs": [], "Outputs": []}
    layers = [{"Name": "m + a + t + n + c", "LayerType": "gemm", **border}]
    assert fusion.xray({"Layers": layers}, graph=graph).accounts().complete
    copy = {"Name": "Reformatting CopyNode for Input Tensor 0 to m", "LayerType": "Reformat", **border}
    assert fusion.xray({"Layers": [copy, *layers]}, graph=graph).accounts().complete
    books = fusion.xray({"Layers": [*layers, {"Name": "other", "LayerType": "gemm", **border}]}, graph=graph).accounts()
    assert not books.complete and books.unowned == ("other",) and not books.unplaced


def test_twins_count_as_removed_only_where_one_is_placed(tmp_path):
    nodes = [
        ("a", "Exp", ["x"], ["a.y"], {}),
        ("b", "Exp", ["x"], ["b.y"], {}),
        ("c", "Mul", ["a.y", "b.y"], ["y"], {}),
    ]
    graph = onnx_file(tmp_path / "t.onnx", nodes, [("x", [4])], [("y", [4])])
    books = fusion.xray({"Layers": ["a", "c"]}, graph=graph).accounts()
    assert dict(books.removed) == {"b": "computes the same as a"} and books.complete
    books = fusion.xray({"Layers": ["c"]}, graph=graph).accounts()
    assert books.unplaced == ("a", "b") and not books.removed


def test_a_node_that_two_moving_layers_name_is_held_once(tmp_path):
    graph = linear_3d(tmp_path / "l.onnx")
    layers = [
        {"Name": name, "LayerType": "shuffle", "Metadata": "[ONNX Layer: m]", "Inputs": []} for name in ("p", "q")
    ]
    plan = fusion.xray({"Layers": layers}, graph=graph)
    assert [(k.nodes, k.parts) for k in plan.kernels] == [(("m",), ()), ((), ("m",))] and not plan.accounts().split


def test_values_tell_orders_types_and_near_misses():
    """The digest is blind to the order and to a scale, and to nothing else."""
    x = draw.standard_normal((4, 6, 5)).astype(np.float32)
    other = x.copy()
    other[0] = other[0] * 1.5
    step = np.abs(x).max() / 127
    reference = {"x": x, "r": np.maximum(x, 0), "o": other, "s": 2 * x}
    executed = {"same": x + 1e-7, "turned": x.transpose(2, 0, 1), "int8": np.rint(x / step).astype(np.int8)}
    digest = executed_values._digest
    values = executed_values.Values(
        {name: digest(array) for name, array in reference.items()},
        {name: [digest(array)] for name, array in executed.items()},
    )
    assert values.like("same") == {"x": False} and values.like("turned") == {"x": True}
    assert set(values.like("int8")) >= {"x"} and "r" not in values.like("int8")
    assert not values.weak("same") and digest(np.zeros(9, np.float32)).weak and digest(np.arange(3)).weak


def test_blocked_channels_are_put_in_order():
    block = executed_values._block()
    assert block in (4, 8, 16, 32)
    plain = draw.standard_normal((2, 2 * block, 3, 5)).astype(np.float32)
    stored = plain.reshape(2, 2, block, 3, 5).transpose(0, 1, 3, 4, 2).reshape(plain.shape)
    sizes = {count * 30 for count in (block, block + 1, 2 * block)} | {60 * block - 7}
    views = executed_values._unblocked(stored, sizes)
    assert [view.shape[1] for view in views] == [block + 1, 2 * block] and np.array_equal(views[1], plain)


def test_weights_beside_the_file_are_found(tmp_path):
    graph = silu(tmp_path / "s.onnx")
    model = onnx.load(str(graph.path))
    (tmp_path / "apart").mkdir()
    onnx.save(model, str(tmp_path / "apart/e.onnx"), save_as_external_data=True, location="e.bin", size_threshold=0)
    plan = fusion.xray(runtimes.OnnxRuntime(tmp_path / "apart/e.onnx"))
    assert plan.accounts().complete and [k.nodes for k in plan.kernels if k.layer_type == "QuickGelu"][0] == (
        "a.g",
        "a.m",
    )


def test_large_tensors_are_fetched_in_turns(tmp_path, monkeypatch):
    graph = silu(tmp_path / "s.onnx")
    whole = [kernel.nodes for kernel in fusion.xray(runtimes.OnnxRuntime(graph)).kernels]
    sessions = []
    made = executed_values._session
    monkeypatch.setattr(executed_values, "_session", lambda *args: sessions.append(args) or made(*args))
    monkeypatch.setattr(executed_values, "CHUNK_BYTES", 20_000)
    assert [kernel.nodes for kernel in fusion.xray(runtimes.OnnxRuntime(graph)).kernels] == whole
    assert len(sessions) > 4


def random_graph(path, seed):
    """Twelve steps on (2, 8, 6, 6), each on one or two tensors made before: what the runtime likes to rewrite."""
    pick = np.random.default_rng(seed)
    nodes, weights, made = [], {}, ["x"]
    for step in range(12):
        a, b, out = (*pick.choice(made[-4:], 2), f"t{step}")
        kind = pick.choice(["conv", "silu", "relu", "add", "turn", "linear", "same", "norm", "pool", "twin", "flat"])
        if kind == "conv":
            weights |= {f"{out}w": w(8, 8, 3, 3), f"{out}b": w(8)}
            nodes.append((out, "Conv", [a, f"{out}w", f"{out}b"], [out], {"pads": [1] * 4}))
        elif kind == "linear":
            weights |= {f"{out}w": w(6, 6), f"{out}b": w(6)}
            nodes.append((f"{out}m", "MatMul", [a, f"{out}w"], [f"{out}m"], {}))
            nodes.append((out, "Add", [f"{out}m", f"{out}b"], [out], {}))
        elif kind == "silu":
            nodes.append((f"{out}g", "Sigmoid", [a], [f"{out}g"], {}))
            nodes.append((out, "Mul", [a, f"{out}g"], [out], {}))
        elif kind == "turn":
            nodes.append((f"{out}t", "Transpose", [a], [f"{out}t"], {"perm": [0, 2, 3, 1]}))
            nodes.append((f"{out}e", "Tanh", [f"{out}t"], [f"{out}e"], {}))
            nodes.append((out, "Transpose", [f"{out}e"], [out], {"perm": [0, 3, 1, 2]}))
        elif kind == "flat":
            weights |= {"flat": np.array([2, 48, 6]), "back": np.array([2, 8, 6, 6])}
            nodes.append((f"{out}r", "Reshape", [a, "flat"], [f"{out}r"], {}))
            nodes.append((f"{out}s", "Softmax", [f"{out}r"], [f"{out}s"], {"axis": -1}))
            nodes.append((out, "Reshape", [f"{out}s", "back"], [out], {}))
        elif kind == "norm":
            weights |= {f"{out}{k}": np.abs(w(8)) + 0.5 for k in "sbmv"}
            nodes.append((out, "BatchNormalization", [a, *(f"{out}{k}" for k in "sbmv")], [out], {}))
        elif kind == "twin":
            nodes += [(f"{out}{k}", "Exp", [a], [f"{out}{k}"], {}) for k in "pq"]
            nodes.append((out, "Div", [f"{out}p", f"{out}q"], [out], {}))
        elif kind == "pool":
            pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
            nodes.append((out, pick.choice(["MaxPool", "AveragePool"]), [a], [out], pool))
        else:
            op = {"relu": "Relu", "same": "Identity", "add": "Add"}[kind]
            nodes.append((out, op, [a, b] if op == "Add" else [a], [out], {}))
        made.append(out)
    return onnx_file(path, nodes, [("x", [2, 8, 6, 6])], [(made[-1], [2, 8, 6, 6])], weights)


def test_random_networks_hold_what_their_numbers_say(tmp_path):
    for seed in range(40):
        graph = random_graph(tmp_path / f"{seed}.onnx", seed)
        for level in ("basic", "all"):
            run = runtimes.OnnxRuntime(graph, optimization=level)
            plan = fusion.xray(run)
            books = plan.accounts()
            assert not faults(plan, graph.path, run.executed.path, feed_of(graph)), (seed, level)
            assert books.balanced and books.complete, (seed, level, books)


def test_a_graph_that_folds_away_has_no_kernels(tmp_path):
    nodes = [("c", "Constant", [], ["y"], {"value": numpy_helper.from_array(w(3), "c")})]
    plan = fusion.xray(runtimes.OnnxRuntime(onnx_file(tmp_path / "c.onnx", nodes, [], [("y", [3])])))
    assert not plan.kernels and plan.accounts().complete and "0 kernels" in repr(plan)


def test_another_way_of_asking_gives_the_same(tmp_path):
    """A path, a graph and a model in memory; and the executed graph on its own."""
    graph = plain(tmp_path / "p.onnx", named=False)
    run = runtimes.OnnxRuntime(graph)
    first = [kernel.nodes for kernel in fusion.xray(run).kernels]
    assert [k.nodes for k in fusion.xray(run.executed, graph=str(graph.path)).kernels] == first
    assert executed_plan.kind_of_ops(["Relu", "Conv"]) == "convolution" and executed_nodes.MOVERS
    assert isinstance(graph, export.OnnxGraph)
