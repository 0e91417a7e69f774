"""Road signs drawn from polygons and strokes, then posed, lit, blurred and partly covered. Synthetic, not GTSRB.

No fonts and no stored pictures: the digits are strokes, so every machine draws the same signs (Pillow 10 and 13
differ in one pixel value of ten thousand, by up to 4 of 255).
Coordinates of a sign's face run from 0 to 1, x to the right, y downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi, radians, sin
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]
RED, BLUE, YELLOW, WHITE, BLACK = (190, 25, 35), (20, 75, 160), (250, 190, 20), (240, 240, 240), (25, 25, 25)


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> list[Point]:
    """Points of an elliptic arc about (x, y) from one angle to another, in degrees clockwise from three o'clock."""
    angles = [radians(start + (stop - start) * i / 16) for i in range(17)]
    return [(x + rx * cos(a), y + ry * sin(a)) for a in angles]


GLYPHS: dict[str, Any] = {
    "0": [_arc(0.5, 0.5, 0.38, 0.5, 0, 360)],
    "3": [_arc(0.48, 0.26, 0.36, 0.26, -150, 90), _arc(0.48, 0.76, 0.4, 0.24, -90, 150)],
    "5": [[(0.85, 0), (0.2, 0), (0.14, 0.48)], _arc(0.47, 0.69, 0.38, 0.31, -140, 145)],
    "8": [_arc(0.5, 0.25, 0.33, 0.25, 0, 360), _arc(0.5, 0.75, 0.4, 0.25, 0, 360)],
    "S": [_arc(0.5, 0.26, 0.36, 0.26, -30, -270), _arc(0.5, 0.76, 0.38, 0.24, -90, 150)],
    "T": [[(0.05, 0), (0.95, 0)], [(0.5, 0), (0.5, 1)]],
    "O": [_arc(0.5, 0.5, 0.4, 0.5, 0, 360)],
    "P": [[(0.15, 1), (0.15, 0), (0.5, 0)], _arc(0.5, 0.28, 0.38, 0.28, -90, 90), [(0.5, 0.56), (0.15, 0.56)]],
}


def regular(corners: int, turn: float = 0, *, radius: float = 0.5, y: float = 0.5) -> list[Point]:
    """A regular polygon about (0.5, y), its first corner at the top, turned clockwise by `turn` degrees."""
    angles = [radians(turn - 90) + 2 * pi * i / corners for i in range(corners)]
    return [(0.5 + radius * cos(a), y + radius * sin(a)) for a in angles]


SHAPES: dict[str, Any] = {
    "disk": regular(48),
    "octagon": regular(8, 22.5),
    "triangle": regular(3, radius=0.57, y=0.62),
    "inverted triangle": regular(3, 180, radius=0.57, y=0.38),
    "diamond": regular(4),
    "square": [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)],
    "plate": [(0, 0.2), (1, 0.2), (1, 0.8), (0, 0.8)],
}


class Pen:
    """Draws on a square RGB picture in coordinates from 0 to 1."""

    def __init__(self, pixels: int, colour: tuple[int, int, int]) -> None:
        from PIL import Image, ImageDraw

        self.picture = Image.new("RGB", (pixels, pixels), colour)
        self.draw, self.pixels = ImageDraw.Draw(self.picture), pixels

    def polygon(self, points: Sequence[Point], colour: tuple[int, int, int]) -> None:
        self.draw.polygon([(x * self.pixels, y * self.pixels) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], colour: tuple[int, int, int], width: float) -> None:
        scaled = [(x * self.pixels, y * self.pixels) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(width * self.pixels)), joint="curve")
        r = width * self.pixels / 2
        for x, y in (scaled[0], scaled[-1]):
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def text(
        self, letters: str, colour: tuple[int, int, int], box: tuple[float, float, float, float], width: float
    ) -> None:
        """Letters side by side in box = left, top, right, bottom."""
        left, top, right, bottom = box
        step = (right - left) / len(letters)
        for i, letter in enumerate(letters):
            for stroke in GLYPHS[letter]:
                points = [(left + step * (i + 0.1 + 0.8 * x), top + (bottom - top) * y) for x, y in stroke]
                self.line(points, colour, width)

    def arrow(self, points: Sequence[Point], colour: tuple[int, int, int], width: float) -> None:
        """A line whose last segment ends in a head."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length * 1.5 * width, (y1 - y0) / length * 1.5 * width
        self.line(points, colour, width)
        self.polygon([(x1 - dy, y1 + dx), (x1 + dx * 1.2, y1 + dy * 1.2), (x1 + dy, y1 - dx)], colour)


class Face(NamedTuple):
    """A sign: outline, the colour of the rim, the colour inside, the rim's share of the radius, what is drawn on it."""

    shape: str
    rim: tuple[int, int, int]
    fill: tuple[int, int, int]
    rim_share: float
    symbol: Callable[[Pen], None]


