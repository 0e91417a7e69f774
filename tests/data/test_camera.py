"""The camera's stream: what it sends, and each fault on the road with the sentence that it gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from labsupport.data import camera, sign_artwork
from labsupport.errors import BadInput


@pytest.fixture(scope="module")
def stream():
    return camera.drive(sign_artwork.artwork(), frames=24, per_sign=12)


def test_numbers_times_and_boxes_of_a_drive(stream):
    assert [frame.number for frame in stream] == list(range(24)) and {frame.track for frame in stream} == {0, 1}
    assert stream[3].time_s == pytest.approx(0.1)
    wide = [frame.box[2] - frame.box[0] for frame in stream]
    assert wide[11] > 2 * wide[0] and wide[23] > 2 * wide[12]  # the sign comes nearer
    for frame in stream:
        left, top, right, bottom = frame.box
        assert 0 <= left < right <= camera.SHAPE[1] and 0 <= top < bottom <= camera.SHAPE[0]
        assert camera.pixels_of(frame).shape == camera.SHAPE and frame.packed[:2] == b"\xff\xd8"


def test_the_same_seed_drives_the_same_road(stream):
    again = camera.drive(sign_artwork.artwork(), frames=24, per_sign=12)
    assert [frame.box for frame in again] == [frame.box for frame in stream] and again[5].label == stream[5].label
    assert [frame.box for frame in camera.drive(sign_artwork.artwork(), frames=24, seed=1)] != [f.box for f in stream]


def test_a_crop_is_squeezed_and_may_be_written(stream):
    patch = camera.patch_of(camera.pixels_of(stream[10]), stream[10].box)
    assert patch.shape == (48, 48, 3) and patch.dtype == np.uint8 and patch.flags.writeable


@pytest.mark.parametrize(
    "cut", [lambda b: b[: len(b) // 3], lambda b: b"", lambda b: b"no JPEG at all", lambda b: b[50:]]
)
def test_a_corrupt_jpeg_is_its_own_error(stream, cut):
    with pytest.raises(camera.CorruptFrame, match=r"frame 4 is no whole JPEG \(\d+ bytes.*keep the last answer"):
        camera.pixels_of(replace(stream[4], packed=cut(stream[4].packed)))
    assert camera.pixels_of(stream[5]).shape == camera.SHAPE  # the next one is fine


def test_a_gray_jpeg_is_refused(stream):
    import io

    from PIL import Image

    packed = io.BytesIO()
    Image.new("L", (384, 216)).save(packed, "JPEG")
    with pytest.raises(BadInput, match="has the colors L; the camera must send RGB JPEG"):
        camera.pixels_of(replace(stream[0], packed=packed.getvalue()))


def test_a_frame_of_another_size_or_order_is_refused(stream):
    pixels = camera.pixels_of(stream[0])
    with pytest.raises(BadInput, match=r"frame 7 is \(100, 384, 3\), the camera was set to \(216, 384, 3\)"):
        camera.ordered(pixels[:100], number=7)
    with pytest.raises(BadInput, match="has its colors first, .* turn it round with .transpose"):
        camera.ordered(pixels.transpose(2, 0, 1))
    with pytest.raises(BadInput, match="packs its colors as 'GRB'; choose one of"):
        camera.ordered(pixels, "GRB")
    with pytest.raises(BadInput, match="holds float32; wanted are uint8 pixels"):
        camera.ordered(pixels.astype(np.float32))
    with pytest.raises(BadInput, match="holds list"):
        camera.ordered(pixels.tolist())
    with pytest.raises(BadInput, match="a bytes came; wanted is a camera.Frame"):
        camera.pixels_of(stream[0].packed)


def test_blue_first_is_turned_round_where_the_camera_says_so(stream):
    pixels = camera.pixels_of(stream[0])
    turned = camera.pixels_of(replace(stream[0], order="BGR"))
    assert np.array_equal(turned, pixels[..., ::-1]) and turned.flags.c_contiguous


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-1, 0, 9, 9), (0, 0, 385, 9), (9, 9, 5, 5)])
def test_a_box_that_is_empty_or_outside_is_refused(stream, box):
    with pytest.raises(BadInput, match="is empty or leaves the frame of 384×216"):
        camera.patch_of(camera.pixels_of(stream[0]), box)


def test_jumps_and_stalls_are_counted_and_time_never_goes_back(stream):
    faulty = camera.damaged(stream, corrupt={2}, lost={5, 6, 9}, stall=(14, 0.5))
    watch = camera.Continuity()
    said = [watch.seen(frame) for frame in faulty]
    assert (said.count("jumped"), said.count("stalled"), watch.lost, watch.stalls) == (2, 1, 3, 1)
    for wrong in (stream[3], replace(stream[23], number=99, time_s=0.0), faulty[-1]):
        with pytest.raises(BadInput, match="came after frame 23 .* a stream only goes forward"):
            watch.seen(wrong)
    assert watch.last is faulty[-1]  # what was refused leaves no trace
    assert watch.seen(replace(stream[23], number=24, time_s=faulty[-1].time_s + 1 / 30)) == "steady"


def test_a_steady_stream_is_called_steady(stream):
    watch = camera.Continuity()
    assert {watch.seen(frame) for frame in stream} == {"steady"} and watch.lost == watch.stalls == 0


@pytest.mark.parametrize("options", [{"frames": 0}, {"per_sign": 1}, {"rate_hz": 0}, {"rate_hz": "30"}], ids=str)
def test_options_out_of_range_are_named(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        camera.drive(sign_artwork.artwork(), **options)
