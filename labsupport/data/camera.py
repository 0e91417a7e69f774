"""A camera's stream made of sign drawings: JPEG frames with numbers and times, in which a sign comes nearer; and its
faults.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from labsupport.data import roadside
from labsupport.errors import BadInput, at_least

if TYPE_CHECKING:
    from PIL import Image

SHAPE = (roadside.HEIGHT, roadside.WIDTH, 3)  # of a decoded frame: rows, columns, red-green-blue
ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}


class CorruptFrame(BadInput):
    """The bytes of one frame are no whole JPEG; the next frame may be fine."""


@dataclass(frozen=True, repr=False)
class Frame:
    """One frame as the camera sends it: its number and time, JPEG bytes, and what the detector adds.

    ``box`` is (left, top, right, bottom) in pixels, ``track`` the number of the sign that it follows, ``label`` the
    true class, for judging only. ``order`` says how the camera packs its colors.
    """

    number: int
    time_s: float
    packed: bytes
    box: tuple[int, int, int, int]
    track: int
    label: int
    order: str = "RGB"

    def __repr__(self) -> str:
        return f"Frame({self.number} at {self.time_s:.3f} s, {len(self.packed)} bytes, sign {self.track} in {self.box})"


def drive(
    drawings: Mapping[str, Image.Image], *, frames: int = 300, per_sign: int = 30, rate_hz: float = 30.0, seed: int = 0
) -> list[Frame]:
    """A drive past signs, `per_sign` frames each, in which the sign grows and moves toward the left edge.

    The roadsides are the camera's own, in no split. The boxes are as unsteady as a detector's, up to a
    tenth of the sign.
    """
    at_least(frames=frames)
    at_least(2, per_sign=per_sign)
    if not 0 < rate_hz <= 1000:
        raise BadInput(f"rate_hz={rate_hz!r}; wanted frames a second, above 0 and at most 1000")
    rng = np.random.default_rng([seed, roadside.STREAMS["camera"], 30_000])
    scenery, faces = roadside.roadsides("camera", seed), list(drawings.values())
    grain = 5 * rng.standard_normal(SHAPE, dtype=np.float32)
    stream, scene, label, start = [], None, 0, 0.0
    for number in range(frames):
        track, step = divmod(number, per_sign)
        if step == 0:
            label, scene = int(len(faces) * rng.random()), scenery[int(len(scenery) * rng.random())]
            start = 0.35 + 0.25 * rng.random()
        near = step / (per_sign - 1)
        grain = np.roll(grain, (7 + number % 11, 13), (0, 1))  # drawing it anew would take longer than all the rest
        packed, box = _shot(scene, faces[label], near, start, grain, rng)
        stream.append(Frame(number, number / rate_hz, packed, box, track, label))
    return stream


def _shot(scene: np.ndarray, face: Image.Image, near: float, start: float, grain: np.ndarray, rng: np.random.Generator):
    """One frame: the scene drawn nearer, the sign on it, noise, JPEG; and the box of the sign."""
    from PIL import Image

    height, width, _ = SHAPE
    zoom = 1 + 0.25 * near
    cut = (
        (width - width / zoom) / 2,
        (height - height / zoom) / 2,
        (width + width / zoom) / 2,
        (height + height / zoom) / 2,
    )
    view = Image.fromarray(scene).resize((width, height), Image.Resampling.BILINEAR, cut)
    side = int(20 + 76 * near**2)
    small = face.resize(
        (max(1, side * face.width // max(face.size)), max(1, side * face.height // max(face.size))),
        Image.Resampling.BOX,
    )
    x, y = int(width * (start - 0.25 * near**2) - side / 2), int(height * (0.42 - 0.08 * near) - side / 2)
    view.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2), small)
    pixels = np.asarray(view, np.float32) * (0.8 + 0.25 * rng.random()) + grain
    packed = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(packed, "JPEG", quality=80)
    margin, (dx, dy) = int(side * 0.15), (side * 0.1 * (2 * rng.random(2) - 1)).astype(int)
    left, top = max(0, x - margin + dx), max(0, y - margin + dy)
    return packed.getvalue(), (
        int(left),
        int(top),
        int(min(width, x + side + margin + dx)),
        int(min(height, y + side + margin + dy)),
    )


def pixels_of(frame: Frame) -> np.ndarray:
    """The frame's pixels, uint8 (rows, columns, RGB). Raises CorruptFrame for a broken JPEG, BadInput for another
    size or order.
    """
    from PIL import Image

    if not isinstance(frame, Frame):
        raise BadInput(
            f"a {type(frame).__name__} came; wanted is a camera.Frame, such as one of camera.drive(drawings)"
        )
    try:
        picture = Image.open(io.BytesIO(frame.packed))
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise CorruptFrame(
            f"frame {frame.number} is no whole JPEG ({len(frame.packed)} bytes: {error}); keep the last answer and "
            "take the next frame"
        ) from None
    if picture.mode != "RGB":
        raise BadInput(f"frame {frame.number} has the colors {picture.mode}; the camera must send RGB JPEG")
    return ordered(np.asarray(picture), frame.order, number=frame.number)


def ordered(pixels: np.ndarray, order: str = "RGB", *, number: int = 0) -> np.ndarray:
    """Pixels as (rows, columns, RGB), after a check of type, size and order of the axes; "BGR" is turned round."""
    if order not in ORDERS:
        raise BadInput(f"frame {number} packs its colors as {order!r}; choose one of {list(ORDERS)}")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        came = f"{pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise BadInput(f"frame {number} holds {came}; wanted are uint8 pixels from 0 to 255")
    if pixels.shape == (SHAPE[2], *SHAPE[:2]):
        raise BadInput(f"frame {number} has its colors first, {pixels.shape}; turn it round with .transpose(1, 2, 0)")
    if pixels.shape != SHAPE:
        raise BadInput(
            f"frame {number} is {pixels.shape}, the camera was set to {SHAPE}; set it again, or restart with the new "
            "shape"
        )
    return pixels if order == "RGB" else np.ascontiguousarray(pixels[..., ORDERS[order]])


def patch_of(pixels: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """What the box holds, squeezed to 48×48: uint8 (48, 48, 3). Raises BadInput for an empty box or one
    outside.
    """
    from PIL import Image

    left, top, right, bottom = (int(edge) for edge in box)
    height, width = pixels.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadInput(
            f"the box {tuple(box)} is empty or leaves the frame of {width}×{height}; give (left, top, right, bottom) "
            "in pixels"
        )
    return np.array(
        Image.fromarray(pixels[top:bottom, left:right]).resize((48, 48), Image.Resampling.BILINEAR)
    )  # a copy that may be written


class Continuity:
    """Watches numbers and times of a stream: counts what is missing and what came late, and refuses what goes back."""

    def __init__(self) -> None:
        self.last: Frame | None = None
        self.lost = self.stalls = 0

    def seen(self, frame: Frame) -> str:
        """ "steady", "jumped" (frames are missing) or "stalled" (it came more than three periods of 30 Hz late).

        Raises BadInput for a frame whose number or time is not after the last one's.
        """
        last, self.last = self.last, frame
        if last is None:
            return "steady"
        if frame.number <= last.number or frame.time_s <= last.time_s:
            self.last = last
            raise BadInput(
                f"frame {frame.number} at {frame.time_s:.3f} s came after frame {last.number} at {last.time_s:.3f} s; "
                "drop it, a stream only goes forward"
            )
        if frame.number > last.number + 1:
            self.lost += frame.number - last.number - 1
            return "jumped"
        if frame.time_s - last.time_s > 3 / 30:
            self.stalls += 1
            return "stalled"
        return "steady"


def damaged(
    frames: Iterable[Frame],
    *,
    corrupt: Iterable[int] = (),
    lost: Iterable[int] = (),
    stall: tuple[int, float] | None = None,
) -> list[Frame]:
    """The stream with faults: frames cut off in the middle, frames that never came, and a pause of (after frame,
    seconds).
    """
    corrupt, lost, spoiled = set(corrupt), set(lost), []
    for frame in frames:
        if frame.number in lost:
            continue
        if frame.number in corrupt:
            frame = replace(frame, packed=frame.packed[: len(frame.packed) // 3])
        if stall is not None and frame.number > stall[0]:
            frame = replace(frame, time_s=frame.time_s + stall[1])
        spoiled.append(frame)
    return spoiled
