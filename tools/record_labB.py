"""Run the listings that import TensorFlow with the real one, and keep the outcomes in data/article/tensorflow.json.

Needs an environment with tensorflow (a CPU build is enough) and TensorRT or TensorRT-RTX. Takes some minutes.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labsupport import listings

LACKS = ["tensorflow.DeviceMemory"]  # names of the listings that TensorFlow does not have, asked of it below


def main() -> None:
    import tensorflow as tf

    lacks = [name for name in LACKS if not hasattr(tf, name.removeprefix("tensorflow."))]
    outcomes = {}
    for name, listing in listings.every().items():
        if listing.kind != "python" or "tensorflow" not in listing.code + listing.helped:
            continue
        outcomes[name] = {}
        for helped in (False, True) if listing.help else (False,):
            outcome = listing.run(helped=helped, tensorflow=True, seconds=60)
            outcomes[name]["helped" if helped else "printed"] = [outcome.kind, outcome.error, outcome.message]
            print(name, "helped" if helped else "as printed", outcome, flush=True)
    found = {
        "tensorflow": version("tensorflow-cpu") if not _has("tensorflow") else version("tensorflow"),
        "keras": version("keras"),
        "date": date.today().isoformat(),
        "lacks": lacks,
        "outcomes": outcomes,
    }
    (listings.FOLDER / "tensorflow.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _has(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
