"""Native libraries that write to the terminal past Python's streams."""

from __future__ import annotations

import contextlib
import os
import sys


@contextlib.contextmanager
def silent_terminal():
    """What native code prints inside, on either stream, is dropped; Python's own streams are as before afterward."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
