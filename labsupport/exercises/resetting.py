"""Bring one lab's notebook back to the shipped version; the learner's copy is moved aside, never deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError
from labsupport.exercises.progress import ROOT

MANIFEST = "shipped.json"
SHARED = 0o644  # the other users of a shared machine read these files, too


def reset(name: str, *, root: Path = ROOT) -> str:
    """Restore the notebook of lab ``name`` ("01" or "01_measuring"); says what was done and where the copy went.

    Raises BadInput for an unknown lab, and LabError, with nothing changed, where no shipped version can be found.
    """
    shipped = _manifest(root)
    lab = _lab_called(name, shipped, root)
    target, expected = root / "notebooks" / f"{lab}.ipynb", shipped.get(f"{lab}.ipynb")
    if expected and _hash_of_file(target) == expected:
        return f"{lab} already is as shipped; nothing was changed."
    pristine = next(_shipped_versions(lab, expected, root), None)
    if pristine is None:
        raise LabError(
            f"no shipped version of {lab} was found: neither git's history nor the snapshots in "
            f"{_snapshots() or 'the cache'} hold it. Nothing was changed. Download notebooks/{lab}.ipynb "
            "from the workbook's repository again and put it beside the other notebooks."
        )
    try:
        kept = _put_in_place(pristine, target, root)
    except OSError as error:
        raise LabError(
            f"{lab} could not be restored ({error.strerror or error}: {error.filename}). "
            "Close the notebook where it is open, check that the folder can be written, then try again; "
            f"your copy is in {target.parent} or its folder my_work."
        ) from error
    moved = f" Your copy is in {kept.relative_to(root).as_posix()}." if kept else " There was no copy to keep."
    return (
        f"{lab} is as shipped again.{moved} Your progress is kept. "
        "If the notebook is open in JupyterLab, choose File > Reload Notebook from Disk."
    )


def snapshot(*, root: Path = ROOT) -> tuple[str, ...]:
    """Keep a copy of every notebook that still is as shipped, for a reset without git; names those newly kept."""
    store = _snapshots()
    if store is None:
        return ()
    kept = []
    for notebook, expected in _manifest(root).items():
        source = root / "notebooks" / notebook
        if _hash_of_file(source) != expected or _hash_of_file(store / notebook) == expected:
            continue
        with contextlib.suppress(OSError):  # a full disk must not keep the workbook from opening
            store.mkdir(parents=True, exist_ok=True)
            files.replace(store / notebook, source.read_bytes(), mode=SHARED)
            kept.append(notebook)
    return tuple(kept)


def write_manifest(*, root: Path = ROOT) -> dict[str, str]:
    """Note the notebooks as they are now as the shipped ones, in ``notebooks/shipped.json``; for authors."""
    folder = root / "notebooks"
    manifest = {file.name: content_hash(file.read_bytes()) for file in sorted(folder.glob("*.ipynb"))}
    files.replace(folder / MANIFEST, (json.dumps(files.sealed(manifest), indent=1) + "\n").encode(), mode=SHARED)
    return manifest


def own_copies(*, root: Path = ROOT) -> list[str]:
    """Notebooks that a learner has worked in since they were shipped: no longer what the manifest says, nor what git
    has.
    """
    own = []
    for notebook, expected in _manifest(root).items():
        source = root / "notebooks" / notebook
        if source.is_file() and _hash_of_file(source) != expected:
            committed = _git(root, "show", f"HEAD:./notebooks/{notebook}")
            if committed != source.read_bytes():
                own.append(notebook)
    return own


def content_hash(content: bytes) -> str:
    """SHA-256 of a notebook's content, whatever its line ends, indentation and order of keys.

    Raises ValueError when it is no JSON.
    """
    canonical = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _hash_of_file(file: Path) -> str:
    """ "" where the file is absent, half-saved or unreadable."""
    try:
        return content_hash(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""


def _manifest(root: Path) -> dict[str, str]:
    """notebook → hash; from git where the file is gone or damaged, empty where both are."""
    file = root / "notebooks" / MANIFEST
    for read in (file.read_bytes, lambda: _git(root, "show", f"HEAD:./notebooks/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(read())
            if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
                listed = {name: value for name, value in content.items() if name != files.SEAL}
                if files.whole(content) and all(name.endswith(".ipynb") for name in listed):
                    return listed
    return {}


def _lab_called(name: str, shipped: dict[str, str], root: Path) -> str:
    labs = [Path(notebook).stem for notebook in shipped]
    labs = labs or sorted(file.stem for file in (root / "notebooks").glob("*.ipynb"))  # the manifest is lost
    wanted = Path(str(name).strip().replace("\\", "/")).name.removesuffix(".ipynb").lower()
    found = [lab for lab in labs if wanted in (lab.lower(), lab.lower().partition("_")[0])]
    found = found or [lab for lab in labs if wanted.isdigit() and lab.partition("_")[0] == wanted.zfill(2)]
    if len(found) != 1:
        raise BadInput(f"{name!r} is not the name of a lab; choose one of {labs}.")
    return found[0]


def _shipped_versions(lab: str, expected: str | None, root: Path) -> Iterator[bytes]:
    """Candidates that are what was shipped: each is verified against the manifest before it is used."""
    path = f"./notebooks/{lab}.ipynb"
    store = _snapshots()
    with contextlib.suppress(OSError):
        if store is not None and _is_version(content := (store / f"{lab}.ipynb").read_bytes(), expected):
            yield content
    if _is_version(content := _git(root, "show", f"HEAD:{path}"), expected):
        yield content
    # the learner may have committed the edited notebook: the shipped one is further back
    for commit in _git(root, "log", "--format=%H", "--", path).decode().split():
        if _is_version(content := _git(root, "show", f"{commit}:{path}"), expected):
            yield content


def _is_version(content: bytes, expected: str | None) -> bool:
    try:
        found = content_hash(content)
    except (ValueError, RecursionError):
        return False
    return expected in (None, found)


def _git(root: Path, *arguments: str) -> bytes:
    """What git answers, b"" where there is no git, no repository or no such object."""
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return answer.stdout if answer.returncode == 0 else b""


def _snapshots() -> Path | None:
    from labsupport import environment

    try:
        return environment.cache_dir() / "shipped"
    except LabError:
        return None


def _put_in_place(pristine: bytes, target: Path, root: Path) -> Path | None:
    """Move what is there aside, then put the shipped notebook there; where the learner's copy went."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.written_beside(target, pristine, mode=SHARED) as part:
        kept = _free_place(target, root) if os.path.lexists(target) else None
        if kept:
            os.replace(target, kept)
        os.replace(part, target)
    return kept


def _free_place(target: Path, root: Path) -> Path:
    stamp, count = f"{datetime.now():%Y%m%d-%H%M%S}", 1
    while True:
        folder = root / "notebooks" / "my_work" / (stamp if count == 1 else f"{stamp}-{count}")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(folder / target.name):
            return folder / target.name
        count += 1


if __name__ == "__main__":
    if sys.argv[1:] != ["--write-manifest"]:
        raise SystemExit("usage: python -m labsupport.exercises.resetting --write-manifest")
    sys.stdout.write(f"{MANIFEST} lists {len(write_manifest())} notebooks\n")
