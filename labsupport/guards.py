"""The argument checks of all rooms, in one place: whatever a public function is given, a typed error answers it.

Every module of this package is loaded by `_Loader` (see `install`), which puts a guard around each public function and
constructor. What is annotated with a plain type is checked before the function runs, so a call that is refused has
changed nothing; of a value of the right kind the function says itself what is wrong. An error that falls from the
depths (an AttributeError of somebody's None) becomes a BadInput that names the call, what came and what is wanted, with
the former as its cause; where every argument was of its kind, it is a LabError that asks for a report, because then the
fault is ours. Calls from room to room see every error as it is, and so does whoever hands over code of his own (a
function, a network, a runtime): what that raises is his.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder, SourceFileLoader
from typing import Any

from labsupport import kinds
from labsupport.errors import BadInput, LabError, NotAvailable, first_line

PACKAGE = __name__.rpartition(".")[0]
# Whoever calls these reads the errors of the system from them, or answers for all errors himself.
UNGUARDED = re.compile(rf"{PACKAGE}\.(errors|files|quiet|guards|kinds|command_line.*|exercises.*)$")
OWN = ("__call__", "__init__")  # a caller's own work; all else of the kind __len__ is a look at a value of his
RECEIVERS = ("self", "cls")
LONGEST = 60  # characters of a value in a message


def install() -> None:
    """Guard every module of this package that is imported from here on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds this package's modules as Python does, and has them loaded by `_Loader`."""

    def find_spec(self, name, path=None, target=None):
        if not name.startswith(f"{PACKAGE}.") or UNGUARDED.match(name):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        exec(self.get_code(module.__name__), vars(module), _Names(vars(module)))  # type: ignore[arg-type, call-overload]


class _Names:
    """A module's names while its code runs: what gets a public one is guarded at once.

    A table of functions further down then holds the guards, as the module does, and can be pickled by their names.
    """

    def __init__(self, names: dict[str, Any]):
        self.names = names

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def __delitem__(self, name: str) -> None:
        del self.names[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and getattr(value, "__module__", None) == self.names["__name__"]:
            if isinstance(value, types.FunctionType) and value.__code__.co_filename != __file__:  # or it has one
                value = guarded(value)
            elif isinstance(value, type) and not issubclass(value, BaseException):
                _guard_class(value)
        self.names[name] = value


def _guard_class(cls: type) -> None:
    """Guards around the constructor and, except where a compiler traces them, around the public methods."""
    network = any(base.__module__.startswith("torch.") for base in cls.__mro__)
    if getattr(cls, "_is_protocol", False):
        return
    for name, value in list(vars(cls).items()):
        if isinstance(value, types.FunctionType) and (name == "__init__" or not (network or name.startswith("_"))):
            setattr(cls, name, guarded(value))
        elif isinstance(value, classmethod) and not (network or name.startswith("_")):
            setattr(cls, name, classmethod(guarded(value.__func__)))


def guarded(function: Callable) -> Callable:
    """The function, or the method of a class, with its guard."""
    checks = _checks(function)

    @functools.wraps(function)
    def guard(*args, **kwargs):
        for place, name, check, wanted, _ in checks if not _is_inside(sys._getframe(1)) else ():
            value = args[place] if place < len(args) else kwargs.get(name, guard)
            if value is not guard and not kinds.fits(check, value):
                raise BadInput(f"{_title(function)}: {name}={shown(value)}{_kind(value)}; wanted {wanted}")
        try:
            return function(*args, **kwargs)
        except LabError:  # the function's own words say more
            raise
        except Exception as error:
            if _is_ours(error, args, kwargs):
                raise
            raise _typed(error, function, args, kwargs) from error

    return guard


def _kind(value) -> str:
    """The kind of a value whose text does not show it; a word on a number that nobody can mean."""
    kind = type(value)  # never value.__class__, which an object may answer with an error
    if kind.__module__ != "builtins" and not issubclass(kind, type):
        return f" is of the kind {kind.__name__}"
    return f" is beyond {kinds.MOST:,}" if kind is int and abs(value) > kinds.MOST else ""


def _is_inside(frame: types.FrameType | None) -> bool:
    """Whether this package itself calls; a room reads another's errors as they are."""
    return frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == PACKAGE


def _checks(function: Callable) -> tuple[tuple[int, str, Callable, str, bool], ...]:
    """(place, name, check, what is wanted, whether that is all there is to check); none where a tensor is computed."""
    import inspect

    parameters = list(inspect.signature(function).parameters.values())
    own = [parameter for parameter in parameters if parameter.name not in RECEIVERS]
    if own and str(own[0].annotation).startswith("Tensor"):
        return ()
    checks = []
    for place, parameter in enumerate(parameters):
        found = kinds.expected(parameter)
        if found and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            place = place if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else sys.maxsize
            checks.append((place, parameter.name, *found))
    return tuple(checks)


def _is_ours(error: Exception, args: tuple, kwargs: dict) -> bool:
    """Whether the error goes on as it is: to another room, or out of a function that the caller handed over."""
    trace = error.__traceback__
    if trace is None or _is_inside(trace.tb_frame.f_back):
        return True
    theirs = trace.tb_frame.f_back.f_globals if trace.tb_frame.f_back else None
    codes = {code for value in (*args, *kwargs.values()) if (code := _code(value)) is not None}
    _, *frames = _frames(error)
    return any(
        frame.f_code in codes or place and frame.f_globals is theirs and not _is_look(frame.f_code.co_name)
        for place, frame in enumerate(frames)
    )


def _is_look(name: str) -> bool:
    return name.startswith("__") and name not in OWN


def _code(value) -> types.CodeType | None:
    """The code of a function, a generator or an object that is called; None for everything else, and for libraries'."""
    kind = type(value)
    if issubclass(kind, types.GeneratorType):
        return value.gi_code
    if issubclass(kind, functools.partial):
        value, kind = value.func, type(value.func)
    if issubclass(kind, types.FunctionType):
        value = getattr(value, "__wrapped__", value)
    elif not issubclass(kind, types.MethodType):
        value = None if kind.__module__.partition(".")[0] in ("torch", PACKAGE) else vars(kind).get("__call__")
    return getattr(value, "__code__", None)


def _typed(error: Exception, function: Callable, args: tuple, kwargs: dict) -> LabError:
    """The typed error in place of a raw one: what was called, what came, what was wrong, what is wanted."""
    import inspect

    title, said = _title(function), first_line(error)[:200]
    if isinstance(error, ImportError):
        return NotAvailable(f"{title}: {said}; `python3 -m labsupport doctor` says what is missing here")
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name not in RECEIVERS]
    args = args[len(parameters) - len(names) :]
    came = ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])
    if _is_fault(error, names, args, kwargs, {name for _, name, _, _, sure in _checks(function) if sure}):
        return LabError(
            f"{title}({came}): unexpected {type(error).__name__} inside {PACKAGE} ({_where(error)}: {said}), though "
            "what it was given is of the right kinds; please report it"
        )
    kind = LabError if isinstance(error, (MemoryError, ConnectionError, PermissionError, TimeoutError)) else BadInput
    return kind(
        f"{title}({came}) cannot work ({type(error).__name__}: {said}); it takes {title}({', '.join(names)}), and "
        f"`help({title})` says of which kinds"
    )


