"""Pictures small enough to store in a notebook, each with one sentence that says the same in words."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from labsupport import environment

DPI = 96  # a browser's pixels for an inch; the picture has twice as many, so that small text is sharp
MOST_BYTES = 95_000  # a notebook stores a picture of 100 KB at most
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito 2008: told apart with any colour vision
HATCHES = ("", "//", "..", "xx")  # told apart without colour
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, repr=False)
class Drawing:
    """A matplotlib figure and its text equivalent; a notebook shows both."""

    figure: Any
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_png_(self) -> bytes:
        sharp = self._sharp()
        return sharp if len(sharp) < MOST_BYTES else self._png(DPI)

    def _sharp(self) -> bytes:
        return self._png(2 * DPI)

    def _png(self, dpi: int) -> bytes:
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=dpi, metadata={"Description": self.text})
        return picture.getvalue()

    def _size(self) -> tuple[int, int]:
        """Width and height on the page, in a browser's pixels."""
        width, height = self.figure.get_size_inches()
        return round(width * DPI), round(height * DPI)

    def _repr_html_(self) -> str:
        source, words = base64.b64encode(self._sharp()).decode("ascii"), html.escape(self.text, quote=True)
        return (
            f'<figure style="margin: 0"><img alt="{words}" width="{self._size()[0]}" style="background: white" '
            f'src="data:image/png;base64,{source}">'
            f'<figcaption style="max-width: 46em; line-height: 1.4">{words}</figcaption></figure>'
        )

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not environment.headless():  # JupyterLab drops a picture's metadata, so the page itself has the words
            return display({"text/html": self._repr_html_(), "text/plain": self.text}, raw=True)
        # two outputs: a notebook shows the richest form of one output only, and would drop the sentence
        picture, (width, height) = base64.b64encode(self._repr_png_()).decode("ascii"), self._size()
        display(
            {"image/png": picture, "text/plain": "(picture, described below)"},
            metadata={"image/png": {"alt": self.text, "width": width, "height": height}},
            raw=True,
        )
        return display({"text/plain": self.text}, raw=True)


def draw_bars(labels, values, ranges, notes, *, unit, title="") -> Drawing:
    """Horizontal bars with their value and note written beside them; `ranges` are (low, high) or None per bar."""
    figure, axes = canvas(height=1.1 + 0.5 * len(labels))
    places, top = np.arange(len(labels)), max([*values, *(high for _, high in filter(None, ranges))])
    for place, value, span in zip(places, values, ranges):
        style = place % len(COLOURS)
        axes.barh(place, value, height=0.62, color=COLOURS[style], hatch=HATCHES[style], edgecolor="white")
        if span:
            reach = [[max(value - span[0], 0)], [max(span[1] - value, 0)]]
            axes.errorbar(value, place, xerr=reach, color="black", capsize=3, linewidth=1)
    for place, value, span, note in zip(places, values, ranges, notes):
        words = _written(value) + (f"   {note}" if note else "")
        axes.text(max(value, span[1] if span else value) + 0.015 * top, place, words, va="center", fontsize=9)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()  # the first row on top, as in the table
    axes.set_xlim(0, top * (1.55 if any(notes) else 1.15) or 1)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10, loc="left")
    listed = "; ".join(
        f"{label} {_written(value)}" + (f" ({note})" if note else "")
        for label, value, note in zip(labels, values, notes)
    )
    return Drawing(figure, f"{title + ': ' if title else ''}bars of {unit}: {listed}.")


def _written(value) -> str:
    """A bar's number; a measured one has two digits, or 1.0 at a sentence's end would look like one cut off."""
    bare = isinstance(value, float) and value.is_integer() and 0 < abs(value) < 10
    return f"{value:.1f}" if bare else f"{value:g}"


def canvas(height):
    """A figure and its axes, drawn without pyplot, as high as asked."""

    # Figure, not pyplot: nothing is left open, and no backend shows the picture a second time
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
