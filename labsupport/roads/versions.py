"""Which releases fit together, when each was last made and by whom. Standard library only.

`versions.json` and `stack.json` hold the facts, with their sources and the day of reading.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labsupport import environment
from labsupport.environment.packages import package_version
from labsupport.errors import BadInput, NotAvailable

FILE = Path(__file__).with_name("versions.json")


@dataclass(frozen=True)
class Misfit:
    """Two installed packages that do not work together: which, and what the first one needs (with its source)."""

    package: str
    version: str
    other: str
    other_version: str
    needed: str
    source: str

    def __str__(self) -> str:
        return (
            f"{self.package} {self.version} works with {self.other} {self.needed}, and {self.other_version} is"
            " installed"
        )


@functools.lru_cache(maxsize=None)
def table() -> dict:
    """All of `versions.json`: sets, fits, install, releases, and the day on which they were read."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=None)
def stack() -> dict:
    """All of `stack.json`: a road's package, what became of the old roads, and the layers of the stack with sources."""
    return json.loads(FILE.with_name("stack.json").read_text(encoding="utf-8"))


def release(package: str) -> dict:
    """The newest release on the day of reading: version, date, maintainer, source. Raises BadInput for others."""
    releases = table()["releases"]
    if package not in releases:
        raise BadInput(f"{package!r} is not in the table of releases; it holds {sorted(releases)}")
    return releases[package]


def misfits(version_of: Callable[[str], str | None] = package_version) -> list[Misfit]:
    """Installed pairs that the table says do not fit; releases that it does not know are not judged."""
    pairs = []
    for row in table()["fits"]:
        version = version_of(row["package"])
        if not version or not in_series(version, row["series"]):
            continue
        for other, needed in row["with"].items():
            have = version_of(other)
            if have and not in_series(have, needed):
                pairs.append(Misfit(row["package"], version, other, have, needed, row["source"]))
    return pairs


def in_series(version: str, series: str) -> bool:
    """Whether "2.14.1+cpu" belongs to the series "2.14"."""
    parts = version.partition("+")[0].split(".")
    wanted = series.split(".")
    return parts[: len(wanted)] == wanted


def lacking(*packages: str, version_of: Callable[[str], str | None] = package_version) -> str:
    """One sentence that names what is not installed of the packages, and how to get it; "" when all are there."""
    absent = [name for name in packages if not version_of(name)]
    if not absent:
        return ""
    install = table()["install"]
    ways = "; ".join(install.get(name, environment.INSTALL_GPU) for name in absent)
    return (
        f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed, so this road is closed here; get"
        f" it with: {ways}"
    )


def require(*packages: str) -> None:
    """Raise NotAvailable, naming what is missing and how to get it, unless all the packages are installed."""
    reason = lacking(*packages)
    if reason:
        raise NotAvailable(reason)
