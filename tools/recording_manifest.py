"""The manifest of a whole recording: from which commit, on which machine, and the checksum of each file it made.

`tools/record_all.py` writes data/recordings/manifest-CLASS.json, and a test holds it against the tree.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport import files


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(book, steps: Sequence[str]) -> Path:
    """Commit, machine, versions, seconds and checksums, sealed, beside the bands. ``book`` is `record_all.Book`."""
    from labsupport.recordings import provenance

    entries = {name: book.state[name] for name in steps}
    made = sorted({name for entry in entries.values() for name in entry["files"]})
    content = {
        **provenance.here("python3 tools/record_all.py"),
        "commit": book.commit,
        "changed": bool(book.git("status", "--porcelain", "--", "labsupport", "tools")),
        "steps": {name: {key: entry[key] for key in ("seconds", "commit", "date")} for name, entry in entries.items()},
        "files": {name: checksum(book.root / name) for name in made},
    }
    path = book.root / "data" / "recordings" / f"manifest-{content['machine_class']}.json"
    files.replace(path, (json.dumps(files.sealed(content), indent=1) + "\n").encode())
    return path


def problems(manifest: Path, root: Path, steps: Sequence[str]) -> list[str]:
    """What speaks against a manifest: damage, several commits, steps or files that are missing, files changed since."""
    content = json.loads(manifest.read_text("utf-8"))
    if files.SEAL not in content or not files.whole(content):
        return [f"{manifest.name} was changed by hand"]
    found = [f"{name} was not recorded" for name in steps if name not in content["steps"]]
    commits = {entry["commit"] for entry in content["steps"].values()} | {content["commit"]}
    if len(commits) > 1 or "unknown" in commits or content["changed"]:
        found.append(f"not of one commit: {', '.join(sorted(commits))}{', changed' if content['changed'] else ''}")
    for name, mark in content["files"].items():
        if not (root / name).exists():
            found.append(f"{name} is missing")
        elif checksum(root / name) != mark:
            found.append(f"{name} was changed after it was recorded")
    return found
