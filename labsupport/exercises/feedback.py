"""How a verdict, a hint or a solution looks: a marked box in a notebook, wrapped lines where it is printed.

A headless run gets the bare text: stored outputs are compared, and a box or a line break would differ.
"""

from __future__ import annotations

import re
import textwrap
from html import escape

from labsupport import environment

# kind → (mark, word, JupyterLab's color for it in either theme, the color elsewhere)
MARKS = {
    "right": ("\u2714", "Correct.", "success", "#2E7D32"),
    "wrong": ("\u2718", "Not quite:", "error", "#C62828"),
    "not attempted": ("\u25cb", "Not attempted yet:", "warn", "#B26A00"),
    "hint": ("?", "Hint:", "info", "#0277BD"),
    "solution": ("\u2192", "Solution:", "info", "#0277BD"),
    "noted": ("\u270e", "Noted:", "info", "#0277BD"),
}
COLUMNS = 78
PROGRAM = "margin: 0.3em 0; overflow-x: auto; white-space: pre; word-break: normal"
BOX = (
    "border-left: 5px solid {colour}; padding: 0.2em 0.9em; margin: 0.2em 0; max-width: 46em; line-height: 1.45; "
    "overflow-wrap: break-word; word-break: normal; white-space: normal"
)


class Text(str):
    """Text that shows itself in a notebook without quotation marks, as the box of its ``kind``.

    ``word`` stands in its head in place of the kind's own; ``body`` is the text below it, and of several parts the
    second is a program.
    """

    kind: str
    word: str
    body: tuple[str, ...]

    def __new__(cls, text: str, kind: str = "hint", *body: str, word: str = "") -> Text:
        made = super().__new__(cls, text)
        made.kind, made.word, made.body = kind, word, body or (text,)
        return made

    def __repr__(self) -> str:
        return str.__str__(self)

    def __str__(self) -> str:
        whole, program = str.__str__(self), self.body[1] if len(self.body) > 1 else ""
        if not program:
            return lines(whole)
        before, _, after = whole.partition(program)
        return lines(before) + program + lines(after)  # a program keeps its lines

    def _repr_html_(self) -> str | None:
        return box(self.kind, *self.body, word=self.word)


def box(kind: str, said: str, source: str = "", reason: str = "", *, word: str = "") -> str | None:
    """HTML of a message, a program and a reason, under mark, word and color; None in a headless run, which then shows
    the bare text.
    """
    if environment.headless():
        return None
    mark, own_word, name, colour = MARKS[kind]
    colour = f"var(--jp-{name}-color1, {colour})"
    shown = f'<pre style="{PROGRAM}"><code style="white-space: pre">{escape(source)}</code></pre>' if source else ""
    head = f'<b><span style="color: {colour}" aria-hidden="true">{mark}</span> {escape(word or own_word)}</b> '
    first, _, rest = said.partition("\n\n")
    opening = f'<p style="margin: 0.25em 0">{head}{_marked_up(first)}</p>'
    return f'<div style="{BOX.format(colour=colour)}">{opening}{_paragraphs(rest)}{shown}{_paragraphs(reason)}</div>'


def lines(text: str) -> str:
    """The text in lines that end between words, without backticks; in a headless run as it is."""
    if environment.headless():
        return text
    bare = re.sub(r"`([^`\n]+)`", r"\1", text)
    return "\n".join(
        line if line[:1].isspace() else textwrap.fill(line, COLUMNS, break_on_hyphens=False, break_long_words=False)
        for line in bare.split("\n")
    )


def _paragraphs(text: str) -> str:
    parts = [part for part in text.split("\n\n") if part.strip()]
    return "".join(f'<p style="margin: 0.25em 0">{_marked_up(part)}</p>' for part in parts)


def _marked_up(text: str) -> str:
    """Escaped, and `names` as code."""
    named = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text, quote=False))
    return named.strip().replace("\n", "<br>")
