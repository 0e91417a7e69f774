"""A learner's own notebooks, in ``work/``: made from the shipped labs, never overwritten, offered the newer ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from labsupport import files
from labsupport.errors import LabError
from labsupport.exercises import editions, shipped
from labsupport.exercises.progress import ROOT

FOLDER = "work"
KEPT = "kept"  # its folder for what `reset` moved aside
MODE = 0o644


@dataclass
class Provided:
    """What `provide` did, by the names of labs: ``made`` and ``renewed`` copies, ``adopted`` work from
    ``notebooks/``, and ``newer`` labs that only `reset` brings, because the copies hold a learner's work.
    """

    made: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    newer: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = []
        if self.made:
            count = (
                f"your own copy of {self.made[0]}" if len(self.made) == 1 else f"your own copies of {len(self.made)}"
            )
            said.append(f"{count}{' labs' * (len(self.made) > 1)}: in {FOLDER}/")
        if self.renewed:
            said.append(f"newer now, and you had not used them yet: {', '.join(self.renewed)}")
        if self.adopted:
            said.append(f"what you wrote in notebooks/ was copied to {FOLDER}/: {', '.join(self.adopted)}")
        return "\n".join([*said, *filter(None, [offer(self.newer)])])


def offer(newer: list[str]) -> str:
    """One line that offers newer labs; "" for none."""
    if not newer:
        return ""
    command = f"`python3 -m labsupport reset {newer[0].partition('_')[0]}`"
    return f"newer than your copies: {', '.join(newer)}; {command} fetches one and keeps yours in {FOLDER}/{KEPT}/"


def path_of(lab: str, *, root: Path = ROOT) -> Path:
    """Where the copy of a lab is, or would be."""
    return root / FOLDER / f"{lab}.ipynb"


def provide(*, root: Path = ROOT) -> Provided:
    """Make the copies that are not there. One that was never used follows the shipped lab; any other stays as it is.

    Raises LabError where ``work/`` cannot be written.
    """
    done = Provided()
    try:
        (root / FOLDER).mkdir(exist_ok=True)
        for lab, edition in _shipped(root):
            target = path_of(lab, root=root)
            if not os.path.lexists(target):
                _first(lab, edition, root, done)
            elif not _is_current(target, edition):
                if _is_unused(target):
                    files.replace(target, _fresh(lab, edition), mode=MODE)
                    done.renewed.append(lab)
                else:
                    done.newer.append(lab)
    except OSError as error:
        raise LabError(
            f"your copies in {root / FOLDER} cannot be made ({error.strerror or error}); make that folder writable"
        ) from error
    return done


def folder_to_open(*, root: Path = ROOT) -> tuple[str, str]:
    """Where `lab` opens the notebooks, after the copies were made, and what to say of it; the shipped ones where no
    copies can be made.
    """
    try:
        said = str(provide(root=root))
        if not os.access(root / FOLDER, os.W_OK):  # made earlier, and read-only since
            said += f"\n{FOLDER}/ cannot be written now, so nothing that you change there can be saved"
        return FOLDER, said.strip()
    except LabError as error:
        return "notebooks", f"{error}. The shipped notebooks are opened; save yours under other names"


def newer(*, root: Path = ROOT) -> list[str]:
    """Labs that were shipped anew since the learner's copies were made."""
    newer = []
    for copy in sorted((root / FOLDER).glob("*.ipynb")):
        edition = _content(copy.stem, root) if (root / "notebooks" / copy.name).exists() else None
        if edition is not None and not _is_current(copy, edition):
            newer.append(copy.stem)
    return newer


def renew(lab: str, *, root: Path = ROOT) -> tuple[bool, Path | None]:
    """A fresh copy of the shipped lab, for `reset`: whether one was needed, and where the former copy went.

    Where there is no ``work/`` yet, `lab` has never made copies, and none is made here. Raises OSError where the
    folder cannot be written; the former copy then is where it was.
    """
    edition, target = _content(lab, root), path_of(lab, root=root)
    if edition is None or not target.parent.is_dir() or _is_unused(target) and _is_current(target, edition):
        return False, None
    with files.written_beside(target, _fresh(lab, edition), mode=MODE) as part:
        kept = free_place(target, root) if os.path.lexists(target) else None
        if kept:
            os.replace(target, kept)
        os.replace(part, target)
    return True, kept


def free_place(target: Path, root: Path) -> Path:
    """Where a notebook that gives way can be kept: a folder named after this moment, made on demand."""
    stamp, count = f"{datetime.now():%Y%m%d-%H%M%S}", 1
    while True:
        folder = root / FOLDER / KEPT / (stamp if count == 1 else f"{stamp}-{count}")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(folder / target.name):
            return folder / target.name
        count += 1


def _shipped(root: Path) -> Iterator[tuple[str, dict]]:
    """(lab, content) of every lab as shipped; one that is not to be had is left out."""
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        content = _content(file.stem, root)
        if content is not None:
            yield file.stem, content


def _content(lab: str, root: Path) -> dict | None:
    """The lab as shipped; where no shipped version is found (an author's draft), as it is in ``notebooks/``."""
    pristine = shipped.shipped_version(lab, root=root)
    if pristine is not None:
        return json.loads(pristine)
    return _read(root / "notebooks" / f"{lab}.ipynb")


def _read(path: Path) -> dict | None:
    """A notebook, or None where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        editions.sources(content)
        return content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _fresh(lab: str, edition: dict) -> bytes:
    return editions.written(editions.learners(edition, lab))


def _first(lab: str, edition: dict, root: Path, done: Provided) -> None:
    """The first copy: of the shipped lab, or of what somebody has written in ``notebooks/`` itself."""
    here = _read(root / "notebooks" / f"{lab}.ipynb")
    if here is not None and editions.sources(here) != editions.sources(edition):
        content = editions.learners(here, lab, keep_outputs=True)
        content["metadata"][editions.NOTE] = {"shipped": editions.sources(edition)}
        done.adopted.append(lab)
    else:
        content = editions.learners(edition, lab)
        done.made.append(lab)
    with files.written_beside(path_of(lab, root=root), editions.written(content), mode=MODE) as part:
        _put_where_nothing_is(part, path_of(lab, root=root))


def _put_where_nothing_is(part: Path, target: Path) -> None:
    """Another `lab` may be making the same copy: the first of them stays."""
    try:
        os.link(part, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not os.path.lexists(target):
            os.replace(part, target)


def _is_current(target: Path, edition: dict) -> bool:
    """Whether a copy was made of this edition; what cannot be read, or says nothing of it, is the learner's own."""
    content = _read(target)
    note = (content or {}).get("metadata", {}).get(editions.NOTE, {})
    made_of = note.get("shipped") if isinstance(note, dict) else None
    return content is None or made_of in (None, editions.sources(edition)) or _same(content, edition)


def _same(content: dict, edition: dict) -> bool:
    return editions.sources(content) == editions.sources(edition)


def _is_unused(target: Path) -> bool:
    """Whether a copy is as it was made: no cell was run, and no text is another."""
    content = _read(target)
    if content is None:
        return False
    note = content["metadata"].get(editions.NOTE, {})
    return not editions.has_outputs(content) and note.get("shipped") == editions.sources(content)
