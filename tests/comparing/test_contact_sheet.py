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
    assert Image.open(io.BytesIO(packed)).size == (84 + 9 * 52, 2 * 52)


def test_rows_of_different_length_and_a_scale():
    sheet = contact_sheet.sheet({"one": noise(2), "two": noise(1)}, "Three.", scale=0.5)
    assert sheet.figure.size == (84 + 2 * 28, 2 * 28)


@pytest.mark.parametrize("rows", [{}, {"one": []}, [noise(1)], {"one": noise(1), "two": noise(0)}])
def test_nothing_to_show_is_refused(rows):
    with pytest.raises(BadInput, match="one picture at least in each row"):
        contact_sheet.sheet(rows, "Nothing.")
