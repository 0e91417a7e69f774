"""Files that Python would import in place of this package."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from labsupport.errors import LabError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = ("notebooks", "work")  # where kernels work; Python looks there first


def foreign(root: Path = PACKAGE.parent) -> list[Path]:
    """Every `labsupport` that is not this package, in a folder where notebooks run, the working folder included."""
    folders = [root / name for name in FOLDERS]
    places = {*folders, *(path for folder in folders for path in folder.glob("*/")), Path.cwd()}
    found = filter(None, (_found(place) for place in sorted(places)))
    return [path for path in found if path.resolve() != PACKAGE]


def refuse(root: Path = PACKAGE.parent) -> None:
    """Raise LabError where there is one: every cell that imports `labsupport` would run it."""
    if paths := foreign(root):
        raise LabError(
            f"{paths[0]} is not the workbook's, and notebooks there would import it in its place; give it another name "
            "or move it away"
        )


def _found(place: Path) -> Path | None:
    """What Python would import there under this package's name, source, compiled or native; None where nothing."""
    sys.path_importer_cache.pop(str(place), None)
    spec = PathFinder.find_spec(PACKAGE.name, [str(place)])
    if spec is None or spec.origin is None:  # a folder without __init__.py, which gives way to a package
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
