"""Whether a value is of the kind that a parameter asks for, told from its annotation, its default value or its name."""

from __future__ import annotations

import functools
import itertools
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any

MOST = 10**9  # no size, count or length of these labs comes near it
LONGEST_LABEL = 1000


def _is_text(value) -> bool:
    return isinstance(value, str) and "\0" not in value and str.encode(value) is not None  # half a character raises


def _is_label(value) -> bool:
    return _is_text(value) and len(value) <= LONGEST_LABEL


def _is_path(value) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(str(value)) and "\0" not in str(value)


def _is_whole(value) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _is_number(value) -> bool:
    """Every number but NaN and the truth values; of any library, as an array without axes is one, too."""
    if _is_choice(value) or getattr(getattr(value, "dtype", None), "kind", "f") not in "fiu":
        return False
    return (_is_whole(value) or isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0) and value == value


def _is_finite(value) -> bool:
    return _is_number(value) and abs(value) != math.inf


def _is_size(value) -> bool:
    return _is_whole(value) and abs(value) <= MOST


def _is_device(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"cpu|cuda(:\d{1,3})?", value) is not None


def _is_choice(value) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy has one of its own


def _are_numbers(value) -> bool:
    if not hasattr(value, "dtype"):
        import numpy as np

        return not isinstance(value, Iterator) and np.asarray(value).dtype.kind in "fiu"
    # NumPy counts the narrow types that it does not know as "V", and structured arrays, too; Torch's have no kind.
    return getattr(value.dtype, "kind", "f") in "fiubV" and not getattr(value.dtype, "names", None)


def _are_items(value) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview, Mapping))


def _are_counted(value) -> bool:
    """Items that can be counted and gone through twice, as those of a generator or of an endless one cannot."""
    kinds = (Sequence, Set, ValuesView)
    return _are_items(value) and (isinstance(value, kinds) or getattr(value, "ndim", 0) > 0)


def _are_records(value) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, (Mapping, str)) for each in value)


def _is_network(value) -> bool:
    ours = any(base.__module__.startswith("torch.nn.") for base in type(value).__mro__)
    return ours and getattr(value.forward, "__name__", "") != "_forward_unimplemented"


def _is_of(name: str, value) -> bool:
    return any(base.__name__ == name for base in type(value).__mro__)


NETWORK = (_is_network, "a torch.nn.Module with a forward, such as models.resnet18()")
PATH = (_is_path, "a path")
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "text"),
    "int": (_is_size, "a whole number"),
    "float": (_is_finite, "a number"),
    "bool": (_is_choice, "True or False"),
    "Path": PATH,
    "str | Path": PATH,
    "str | os.PathLike": PATH,
    "os.PathLike": PATH,
    "Callable": (callable, "a function"),
    "nn.Module": NETWORK,
    "torch.nn.Module": NETWORK,
    "np.ndarray": (_are_numbers, "an array of numbers"),
    "list": (_are_counted, "a list"),
    "tuple": (_are_counted, "a tuple"),
    "Sequence": (_are_counted, "a list"),
    "Iterable": (_are_items, "a list"),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping such as {name: value}"),
    "dict": (lambda value: isinstance(value, Mapping), "a mapping such as {name: value}"),
}
OURS = "Arena Candidate Cost Cut Finding Hint Histogram Latency Lifetimes Limits Masked OnnxGraph Plan Profile Recipe"
KINDS |= {name: (functools.partial(_is_of, name), f"a {name}") for name in (*OURS.split(), "Scale", "Split")}
MANY = {"str": "names", "int": "whole numbers", "float": "numbers", "np.ndarray": "arrays", "Callable": "functions"}
SURE = (
    _is_text,
    _is_label,
    _is_size,
    _is_whole,
    _is_finite,
    _is_number,
    _is_choice,
    _is_device,
    _is_network,
)  # no more to check
LARGE = ("flops", "macs", "bytes", "bytes_together", "weight_bytes", "size_bytes")  # of a large network, beyond MOST
BY_NAME = {  # in place of what the type alone says, which is "" where there is none
    **{(name, "int"): (_is_whole, "a whole number") for name in LARGE},
    **{(name, "float"): (_is_number, "a number") for name in ("patience_s", "stall_s", "error")},  # infinite, too
    **{
        (name, "str"): (_is_label, f"text of at most {LONGEST_LABEL} characters") for name in ("name", "title", "label")
    },
    **{(name, ""): (_are_numbers, "an array of numbers") for name in ("values", "codes", "expected")},
    **{(name, ""): (callable, "a runtime, or a function of its feed") for name in ("run", "before", "after")},
    ("layers", "list"): (_are_records, "the list of records that an engine's inspector gives"),
    ("seed", "int"): (_is_whole, "a whole number"),
    ("device", "str"): (_is_device, "'cpu', 'cuda' or 'cuda:1'"),
}


