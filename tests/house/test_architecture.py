"""The picture of the rooms shows the imports of today, and every room has its paragraph."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from package_arrows import RANK, package, room_arrows

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("draw_architecture", ROOT / "tools" / "draw_architecture.py")
drawing = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(drawing)


def page() -> str:
    return drawing.PAGE.read_text(encoding="utf-8")


def stale(text: str, arrows: dict[str, set[str]]) -> str:
    """What to do about a picture that shows other imports; "" when it shows these."""
    return "" if drawing.renewed(text, arrows) == text else f"docs/architecture.md is stale; type: {drawing.COMMAND}"


def without_paragraph(text: str, rooms: set[str]) -> list[str]:
    """Rooms that no paragraph begins with."""
    return sorted(rooms - set(re.findall(r"(?m)^\*\*`(\w+)`\*\*", text)))


def test_the_picture_shows_the_imports_of_today():
    assert not (said := stale(page(), room_arrows(package()))), said


def test_every_room_has_a_paragraph_and_no_other_has():
    rooms = room_arrows(package()).keys() - drawing.NO_ROOMS
    assert without_paragraph(page(), rooms) == [], "write a paragraph for each of these rooms in docs/architecture.md"
    assert set(re.findall(r"(?m)^\*\*`(\w+)`\*\*", page())) <= rooms


def test_a_new_import_makes_the_picture_stale_and_the_command_is_named():
    arrows = room_arrows(package())
    arrows["training"] = arrows["training"] | {"models"}
    assert stale(page(), arrows).endswith("python3 tools/draw_architecture.py")
    assert stale(drawing.renewed(page(), arrows), arrows) == ""


def test_a_room_without_a_paragraph_is_seen():
    assert without_paragraph("**`data`** has digits.\nSee **`models`**.", {"data", "models"}) == ["models"]


def test_drawing_again_keeps_what_was_written_by_hand():
    text = page()
    again = drawing.renewed(text, {"data": {"errors"}, "errors": set()})
    assert again.partition(drawing.BEGIN)[0] == text.partition(drawing.BEGIN)[0]
    assert again.partition(drawing.END)[2] == text.partition(drawing.END)[2]
    assert "data -->" not in again and "| 1 | `data` | `errors` |" in again


def test_an_arrow_that_a_longer_path_implies_is_not_drawn():
    arrows = {"quantization": {"build", "export", "errors"}, "build": {"export"}, "export": {"errors"}, "errors": set()}
    assert drawing.shortest(arrows) == {
        "quantization": {"build"},
        "build": {"export"},
        "export": set(),
        "errors": set(),
    }
    assert all(RANK[room] > RANK[other] for room, others in drawing.shortest(arrows).items() for other in others)
