"""A drawing of five nodes read back whole, and what its boxes, lines and words are made of, each by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from labsupport.fusion.kernels import Kernel, Plan
from labsupport.fusion.onnx_nodes import Node, NodeGraph
from labsupport.fusion.pictures import before_after
from labsupport.fusion.pictures.before_after import _cut, _kernel_words, _label
from labsupport.fusion.pictures.canvas import Canvas
from labsupport.fusion.plan_schema import Tensor


def node(name, op, reads, *writes):
    return Node(name, op, tuple(reads.split()), writes)


def tensors(*names, dtype="fp16"):
    return tuple(Tensor(name, (1,), dtype) for name in names)


@pytest.fixture
def graph():
    """Two branches that meet: stem → act → join, and stem → exp → neg → join."""
    nodes = [
        node("/layers/stem/Conv", "Conv", "x w", "t1"),
        node("/act/Relu", "Relu", "t1", "t2"),
        node("/side/Exp", "Exp", "t1", "t3"),
        node("/side/Neg", "Neg", "t3", "t4"),
        node("/join/Add", "Add", "t2 t4", "y"),
    ]
    return NodeGraph(tuple(nodes), ("x",), ("y",), frozenset({"w"}))


@pytest.fixture
def plan(graph):
    """A copy, the stem with its ReLU, a copy that feeds Exp, Exp, nobody for Neg, a no-op, and the sum."""
    kernels = [
        Kernel("in", "layout", inputs=tensors("x", dtype="fp32"), outputs=tensors("x'"), layer_type="Reformat"),
        Kernel("k1", "convolution", ("/layers/stem/Conv", "/act/Relu"), {"/act/Relu": "why"}, inputs=tensors("x'"),
               outputs=tensors("t1", "t2"), share=0.625),
        Kernel("mid", "layout", inputs=tensors("t1"), outputs=tensors("t1'")),
        Kernel("k2", "pointwise", ("/side/Exp",), inputs=tensors("t1'"), outputs=tensors("t3"), share=0.25),
        Kernel("no", "no-op", inputs=tensors("t3"), outputs=tensors("t4")),
        Kernel("k3", "reduction", ("/join/Add",), inputs=tensors("t2", "t4"), outputs=tensors("y")),
    ]  # fmt: skip
    return Plan("net", tuple(kernels), "10", "TensorRT", graph)


def written(axes):
    return [(mark.get_text(), *(round(v, 6) for v in mark.get_position())) for mark in axes.texts if mark.get_text()]


def lines(axes):
    return [tuple(round(v, 6) for point in line.get_xydata() for v in point) for line in axes.lines]


def test_blocks_stand_in_the_order_in_which_data_flows(plan, graph):
    blocks = before_after._blocks(plan, graph, plan.accounts(graph))
    assert [(b.kernel and b.kernel.name, [n.op for n in b.nodes], b.note, b.rows) for b in blocks] == [
        ("in", [], "", 1),
        ("k1", ["Conv", "Relu"], "", 2),
        ("mid", [], "", 1),
        ("k2", ["Exp"], "", 1),
        (None, ["Neg"], "unplaced: nobody names it", 1),
        ("k3", ["Add"], "", 1),
    ]


def test_a_plan_of_five_nodes_is_drawn_row_by_row(plan, graph):
    drawing = before_after.draw_plan(plan, graph)
    axes = drawing.figure.axes[0]
    left, right, note = 1.07, 5.77, 5.35
    assert written(axes) == [
        ("copy fp32→fp16", right, 0.5),
        ("Conv  stem", left, 1.5),
        ("Relu  act  ?", left, 2.5),
        ("conv fp16", right, 1.5),
        ("62.5%", right, 2.5),
        ("copy fp16", right, 3.5),
        ("Exp  side", left, 4.5),
        ("pointwise fp16 25.0%", right, 4.5),
        ("Neg  side", left, 5.5),
        ("unplaced: nobody names it", note, 5.5),
        ("Add  join", left, 6.5),
        ("reduce fp16", right, 6.5),
        ("ONNX node", 0.95, -0.5),
        ("kernel that runs it", 5.35, -0.5),
    ]
    bold = [mark.get_text() for mark in axes.texts if mark.get_weight() == "bold"]
    assert bold == ["conv fp16", "pointwise fp16 25.0%", "reduce fp16", "ONNX node", "kernel that runs it"]
    assert [box.get_linestyle() for box in axes.patches if box.get_x() < 1] == ["-", "--", "-", "--", "-"]
    assert [(round(box.get_y(), 6), round(box.get_height(), 6)) for box in axes.patches if box.get_x() > 5.1] == [
        *[(0.1, 0.8)] * 2, *[(1.1, 1.8)] * 2, *[(3.1, 0.8)] * 2, *[(4.1, 0.8)] * 2, *[(6.1, 0.8)] * 2,
    ]  # fmt: skip
    assert {round(box.get_width(), 6) for box in axes.patches} == {4.0, 3.7, 0.32}
    assert axes.get_title(loc="left") == "net: 5 ONNX nodes → 5 kernels  ·  ? = inferred"
    assert axes.get_xlim() == (0, 10) and axes.get_ylim() == (7.4, -0.9)


def test_its_lines_are_the_edges_of_the_graph_and_of_the_plan(plan, graph):
    axes = before_after.draw_plan(plan, graph).figure.axes[0]
    straight = [(x, top, low) for x, top, x2, low in lines(axes) if x == x2 and x in (2.95, 7.2)]
    # nodes: 1→2, 4→5, 5→6; the rows between 1 and 4, and between 2 and 6, are taken
    assert [each for each in straight if each[0] == 2.95] == [(2.95, 1.9, 2.1), (2.95, 4.9, 5.1), (2.95, 5.9, 6.1)]
    # kernels: in→k1, k1→mid, mid→k2, and k2→k3 through the no-op, over the row that no kernel has
    assert [each for each in straight if each[0] == 7.2] == [
        (7.2, 0.9, 1.1),
        (7.2, 2.9, 3.1),
        (7.2, 3.9, 4.1),
        (7.2, 4.9, 6.1),
    ]
    rails = [(x, top, low) for x, top, x2, low in lines(axes) if x == x2 and x not in (2.95, 7.2)]
    assert rails == [(0.77, 1.7, 4.3), (0.62, 2.7, 6.3), (9.23, 2.7, 6.3)]


def test_a_plan_of_names_alone_takes_its_edges_from_the_graph(graph):
    names = (("/layers/stem/Conv", "/act/Relu"), ("/side/Exp", "/side/Neg"), ("/join/Add",))
    plan = Plan("net", tuple(Kernel(f"k{i}", "pointwise", nodes) for i, nodes in enumerate(names)), "", "", graph)
    axes = before_after.draw_plan(plan, graph).figure.axes[0]
    kernels = [(x, top, low) for x, top, x2, low in lines(axes) if x == x2 and x > 5]
    assert sorted(kernels) == [(7.2, 1.9, 2.1), (7.2, 3.9, 4.1), (9.23, 1.7, 4.3)]


@pytest.mark.parametrize(("many", "width", "height"), [(30, 10, 30), (31, 20, 16), (32, 20, 16)])
def test_thirty_rows_stay_in_one_panel(many, width, height):
    nodes = tuple(node(f"n{i}", "Neg", f"t{i}", f"t{i + 1}") for i in range(many))
    graph = NodeGraph(nodes, ("t0",), (f"t{many}",))
    plan = Plan("net", tuple(Kernel(each.name, "pointwise", (each.name,)) for each in nodes), "", "", graph)
    drawing = before_after.draw_plan(plan, graph)
    axes = drawing.figure.axes[0]
    assert axes.get_xlim() == (0, width) and axes.get_ylim() == (height + 0.4, -0.9)
    assert sum(mark.get_text() == "ONNX node" for mark in axes.texts) == width // 10
    assert drawing.text.endswith(f"{many} kernels run, none swallows two nodes.")
    if width == 20:  # over the fold an arrow leaves the last row, and one comes to the first of the next panel
        heads = [(mark.xyann, mark.xy) for mark in axes.texts if getattr(mark, "arrow_patch", None)]
        flat = [tuple(round(v, 6) for point in ends for v in point) for ends in heads]
        assert flat == [
            (2.95, 15.9, 2.95, 16.4), (12.95, -0.3, 12.95, 0.1), (7.2, 15.9, 7.2, 16.4), (17.2, -0.3, 17.2, 0.1),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "op", "letters", "said"),
    [
        ("/layers/stem/Conv", "Conv", 52, "Conv  stem"),
        ("/layer1/layer1.0/conv/Conv", "Conv", 52, "Conv  layer1.0/conv"),  # a path repeated
        ("/layer1.0/layer1/Conv", "Conv", 52, "Conv  layer1.0/layer1"),
        ("/Conv", "Conv", 52, "Conv"),
        ("Conv_7", "Conv", 52, "Conv"),  # a number tells nothing
        ("/a/Conv_7", "Conv", 52, "Conv  a/Conv_7"),
        ("Conv_a/b", "Conv", 52, "Conv  Conv_a/b"),
        ("abcd", "Conv", 10, "Conv  abcd"),
        ("abcde", "Conv", 10, "Conv  …cde"),
        ("abcd", "Conv", 9, "Conv"),  # three letters tell nothing
    ],
)
def test_a_label_is_the_operator_and_what_the_name_adds(name, op, letters, said):
    assert _label(node(name, op, ""), letters) == said


@pytest.mark.parametrize(("words", "said"), [("abcd", "abcd"), ("abcde", "abc…")])
def test_words_are_cut_to_fit(words, said):
    assert _cut(words, 4) == said


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (Kernel("k", "layout", ("n",), layer_type="Shuffle"), ["Shuffle"]),
        (Kernel("k", "layout", ("n",)), ["copy"]),
        (Kernel("k", "layout", layer_type="Reformat"), ["copy"]),
        (Kernel("k", "region", share=0.0), ["Myelin region", "0.0%"]),
        (Kernel("k", "matmul", outputs=tensors("y")), ["matmul fp16"]),
        (Kernel("k", "matmul", inputs=tensors("x", dtype="int8"), outputs=tensors("y")), ["matmul int8→fp16"]),
    ],
)
def test_a_kernel_in_words(kernel, said):
    assert _kernel_words(kernel) == said


@pytest.mark.parametrize(
    ("start", "rows", "share", "places"),
    [
        (0, 5, 0.5, [1.5, 2.5]),  # two lines in the middle of five
        (0, 1, 0.5, [0.5]),
        (0, 2, 0.5, [0.5, 1.5]),
        (2, 4, None, [3.5]),
        (1, 6, 0.5, [1.5]),  # rows 3 and 4 are in two panels: one line at the top
        (1, 4, 0.5, [2.5, 3.5]),
    ],
)
def test_the_words_of_a_kernel_stand_in_its_middle(start, rows, share, places):
    canvas = Canvas(Figure().add_subplot(), 2, 4)
    nodes = tuple(node(f"n{i}", "Neg", "") for i in range(rows))
    before_after._draw_block(canvas, before_after.Block(Kernel("k", "matmul", share=share), nodes), start)
    words = [mark for mark in canvas.axes.texts if mark.get_position()[0] % 10 > 5]
    assert [mark.get_position()[1] for mark in words] == places
    assert [mark.get_weight() for mark in words] == ["bold", "normal"][: len(places)]


def test_sources_are_looked_for_through_what_is_not_drawn(graph):
    drawn = {"/layers/stem/Conv", "/act/Relu", "/join/Add"}
    found = before_after._sources(graph.by_name["/join/Add"], graph, drawn)
    assert sorted(each.op for each in found) == ["Conv", "Relu"]
    assert before_after._sources(graph.by_name["/layers/stem/Conv"], graph, drawn) == []


def test_links_of_a_plan_pass_what_is_not_drawn_and_end_in_a_ring():
    ring = [
        Kernel("a", "no-op", inputs=tensors("u"), outputs=tensors("v")),
        Kernel("b", "no-op", inputs=tensors("v", "s"), outputs=tensors("u")),
        Kernel("c", "pointwise", inputs=tensors("x"), outputs=tensors("s")),
        Kernel("d", "pointwise", inputs=tensors("u"), outputs=tensors("y")),
    ]
    assert before_after._links(ring, {"c", "d"}) == {("c", "d")}


def test_the_letters_that_fit_and_the_key_of_folded_nodes():
    canvas = Canvas(Figure().add_subplot(), 1, 3)
    books = SimpleNamespace(folded={"a": ""}, inferred={}, nodes=[1, 2])
    before_after._draw_key(canvas.axes, SimpleNamespace(name="net", launched=[1, 2, 3]), books, canvas)
    assert canvas.axes.get_title(loc="left") == "net: 2 ONNX nodes → 3 kernels  ·  1 nodes folded, not drawn"
    assert canvas.letters == (52, 42) and Canvas(Figure().add_subplot(), 2, 3).letters == (23, 20)
