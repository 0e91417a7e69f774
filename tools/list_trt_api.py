"""List the Python API of the TensorRT that is installed here, in the form of data/trt_api.

    python3 tools/list_trt_api.py [--rtx] [FILE]

Prints the names that came and went since the newest listing of the same product; with FILE, writes the listing there.
No GPU is needed: names are read, nothing is created.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport.listings import releases


def listing(trt) -> dict:
    """{"api": name → {"members"} of a class, {"enum"} of an enumeration, {"function"} of others; "version"}."""
    api = {}
    for name, value in vars(trt).items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if inspect.isclass(value) and hasattr(value, "__members__"):
            api[name] = {"enum": sorted(value.__members__)}
        elif inspect.isclass(value):
            api[name] = {"members": sorted(member for member in dir(value) if not member.startswith("_"))}
        elif inspect.isroutine(value):
            api[name] = {"function": True}
    return {"api": dict(sorted(api.items())), "version": trt.__version__}


def names(api: dict) -> set[str]:
    """Every name of a listing's "api": "Builder" and "Builder.create_network"."""
    members = {name: (*(entry.get("members") or ()), *(entry.get("enum") or ())) for name, entry in api.items()}
    return set(api) | {f"{name}.{member}" for name, found in members.items() for member in found}


def main(arguments: list[str]) -> int:
    """Print what changed; write the listing where a file is named; 1 where that TensorRT is not installed."""
    product = "tensorrt_rtx" if "--rtx" in arguments else "tensorrt"
    try:
        found = listing(importlib.import_module(product))
    except ImportError as error:
        print(f"{product} is not installed here ({error}); install the release that you want to list")
        return 1
    before = [release for release in releases.RELEASES if release.startswith("rtx") == (product == "tensorrt_rtx")][-1]
    old, new = releases.names(before), names(found["api"])
    print(f"{product} {found['version']}, compared with the listing {before}:")
    for sign, changed in (("+", new - old), ("-", old - new)):
        print("\n".join(f"{sign} {name}" for name in sorted(changed)) or f"{sign} nothing")
    for file in [Path(word) for word in arguments if not word.startswith("--")]:
        file.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
