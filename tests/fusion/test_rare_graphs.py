"""What the X-ray does where a graph is odd: kernels that share work, data nobody takes, names twice, plans of a kind."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure
from onnx_files import model_of, node, value
from plan_samples import onnx_file

from labsupport import fusion, runtimes
from labsupport.errors import BadInput, LabError
from labsupport.fusion import executed_nodes, executed_values, layer_times, onnx_nodes, plan_schema, roofline
from labsupport.fusion.onnx_nodes import Node, NodeGraph
from labsupport.fusion.pictures.canvas import Canvas, GraphDrawing


def chain(*kinds):
    """Kernels in a row, each "op" or "op:name": t0 → t1 → …, as a NodeGraph."""
    made = [
        (kind.partition(":")[0], kind.partition(":")[2] or kind, f"t{i}", f"t{i + 1}") for i, kind in enumerate(kinds)
    ]
    nodes = tuple(Node(name, op, (read,), (write,)) for op, name, read, write in made)
    return NodeGraph(nodes, ("t0",), (f"t{len(kinds)}",))


FREED = "Cast:InsertedPrecisionFreeCast_a"


@pytest.mark.parametrize(
    ("kinds", "work", "shared"),
    [
        (["ReorderInput", "Transpose"], "", ["", ""]),  # copies alone
        (["ReorderInput", FREED], "n", ["n", "n"]),  # what the runtime put in computes the only node
        (["ReorderInput", "Conv"], "n", ["", "n"]),
        (["Reshape", "Conv"], "n", ["n", "n"]),  # one node in two kernels
        (["Reshape", "Conv"], "nm", ["", "nm"]),  # two nodes: the one that computes has them
        (["Conv", "Relu", "ReorderInput"], "nm", [None, None, ""]),  # two that compute: nobody can say which
        (["Conv", "ReorderOutput"], "", [None, ""]),
        (["Transpose", "ReorderOutput"], "nm", [None, ""]),
        (["Transpose", "Cast"], "nm", [None, None]),  # a cast of the network's own is no insertion
    ],
)
def test_what_kernels_share_that_no_known_tensor_parts(kinds, work, shared):
    executed = chain(*kinds)
    search = executed_nodes._Search(chain("Neg"), executed)
    names = [None if each is None else set(each) for each in shared]
    assert list(search._shared(list(executed.nodes), set(work)).values()) == names


def test_a_copy_beside_the_one_that_computes_ends_in_what_it_copies():
    executed = chain("ReorderInput", "Conv", "ReorderOutput")
    search = executed_nodes._Search(chain("Conv"), executed)
    search.ends |= {"t0": "x", "t3": "y"}
    search._shared(list(executed.nodes), {"n"})
    assert search.ends == {"t0": "x", "t1": "x", "t2": "y", "t3": "y"}


@pytest.mark.parametrize(
    ("op", "end", "reads", "copied"),
    [
        ("Reshape", "x", set(), True),  # an input of the network
        ("Neg", "y", set(), False),  # computed, and not read
        ("Cast", "y", {"y"}, True),  # a copy of what is read
        ("Neg", "y", {"y"}, True),  # the same operator again, which changes what it reads
        ("Identity", "i", {"i"}, False),  # itself a node that hands on
        ("Dropout", "i", {"i"}, True),
    ],
)
def test_a_copy_is_told_from_a_node_that_hands_on(op, end, reads, copied):
    nodes = (Node("neg", "Neg", ("x",), ("y",)), Node("same", "Identity", ("y",), ("i",)))
    search = executed_nodes._Search(NodeGraph(nodes, ("x",), ("i",)), chain("Neg"))
    search.same = {}
    assert search._copied(Node("k", op, ("a",), ("b",)), end, reads) is copied


def item(name, kind, *shape):
    return SimpleNamespace(name=name, type=kind, shape=shape)


def test_data_are_drawn_for_every_type_and_length():
    inputs = [item("f", "tensor(float)", 2, "n"), item("b", "tensor(bool)", 3), item("i", "tensor(int64)", "m", "n", 4)]
    tried = list(executed_values._feeds(inputs))
    assert len(tried) == len(executed_values.FREE) * len(executed_values.HIGHEST)
    assert [feed["f"].shape for feed in tried[::3]] == [(2, n) for n in (2, 1, 8, 16, 32, 64, 224, 3)]
    assert {feed["i"].shape[0] for feed in tried} == {2}  # a free batch is two
    first = tried[0]
    assert (first["f"].dtype, first["b"].dtype, first["i"].dtype) == (np.float32, np.bool_, np.int64)
    assert [int(feed["i"].max()) for feed in tried[6:9]] == [7, 1, 0] and first["f"].std() > 0
    assert not list(executed_values._feeds([item("s", "seq(tensor(float))", 1)]))


@pytest.mark.parametrize(("array", "told"), [(np.zeros(0), False), (np.array(["a"]), False), (np.ones(3), True)])
def test_only_numbers_have_a_digest(array, told):
    assert (executed_values._digest(array) is not None) is told


def test_a_digest_keeps_places_and_bounds_what_is_not_finite():
    digest = executed_values._digest(np.array([3.0, np.nan, np.inf, -np.inf], np.float32))
    assert digest.places.tolist() == [3, 0, 1e4, -1e4] and digest.ordered.tolist() == [-1e4, 0, 3, 1e4]
    assert (digest.size, digest.whole, digest.weak) == (4, False, False)
    assert executed_values._digest(np.ones(9, np.uint8)).weak and executed_values._digest(np.arange(3)).weak
    long = executed_values._digest(np.arange(4097))
    assert len(long.places) == 2048 and long.whole and (long.places[0], long.places[-1]) == (0, 4096)


def test_channels_in_blocks_are_put_in_order_for_each_number_that_may_be(monkeypatch):
    monkeypatch.setattr(executed_values, "_block", lambda: 4)
    plain = np.arange(1 * 8 * 1 * 3).reshape(1, 8, 1, 3)
    blocked = plain.reshape(1, 2, 4, 1, 3).transpose(0, 1, 3, 4, 2).reshape(1, 8, 1, 3)
    views = executed_values._unblocked(blocked, {3 * c for c in (4, 5, 8, 9)} | {7})
    assert [view.shape[1] for view in views] == [5, 8]  # four would be one block, nine are too many
    assert all((view == plain[:, : view.shape[1]]).all() for view in views)
    for other in (blocked[:, :6], blocked[0]):
        (same,) = executed_values._unblocked(other, {3})
        assert same is other


def test_a_graph_that_no_data_run_through_has_no_values(tmp_path):
    nodes = [("r", "Reshape", ["x", "s"], ["y"], {})]
    graph = onnx_file(tmp_path / "r.onnx", nodes, [("x", ["n"])], [("y", [7919])], {"s": np.array([7919])})
    read = onnx_nodes.nodes_of(graph)
    assert executed_values.values_of((graph.path, read), (graph.path, read), ["y"], tmp_path) is None
    sound = onnx_file(tmp_path / "n.onnx", [("n", "Neg", ["x"], ["y"], {})], [("x", ["n"])], [("y", ["n"])])
    read = onnx_nodes.nodes_of(sound)
    found = executed_values.values_of((sound.path, read), (sound.path, read), ["y"], tmp_path)
    assert found.like("y") == {"y": False} and found.weak("y")
    broken = tmp_path / "broken.onnx"
    onnx.save(model_of([node("Wonder", ["x"], "y", "w")], [value("x", [1])], [value("y", [1])]), str(broken))
    assert executed_values.values_of((broken, read), (broken, read), ["y"], tmp_path) is None


def test_a_runtime_of_another_graph_is_refused(tmp_path):
    one, other = (
        onnx_file(tmp_path / f"{name}.onnx", [(name, "Neg", ["x"], ["y"], {})], [("x", [4])], [("y", [4])])
        for name in ("one", "other")
    )
    with pytest.raises(
        BadInput, match="runs one.onnx, in which no node is named like 'other' of graph=; pass the graph"
    ):
        fusion.xray(runtimes.OnnxRuntime(one), graph=other)


def test_graphs_read_aloud_and_names_that_come_twice(tmp_path):
    nodes = [node("Neg", ["x"], "a", "n"), node("Exp", ["a"], "b", "n"), node("Abs", ["b"], "y", "n")]
    graph = onnx_nodes.nodes_of(model_of(nodes, [value("x", [4])], [value("y", [4])]))
    assert [each.name for each in graph.nodes] == ["n", "n'", "n''"] and repr(graph.nodes[1]) == "Exp n'"
    assert repr(graph) == "NodeGraph(3 nodes, 1 inputs, 1 outputs)"
    silent = model_of([], [value("x", [4])], [value("y", [4])])
    silent.graph.node.add(op_type="Neg", input=["x"])
    silent.graph.node.add(op_type="Neg", input=["x"])
    assert [each.name for each in onnx_nodes.nodes_of(silent).nodes] == ["node_of_0", "node_of_1"]


def test_types_that_contradict_each_other_are_what_the_file_says(tmp_path):
    model = model_of([node("Neg", ["x"], "y", "n")], [value("x", [4])], [value("y", [2, 2])])
    assert onnx_nodes.nodes_of(model).types == {"x": ("fp32", (4,)), "y": ("fp32", (2, 2))}


@pytest.mark.parametrize("call", [fusion.table, fusion.draw, fusion.time_bar])
def test_what_is_no_plan_is_said(call):
    with pytest.raises(BadInput, match=r"a dict came; wanted is a plan: fusion.xray\(engine, graph=graph\)"):
        call({})


def test_times_are_read_from_a_file_and_a_graph_that_cannot_be_loaded_again_is_told(tmp_path):
    (tmp_path / "times.json").write_text(json.dumps([{"name": "a", "timeMs": 2}]))
    for path in (tmp_path / "times.json", str(tmp_path / "times.json")):
        assert layer_times.times_of(path) == {"a": 2.0}
    graph = onnx_file(tmp_path / "n.onnx", [("n", "Neg", ["x"], ["y"], {})], [("x", [4])], [("y", [4])])
    run, broken = runtimes.OnnxRuntime(graph), graph.model()
    broken.graph.node[0].op_type = "Wonder"
    with pytest.raises(
        LabError,
        match='cannot be loaded again to time its nodes: .*profile it at\noptimization="basic"'.replace("\n", " "),
    ):
        layer_times._traced(run, broken, tmp_path, str(tmp_path / "trace"))


def test_tensors_of_a_name_alone_and_plans_of_a_recording():
    assert plan_schema._tensor("x", 0, "p") == plan_schema.Tensor("x", (), "", "")
    plan = {"Layers": ["a", " b  [ONNX Layer: c]"]}
    for source in (plan, {"plan": plan, "machine": {}}, json.dumps({"plan": plan, "machine": {}})):
        assert [(k.name, k.nodes) for k in fusion.xray(source).kernels] == [("a", ("a",)), ("b", ("c",))]


def test_a_plan_that_was_recorded_needs_its_machine():
    with pytest.raises(BadInput, match=r"no \"Layers\": its keys are \['plan'\]"):
        fusion.xray({"plan": {"Layers": ["a"]}})


@pytest.mark.parametrize(
    ("field", "odd", "said"),
    [
        ("types", {"x": [7, [1]]}, "7 is not a name"),
        ("types", {"x": ["fp32", [[0] * 50]]}, rf"\[{'0, ' * 13} is not a length"),
        ("inputs", "x" * 50, f": {'x' * 40} is not a list of names"),
        ("nodes", [["n" * 0, 8 * 10**49, [], [], ""]], f": 8{'0' * 39} is not a name"),
        ("types", {"x": ["fp32", [True]]}, "True is not a length"),
    ],
)
def test_a_list_of_nodes_that_nobody_wrote_is_named_in_forty_letters(field, odd, said):
    whole = {"inputs": ["x"], "outputs": ["y"], "constants": [], "nodes": [["n", "Neg", ["x"], ["y"], ""]], "types": {}}
    assert onnx_nodes.nodes_of(whole).nodes == (Node("n", "Neg", ("x",), ("y",)),)
    with pytest.raises(BadInput, match=rf"{said}\)$"):
        onnx_nodes.nodes_of({**whole, field: odd})


@pytest.mark.parametrize(
    ("record", "taken"),
    [({"Name": "a"}, True), ({"Name": "a", "op": 1}, False), ({"Name": "a", "op": 1, "StreamId": 0}, True)],
)
def test_a_record_with_more_than_a_name_has_something_of_a_layer(record, taken):
    if taken:
        assert plan_schema._layer(record, 0, "p").name == "a"
    else:
        with pytest.raises(BadInput, match=r"p: record 0, 'a', has \['Name', 'op'\] and nothing of a layer"):
            plan_schema._layer(record, 0, "p")


def test_bytes_of_a_table_are_told_to_a_thousandth_and_work_is_that_of_one_item(tmp_path):
    nodes = [("n", "Neg", ["x"], ["y"], {})]
    graph = onnx_file(tmp_path / "n.onnx", nodes, [("x", ["n", 9999])], [("y", ["n", 9999])])
    assert roofline.work(graph).flops == 9999 and roofline.work(graph, batch=2).flops == 19998
    fixed = onnx_file(tmp_path / "f.onnx", nodes, [("x", [1, 9999])], [("y", [1, 9999])])
    plan = fusion.xray(runtimes.OnnxRuntime(fixed))
    assert fusion.table(plan)["MiB moved"].tolist() == [0.076]  # 79992 bytes are 0.07629
    (kernel,) = fusion.xray(runtimes.OnnxRuntime(graph)).kernels
    assert kernel.inputs[0].shape == (-1, 9999) and kernel.bytes is None and kernel.weight_bytes == 0


def test_the_greys_of_a_picture_are_kept():
    from PIL import Image

    for grey in (0, 51, 102, 204, 255):
        drawing = GraphDrawing(Figure(figsize=(0.2, 0.2), facecolor=f"#{grey:02X}{grey:02X}{grey:02X}"), "")
        picture = Image.open(io.BytesIO(drawing._repr_png_())).convert("RGB")
        assert picture.getpixel((3, 3)) == (grey, grey, grey)


@pytest.mark.parametrize(
    ("kernel", "tensor", "ends"),
    [
        (("Split", "p", "q"), "p", {"p": "a", "q": "b"}),  # the same operator: its other result is that one's
        (("Split", "p", "q"), "q", {"q": "a"}),  # another place of it
        (("Copy", "p", "q"), "p", {"p": "a"}),
        (("Split", "p"), "p", {"p": "a"}),
    ],
)
def test_where_the_same_operator_made_a_tensor_its_others_follow(kernel, tensor, ends):
    graph = NodeGraph((Node("s", "Split", ("x",), ("a", "b")),), ("x",), ("a", "b"))
    node = Node("k", kernel[0], ("x",), kernel[1:])
    search = executed_nodes._Search(graph, NodeGraph((node,), ("x",), kernel[1:]))
    search._end(node, tensor, "a")
    assert search.ends == {"x": "x", **ends}


@pytest.mark.parametrize(
    ("weak", "close", "best"),
    [
        (False, {"a": False, "b": False}, "b"),  # made by the kernel's own operator
        (True, {"a": False, "b": False}, "b"),
        (True, {"a": False, "c": False}, None),  # values of one number, and no operator that decides
        (False, {"a": True, "c": False}, "c"),  # in the same order
        (False, {}, None),
        (True, {"a": True}, "a"),
    ],
)
def test_the_best_of_several_tensors_of_the_same_values(weak, close, best):
    nodes = (Node("1", "Neg", ("x",), ("a",)), Node("2", "Exp", ("a",), ("b",)), Node("3", "Abs", ("b",), ("c",)))
    search = executed_nodes._Search(NodeGraph(nodes, ("x",), ("c",)), chain("Exp"))
    assert search._best(Node("k", "Exp", ("t0",), ("t1",)), close, {"x"}, weak) == best


def test_a_trace_is_read_run_by_run_without_the_warm_up(monkeypatch, tmp_path):
    events = [
        {"cat": "Node", "name": "n_kernel_time", "ts": 1, "dur": 1000},
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 10000},
        {"cat": "Node", "name": "n_kernel_time", "ts": 20000, "dur": 3000},
        {"cat": "Node", "name": "n/duplicated/2_kernel_time", "ts": 21000, "dur": 4000},
        {"cat": "Node", "name": "n_fence_before", "ts": 22000, "dur": 900},
        {"cat": "Session", "name": "odd_kernel_time", "ts": 22000, "dur": 900},
        {"cat": "Node", "name": "inside a body: 1 n_kernel_time", "ts": 23000, "dur": 900},
        {"cat": "Session", "name": "model_run", "ts": 19000, "dur": 20000},
    ]
    (tmp_path / "trace.json").write_text(json.dumps(events[::-1]))
    ran = []
    session = SimpleNamespace(run=lambda *_: ran.append(1), end_profiling=lambda: str(tmp_path / "trace.json"))
    monkeypatch.setattr(layer_times, "_traced", lambda *_: session)
    graph = onnx_file(tmp_path / "n.onnx", [("n", "Neg", ["x"], ["y"], {})], [("x", [4])], [("y", [4])])
    rounds = layer_times._onnxruntime_rounds(runtimes.OnnxRuntime(graph), np.ones(4, np.float32), 1, 1)
    assert rounds == [{"n": 7.0}]
    assert len(ran) == 2


def test_what_cannot_be_counted_goes_by_its_name_or_its_result(tmp_path):
    for name, said in (("e", "e"), ("", "y")):
        nodes = [(name, "Einsum", ["x", "x"], ["y"], {"equation": "i,i->i"})]
        graph = onnx_file(tmp_path / "e.onnx", nodes, [("x", [4])], [("y", [4])])
        with pytest.raises(BadInput, match=rf"the operations of {said} \(Einsum\) do not follow"):
            roofline.work(graph)


def test_a_copy_is_of_64_mib_where_nothing_is_said():
    ticks = iter(range(0, 10**9, 4_000_000))
    ceiling = roofline.measure(rounds=1, now=lambda: next(ticks))
    assert ceiling.device == "cpu" and ceiling.gb_per_s == pytest.approx(2 * 64 * 2**20 / 1e6)


def test_an_arrow_ends_where_it_points():
    canvas = Canvas(Figure().add_subplot(), 1, 4)
    canvas.arrow((1, 2), (3, 4))
    (mark,) = canvas.axes.texts
    assert (mark.arrow_patch.shrinkA, mark.arrow_patch.shrinkB) == (0, 0) and (mark.xyann, mark.xy) == ((1, 2), (3, 4))
