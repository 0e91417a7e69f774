"""Many small pictures as one, small enough to store in a notebook, with a sentence that says the same."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labsupport.comparing.drawing import Drawing
from labsupport.errors import BadInput

MARGIN, LETTERS, SIZE = 4, 100, 14  # pixels: between pictures, of the column with the names, of the letters


@dataclass(frozen=True, repr=False)
class Sheet(Drawing):
    """Pictures in rows; ``figure`` is a Pillow image of 128 colors, because photographs of many colors are large."""

    def _repr_png_(self) -> bytes:
        return self._sharp()

    def _sharp(self) -> bytes:
        packed = io.BytesIO()
        self.figure.save(packed, "PNG", optimize=True)
        return packed.getvalue()

    def _size(self) -> tuple[int, int]:
        return self.figure.size


def sheet(rows: Mapping[str, Sequence[np.ndarray]], text: str, *, scale: float = 1.0) -> Sheet:
    """A row of uint8 pictures (H, W, 3) for each name, the name before it; ``text`` says in words what is seen."""
    from PIL import Image, ImageDraw, ImageFont

    if not isinstance(rows, Mapping) or not rows or not all(len(pictures) for pictures in rows.values()):
        raise BadInput("a sheet needs a mapping from name to pictures, with one picture at least in each row")
    first = next(iter(rows.values()))[0]
    height, width = int(first.shape[0] * scale), int(first.shape[1] * scale)
    columns = max(len(pictures) for pictures in rows.values())
    page = Image.new("RGB", (LETTERS + columns * (width + MARGIN), len(rows) * (height + MARGIN)), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, pictures) in enumerate(rows.items()):
        top = row * (height + MARGIN)
        pen.text((2, top + height // 2), name, fill="black", font=ImageFont.load_default(SIZE), anchor="lm")
        for column, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
            page.paste(small, (LETTERS + column * (width + MARGIN), top))
    return Sheet(page.quantize(128), text)
