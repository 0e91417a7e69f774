"""Native libraries that write to the terminal past Python's streams."""

from __future__ import annotations

import contextlib
import sys

from labsupport.quiet import natively


@contextlib.contextmanager
def silent_terminal():
    """What native code prints inside, on either stream, is dropped; Python's own streams are as before afterward."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with natively(1, 2):
        yield
