"""Draw the rooms of labsupport and their imports into docs/architecture.md: `python3 tools/draw_architecture.py`.

Only what stands between the two marks of that page is drawn; the paragraphs around it are written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from package_arrows import FLOORS, package, reachable, room_arrows

PAGE = ROOT / "docs" / "architecture.md"
COMMAND = "python3 tools/draw_architecture.py"
BEGIN, END = f"<!-- drawn from the imports by: {COMMAND} -->", "<!-- end of what is drawn -->"
GROUND = FLOORS[0]
NO_ROOMS = {"__init__", "__main__"}


def shortest(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no path over other rooms implies; an arrow to the ground floor is left out."""
    above = {room: others - GROUND for room, others in arrows.items()}
    return {
        room: {other for other in others if not any(other in reachable(above, via) for via in others - {other})}
        for room, others in above.items()
    }


def floors(rooms: set[str]) -> list[tuple[int, list[str]]]:
    """(number, its rooms by name) of each floor that has a room, from the top down."""
    numbered = [(number, sorted(floor & rooms)) for number, floor in enumerate(FLOORS)]
    return [(number, names) for number, names in reversed(numbered) if names]


def picture(arrows: dict[str, set[str]]) -> str:
    """The Mermaid source: a box for each floor, an arrow for each import that no other path implies."""
    rooms = arrows.keys() - NO_ROOMS
    lines = [
        "flowchart TB",
        "  accTitle: The rooms of labsupport",
        "  accDescr: A box for each floor. An arrow leads down from a room to a room that it imports.",
    ]
    for number, names in floors(rooms):
        lines += [f'  subgraph floor{number}["{"ground floor" if number == 0 else f"floor {number}"}"]']
        lines += [f"    {name}" for name in names] + ["  end"]
    for room, others in sorted(shortest(arrows).items()):
        lines += [f"  {room} --> {other}" for other in sorted(others) if room in rooms]
    # invisible, so that the ground floor stands at the bottom
    lines += [f"  {above} ~~~ {below}" for above, below in zip(sorted(FLOORS[1] & rooms), sorted(GROUND & rooms))]
    return "\n".join(lines)


def table(arrows: dict[str, set[str]]) -> str:
    """Markdown: each room with all rooms that it imports."""
    lines = ["| floor | room | imports |", "| --- | --- | --- |"]
    for number, names in floors(arrows.keys() - NO_ROOMS):
        for name in names:
            others = ", ".join(f"`{other}`" for other in sorted(arrows[name])) or "nothing"
            lines.append(f"| {number} | `{name}` | {others} |")
    return "\n".join(lines)


def drawn(arrows: dict[str, set[str]]) -> str:
    """All that stands between the marks, the marks included."""
    return f"{BEGIN}\n\n```mermaid\n{picture(arrows)}\n```\n\n{table(arrows)}\n\n{END}"


def renewed(page: str, arrows: dict[str, set[str]]) -> str:
    """The page with its drawn part drawn anew."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + drawn(arrows) + after


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), room_arrows(package())), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} shows the imports of today")
