"""Where a fusion drawing puts its boxes and rails, read back from the figure, and what its sentence says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from labsupport.errors import BadInput
from labsupport.fusion import inspection, plan_schema
from labsupport.fusion.pictures import before_after
from labsupport.fusion.pictures.canvas import Canvas, page


@pytest.fixture
def canvas():
    return Canvas(Figure().add_subplot(), 2, 4)


def rectangles(canvas):
    """(left, top, right, bottom) of each box."""
    corners = [(box.get_xy(), box.get_width(), box.get_height()) for box in canvas.axes.patches]
    return [tuple(round(v, 6) for v in (x, y, x + w, y + h)) for (x, y), w, h in corners]


def uprights(canvas):
    """(x, from, to) of each vertical line."""
    lines = [line.get_xydata().tolist() for line in canvas.axes.lines]
    return [(round(a[0], 6), round(a[1], 6), round(b[1], 6)) for a, b in lines if a[0] == b[0]]


def heads(canvas):
    """(from, to) of each arrow."""
    return [(mark.xyann, mark.xy) for mark in canvas.axes.texts if getattr(mark, "arrow_patch", None)]


def test_a_box_that_crosses_the_fold_is_drawn_on_both_sides(canvas):
    canvas.box((1.0, 3.0), 2, 5)
    assert rectangles(canvas) == [(1.0, 2.1, 3.0, 3.9), (11.0, 0.1, 13.0, 2.9)]


def test_a_rail_within_one_panel_runs_from_row_to_row(canvas):
    canvas.rail(1, 2, 1, 3)
    lane = round(canvas.KERNEL[1] + 0.18 + 0.15 * 2, 6)
    assert uprights(canvas) == [(lane, 1.7, 3.3)]
    assert heads(canvas) == [((pytest.approx(lane), 3.3), (pytest.approx(canvas.KERNEL[1]), 3.3))]  # at the lower end


def test_a_rail_over_the_fold_is_broken_there(canvas):
    canvas.rail(-1, 0, 2, 5, upwards=True)
    lane = round(canvas.NODE[0] - 0.18, 6)
    assert uprights(canvas) == [(lane, 2.7, 4.0), (round(10 + lane, 6), 0.0, 1.3)]
    assert [(y, to) for (_, y), (to, _) in heads(canvas)] == [(2.7, pytest.approx(canvas.NODE[0]))]  # at the upper end


def test_a_page_grows_with_its_rows():
    (one, _), (two, _) = page(1, 10), page(2, 20)
    assert one.get_size_inches().tolist() == pytest.approx([7.2, 11.1 * 0.185 + 0.35])
    assert two.get_size_inches().tolist() == pytest.approx([7.6, 21.1 * 0.185 + 0.35])


@pytest.mark.parametrize(
    ("rows", "height", "placed"),
    [
        ([5, 2], 6, (6, [0, 6])),  # two rows are never torn
        ([5, 3], 6, (6, [0, 5])),  # three are more than a third of six, and two at least
        ([8, 3], 9, (9, [0, 9])),  # a third of nine
        ([8, 4], 9, (9, [0, 8])),
        ([4, 2], 6, (6, [0, 4])),  # fits, so it stays
        ([3, 2, 2, 2], 4, (5, [0, 3, 5, 7])),  # at four rows a panel the last one would not fit
    ],
)
def test_blocks_are_not_torn_over_the_fold(rows, height, placed):
    assert before_after._placed([SimpleNamespace(rows=each) for each in rows], 2, height) == placed


@pytest.mark.parametrize(("many", "tail"), [(8, "Add"), (9, "Add, …")])
def test_the_sentence_names_eight_operators_of_the_largest_kernel(many, tail):
    nodes = [SimpleNamespace(op="Add")] * many
    blocks = [SimpleNamespace(kernel=object(), nodes=nodes), SimpleNamespace(kernel=object(), nodes=nodes[:2])]
    blocks.append(SimpleNamespace(kernel=None, nodes=nodes * 2))
    said = before_after._words(SimpleNamespace(name="net", launched=[1, 2, 3], inserted=[4]), 12, blocks)
    assert said == (
        "net, before and after: 12; 3 kernels run, 2 of them swallow two nodes or more; "
        f"the largest takes {many}: {', '.join(['Add'] * 7)}, {tail}; inserted kernels that stand for no node: 1."
    )


@pytest.mark.parametrize(
    ("named", "placed", "fits"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "z"], ["a"], True),  # half of the names match: what the rest is called is the builder's own
        (["a", "y", "z"], ["a"], False),  # one of three, although one kernel could be placed
        (["a", "b"], [], False),  # all match, and nothing could be placed
    ],
)
def test_a_plan_of_another_graph_is_refused(named, placed, fits):
    layers = [SimpleNamespace(metadata=tuple(named))]
    kernels = [SimpleNamespace(name="k", nodes=tuple(placed), parts=())]
    graph = SimpleNamespace(by_name={"a": 1, "b": 2}, nodes=[SimpleNamespace(name="a")])
    if fits:
        inspection._check_fits("net.plan", layers, kernels, graph)
    else:
        with pytest.raises(BadInput, match="net.plan was not built from this graph"):
            inspection._check_fits("net.plan", layers, kernels, graph)


@pytest.mark.parametrize(
    ("shape", "sound"), [([2**24, 2**24], True), ([2**48 + 1], False), ([-1], True), ([-2], False)]
)
def test_a_tensor_that_no_machine_could_hold_is_refused(shape, sound):
    record = {"Name": "x", "Dimensions": shape}
    if sound:
        assert plan_schema._tensor(record, 0, "net.plan").shape == tuple(shape)
    else:
        with pytest.raises(BadInput, match="'x' of layer 0 has the dimensions"):
            plan_schema._tensor(record, 0, "net.plan")


@pytest.mark.parametrize(
    ("name", "short"),
    [("a" * 10, "a" * 10), ("abcdefghijk", "abcd…ghijk"), ("/layers/abc", "abc"), ("/net/layers/abc", "net/abc")],
)
def test_a_name_is_cut_in_the_middle_where_it_is_too_long(name, short):
    assert inspection.short(name, 10) == short and len(short) <= 10
