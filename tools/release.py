"""Make this checkout a release: its version in the package, the citation, the changelog and each notebook.

    python3 tools/release.py 0.2.0

Writes files only; the commands that commit, tag and publish are printed.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport.exercises import editions

VERSION = re.compile(r"\d+\.\d+\.\d+")


def replaced(text: str, pattern: str, new: str, where: str) -> str:
    """The text with the one place that the pattern finds replaced. Raises LookupError for none or several."""
    changed, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        raise LookupError(f"{where} has {count} places for the version; one is wanted")
    return changed


def changelog(text: str, version: str, day: str) -> str:
    """What was unreleased belongs to this version now. Raises LookupError where there is nothing to release."""
    if re.search(r"^## \[Unreleased\]\s*(?=^## |\Z)", text, flags=re.MULTILINE):
        raise LookupError("CHANGELOG.md has nothing under [Unreleased]; write what users get first")
    return replaced(text, r"^## \[Unreleased\]$", f"## [Unreleased]\n\n## [{version}] - {day}", "CHANGELOG.md")


def release(version: str, root: Path = ROOT, day: str = "") -> list[Path]:
    """Write the version everywhere; the files changed. Raises ValueError for a version that is none or not newer."""
    file = root / "labsupport" / "__init__.py"
    before = re.search(r'^__version__ = "([\d.]+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)[1]
    if not VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is no version; write three numbers, such as 0.2.0")
    if [*map(int, version.split("."))] <= [*map(int, before.split("."))]:
        raise ValueError(f"{version} is not newer than {before}")
    texts = {
        file: lambda text: replaced(text, r'^__version__ = ".*"$', f'__version__ = "{version}"', file.name),
        root / "CITATION.cff": lambda text: replaced(text, r"^version: .*$", f"version: {version}", "CITATION.cff"),
        root / "CHANGELOG.md": lambda text: changelog(text, version, day or date.today().isoformat()),
    }
    written = {path: change(path.read_text(encoding="utf-8")).encode("utf-8") for path, change in texts.items()}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["metadata"].setdefault(editions.NOTE, {})["version"] = version
        written[path] = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
    for path, content in written.items():  # after all were read and changed: a fault leaves the checkout as it was
        path.write_bytes(content)
    return list(written)


def main(arguments: list[str]) -> int:
    """Release, or say why not."""
    if len(arguments) != 1:
        print("give one version: python3 tools/release.py 0.2.0")
        return 2
    try:
        changed = release(arguments[0])
    except (LookupError, ValueError) as error:
        print(f"nothing was changed: {error}")
        return 1
    version = arguments[0]
    print(f"{len(changed)} files carry version {version}. Then:")
    print("    python3 -m labsupport.exercises.resetting --write-manifest")
    print("    python3 tools/instructor.py && python3 -m labsupport test --all")
    print(f"    git commit --all --message 'Release {version}' && git tag --annotate v{version} --message v{version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
