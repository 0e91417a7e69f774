"""One short training loop, and checkpoints from which it goes on bit for bit.

The parts: ``loop`` (fit and accuracy) and ``checkpoints`` (files with a fingerprint of what they belong to).
"""

from __future__ import annotations

from labsupport.training.loop import History, Objective, cross_entropy, fit
from labsupport.training.scoring import accuracy

__all__ = [
    "History", "Objective", "accuracy", "cross_entropy", "fit",
]  # fmt: skip
