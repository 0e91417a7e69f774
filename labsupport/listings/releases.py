"""Which names each TensorRT release has in Python, by `data/trt_api`, and what a newer one changed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from labsupport.errors import BadInput

FOLDER = Path(__file__).resolve().parents[2] / "data" / "trt_api"
# in the order of their appearance; TensorRT-RTX is a product of its own beside 11
RELEASES = ("8.6.0", "10.16.1.11", "11.0.0.114", "11.4.0.106", "rtx-1.7.1")
OF_GENERATION = {"8.6": "8.6.0", "10": "10.16.1.11", "11": "11.0.0.114", "rtx": "rtx-1.7.1"}


@functools.cache
def listing(release: str) -> dict[str, dict]:
    """One release's API: name → members, values (enum) or neither (a function); BadInput for an unknown release."""
    if release not in RELEASES:
        raise BadInput(f"{release!r} has no listing; choose one of {list(RELEASES)}")
    return json.loads((FOLDER / f"{release}.json").read_text(encoding="utf-8"))["api"]


@functools.cache
def names(release: str) -> frozenset[str]:
    """All names of a release: "Builder" and "Builder.create_network"."""
    paths = set()
    for name, entry in listing(release).items():
        paths.add(name)
        paths |= {f"{name}.{member}" for member in (*(entry.get("members") or ()), *(entry.get("enum") or ()))}
    return frozenset(paths)


def having(name: str) -> tuple[str, ...]:
    """The releases that have a name such as "BuilderFlag.FP16"."""
    return tuple(release for release in RELEASES if name in names(release))


def changes(before: str, after: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(came, went), sorted. A class that came or went counts once, not again for each of its members."""
    old, new = names(before), names(after)
    classes = {name for name in old ^ new if "." not in name}

    def counted(changed: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(name for name in changed if "." not in name or name.partition(".")[0] not in classes))

    return counted(new - old), counted(old - new)
