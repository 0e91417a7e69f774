"""What an engine will need, as its builder added it up: weights, activations, and the scratch of its kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labsupport.errors import BadInput

MIB = 2**20
# 8.6: "Total Scratch Memory: 4194304"; TensorRT-RTX: "Max Scratch Memory: 4194304 bytes"
LINE = re.compile(r"^(?:Total|Max) (Weights|Activation|Scratch|Device Persistent) Memory: (\d+)")


@dataclass(frozen=True)
class Bill:
    """MiB of one engine with one context, as the builder's log has them; None where the log has no such line.

    ``scratch_mib`` is the largest workspace of a kernel, and lies in the same block as the activations.
    """

    name: str
    weights_mib: float | None
    activations_mib: float | None
    scratch_mib: float | None

    def __repr__(self) -> str:
        parts = {"weights": self.weights_mib, "activations": self.activations_mib, "scratch": self.scratch_mib}
        return (
            f"Bill({self.name}: "
            + ", ".join(f"{what} {mib:.1f} MiB" for what, mib in parts.items() if mib is not None)
            + ")"
        )


def bill(engine) -> Bill:
    """The builder's own sums for an engine, from the log that was kept beside it; needs no GPU.

    Raises BadInput where the log is gone or has no sums.
    """
    kept = engine.path.with_suffix(".log")
    texts = [text for _, text in engine.log]
    if not texts and kept.exists():
        texts = [
            line.partition(" ")[2].strip() for line in kept.read_text(encoding="utf-8", errors="replace").splitlines()
        ]
    entries = {match[1]: int(match[2]) / MIB for match in map(LINE.match, texts) if match}
    if not entries:
        what = (
            f"{kept.name} has none of the builder's sums, such as 'Total Activation Memory'"
            if texts
            else f"the builder's log, {kept.name}, is gone"
        )
        raise BadInput(f"{engine.name}: {what}; build the engine again with rebuild=True")
    return Bill(engine.name, entries.get("Weights"), entries.get("Activation"), entries.get("Scratch"))
