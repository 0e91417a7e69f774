"""Drawings of lifetimes and of an arena, read back in numbers."""

from __future__ import annotations

import dataclasses

import pytest

from labsupport import footprint
from labsupport.errors import BadInput

# steps 0 to 3; a lives 0–2, b 1–2, c 2–3; alive: 2, 5, 6, 1
STEPS = [("a", 2.0, ["images"]), ("b", 3.0, ["a"]), ("c", 1.0, ["a", "b"]), ("y", 4.0, ["c"])]


@pytest.fixture
def lives():
    return footprint.schedule(STEPS)


def bars(axes):
    places = [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in axes.patches]
    return [tuple(round(float(v), 6) for v in place) for place in places]


def test_lifetimes_are_bars_over_a_stair(lives):
    drawing = footprint.draw_lifetimes(lives, title="net")
    top, live = drawing.figure.axes
    assert bars(top) == [(-0.5, -0.4, 3, 0.8), (0.5, 0.6, 2, 0.8), (1.5, 1.6, 2, 0.8)]
    assert [mark.get_text() for mark in top.get_yticklabels()] == ["a, 2 MiB", "b, 3 MiB", "c, 1 MiB"]
    assert top.yaxis_inverted() and top.get_title(loc="left") == "net"
    stair = live.patches[0].get_data()
    assert stair.values.tolist() == [2, 5, 6, 1] and stair.edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert live.lines[0].get_ydata()[0] == 6 and live.get_ylim() == pytest.approx((0, 7.8))
    peak = live.texts[0]
    assert (peak.get_text(), peak.xy, peak.get_ha()) == ("peak 6 MiB", (3.5, 6), "right")
    assert drawing.text == "net: 3 tensors over 4 steps; together 6.0 MiB, alive at once at most 6.0 MiB, in step 2."
    assert drawing.figure.get_size_inches().tolist() == pytest.approx([7.5, 2.2 + 3 * 0.14])
    assert footprint.draw_lifetimes(lives).text.startswith("3 tensors over")


@pytest.mark.parametrize(("count", "named", "height"), [(20, True, 5.0), (21, False, 5.0)])
def test_of_more_than_twenty_tensors_the_names_are_left_out(count, named, height):
    steps = [(f"t{i}", 1.0, [f"t{i - 1}" if i else "images"]) for i in range(count + 1)]
    figure = footprint.draw_lifetimes(footprint.schedule(steps)).figure
    assert (len(figure.axes[0].get_yticklabels()) == count and figure.axes[0].get_ylabel() == "") is named
    assert figure.get_size_inches()[1] == pytest.approx(height)


def test_an_arena_is_a_rectangle_for_each_tensor(lives):
    plan = footprint.arena(lives, {"a": 0.0, "b": 2.0, "c": 6.5})
    drawing = footprint.draw_arena(plan, title="net")
    (axes,) = drawing.figure.axes
    assert bars(axes) == [(-0.5, 0.0, 3, 2.0), (0.5, 2.0, 2, 3.0), (1.5, 6.5, 2, 1.0)]
    assert [(mark.get_text(), *mark.get_position()) for mark in axes.texts] == [
        ("a", 1.0, 1.0),
        ("b", 1.5, 3.5),
        ("c", 2.5, 7.0),
    ]
    assert axes.lines[0].get_ydata()[0] == 6 and axes.get_ylim() == pytest.approx((0, 1.12 * 7.5))
    assert drawing.text == (
        "net: 3 tensors share 7.5 MiB; apart they would take 6.0 MiB, and less than 6.0 MiB is impossible."
    )
    assert len({box.get_facecolor() for box in axes.patches}) == 3 and drawing.figure.get_size_inches()[1] == 3
    assert repr(plan) == "Arena(7.5 MiB for 3 tensors; all apart 6.0, at least 6.0)"


@pytest.mark.parametrize(("count", "names"), [(12, 12), (13, 0)])
def test_an_arena_names_twelve_tensors(count, names):
    steps = [(f"t{i}", 1.0, [f"t{i - 1}" if i else "images"]) for i in range(count + 1)]
    plan = footprint.arena(footprint.schedule(steps), {f"t{i}": i % 2 for i in range(count)})
    assert len(footprint.draw_arena(plan).figure.axes[0].texts) == names
    assert plan.size_mib == 2


def test_an_empty_network_needs_nothing():
    nothing = footprint.schedule([("y", 1.0, ["images"])])
    assert footprint.draw_lifetimes(nothing).figure.axes[1].get_ylim() == (0, 1)
    plan = footprint.arena(nothing, {})
    assert plan.size_mib == 0 and footprint.draw_arena(plan).figure.axes[0].get_ylim() == (0, 1)


def test_the_two_that_collide_are_named_with_their_places(lives):
    with pytest.raises(
        BadInput, match="'a' and 'b' are both alive in step 1 and share memory: 0 to 2 MiB and 1.5 to 4.5"
    ):
        footprint.arena(lives, {"a": 0.0, "b": 1.5, "c": 9.0})
    with pytest.raises(BadInput, match="'b' and 'c' are both alive in step 2"):
        footprint.arena(lives, {"a": 9.0, "b": 0.5, "c": 0.0})
    assert footprint.arena(lives, {"a": 0, "b": 2.0 - 1e-10, "c": 5}).size_mib == 6  # rounding is no collision
    with pytest.raises(BadInput, match=r"places no tensor 'b' \(and 1 more\)"):
        footprint.arena(lives, {"a": 0.0})
    with pytest.raises(BadInput, match=r"places an unknown tensor 'z' \(and 0 more\)"):
        footprint.arena(lives, {"a": 0.0, "b": 2.0, "c": 5.0, "z": 0.0})
    for offset in (True, "0", -0.1, float("inf"), float("nan")):
        with pytest.raises(BadInput, match="'c' is placed at"):
            footprint.arena(lives, {"a": 0.0, "b": 2.0, "c": offset})


def test_what_was_checked_cannot_be_changed_afterwards(lives):
    plan = footprint.arena(lives, {"a": 0.0, "b": 2.0, "c": 6.5})
    for checked, field in ((plan, "offsets"), (lives, "tensors"), (lives.tensors[0], "mib")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(checked, field, ())
