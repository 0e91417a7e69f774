"""Give every stored recording and plan its checksum: after a merge, or where one was changed by hand on purpose.

python3 tools/seal_recordings.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from labsupport import files
from labsupport.recordings import provenance


def seal(root: Path = provenance.ROOT) -> list[Path]:
    """Write the checksum where it is missing or another; the files that were changed."""
    changed = []
    for path in sorted(root.glob("*/*.json")):
        if _lacks_its_checksum(path):
            with provenance.locked(path):  # a recording run may be storing into it
                content = json.loads(path.read_text(encoding="utf-8"))
                changed.append(provenance.write_json(path, {k: v for k, v in content.items() if k != files.SEAL}))
    return changed


def _lacks_its_checksum(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return files.SEAL not in content or not files.whole(content)


if __name__ == "__main__":
    sys.stdout.write("\n".join(map(str, seal())) + "\n")
