"""Photographs made of sign drawings: roadsides generated from a seed, a pose, light, weather of the lens, and a camera.

No photograph is shipped and no street was filmed: sky, trees, houses and asphalt are noise in several octaves. Each
split has its own roadsides and its own poses, so a network cannot win by knowing the background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labsupport.data import sign_artwork, signs
from labsupport.data.datasets import Dataset, Split, shuffled
from labsupport.errors import BadInput, at_least, one_of

if TYPE_CHECKING:
    from PIL import Image

WIDTH, HEIGHT = 384, 216  # of a roadside, in pixels
ROADSIDES = {"train": 40, "validation": 10, "test": 16}
STREAMS = {"train": 0, "validation": 1, "test": 2, "camera": 3}
SKIES = ((120, 170, 220), (190, 200, 210), (230, 225, 215), (215, 160, 120), (70, 90, 130))
LEAVES = ((60, 90, 40), (90, 110, 60), (120, 100, 60), (50, 70, 50), (150, 110, 50))
WALLS = ((170, 150, 130), (200, 195, 185), (150, 80, 65), (110, 110, 115), (215, 190, 150))


def noise(height: int, width: int, rng: np.random.Generator, *, finest: int = 4) -> np.ndarray:
    """Smooth noise in octaves, each twice as fine and half as strong: float32 (height, width), about -1 to 1."""
    from PIL import Image

    total = np.zeros((height, width), np.float32)
    for octave in range(2, 2 + finest):
        cells = rng.standard_normal((2**octave, 2 ** (octave + 1)), dtype=np.float32)
        layer = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.5 ** (octave - 1)
    return total


def roadside(rng: np.random.Generator) -> np.ndarray:
    """One roadside without a sign: sky, a line of trees, houses, a road with its marks; uint8 (216, 384, 3)."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    horizon = HEIGHT * (0.4 + 0.2 * rng.random())
    sky = _tone(SKIES, rng)
    scene = sky + (255 - sky) * (rows / horizon).clip(0, 1)[..., None] * 0.5 + 18 * noise(HEIGHT, WIDTH, rng)[..., None]
    crest = horizon - 14 - 26 * noise(4, WIDTH, rng, finest=5)[0] * rng.random()
    texture = noise(HEIGHT, WIDTH, rng, finest=6)[..., None]
    scene = np.where((rows > crest)[..., None], _tone(LEAVES, rng) * (1 + 0.5 * texture), scene)
    for _ in range(int(4 * rng.random())):
        _house(scene, horizon, rng)
    ground = _tone(LEAVES, rng) * (1.1 + 0.35 * texture)
    scene = np.where((rows > horizon)[..., None], ground, scene)
    scene = _road(scene, horizon, texture, rng)
    return (scene * (0.75 + 0.4 * rng.random())).clip(0, 255).astype(np.uint8)


def _tone(choices, rng: np.random.Generator) -> np.ndarray:
    chosen = np.array(choices[int(len(choices) * rng.random())], np.float32)
    return chosen * (0.8 + 0.4 * rng.random()) + 12 * rng.standard_normal(3, dtype=np.float32)


