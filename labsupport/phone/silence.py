"""Converters that talk from C++ and in colors: run them without a word."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from unittest import mock

from labsupport.quiet import natively, quietly


@contextlib.contextmanager
def silently():
    """As ``quiet.quietly``, and neither the process's own standard error nor a notebook's rich output is written."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quietly())
        if find_spec("rich"):
            stack.enter_context(mock.patch("rich.jupyter.display", lambda *arguments: None))
        stack.enter_context(natively(2))
        yield
