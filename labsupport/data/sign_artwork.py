"""Real road-sign artwork, shipped in data/signs/: who drew it, under which licence, and whether it is still what was
shipped.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from labsupport.errors import BadInput, NotAvailable

if TYPE_CHECKING:
    from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "data" / "signs"
RESTORE = "restore it with: git checkout -- data/signs"


def listing(folder: str | Path = FOLDER) -> dict:
    """What data/signs/signs.json says: origin, licence, and for each sign its class, file, author and checksum."""
    path = Path(folder) / "signs.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        complete = all({"class", "file", "sha256", "author"} <= sign.keys() for sign in listed["signs"])
    except OSError as error:
        raise NotAvailable(f"the list of signs cannot be read from {path} ({error.strerror}); {RESTORE}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is not the list it should be ({error}); {RESTORE}") from None
    if not listed["signs"] or not complete:
        raise BadInput(f"{path} names no signs, or a sign without class, file, author and checksum; {RESTORE}")
    return listed


def artwork(folder: str | Path = FOLDER) -> dict[str, Image.Image]:
    """Class → drawing seen straight on, RGBA, at most 128×128, transparent outside; in the order of the list.

    Raises NotAvailable for a missing file and BadInput for one that is not what was shipped.
    """
    from PIL import Image

    drawings = {}
    for sign in listing(folder)["signs"]:
        path = Path(folder) / sign["file"]
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise NotAvailable(
                f"the sign {sign['class']!r} cannot be read from {path} ({error.strerror}); {RESTORE}"
            ) from None
        if hashlib.sha256(packed).hexdigest() != sign["sha256"]:
            raise BadInput(f"{path} is not the drawing that was shipped ({len(packed)} bytes); {RESTORE}")
        drawings[sign["class"]] = Image.open(io.BytesIO(packed)).convert("RGBA")
    return drawings