def _house(scene: np.ndarray, horizon: float, rng: np.random.Generator) -> None:
    """A wall with rows of windows, painted into the scene."""
    left, width = int(WIDTH * rng.random()), int(40 + 80 * rng.random())
    top, bottom = int(horizon * (0.15 + 0.5 * rng.random())), int(horizon) + 1
    wall = scene[top:bottom, left : left + width]
    wall[:] = _tone(WALLS, rng) + 6 * rng.standard_normal((*wall.shape[:2], 1), dtype=np.float32)
    step, glass = int(9 + 8 * rng.random()), _tone(SKIES, rng) * (0.3 + 0.6 * rng.random())
    for y in range(4, max(5, wall.shape[0] - step), step):
        for x in range(4, max(5, wall.shape[1] - step), step):
            wall[y : y + step // 2, x : x + step // 2] = glass


def _road(scene: np.ndarray, horizon: float, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Asphalt that narrows toward the horizon, and a broken line in its middle."""
    depth = ((np.arange(HEIGHT, dtype=np.float32)[:, None] - horizon) / (HEIGHT - horizon)).clip(0, 1)
    middle = WIDTH * (0.3 + 0.4 * rng.random())
    away = np.abs(np.arange(WIDTH, dtype=np.float32) - middle)
    asphalt = (60 + 70 * rng.random()) * (1 + 0.15 * texture)
    scene = np.where((away < depth * WIDTH * 0.4)[..., None] & (depth > 0)[..., None], asphalt, scene)
    dashes = (away < 4 * depth) & (np.sin(14 / (depth + 0.15)) > 0) & (depth > 0)
    return np.where(dashes[..., None], 225.0, scene)


def roadsides(part: str, seed: int = 0, *, count: int | None = None) -> list[np.ndarray]:
    """The roadsides of one part ("train", "validation", "test", "camera"); no two parts share one."""
    one_of(STREAMS, part=part)
    count = ROADSIDES.get(part, 8) if count is None else count
    return [roadside(np.random.default_rng([seed, STREAMS[part], number])) for number in range(count)]


def photograph(drawing: Image.Image, scenery: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of a sign beside some road, as a detector cuts it out: uint8 (size, size, 3).

    Perspective, size, a branch or dirt, shadow, exposure, motion or lens blur, sensor noise, and now and then rain.
    """
    from PIL import Image, ImageFilter

    pixels = 2 * size  # drawn at twice the size, then halved: smooth edges
    view = _cutting(scenery[int(len(scenery) * rng.random())], pixels, rng)
    square = Image.new("RGBA", (max(drawing.size),) * 2)
    square.paste(drawing, ((square.width - drawing.width) // 2, (square.height - drawing.height) // 2))
    coefficients = signs.pose(pixels, square.width, rng)
    posed = square.transform((pixels, pixels), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    view.paste(posed, (0, 0), posed)
    if rng.random() < 0.3:
        signs.cover(view, rng)
    view = view.filter(ImageFilter.GaussianBlur(pixels / 64 * 1.2 * rng.random() ** 2))
    light = np.asarray(view.resize((size, size), Image.Resampling.BOX), np.float32)
    exposed = signs.expose(light, rng)
    weather = rng.random()
    if weather < 0.1:
        return motion_blur(exposed[None], rng, most=size // 10)[0]
    if weather < 0.2:
        return rain(exposed[None], rng, drops=size // 6)[0]
    if weather < 0.3:
        return darkness(exposed[None], rng, light=0.25 + 0.5 * rng.random())[0]
    return exposed


def _cutting(scene: np.ndarray, pixels: int, rng: np.random.Generator) -> Image.Image:
    from PIL import Image

    side = int(50 + (HEIGHT - 51) * rng.random() ** 2)
    left, top = int((WIDTH - side) * rng.random()), int((HEIGHT - side) * rng.random())
    return Image.fromarray(scene).resize(
        (pixels, pixels), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
    )


def sign_photographs(
    size: int = 48, *, per_class: int = 150, seed: int = 0, folder: str | Path | None = None
) -> Dataset:
    """Photographs of real sign artwork, size×size×3, 20 classes: 60 % train, 10 % validation, 30 % test.

    No two splits share a roadside or a pose. ``folder`` is a folder of your own drawings (PNG with transparency, the
    file's name is the class) in place of the shipped ones. Synthetic: an accuracy here says nothing about a real
    street.
    """
    at_least(16, 128, size=size)
    at_least(12, per_class=per_class)
    at_least(0, seed=seed)
    drawings = own_drawings(folder) if folder is not None else sign_artwork.artwork()
    train, held_out = per_class * 6 // 10, per_class // 10
    counts = {"train": train, "validation": held_out, "test": per_class - train - held_out}
    split = {part: photographs(drawings, part, count, size, seed) for part, count in counts.items()}
    shipped = (
        sign_artwork.listing()
        if folder is None
        else {"origin": f"drawings in {folder}", "licence": "that of your drawings"}
    )
    return Dataset(
        "sign photographs",
        split["train"],
        split["validation"],
        split["test"],
        f"{shipped['origin']}; photographs made by roadside, seed {seed}",
        shipped["licence"],
    )


def photographs(drawings: Mapping[str, Image.Image], part: str, per_class: int, size: int, seed: int = 0) -> Split:
    """One split: `per_class` photographs of each drawing before the roadsides of that part, shuffled."""
    rng, scenery = np.random.default_rng([seed, STREAMS[part], 10_000]), roadsides(part, seed)
    labels = np.repeat(np.arange(len(drawings), dtype=np.int64), per_class)
    labels = labels[shuffled(len(labels), rng)]
    faces = list(drawings.values())
    return Split(np.stack([photograph(faces[label], scenery, size, rng) for label in labels]), labels, tuple(drawings))


def own_drawings(folder: str | Path) -> dict[str, Image.Image]:
    """Your own sign drawings: PNG files with transparency, the class is the file's name. Raises BadInput."""
    from PIL import Image

    folder = Path(folder)
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if len(files) < 2:
        raise BadInput(f"{folder} holds {len(files)} PNG files; wanted are two drawings or more, one for each class")
    drawings = {}
    for path in files:
        try:
            with Image.open(path) as picture:
                drawing = picture.convert("RGBA")
        except OSError as error:
            raise BadInput(f"{path} is not a picture that Pillow can read ({error}); save it again as PNG") from None
        box = drawing.getchannel("A").getbbox()
        if box is None:
            raise BadInput(
                f"class {path.stem!r} is empty: {path.name} has no pixel that is not transparent; draw a sign, or "
                "take the file away"
            )
        drawing = drawing.crop(box)
        drawing.thumbnail((128, 128))
        drawings[path.stem] = drawing
    return drawings


# --- weather and cameras: float or uint8 in, uint8 out, all images of a batch (N, H, W, C) -------------------------


def rain(images: np.ndarray, rng: np.random.Generator, *, drops: int = 14) -> np.ndarray:
    """Streaks of falling water, slanted alike in each picture, and a veil that takes contrast."""
    wet = 150 + (images.astype(np.float32) - 150) * 0.75
    count, size = len(images), images.shape[1]
    slants = rng.random(count) - 0.5
    for number in range(count):
        lengths, places = size * (0.15 + 0.25 * rng.random(drops)), size * rng.random((drops, 2))
        for length, (y, x) in zip(lengths, places, strict=True):
            steps = np.arange(int(length))
            rows, columns = (y + steps).astype(int) % size, (x + slants[number] * steps).astype(int) % size
            wet[number, rows, columns] += 70
    return wet.clip(0, 255).astype(np.uint8)


def motion_blur(images: np.ndarray, rng: np.random.Generator, *, most: int = 9) -> np.ndarray:
    """The mean along a line of up to `most` pixels, in a direction of its own for each picture."""
    blurred = np.empty_like(images)
    for number, image in enumerate(images):
        steps = 2 + int((most - 1) * rng.random())
        angle = 2 * np.pi * rng.random()
        shifts = [
            (round(step * np.sin(angle)), round(step * np.cos(angle)))
            for step in range(-(steps // 2), steps - steps // 2)
        ]
        reach = steps
        wide = np.pad(image.astype(np.float32), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        height, width = image.shape[:2]
        moved = [wide[reach + y : reach + y + height, reach + x : reach + x + width] for y, x in shifts]
        blurred[number] = np.mean(moved, axis=0)
    return blurred


def darkness(images: np.ndarray, rng: np.random.Generator, *, light: float = 0.22) -> np.ndarray:
    """Dusk: a fraction of the light, colors half gone, and the sensor's noise as strong as before."""
    pale = 0.5 * images + 0.5 * images.mean(axis=3, keepdims=True)
    dim = pale * (light * (0.8 + 0.4 * rng.random((len(images), 1, 1, 1))))
    return (dim + 4 * rng.standard_normal(images.shape)).clip(0, 255).astype(np.uint8)


def compression(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Saved as JPEG at a low quality and read again, as a cheap camera link does."""
    import io

    from PIL import Image

    read = []
    for image in images:
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "JPEG", quality=9 + int(6 * rng.random()))
        read.append(np.asarray(Image.open(packed).convert("RGB")))
    return np.stack(read)


CORRUPTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "rain": rain,
    "blur": motion_blur,
    "darkness": darkness,
    "compression": compression,
}


def corrupted(split: Split, kind: str, *, seed: int = 0) -> Split:
    """The same pictures and labels, spoiled in one way of CORRUPTIONS; the seed draws the streaks and directions."""
    one_of(CORRUPTIONS, kind=kind)
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(kind), 20_000])
    return Split(CORRUPTIONS[kind](split.images, rng), split.labels, split.classes)
