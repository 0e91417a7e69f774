"""Whether a value is of the kind that a parameter asks for, told from its annotation, its default value or its name."""

from __future__ import annotations

import functools
import itertools
import numbers
import os
import re
import types
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence, ValuesView
from typing import Any

MOST = 10**9  # no size, count or length of these labs comes near it
LONGEST_LABEL = 1000


def _is_text(value) -> bool:
    return isinstance(value, str) and "\0" not in value and str.encode(value) is not None  # half a character raises


def _is_label(value) -> bool:
    return _is_text(value) and len(value) <= LONGEST_LABEL


def _is_path(value) -> bool:
    """A path to nothing, a file or a folder; a pipe would wait for ever, and a device is no place for a file."""
    named = isinstance(value, (str, os.PathLike)) and bool(str(value)) and "\0" not in str(value)
    return named and (os.path.isfile(value) or os.path.isdir(value) or not os.path.exists(value))


def _is_folder(value) -> bool:
    return _is_path(value) and not os.path.isfile(value)


def _is_whole(value) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _is_number(value) -> bool:
    """Every number but NaN and the truth values; of any library, as an array without axes is one, too."""
    if _is_choice(value) or getattr(getattr(value, "dtype", None), "kind", "f") not in "fiu":
        return False
    return (_is_whole(value) or isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0) and value == value


def _is_size(value) -> bool:
    return _is_whole(value) and abs(value) <= MOST


def _is_device(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"cpu|cuda(:\d{1,3})?", value) is not None


def _is_choice(value) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy has one of its own


def _are_numbers(value) -> bool:
    """An array or a tensor, or what could become one: of lists the function says itself what is wrong."""
    if not hasattr(value, "dtype"):
        return isinstance(value, (list, tuple, range)) or _is_number(value)
    # NumPy counts the narrow types that it does not know as "V", and structured arrays, too; Torch's have no kind.
    return getattr(value.dtype, "kind", "f") in "fiubV" and not getattr(value.dtype, "names", None)


def _are_items(value) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview, Mapping))


def _are_counted(value) -> bool:
    """Items in an order that can be counted and gone through twice, which is neither a generator nor a set."""
    if type(value) in (list, tuple):  # nearly always, and the questions below take microseconds
        return True
    return _are_items(value) and (isinstance(value, (Sequence, KeysView, ValuesView)) or getattr(value, "ndim", 0) > 0)


def _are_records(value) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, (Mapping, str)) for each in value)


def _is_network(value) -> bool:
    module = any(base.__module__.startswith("torch.nn.") for base in type(value).__mro__)
    return module and getattr(value.forward, "__name__", "") != "_forward_unimplemented"


def _is_of(name: str, value) -> bool:
    return any(base.__name__ == name for base in type(value).__mro__)


NETWORK = (_is_network, "a torch.nn.Module with a forward, such as models.resnet18()")
PATH = (_is_path, "a path (no pipe, no device)")
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "text"),
    "int": (_is_size, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (_is_choice, "True or False"),
    "Path": PATH,
    "str | Path": PATH,
    "str | os.PathLike": PATH,
    "os.PathLike": PATH,
    "Callable": (callable, "a function"),
    "nn.Module": NETWORK,
    "torch.nn.Module": NETWORK,
    "Limits": (functools.partial(_is_of, "Limits"), "Limits, as examining.Limits or those of comparing.Gate.beside"),
    "OnnxGraph": (functools.partial(_is_of, "OnnxGraph"), "an OnnxGraph, as export.load gives"),
    "np.ndarray": (_are_numbers, "an array of numbers"),
    "list": (_are_counted, "a list"),
    "Sequence": (_are_counted, "a list"),
    "Iterable": (_are_items, "a list"),
    "Mapping": (lambda value: isinstance(value, Mapping), "a mapping such as {name: value}"),
    "dict": (lambda value: isinstance(value, Mapping), "a mapping such as {name: value}"),
}
MANY = {"str": "names", "int": "whole numbers"}
# What passes one of these has nothing else to check.
SURE = (_is_text, _is_label, _is_size, _is_whole, _is_number, _is_choice, _is_device, _is_network)
LARGE = ("flops", "macs", "bytes", "bytes_together", "weight_bytes", "size_bytes")  # of a large network, beyond MOST
BY_NAME = {  # in place of what the type alone says, which is "" where there is none
    **{(name, "int"): (_is_whole, "a whole number") for name in LARGE},
    **{
        (name, kind): (_is_label, f"text of at most {LONGEST_LABEL} characters")
        for name in ("name", "title", "label", "unit")
        for kind in ("str", "")
    },
    **{
        (name, kind): (_is_folder, "a path to a folder")
        for name in ("folder", "metrics_folder", "root")
        for kind in ("Path", "str | Path")
    },
    ("path", ""): PATH,
    **{(name, ""): (_are_numbers, "an array of numbers") for name in ("values", "codes", "expected")},
    ("layers", "list"): (_are_records, "the list of records that an engine's inspector gives"),
    ("seed", "int"): (_is_whole, "a whole number"),
    ("device", "str"): (_is_device, "'cpu', 'cuda' or 'cuda:1'"),
}


def _known(annotation: str) -> tuple[Callable[[Any], bool], str] | None:
    """(check, what is wanted) of an annotation, of names and counts with the items; None for what has no check."""
    outer, _, inner = annotation.removesuffix("]").partition("[")
    if annotation in KINDS or outer not in KINDS or inner not in MANY:
        return KINDS.get(annotation, KINDS.get(outer) if " | " not in annotation else None)
    check, wanted = KINDS[outer]
    return functools.partial(_fits_items, check, KINDS[inner][0]), f"{wanted} of {MANY[inner]}"


def _fits_items(check: Callable, item: Callable, value) -> bool:
    """Whether a list fits, and its first hundred items; those of a generator are not taken from it."""
    if not _are_counted(value):
        return check(value)
    return all(map(item, itertools.islice(value, 100)))


def expected(parameter) -> tuple[Callable[[Any], bool], str, bool] | None:
    """(check, what is wanted, whether that is all there is to check) of a function's parameter, or None."""
    kind, default = _kind_of(parameter), parameter.default
    chips_name = parameter.name == "device" and default is parameter.empty  # "V100 SXM2", say
    known = _known(kind) if chips_name else BY_NAME.get((parameter.name, kind), _known(kind))
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
    return type(default).__name__ if type(default) in (bool, int, float) else ""


def fits(check: Callable, value) -> bool:
    """Whether a value passes a check; one that raises there does not."""
    try:
        return bool(check(value))
    except Exception:  # an object whose attributes raise fits nothing
        return False


def _fits_or_none(check: Callable, value) -> bool:
    return value is None or fits(check, value)