@functools.cache
def _known(annotation: str) -> tuple[Callable[[Any], bool], str] | None:
    """(check, what is wanted) of an annotation, with the items of a list or mapping; None for what has no check."""
    if annotation in KINDS:
        return KINDS[annotation]
    if " | " in annotation:
        parts = [known for part in annotation.split(" | ") if (known := _known(part))]
        checks = [check for check, _ in parts]
        every = len(parts) == annotation.count(" | ") + 1
        return (functools.partial(_fits_one, checks), " or ".join(wanted for _, wanted in parts)) if every else None
    outer, _, inner = annotation.removesuffix("]").partition("[")
    if outer not in KINDS or outer == "Callable":
        return KINDS.get(outer)
    keyed = outer in ("Mapping", "dict")
    items = {inner.partition(", ")[2]} if keyed else {*inner.removesuffix(", ...").split(", ")}
    item = items.pop() if len(items) == 1 else ""  # those of a tuple[str, float] differ
    check, wanted = KINDS[outer]
    if known := _known(item):
        wanted += "" if keyed else f" of {MANY.get(item, f'{item}s')}"
    return functools.partial(_fits_items, check, known and known[0], keyed and inner.startswith("str,")), wanted


def _fits_one(checks: list, value) -> bool:
    return any(fits(check, value) for check in checks)


def _fits_items(check: Callable, item: Callable | None, named: bool, value) -> bool:
    """Whether a list or mapping fits, and its first hundred items; those of a generator are not taken from it."""
    if not check(value) or named and not all(isinstance(key, str) for key in value):
        return False
    if item is None or not (isinstance(value, Mapping) or _are_counted(value)):
        return True
    return all(map(item, itertools.islice(value.values() if isinstance(value, Mapping) else value, 100)))


def expected(parameter) -> tuple[Callable[[Any], bool], str, bool] | None:
    """(check, what is wanted, whether that is all there is to check) of a function's parameter, or None."""
    kind, default = _kind_of(parameter), parameter.default
    chips_name = parameter.name == "device" and default is parameter.empty  # "V100 SXM2", say
    known = _known(kind) if chips_name else BY_NAME.get((parameter.name, kind), _known(kind))
    if default is math.inf:
        known = (_is_number, "a number")
    if known is None:
        return None
    check, wanted = known
    if type(default) in (int, float, str) and (parameter.name, kind) not in BY_NAME:
        wanted += f" such as {default!r}"
    if default is None or str(parameter.annotation).endswith(" | None"):
        return functools.partial(_fits_or_none, check), f"{wanted}, or None", check in SURE
    return check, wanted, check in SURE


def _kind_of(parameter) -> str:
    """What a parameter's annotation says, else its default value; "" where neither says it."""
    default = parameter.default
    if parameter.annotation is not parameter.empty:
        return str(parameter.annotation).removesuffix(" | None")
    if type(default) is int and parameter.name.endswith(("_ms", "_s")):
        return "float"
    if isinstance(default, (types.FunctionType, types.BuiltinFunctionType)):
        return "Callable"
    return type(default).__name__ if type(default) in (bool, int, float, str) else ""


def fits(check: Callable, value) -> bool:
    """Whether a value passes a check; one that raises there does not."""
    try:
        return bool(check(value))
    except Exception:  # an object whose attributes raise fits nothing
        return False


def _fits_or_none(check: Callable, value) -> bool:
    return value is None or fits(check, value)
