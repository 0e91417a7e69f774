"""Errors that say what came, what was wanted and what to do; shown in a notebook without a traceback."""

from __future__ import annotations

import numbers
import sys
import warnings


class LabError(RuntimeError):
    """Base of every error raised on purpose: the message names the fault and the fix."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this instead of printing a traceback; the message already names the fix,
        # and forty frames of library code would bury it.
        return [f"{type(self).__name__}: {self}"]


class NotAvailable(LabError):
    """This machine lacks a GPU, a package or a TensorRT generation that the call needs."""


class BadInput(LabError, ValueError):
    """A file, array or option that the call cannot work with."""


class BuildError(LabError):
    """The builder could not make an engine from the network it was given."""


class PrecisionMismatch(BuildError):
    """The engine was built, but not in the precision that was asked for."""


class EngineError(LabError):
    """A serialized engine is damaged, or was built for another TensorRT, GPU or platform."""


class UntrustedEngine(EngineError):
    """A serialized engine has no sidecar of ours; engines are native code and are not run on trust."""


class RecordingError(LabError):
    """A recording is missing, lacks its provenance, or left its band."""


def at_least(least: int = 1, most: int | None = None, /, **values) -> None:
    """Refuse with BadInput what is no whole number of at least ``least`` (and of at most ``most``), by its name."""
    for name, value in values.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # NumPy's, too
        if not whole or value < least or (most is not None and value > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise BadInput(f"{name}={value!r}; wanted a whole number {bounds}")


def one_of(choices, /, **values) -> None:
    """Refuse with BadInput what is none of the choices, by its name, and list them."""
    for name, value in values.items():
        if value not in choices:
            raise BadInput(f"{name}={value!r} is not known; choose one of {list(choices)}")


def first_line(error: BaseException) -> str:
    """What an error says in its first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def warn(message: str) -> None:
    """Warn at the line that called this package, however many of our own frames lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (__package__, "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