def _roundabout(pen: Pen) -> None:
    for start in (-80, 40, 160):
        pen.arrow(_arc(0.5, 0.5, 0.27, 0.27, start, start + 75), WHITE, 0.09)


def _pedestrian(pen: Pen) -> None:
    pen.polygon([(0.5, 0.12), (0.9, 0.86), (0.1, 0.86)], WHITE)
    pen.line([(0.51, 0.33), (0.51, 0.34)], BLACK, 0.1)
    body, arms = [(0.5, 0.42), (0.48, 0.6)], [(0.38, 0.55), (0.5, 0.44), (0.62, 0.56)]
    for limb in (body, arms, [(0.48, 0.6), (0.6, 0.78)], [(0.48, 0.6), (0.36, 0.78)]):
        pen.line(limb, BLACK, 0.065)


def _danger(pen: Pen) -> None:
    pen.line([(0.5, 0.4), (0.5, 0.64)], BLACK, 0.09)
    pen.line([(0.5, 0.77), (0.5, 0.775)], BLACK, 0.09)


def _limit(number: str) -> Face:
    return Face("disk", RED, WHITE, 0.2, lambda pen: pen.text(number, BLACK, (0.2, 0.3, 0.8, 0.7), 0.075))


def _keep(x0: float, x1: float) -> Face:
    return Face("disk", WHITE, BLUE, 0.05, lambda pen: pen.arrow([(x0, 0.28), (x1, 0.64)], WHITE, 0.13))


FACES: dict[str, Any] = {
    "stop": Face("octagon", WHITE, RED, 0.07, lambda pen: pen.text("STOP", WHITE, (0.12, 0.34, 0.88, 0.66), 0.065)),
    "yield": Face("inverted triangle", RED, WHITE, 0.35, lambda pen: None),
    "no entry": Face("disk", WHITE, RED, 0.04, lambda pen: pen.line([(0.25, 0.5), (0.75, 0.5)], WHITE, 0.17)),
    "speed limit 30": _limit("30"),
    "speed limit 50": _limit("50"),
    "speed limit 80": _limit("80"),
    "priority road": Face("diamond", WHITE, YELLOW, 0.3, lambda pen: None),
    "pedestrian crossing": Face("square", WHITE, BLUE, 0.05, _pedestrian),
    "keep right": _keep(0.34, 0.64),
    "keep left": _keep(0.66, 0.36),
    "roundabout": Face("disk", WHITE, BLUE, 0.05, _roundabout),
    "one way": Face("plate", WHITE, BLUE, 0.06, lambda pen: pen.arrow([(0.2, 0.5), (0.68, 0.5)], WHITE, 0.14)),
    "parking": Face("square", WHITE, BLUE, 0.06, lambda pen: pen.text("P", WHITE, (0.24, 0.2, 0.84, 0.8), 0.13)),
    "no parking": Face("disk", RED, BLUE, 0.2, lambda pen: pen.line([(0.22, 0.22), (0.78, 0.78)], RED, 0.1)),
    "danger": Face("triangle", RED, WHITE, 0.3, _danger),
}


def face(name: str, pixels: int) -> Image.Image:
    """One sign seen straight on, RGBA, transparent outside its outline."""
    from PIL import Image

    shape, rim, fill, rim_share, symbol = FACES[name]
    outline = SHAPES[shape]
    cx, cy = (sum(axis) / len(outline) for axis in zip(*outline, strict=True))
    inner = [(cx + (x - cx) * (1 - rim_share), cy + (y - cy) * (1 - rim_share)) for x, y in outline]
    pen, mask = Pen(4 * pixels, rim), Pen(4 * pixels, BLACK)
    pen.polygon(inner, fill)
    symbol(pen)
    mask.polygon(outline, (255, 255, 255))
    # Colour and mask are shrunk apart: the rim's colour then continues outside, and no dark fringe appears.
    small = pen.picture.resize((pixels, pixels), Image.Resampling.BOX)
    small.putalpha(
        mask.picture.convert("L")
        .resize((pixels, pixels), Image.Resampling.BOX)
        .point(lambda v: max(0, round((v - 25) * 255 / 230)))
    )
    return small


