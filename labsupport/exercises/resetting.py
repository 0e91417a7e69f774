"""Bring one lab's notebook back to the shipped version; the learner's copy is moved aside, never deleted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import date
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError
from labsupport.exercises import editions, own_copies, shipped
from labsupport.exercises.progress import ROOT


def reset(name: str, *, root: Path = ROOT) -> str:
    """Bring lab ``name`` ("01" or "01_measuring") back as shipped, in ``work/`` and in ``notebooks/``; says what was
    done and where the former copies went.

    Raises BadInput for an unknown lab, and LabError, with nothing changed, where no shipped version can be found.
    """
    hashes = shipped.manifest(root)
    lab = shipped.lab_called(name, hashes, root)
    target = root / "notebooks" / f"{lab}.ipynb"
    pristine = shipped.shipped_version(lab, root=root)
    if pristine is None:
        raise LabError(
            f"no shipped version of {lab} was found: neither git's history nor the snapshots in "
            f"{shipped.snapshots() or 'the cache'} hold it. Nothing was changed. Download notebooks/{lab}.ipynb "
            "from the workbook's repository again and put it beside the other notebooks."
        )
    kept: list[Path | None] = []
    try:
        changed = shipped.hash_of_file(target) != shipped.content_hash(pristine)
        if changed:
            kept.append(_put_in_place(pristine, target, root))
        renewed, former = own_copies.renew(lab, root=root)
        kept.append(former)
    except OSError as error:
        raise LabError(
            f"{lab} could not be restored ({error.strerror or error}: {error.filename}). "
            "Close the notebook where it is open, check that the folder can be written, then try again; "
            f"your copy is in {own_copies.FOLDER}/, its folder {own_copies.KEPT}, or notebooks/."
        ) from error
    if not changed and not renewed:
        return f"{lab} already is as shipped; nothing was changed."
    places = " and ".join(place.relative_to(root).as_posix() for place in kept if place)
    moved = f" Your copy is in {places}." if places else " There was no copy to keep."
    return (
        f"{lab} is as shipped again.{moved} Your progress is kept. "
        "If the notebook is open in JupyterLab, choose File > Reload Notebook from Disk."
    )


def write_manifest(*, root: Path = ROOT) -> dict[str, str]:
    """Note the notebooks as they are now as the shipped ones, in ``notebooks/shipped.json``; for authors.

    First each notebook's sentence about its stored outputs is renewed, and its day where the outputs are others; its
    diagrams get the workbook's style. A notebook whose outputs name no machine keeps its first cell.
    """
    folder = root / "notebooks"
    for file in sorted(folder.glob("*.ipynb")):
        content = json.loads(file.read_bytes())
        renewed = editions.with_diagram_style(content)
        with contextlib.suppress(BadInput, LookupError):
            day = _first_day(file, content, root)
            renewed = editions.with_origin(renewed, day=f"{date.today()}", first_day=day)
        if editions.written(renewed) != editions.written(content):
            files.replace(file, editions.written(renewed))
    hashes = {file.name: shipped.content_hash(file.read_bytes()) for file in sorted(folder.glob("*.ipynb"))}
    text = json.dumps(files.sealed(hashes), indent=1) + "\n"
    files.replace(folder / shipped.MANIFEST, text.encode(), mode=shipped.SHARED)
    return hashes


def _first_day(file: Path, content: dict, root: Path) -> str | None:
    """When outputs that carry no note yet were stored: the day of the recording of the same machine, else of the
    newest commit.
    """
    facts, days = editions.machine(content), []
    for path in (root / "data" / "recordings").glob(f"*/{file.name.replace('.ipynb', '.json')}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            recording = json.loads(path.read_bytes())
            if facts["gpu"] and recording["machine"].get("gpu") == facts["gpu"]:
                days.append(recording["date"])
    committed = shipped.git(root, "log", "-1", "--format=%cs", "--", f"notebooks/{file.name}").decode().strip()
    return max(days, default=committed or None)


def _put_in_place(pristine: bytes, target: Path, root: Path) -> Path | None:
    """Move what is there aside, then put the shipped notebook there; where the former one went."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.written_beside(target, pristine, mode=shipped.SHARED) as part:
        kept = own_copies.free_place(target, root) if os.path.lexists(target) else None
        if kept:
            os.replace(target, kept)
        os.replace(part, target)
    return kept


if __name__ == "__main__":
    if sys.argv[1:] != ["--write-manifest"]:
        raise SystemExit("usage: python -m labsupport.exercises.resetting --write-manifest")
    sys.stdout.write(f"{shipped.MANIFEST} lists {len(write_manifest())} notebooks\n")
