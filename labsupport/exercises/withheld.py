"""Whether solutions are shown: in a class, the teacher can keep them back with ``LABSUPPORT_SOLUTIONS=off``."""

from __future__ import annotations

import os

from labsupport.errors import BadInput

VARIABLE = "LABSUPPORT_SOLUTIONS"
SAID = "Solutions are withheld in this class; ask for the hints, or your teacher."


def solutions() -> bool:
    """Whether solutions are withheld here. Raises BadInput for a value that is neither on nor off."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in ("", "on", "off"):
        raise BadInput(f"{VARIABLE}={value!r} is unknown; set it to off, to withhold solutions, or to on")
    return value == "off"
