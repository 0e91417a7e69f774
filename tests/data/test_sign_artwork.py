"""The shipped sign drawings: all there, unchanged, with author and licence; and what is said when they are not."""

from __future__ import annotations

import json
import shutil

import pytest

from labsupport.data import sign_artwork
from labsupport.errors import BadInput, NotAvailable


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(sign_artwork.FOLDER, tmp_path / "signs")


def test_twenty_drawings_with_author_licence_and_transparency():
    listed, drawings = sign_artwork.listing(), sign_artwork.artwork()
    assert len(drawings) == 20 and "Public domain" in listed["licence"] and "openclipart" in listed["origin"]
    for sign in listed["signs"]:
        drawing = drawings[sign["class"]]
        assert sign["author"] and drawing.mode == "RGBA" and max(drawing.size) == 128
        assert drawing.getchannel("A").getextrema()[1] == 255  # opaque inside
    transparent = [name for name, drawing in drawings.items() if drawing.getchannel("A").getextrema()[0] == 0]
    assert len(transparent) == 19  # all but the square of parking, which has no corner to cut
    assert sum(path.stat().st_size for path in sign_artwork.FOLDER.iterdir()) < 2_000_000


def test_a_changed_drawing_is_refused(copy):
    (copy / "stop.png").write_bytes((copy / "deer.png").read_bytes())
    with pytest.raises(BadInput, match="stop.png is not the drawing that was shipped .* git checkout"):
        sign_artwork.artwork(copy)


def test_a_missing_drawing_and_a_missing_list_are_told_apart(copy):
    (copy / "deer.png").unlink()
    with pytest.raises(NotAvailable, match="the sign 'deer' cannot be read"):
        sign_artwork.artwork(copy)
    (copy / "signs.json").unlink()
    with pytest.raises(NotAvailable, match="the list of signs cannot be read"):
        sign_artwork.artwork(copy)


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"signs": []}', '{"signs": [{"class": "stop"}]}'])
def test_a_damaged_list_is_refused(copy, content):
    (copy / "signs.json").write_text(content)
    with pytest.raises(BadInput, match="git checkout"):
        sign_artwork.listing(copy)


def test_the_tool_and_the_list_name_the_same_classes():
    source = (sign_artwork.FOLDER.parents[1] / "tools" / "make_signs.py").read_text(encoding="utf-8")
    listed = json.loads((sign_artwork.FOLDER / "signs.json").read_text(encoding="utf-8"))
    assert all(f'"{sign["class"]}": ' in source for sign in listed["signs"])
