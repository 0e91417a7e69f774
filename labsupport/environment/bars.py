"""Progress bars that end complete and leave one line of text: nothing in a saved notebook needs a widget."""

from __future__ import annotations

import functools
import io
import sys
import time
from collections.abc import Iterable
from html import escape
from typing import Any

from labsupport.environment.folders import headless

AFTER_S = 0.7  # work that is done sooner needs no bar


def bar(
    things: Iterable | None = None,
    *,
    label: str,
    unit: str = "",
    total: int | None = None,
    shown: bool = True,
) -> Any:
    """A tqdm bar over ``things``, or of ``total`` steps named by ``unit`` ("batches").

    It is drawn where somebody watches: in a notebook, or on a terminal. ``start_at(step)`` leaves what was done before
    out of the rate, and ``finish()`` says that all is done where the total was a guess. Headless runs draw none: a bar
    in a stored output differs every time.
    """
    kernel = "ipykernel" in sys.modules
    watched = kernel or (sys.stderr is not None and sys.stderr.isatty())
    options = {"desc": label, "total": total, "unit": unit or "it", "delay": AFTER_S}
    kind = _kind(kernel)
    return kind(things, leave=False, disable=not shown or not watched or headless(), **options)


@functools.lru_cache(maxsize=None)
def _kind(notebook: bool):
    """The class of bars for a notebook, or for a terminal; made once, when the first bar is."""
    import tqdm

    class Bar(tqdm.std.tqdm):
        """Says in one line what was done, when it closes."""

        disable, _closed = True, True  # until it is made: Python closes one whose making was interrupted, too

        def __init__(self, things, **options):
            self._handle, self._closed, self._finished, self._since = None, False, False, time.monotonic()
            super().__init__(things, **options, **({"file": io.StringIO(), "mininterval": 0.25} if notebook else {}))

        def finish(self) -> None:
            """All is done, whatever the total was thought to be."""
            self._finished, self.total = True, self.n

        def start_at(self, step: int) -> None:
            """Go on where an interrupted run stood."""
            self.n = self.initial = self.last_print_n = step
            self.start_t = self.last_print_t = time.time()

        def display(self, msg=None, pos=None, **more):
            if not notebook:
                return super().display(msg, pos, **more)
            if not self._closed and (self._handle or time.monotonic() - self._since > AFTER_S):
                self._show({"text/plain": str(self), "text/html": _html(self)})
            return None

        def close(self) -> None:
            if not (self.disable or self._closed):
                self._closed, took = True, time.monotonic() - self._since
                super().close()
                if self._handle is not None:
                    self._show({"text/plain": _line(self, took)})
                elif not notebook and took > AFTER_S:
                    self.write(_line(self, took), file=sys.stderr)

        def _show(self, shown: dict) -> None:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(shown, raw=True, display_id=True)
            else:
                self._handle.update(shown, raw=True)

    return Bar


def _line(bar, seconds: float) -> str:
    steps = f"{bar.n} {bar.unit}" if bar.unit != "it" else ""
    if bar._finished or bar.total and bar.n >= bar.total:
        return f"{bar.desc}: done in {seconds:.1f} s" + f" ({steps})" * bool(steps)
    return f"{bar.desc}: stopped after {seconds:.1f} s" + f" ({steps} of {bar.total})" * bool(steps and bar.total)


def _html(bar) -> str:
    """A bar that needs no widget: the browser draws it, in either theme."""
    state = bar.format_dict
    left = ""
    if bar.total and state["rate"] and bar.n < bar.total:
        left = f", {bar.format_interval((bar.total - bar.n) / state['rate'])} left"
    elif bar.total and bar.n > bar.initial and state["elapsed"]:
        left = f", {bar.format_interval(max(bar.total - bar.n, 0) * state['elapsed'] / (bar.n - bar.initial))} left"
    count = f"{bar.n} of {bar.total}" if bar.total else str(bar.n or "")
    unit = f" {bar.unit}" if bar.unit != "it" and count else ""
    value = f'value="{min(bar.n, bar.total)}" max="{bar.total}" ' if bar.total else ""
    words = " ".join(filter(None, [count + unit, bar.format_interval(state["elapsed"]) + left, bar.postfix or ""]))
    return (
        f'<span>{escape(bar.desc)} <progress {value}style="width: 16em; vertical-align: middle"></progress> '
        f"{escape(words)}</span>"
    )
