"""One line at a time from a script that measures: the seconds since it began, and what it has to say."""

from __future__ import annotations

import sys
import time

STARTED = time.monotonic()  # import this first: other imports take seconds, too


def seconds() -> float:
    """Since the script began."""
    return time.monotonic() - STARTED


def say(*what) -> None:
    """One line, out at once."""
    sys.stdout.write(f"[{seconds():6.1f} s] {' '.join(map(str, what))}\n")
    sys.stdout.flush()


class Rehearsal:
    """A lab book that says what it is given and keeps nothing."""

    def record(self, metric, value, unit=None, samples=None, spread=None):
        """Say it."""
        say("rehearsed:", metric, value, unit or "")
