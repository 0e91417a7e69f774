"""A learner's code under care: it may raise anything, never come back, or give what never ends."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any

from labsupport.exercises.answers import Wrong, described, plain_of

STACK_BYTES = 64 * 1024**2  # a deep recursion shall end as RecursionError; a thread's own stack is small on macOS
PATIENCE_S = 5.0
MOST_ITEMS = 10_000


class _Stop(BaseException):
    """Thrown into a thread that took too long; `except Exception` does not catch it."""


class Interrupted(Exception):
    """A learner's code raised KeyboardInterrupt or the like by itself; nobody pressed a key."""


def needs_function(value: Any, name: str) -> None:
    """Refuse what cannot be called, and a class."""
    if not callable(value) or isinstance(value, type):
        raise Wrong(f"that is {described(value)}; hand in the function itself, `{name}`, without calling it.")


def returned(work: Callable, what: str, seconds: float | None = None) -> Any:
    """What ``work`` returns or raises, from a thread of its own; Wrong if it has not come back after ``seconds``.

    None is ``PATIENCE_S``. A loop in C that never lets go of the interpreter cannot be stopped so.
    """
    seconds = PATIENCE_S if seconds is None else seconds
    box: dict[str, Any] = {}

    def call() -> None:
        try:
            box["value"] = work()
        except BaseException as error:  # handed on below, in the caller's thread
            box["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    try:
        _start(thread)
        thread.join(seconds)
    except BaseException:  # the learner pressed the stop button, as early as while the thread was started
        _stop(thread)
        raise
    if thread.is_alive():
        _stop(thread)
        raise Wrong(f"{what} has not come back after {seconds:g} s; something waits for what will never come.")
    error = box.get("error")
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        raise Interrupted(type(error).__name__) from error
    if error is not None:
        raise error
    return box["value"]


def _start(thread: threading.Thread) -> None:
    before = threading.stack_size(STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)


def _stop(thread: threading.Thread) -> None:
    """Ask a thread's Python code to end; a few times, since a bare `except:` catches even this."""
    for _ in range(5):
        if not thread.is_alive() or thread.ident is None:
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
        thread.join(0.05)


def items(value: Any, what: str, most: int = MOST_ITEMS) -> list:
    """The items of a list, a generator, an array …; Wrong for what has none, and for what does not end."""
    if value is None:
        raise Wrong(f"{what} gave None. Did it forget its `return`?")
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise Wrong(f"{what} gave {described(value)}; wanted is a list.")
    listed = list(itertools.islice(iter(value), most + 1))
    if len(listed) > most:
        raise Wrong(f"{what} gave more than {most} items, and goes on; wanted is a list that ends.")
    return listed


def yes_or_no(value: Any, what: str) -> bool:
    """True or False, also NumPy's and torch's; Wrong for None, 'no' and what else Python would take for a truth."""
    if value is None:
        raise Wrong(f"{what} gave None. Did it forget its `return`?")
    plain = plain_of(value)
    if not isinstance(plain, bool):
        raise Wrong(f"{what} gave {described(value)}; wanted is True or False.")
    return plain


def on_arrays(function: Callable, *arrays: Any) -> Any:
    """What the function answers; Wrong where it changed an array that it was given."""
    import numpy as np

    before = [np.copy(array) for array in arrays]
    with np.errstate(all="ignore"):
        answer = function(*arrays)
    if not all(map(np.array_equal, arrays, before)):
        raise Wrong("the function changed an array that it was given; make a new one.")
    return answer


def array_of(value: Any, shape: tuple[int, ...], what: str) -> Any:
    """The numbers as a float64 array; Wrong for None, for what holds no numbers, and for another shape."""
    import numpy as np

    if value is None:
        raise Wrong(f"{what} is None. Did the function forget its `return`?")
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is {described(value)}; wanted are numbers of shape {shape}.") from None
    if array.shape != shape:
        raise Wrong(f"{what} has shape {array.shape}; wanted is {shape}.")
    return array


def comes_from(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of these kinds, or was raised because of one that is."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, kinds):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
