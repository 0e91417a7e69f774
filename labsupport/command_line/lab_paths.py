"""Labs by number, name or path: the shipped ones, and a learner's own copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from labsupport import environment
from labsupport.errors import BadInput
from labsupport.exercises import own_copies

NOTEBOOKS = environment.REPOSITORY / "notebooks"


def labs(folder: Path = NOTEBOOKS) -> list[Path]:
    """All labs in the order of their numbers."""
    return sorted(folder.glob("*.ipynb"))


def find(names: Sequence[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """Labs by number ("01", "1"), name ("01_measuring") or path; all of them for no name."""
    known = labs(folder)
    if not known:
        raise BadInput(f"there is no notebook in {folder}; run this from a complete clone of the repository")
    found = []
    for name in names:
        choices = ", ".join(lab.stem for lab in known)
        if len(Path(name).parts) > 1 or name.lower().endswith(".ipynb"):
            hits = _at(name, known, folder)
            if not hits:
                raise BadInput(
                    f"{name!r} is not the path of a lab, and only labs are run; open a notebook of your own "
                    f"in JupyterLab, or choose from: {choices}"
                )
        else:
            stem = Path(name).name.lower()  # without "./"
            stem = stem.zfill(2) if stem.isdecimal() else stem
            hits = [lab for lab in known if lab.stem.lower() == stem or lab.stem.lower().startswith(f"{stem}_")]
        if len(hits) != 1:
            raise BadInput(f"{name!r} is not {'one lab only' if hits else 'a lab'}; choose from: {choices}")
        found += [hit for hit in hits if hit not in found]
    return found or known


def _at(name: str, known: list[Path], folder: Path) -> list[Path]:
    """The lab that a path leads to, from here, else from the repository or its notebooks; a file here goes first.

    A learner's copy in ``work/`` is a lab, too.
    """
    places = [place / part for place in (Path.cwd(), folder.parent, folder) for part in (name, f"{name}.ipynb")]
    first = next((place for place in places if os.path.isfile(place)), None)
    known = [*known, *labs(folder.parent / own_copies.FOLDER)]
    return [lab for lab in known if first is not None and lab.resolve() == first.resolve()]