def photograph(sign: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of a sign (see `face`) beside some road: uint8 (size, size, 3)."""
    from PIL import Image, ImageFilter

    pixels = size * (2 if size <= 128 else 1)  # drawn at twice the size, then halved: smooth edges
    scene = _background(pixels, rng)
    posed = sign.transform(
        (pixels, pixels), Image.Transform.PERSPECTIVE, pose(pixels, sign.width, rng), Image.Resampling.BILINEAR
    )
    scene.paste(posed, (0, 0), posed)
    if rng.random() < 0.4:
        cover(scene, rng)
    scene = scene.filter(ImageFilter.GaussianBlur(pixels / 64 * 1.4 * rng.random() ** 2))
    light = np.asarray(scene.resize((size, size), Image.Resampling.BOX), np.float32)
    return expose(light, rng)


def _background(pixels: int, rng: np.random.Generator) -> Image.Image:
    """Soft coloured patches, a few upright or lying blocks, and a post."""
    from PIL import Image, ImageDraw

    patches = (40 + 190 * rng.random((4, 4, 1)) + 50 * (rng.random((4, 4, 3)) - 0.5)).clip(0, 255).astype(np.uint8)
    scene = Image.fromarray(patches).resize((pixels, pixels), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(int(4 * rng.random())):
        x, y, w, h = pixels * rng.random(4)
        draw.rectangle((x, y, x + w * 0.5, y + h * 0.5), fill=_colour(rng))
    middle, grey = pixels * (0.5 + 0.1 * (rng.random() - 0.5)), int(60 + 120 * rng.random())
    draw.rectangle((middle - pixels * 0.03, pixels * 0.5, middle + pixels * 0.03, pixels), fill=(grey, grey, grey))
    return scene


def pose(pixels: int, face_pixels: int, rng: np.random.Generator) -> list[float]:
    """Coefficients of the perspective map from picture to face that Pillow's transform wants."""
    side = (0.55 + 0.4 * rng.random()) * pixels
    turn, shear = radians(24 * (rng.random() - 0.5)), 0.25 * (rng.random() - 0.5)
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    matrix = np.array([[cos(turn), -sin(turn) + shear], [sin(turn), cos(turn)]])
    corners = corners @ matrix.T * (side * np.array([0.75 + 0.25 * rng.random(), 1]))  # seen from the side: narrower
    corners += side * 0.12 * (rng.random((4, 2)) - 0.5) + pixels * (0.5 + 0.16 * (rng.random(2) - 0.5))
    source = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * face_pixels
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


def cover(scene: Image.Image, rng: np.random.Generator) -> None:
    """A branch across the sign, or a blot on it."""
    from PIL import ImageDraw

    draw, pixels = ImageDraw.Draw(scene), scene.width
    x, y, u, v = pixels * rng.random(4)
    if rng.random() < 0.5:
        draw.line((x, 0, u, pixels), fill=_colour(rng), width=max(1, int(pixels * (0.04 + 0.08 * rng.random()))))
    else:
        w, h = pixels * (0.1 + 0.2 * rng.random(2))
        draw.ellipse((u - w, v - h, u + w, v + h), fill=_colour(rng))


def expose(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, a cast of colour, a shadow across the picture, contrast, sensor noise."""
    size = len(light)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    angle, depth = 2 * pi * rng.random(), 0.7 * rng.random()
    shadow = 1 + depth * (cos(angle) * ramp[:, None] + sin(angle) * ramp)
    gain = np.exp((rng.random() - 0.55) * 1.4) * (1 + 0.2 * (rng.random(3) - 0.5))
    exposed = light * shadow[..., None] * gain.astype(np.float32)
    exposed = 128 + (exposed - 128) * np.float32(0.55 + 0.6 * rng.random())
    exposed += np.float32(18 * rng.random() ** 2) * rng.standard_normal(light.shape, dtype=np.float32)
    return exposed.clip(0, 255).round().astype(np.uint8)


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(v) for v in (20 + 190 * rng.random() + 70 * (rng.random(3) - 0.5)).clip(0, 255))
