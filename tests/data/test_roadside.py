"""Photographs of sign drawings: the splits share nothing, the same seed gives the same, and weather keeps labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from labsupport.data import roadside, sign_artwork
from labsupport.errors import BadInput


@pytest.fixture(scope="module")
def signs():
    return roadside.sign_photographs(32, per_class=12)


def prints(pictures) -> set[bytes]:
    return {np.ascontiguousarray(picture).tobytes() for picture in pictures}


def test_the_splits_hold_every_class_alike(signs):
    assert (len(signs.train), len(signs.validation), len(signs.test)) == (140, 20, 80)  # 7, 1 and 4 of each
    for split in (signs.train, signs.validation, signs.test):
        assert len(set(np.bincount(split.labels))) == 1 and split.classes == tuple(sign_artwork.artwork())


def test_no_two_parts_share_a_roadside():
    parts = {part: prints(roadside.roadsides(part, count=6)) for part in roadside.STREAMS}
    assert all(len(one) == 6 for one in parts.values())
    names = list(parts)
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if parts[a] & parts[b]]


def test_no_two_splits_share_a_pose(monkeypatch):
    poses = {}
    real = roadside.signs.pose

    def noted(pixels, face, rng):
        found = real(pixels, face, rng)
        poses.setdefault(part, set()).add(tuple(found))
        return found

    monkeypatch.setattr(roadside.signs, "pose", noted)
    drawings = dict(list(sign_artwork.artwork().items())[:3])
    for part in ("train", "validation", "test"):
        roadside.photographs(drawings, part, 4, 32)
    assert all(len(found) == 12 for found in poses.values())
    assert not (
        poses["train"] & poses["test"] or poses["train"] & poses["validation"] or poses["validation"] & poses["test"]
    )


def test_no_photograph_is_in_two_splits(signs):
    assert not prints(signs.train.images) & (prints(signs.test.images) | prints(signs.validation.images))


def test_a_seed_gives_the_same_pictures_and_another_seed_others(signs):
    again, other = roadside.sign_photographs(32, per_class=12), roadside.sign_photographs(32, per_class=12, seed=1)
    assert np.array_equal(again.test.images, signs.test.images)
    assert not prints(other.test.images) & prints(signs.test.images)


@pytest.mark.parametrize("kind", roadside.CORRUPTIONS)
def test_weather_changes_pictures_and_no_label(signs, kind):
    before = signs.test.images.copy()
    spoiled = roadside.corrupted(signs.test, kind)
    assert np.array_equal(signs.test.images, before)  # the split that came in stays as it was
    assert spoiled.images.dtype == np.uint8 and spoiled.images.shape == before.shape
    assert np.array_equal(spoiled.labels, signs.test.labels)
    assert np.mean(np.abs(spoiled.images.astype(int) - before)) > 3
    assert np.array_equal(roadside.corrupted(signs.test, kind).images, spoiled.images)


def test_darkness_is_dark_and_rain_pales(signs):
    assert roadside.corrupted(signs.test, "darkness").images.mean() < 0.4 * signs.test.images.mean()
    assert roadside.corrupted(signs.test, "blur").images.std() < signs.test.images.std()


def test_own_drawings_take_the_place_of_the_shipped(tmp_path):
    for name, colour in (("left", "red"), ("right", "blue")):
        picture = Image.new("RGBA", (300, 200))
        picture.paste(Image.new("RGBA", (100, 100), colour), (50, 20))
        picture.save(tmp_path / f"{name}.png")
    own = roadside.sign_photographs(32, per_class=12, folder=tmp_path)
    assert own.classes == ("left", "right") and len(own.test) == 8


def test_an_empty_class_is_refused(tmp_path):
    Image.new("RGBA", (20, 20), "red").save(tmp_path / "full.png")
    Image.new("RGBA", (20, 20)).save(tmp_path / "nothing.png")
    with pytest.raises(BadInput, match="class 'nothing' is empty: nothing.png has no pixel"):
        roadside.sign_photographs(32, folder=tmp_path)


def test_a_file_that_is_no_picture_and_a_lonely_one_are_refused(tmp_path):
    with pytest.raises(BadInput, match="holds 0 PNG files"):
        roadside.own_drawings(tmp_path / "not there")
    Image.new("RGBA", (20, 20), "red").save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="holds 1 PNG files; wanted are two"):
        roadside.own_drawings(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="b.png is not a picture that Pillow can read"):
        roadside.own_drawings(tmp_path)


@pytest.mark.parametrize(
    "options", [{"size": 8}, {"size": 32.0}, {"per_class": 3}, {"per_class": True}, {"seed": -1}], ids=str
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(BadInput, match=f"{next(iter(options))}=.*wanted a whole number"):
        roadside.sign_photographs(**options)


def test_an_unknown_part_or_weather_is_refused(signs):
    with pytest.raises(BadInput, match="part='tests' is not known; choose one of"):
        roadside.roadsides("tests")
    with pytest.raises(BadInput, match="kind='snow' is not known; choose one of"):
        roadside.corrupted(signs.test, "snow")
