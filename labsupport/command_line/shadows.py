"""Files that Python would import in place of this package."""

from __future__ import annotations

from pathlib import Path

from labsupport.errors import LabError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = ("notebooks", "work")  # where kernels work; Python looks there first


def foreign(root: Path = PACKAGE.parent) -> list[Path]:
    """Every `labsupport` in a folder where notebooks run that is not this package, the working folder included."""
    places = {root / name for name in FOLDERS} | {Path.cwd()}
    found = [place / name for place in sorted(places) for name in (f"{PACKAGE.name}.py", PACKAGE.name)]
    return [path for path in found if _is_module(path) and path.resolve() != PACKAGE]


def refuse(root: Path = PACKAGE.parent) -> None:
    """Raise LabError where there is one: every cell that imports `labsupport` would run it."""
    if paths := foreign(root):
        raise LabError(
            f"{paths[0]} is not the workbook's, and notebooks there would import it in its place; give it another name "
            "or move it away"
        )


def _is_module(path: Path) -> bool:
    return path.is_file() or (path / "__init__.py").is_file()
