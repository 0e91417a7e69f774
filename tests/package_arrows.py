"""Who imports whom: the floors of the house, and the arrows between its rooms and between its files, read from the code."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "labsupport"
# The floors, from the ground up; a room is a folder, or a file that stands beside the folders.
FLOORS = [
    {"errors", "files", "guards", "kinds", "quiet"},
    {"export", "environment", "models", "data"},
    {"benchmarking", "build", "training", "listings"},
    {"comparing", "runtimes", "recordings", "distillation"},
    {"fusion", "footprint", "plugins", "precision"},
    {"quantization", "placement", "pruning", "serving", "phone", "roads", "language"},
    {"examining"},
    {"exercises"},
    {"command_line", "__main__"},
]
RANK = {room: rank for rank, floor in enumerate(FLOORS) for room in floor}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@lru_cache
def package() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST, *, inside_functions: bool = True, names: bool = False) -> set[str]:
    """Dotted names that a source imports; of ``from labsupport import a`` it is ``labsupport.a``.

    ``names`` adds what is taken out of each module, which may be a module, too: ``labsupport.build.engines``.
    """
    found: set[str] = set()
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "labsupport" + (f".{node.module}" if node.module else "") if node.level else node.module
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "labsupport" else {module}
            if names:
                found |= {f"{module}.{alias.name}" for alias in node.names}
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if not typing_only and (inside_functions or not function):
                nodes.append(child)
    return found


def room_arrows(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Room → the other rooms that its files import, inside functions too."""
    arrows: dict[str, set[str]] = {}
    for name, source in trees.items():
        used = {dotted.split(".")[1] for dotted in imported(source) if dotted.startswith("labsupport.")}
        arrows.setdefault(name.split(".")[0], set()).update(used & RANK.keys() - {name.split(".")[0]})
    return arrows


def upward(trees: dict[str, ast.Module]) -> list[str]:
    return [
        f"labsupport.{room} imports {other}, which stands above it"
        for room, others in room_arrows(trees).items()
        for other in sorted(others)
        if RANK[other] > RANK.get(room, len(FLOORS))  # the package itself may load any
    ]


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    """Names that a path of one arrow or more leads to."""
    names, ahead = set(), [start]
    while ahead:
        fresh = arrows.get(ahead.pop(), set()) - names
        names |= fresh
        ahead += fresh
    return names


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Names that can be reached from themselves."""
    return sorted(name for name in arrows if name in reachable(arrows, name))


def file_arrows(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """File → the files that it imports; a face is no file of its own, since it only hands names on."""
    arrows = {}
    for name, source in trees.items():
        dotted = {
            each.removeprefix("labsupport.") for each in imported(source, names=True) if each.startswith("labsupport.")
        }
        arrows[name] = {each for each in dotted if each in trees and "." in each} - {name}
    return arrows
