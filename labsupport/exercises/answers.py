"""What a learner handed in: whether it was touched at all, in which type, and what it raised."""

from __future__ import annotations

import ast
import dis
import inspect
import math
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any


class Wrong(Exception):
    """Raised by a judge: the answer is wrong, and the message says why."""


class NotAttempted(Exception):
    """Raised by a judge: there is nothing to judge yet, and the message says what to do."""


def is_untouched(value: Any, depth: int = 2) -> bool:
    """Whether a starter's `...` is still there: as the value, inside a collection, a function or a class.

    A starter function does best with `scale = ...` or `return ...`: the compiler drops a `...` that stands alone,
    so it is seen only where the source can be had, which is not so when all cells share one file name.
    """
    if value is Ellipsis:
        return True
    if isinstance(value, (list, tuple, set, dict)):
        items = value.values() if isinstance(value, dict) else value
        return depth > 0 and any(is_untouched(item, depth - 1) for item in items)
    if isinstance(getattr(value, "__wrapped__", None), FunctionType):
        value = inspect.unwrap(value)
    if isinstance(value, FunctionType):
        return _is_learners(value) and (_is_empty(value) or _holds_ellipsis(value))
    kind = value if isinstance(value, type) else type(value)
    if not _is_learners(kind):
        return False
    methods = [getattr(member, "__func__", member) for member in vars(kind).values()]  # also static and class methods
    # an empty method may be meant (a plugin has several), so in a class only a `...` tells
    return any(method is Ellipsis or isinstance(method, FunctionType) and _holds_ellipsis(method) for method in methods)


def _is_learners(value: FunctionType | type) -> bool:
    """Whether the learner wrote it: not a library, and not this package."""
    if isinstance(value, FunctionType):
        return not _is_library(value.__code__.co_filename)
    if value.__module__ in ("__main__", "builtins"):
        return value.__module__ == "__main__"
    return not _is_library(getattr(sys.modules.get(value.__module__), "__file__", None) or "")


def _is_library(path: str) -> bool:
    labsupport = str(Path(__file__).resolve().parents[1])
    return path.startswith((labsupport, sys.prefix, sys.base_prefix, "<frozen", "<__array"))


def _is_empty(function: FunctionType) -> bool:
    """Whether the body does nothing: `def f(x): ...` compiles to the code of `pass`, without an Ellipsis."""
    does = [(step.opname, step.argval) for step in dis.get_instructions(function) if step.opname != "RESUME"]
    empty = [("LOAD_CONST", None), ("RETURN_VALUE", None)], [("RETURN_CONST", None)]
    return does in empty and function.__name__ != "<lambda>"


def _holds_ellipsis(function: FunctionType) -> bool:
    tree = _tree_of(function)
    if tree is None:
        return Ellipsis in function.__code__.co_consts
    # `x[..., 0]` and `tuple[int, ...]` are finished code
    indices = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    innocent = {id(part) for index in indices for part in ast.walk(index)}
    return any(
        isinstance(node, ast.Constant) and node.value is Ellipsis and id(node) not in innocent
        for node in ast.walk(tree)
    )


def _tree_of(function: FunctionType) -> ast.AST | None:
    """The function's syntax tree; None where its source is not to be had."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # defined by exec, or half a line around a lambda
        return None
    kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    # where all cells share one file name (IPYKERNEL_CELL_NAME), inspect may hand out another cell's lines
    for node in ast.walk(tree):
        if isinstance(node, kinds) and getattr(node, "name", "<lambda>") == function.__name__:
            return node
    return None


def bound(judge: Callable, answers: tuple, named: dict[str, Any]) -> inspect.BoundArguments:
    """The answers as the judge's arguments, each in the type that its annotation asks for."""
    signature = inspect.signature(judge)
    try:
        arguments = signature.bind(*answers, **named)
    except TypeError:
        names = ", ".join(signature.parameters)
        count = len(answers) + len(named)
        raise Wrong(
            f"check() came with {count} answer{'s' * (count != 1)}, this exercise takes "
            f"{len(signature.parameters)}: check({names})."
        ) from None
    for name, value in arguments.arguments.items():
        arguments.arguments[name] = _fitted(value, signature.parameters[name])
    return arguments


def _fitted(value: Any, parameter: inspect.Parameter) -> Any:
    name, kind = parameter.name, parameter.annotation
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    if kind in ("int", "float", "bool"):
        value = _plain(value)
    if value is None and "None" not in kind:
        raise Wrong(f"{name} is None. Did a function forget its `return`, or a cell above not run?")
    if kind in ("int", "float"):
        number = as_number(value, name)
        if kind == "float":
            return number
        if number != int(number):
            raise Wrong(f"{name} is {number:g}; a whole number is wanted.")
        return int(number)
    kinds: dict[str, tuple[Any, str]] = {
        "str": (str, "text, in quotation marks"),
        "bool": (bool, "True or False"),
        "list": ((list, tuple), "a list"),
        "dict": (dict, "a dict"),
    }
    if kind in kinds and not isinstance(value, kinds[kind][0]):
        raise Wrong(f"{name} is {described(value)}; wanted is {kinds[kind][1]}.")
    return list(value) if kind == "list" else value


def as_number(value: Any, name: str) -> float:
    """A finite float from a Python, NumPy or torch scalar."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{name} is {described(value)}; a number is wanted.")
    if not math.isfinite(value):
        raise Wrong(f"{name} is {value}; a finite number is wanted.")
    return float(value)


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as Python's own, without importing either; anything else as it came."""
    if callable(getattr(value, "item", None)) and not getattr(value, "shape", True):
        return value.item()
    return value


def described(value: Any) -> str:
    """A value and its type in a few words, the same on every machine (no address)."""
    shown = repr(value)
    shown = shown if len(shown) <= 40 and "\n" not in shown and " at 0x" not in shown else ""
    return f"{shown} ({type(value).__name__})" if shown else f"a {type(value).__name__}"


def what_was_raised(error: BaseException) -> str:
    """One sentence: what was raised and, if the learner's own code raised it, where."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    raised = f"{type(error).__name__}: {textwrap.shorten(said, 300)}".rstrip(": ")
    frame, own = error.__traceback__, None
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_name != "judge" and not _is_library(code.co_filename):
            own = frame
        frame = frame.tb_next
    if own is None:
        return f"judging this answer raised {raised}. Is it the kind of thing the question asks for?"
    line = own.tb_lineno - own.tb_frame.f_code.co_firstlineno + 1
    return f"your `{own.tb_frame.f_code.co_name}` raised {raised} (its line {line})."
