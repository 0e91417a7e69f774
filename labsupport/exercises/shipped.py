"""The labs as they were shipped: listed with a fingerprint each, and found again in snapshots and in git's history."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError
from labsupport.exercises.progress import ROOT

MANIFEST = "shipped.json"
SHARED = 0o644  # the other users of a shared machine read these files, too


def shipped_version(lab: str, *, root: Path = ROOT) -> bytes | None:
    """The notebook as shipped: from ``notebooks/`` while it is untouched there, else from a snapshot or git."""
    expected, here = manifest(root).get(f"{lab}.ipynb"), root / "notebooks" / f"{lab}.ipynb"
    if expected and hash_of_file(here) == expected:
        return here.read_bytes()
    return next(_shipped_versions(lab, expected, root), None)


def snapshot(*, root: Path = ROOT) -> tuple[str, ...]:
    """Keep a copy of every notebook that still is as shipped, for a reset without git; names those newly kept."""
    store = snapshots()
    if store is None:
        return ()
    kept = []
    for notebook, expected in manifest(root).items():
        source = root / "notebooks" / notebook
        if hash_of_file(source) != expected or hash_of_file(store / notebook) == expected:
            continue
        with contextlib.suppress(OSError):  # a full disk must not keep the workbook from opening
            store.mkdir(parents=True, exist_ok=True)
            files.replace(store / notebook, source.read_bytes(), mode=SHARED)
            kept.append(notebook)
    return tuple(kept)


def worked_in(*, root: Path = ROOT) -> list[str]:
    """Notebooks that a learner has worked in since they were shipped: no longer what the manifest says, nor what git
    has.
    """
    own = []
    for notebook, expected in manifest(root).items():
        source = root / "notebooks" / notebook
        if source.is_file() and hash_of_file(source) != expected:
            committed = git(root, "show", f"HEAD:./notebooks/{notebook}")
            if committed != source.read_bytes():
                own.append(notebook)
    return own


def content_hash(content: bytes) -> str:
    """SHA-256 of a notebook's content, whatever its line ends, indentation and order of keys.

    Raises ValueError when it is no JSON.
    """
    canonical = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash_of_file(file: Path) -> str:
    """ "" where the file is absent, half-saved or unreadable."""
    try:
        return content_hash(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""


def manifest(root: Path) -> dict[str, str]:
    """notebook → hash; from git where the file is gone or damaged, empty where both are."""
    file = root / "notebooks" / MANIFEST
    for read in (file.read_bytes, lambda: git(root, "show", f"HEAD:./notebooks/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(read())
            if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
                listed = {name: value for name, value in content.items() if name != files.SEAL}
                if files.whole(content) and all(name.endswith(".ipynb") for name in listed):
                    return listed
    return {}


def lab_called(name: str, shipped: dict[str, str], root: Path) -> str:
    """The lab that a learner means by "1", "01", "01_measuring" or a path. Raises BadInput for no lab."""
    labs = [Path(notebook).stem for notebook in shipped]
    labs = labs or sorted(file.stem for file in (root / "notebooks").glob("*.ipynb"))  # the manifest is lost
    wanted = Path(str(name).strip().replace("\\", "/")).name.removesuffix(".ipynb").lower()
    matches = [lab for lab in labs if wanted in (lab.lower(), lab.lower().partition("_")[0])]
    matches = matches or [lab for lab in labs if wanted.isdigit() and lab.partition("_")[0] == wanted.zfill(2)]
    if len(matches) != 1:
        raise BadInput(f"{name!r} is not the name of a lab; choose one of {labs}.")
    return matches[0]


def _shipped_versions(lab: str, expected: str | None, root: Path) -> Iterator[bytes]:
    """Candidates that are what was shipped: each is verified against the manifest before it is used."""
    path = f"./notebooks/{lab}.ipynb"
    store = snapshots()
    with contextlib.suppress(OSError):
        if store is not None and _is_version(content := (store / f"{lab}.ipynb").read_bytes(), expected):
            yield content
    if _is_version(content := git(root, "show", f"HEAD:{path}"), expected):
        yield content
    # the learner may have committed the edited notebook: the shipped one is further back
    for commit in git(root, "log", "--format=%H", "--", path).decode().split():
        if _is_version(content := git(root, "show", f"{commit}:{path}"), expected):
            yield content


def _is_version(content: bytes, expected: str | None) -> bool:
    try:
        digest = content_hash(content)
    except (ValueError, RecursionError):
        return False
    return expected in (None, digest)


def git(root: Path, *arguments: str) -> bytes:
    """What git answers, b"" where there is no git, no repository or no such object."""
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return answer.stdout if answer.returncode == 0 else b""


def snapshots() -> Path | None:
    """The folder of the copies that `snapshot` keeps; None where there is no cache."""
    from labsupport import environment

    try:
        return environment.cache_dir() / "shipped"
    except LabError:
        return None