def _is_fault(error: Exception, names: list[str], args: tuple, kwargs: dict, checked: set[str]) -> bool:
    """Whether an error is this package's own: a slip of its code, or nothing was given that could be wrong.

    Python's words for a wrong value or file (ValueError, OSError) and for a wrong call are about what was given.
    """
    frames = list(_frames(error))
    if len(frames) < 2 or isinstance(error, (ValueError, OSError, MemoryError)):
        return False
    if isinstance(error, (NameError, AssertionError)) and _is_inside(frames[-1]):
        return True
    given = [value for name, value in (*zip(names, args), *kwargs.items()) if name not in checked]
    return all(type(value).__module__.partition(".")[0] == PACKAGE for value in given)


def _frames(error: BaseException) -> Iterator[types.FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _where(error: Exception) -> str:
    """The innermost function of this package, for a report."""
    code = [frame.f_code for frame in _frames(error) if _is_inside(frame)][-1]
    return f"{code.co_name}, {os.path.basename(code.co_filename)}"


def _title(function: Callable) -> str:
    """How a learner names it: by its class, by the room whose face hands it on, else by its part."""
    owner = function.__qualname__.removesuffix(".__init__")
    if function.__qualname__ != function.__name__:
        return owner
    _, room, part = (*function.__module__.split("."), "", "")[:3]
    on_face = owner in getattr(sys.modules.get(f"{PACKAGE}.{room}"), "__all__", ())
    return f"{room if on_face or not part else part}.{owner}"


def shown(value) -> str:
    """A value in a message: short, and whatever it does when asked."""
    try:
        if isinstance(value, type):
            return f"the class {value.__name__}"
        shape = getattr(value, "shape", None)
        text = " ".join(repr(value)[: 4 * LONGEST].split()) if shape is None else f"an array {tuple(shape)}"
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
