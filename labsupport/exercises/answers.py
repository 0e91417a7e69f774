"""What a learner handed in: whether it was touched at all, in which type, and what it raised."""

from __future__ import annotations

import ast
import decimal
import dis
import inspect
import itertools
import math
import numbers
import reprlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any


class Wrong(Exception):
    """Raised by a judge: the answer is wrong, and the message says why."""


class NotAttempted(Exception):
    """Raised by a judge: there is nothing to judge yet, and the message says what to do."""


def is_untouched(value: Any, depth: int = 2, *, leftover: bool = False) -> bool:
    """Whether a starter's `...` is still there: as the value, inside a collection, a function or a class.

    A starter function does best with `scale = ...` or `return ...`: the compiler drops a `...` that stands alone,
    so it is seen only where the source can be had, which is not so when all cells share one file name.
    With ``leftover``, a `...` that stands alone among finished lines counts as well.
    """
    if value is Ellipsis:
        return True
    if isinstance(value, (list, tuple, set, dict)):
        items = itertools.islice(value.values() if isinstance(value, dict) else value, 1000)
        return depth > 0 and any(is_untouched(item, depth - 1, leftover=leftover) for item in items)
    try:
        if isinstance(getattr(value, "__wrapped__", None), FunctionType):
            value = inspect.unwrap(value)
    except Exception:  # a learner's object may fail at whatever it is asked
        return False
    if isinstance(value, FunctionType):
        return _is_learners(value) and (_is_empty(value) or _holds_ellipsis(value, leftover))
    kind = value if isinstance(value, type) else type(value)
    if not _is_learners(kind):
        return False
    methods = [getattr(member, "__func__", member) for member in vars(kind).values()]  # also static and class methods
    # an empty method may be meant (a plugin has several), so in a class only a `...` tells
    functions = [method for method in methods if isinstance(method, FunctionType)]
    return any(method is Ellipsis for method in methods) or any(_holds_ellipsis(each, leftover) for each in functions)


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


def _holds_ellipsis(function: FunctionType, leftover: bool) -> bool:
    tree = _tree_of(function)
    if tree is None:
        return Ellipsis in function.__code__.co_consts
    # `x[..., 0]` and `tuple[int, ...]` are finished code; a `...` alone in a line may be what the starter left behind
    parts: list[ast.AST] = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    parts += [node for node in ast.walk(tree) if isinstance(node, (ast.Compare, ast.ExceptHandler, ast.arguments))]
    if not leftover and not _only_ellipsis(tree):
        parts += [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    innocent = {id(part) for each in parts for part in ast.walk(each)}
    return any(
        isinstance(node, ast.Constant) and node.value is Ellipsis and id(node) not in innocent
        for node in ast.walk(tree)
    )


def _only_ellipsis(tree: ast.AST) -> bool:
    """Whether a function's body is nothing but `...` and text."""
    body = getattr(tree, "body", ())
    return isinstance(body, list) and all(
        isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in body
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
    if len(signature.parameters) == len(named) == 1:  # one answer needs no name, so any name will do
        answers, named = (*answers, *named.values()), {}
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


KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "text, in quotation marks"),
    "bool": (bool, "True or False"),
    "list": (Iterable, "a list"),
    "dict": (Mapping, "a dict"),
}
MOST = 10_000  # items of a list; a generator may have no end


def _fitted(value: Any, parameter: inspect.Parameter) -> Any:
    name, kind = parameter.name, parameter.annotation
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    if kind in ("int", "float", "bool"):
        value = plain_of(value)
    if value is None and "None" not in kind:
        raise Wrong(f"{name} is None. Did a function forget its `return`, or a cell above not run?")
    if kind in ("int", "float"):
        number = as_number(value, name)
        if kind == "float":
            return number
        if number != int(number):
            raise Wrong(f"{name} is {number:g}; a whole number is wanted.")
        return int(number)
    if kind in KINDS and not isinstance(value, KINDS[kind][0]):
        raise Wrong(f"{name} is {described(value)}; wanted is {KINDS[kind][1]}.")
    if kind != "list":
        return dict(value) if kind == "dict" else value
    if isinstance(value, (str, bytes, Mapping)):
        raise Wrong(f"{name} is {described(value)}; wanted is a list.")
    items = list(itertools.islice(value, MOST + 1))
    if len(items) > MOST:
        raise Wrong(f"{name} has more than {MOST} items; wanted is a list that ends.")
    if any(is_untouched(item, 1) for item in items):
        raise NotAttempted("there is still a `...` in the list. Put your answer in its place.")
    return items


def as_number(value: Any, name: str) -> float:
    """A finite float from a Python, NumPy or torch scalar, a Fraction or a Decimal."""
    value = plain_of(value)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, decimal.Decimal)):
        raise Wrong(f"{name} is {described(value)}; a number is wanted.")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise Wrong(f"{name} is {described(value)}; a finite number is wanted.")
    return number


def plain_of(value: Any) -> Any:
    """A NumPy or torch scalar as Python's own, without importing either; anything else as it came."""
    if callable(getattr(value, "item", None)) and not getattr(value, "shape", True):
        return value.item()
    return value


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 20


def described(value: Any) -> str:
    """A value and its type in a few words, the same on every machine (no address)."""
    try:
        shown = _SHORT.repr(value)
    except Exception:  # a learner's class may fail to show itself
        shown = ""
    shown = shown if len(shown) <= 40 and "\n" not in shown and " at 0x" not in shown and "..." not in shown else ""
    return f"{shown} ({type(value).__name__})" if shown else f"a {type(value).__name__}"


def what_was_raised(error: BaseException) -> str:
    """One sentence: what was raised and, if the learner's own code raised it, where."""
    try:
        said = next((line.strip() for line in str(error)[:2000].splitlines() if line.strip()), "")
    except Exception:  # an exception whose text raises
        said = ""
    raised = f"{type(error).__name__}: {textwrap.shorten(said, 300)}".rstrip(": ")
    frame, own = error.__traceback__, None
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_name not in ("judge", "call") and not _is_library(code.co_filename):
            own = frame
        frame = frame.tb_next
    if own is None:
        return f"judging this answer raised {raised}. Is it the kind of thing the question asks for?"
    line = own.tb_lineno - own.tb_frame.f_code.co_firstlineno + 1
    return f"your `{own.tb_frame.f_code.co_name}` raised {raised} (its line {line})."
