"""What a solution of an exercise may not do to its notebook."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path


def shared_names(solution: str, notebook: str, *, starters: set[str] = frozenset()) -> set[str]:
    """Names that a solution binds and cells of a notebook bind too, but for the starters, which it is meant to replace."""
    cells = json.loads((Path(__file__).parents[1] / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return left_behind(solution) & left_behind(code) - starters


def left_behind(source: str) -> set[str]:
    """Names that a cell leaves behind."""
    names = set()
    for node in ast.parse(textwrap.dedent(source)).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif not isinstance(node, ast.Expr):
            inner = {
                id(part)
                for each in ast.walk(node)
                if isinstance(each, ast.comprehension)
                for part in ast.walk(each.target)
            }
            names |= {
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and id(part) not in inner
            }
    return names
