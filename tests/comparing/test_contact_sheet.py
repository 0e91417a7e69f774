"""A sheet of small pictures: small enough to store, with its sentence, and refused where there is nothing to show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from labsupport.comparing import contact_sheet
from labsupport.errors import BadInput


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)


def test_a_sheet_of_noise_stays_below_what_a_notebook_may_store():
    sheet = contact_sheet.sheet({"one": noise(9), "two": noise(9)}, "Two rows of noise.")
    packed = sheet._repr_png_()
    assert len(packed) < 100_000 and repr(sheet) == "Two rows of noise."
    assert Image.open(io.BytesIO(packed)).size == (100 + 9 * 52, 2 * 52)


def test_rows_of_different_length_and_a_scale():
    sheet = contact_sheet.sheet({"one": noise(2), "two": noise(1)}, "Three.", scale=0.5)
    assert sheet.figure.size == (100 + 2 * 28, 2 * 28)


def test_the_names_are_large_enough_to_read_and_end_before_the_pictures():
    white = np.full((1, 48, 48, 3), 255, np.uint8)
    drawn = np.asarray(contact_sheet.sheet({"HH compression": white}, "A name.").figure.convert("L")) < 128
    assert drawn.any(axis=1).sum() >= 10  # pixels from the H to the foot of the p
    assert not drawn[:, contact_sheet.LETTERS :].any()
    capital = np.asarray(contact_sheet.sheet({"H": white}, "A letter.").figure.convert("L")) < 128
    assert capital.any(axis=1).sum() >= 9


@pytest.mark.parametrize("rows", [{}, {"one": []}, [noise(1)], {"one": noise(1), "two": noise(0)}])
def test_nothing_to_show_is_refused(rows):
    with pytest.raises(BadInput, match="one picture at least in each row|rows=.*; wanted a mapping"):
        contact_sheet.sheet(rows, "Nothing.")
