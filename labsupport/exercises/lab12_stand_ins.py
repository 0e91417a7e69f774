"""What lab 12's exercises draw anew for each check: copies, traffic, tracks of logits, classifiers; and how answers
are read.
"""

from __future__ import annotations

import functools
from typing import Any

from labsupport.exercises.answers import described, plain_of
from labsupport.exercises.base import Wrong

SIZES = (12, 9)  # pictures in train and in test
FAULTS = (
    "steady",
    "broken frames",
    "one loud frame",
    "first and last wrong",
    "three in a row wrong",
    "large logits",
)
# how many of twenty it reads falsely, whether red and blue are exchanged, what the self-test should say
CLASSIFIERS = (
    (0, False, "fine"),
    (5, False, "fine"),
    (6, False, "broken"),
    (0, True, "swapped"),
    (4, True, "swapped"),
    (5, True, "swapped"),
    (6, True, "broken"),
    (20, False, "broken"),
    (9, True, "broken"),
)


def with_copies(rng: Any, count: int) -> tuple:
    """Train, test and the numbers of the copies; the others are near misses: mirrored, one pixel off, same mean."""
    import numpy as np

    train = rng.integers(0, 256, (SIZES[0], 6, 6, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (SIZES[1], 6, 6, 3), dtype=np.uint8)
    places = {int(place) for place in rng.permutation(SIZES[1])[:count]}
    for place in places:
        test[place] = train[rng.integers(SIZES[0])]
    others = [place for place in range(SIZES[1]) if place not in places]
    changes = ("mirror", "pixel", "pixel", "pixel", "mean", "row", "row")  # pixel: one in red, in green, in blue
    for place, change in zip(others, changes, strict=False):
        near = train[place].copy()
        if change == "mirror":
            near = near[:, ::-1].copy()
        elif change == "pixel":
            row, column = rng.integers(0, 6, 2)
            near[row, column, place % 3] ^= 1
        elif change == "row":
            near[rng.integers(0, 6)] ^= 1
        else:
            near = rng.permutation(near.ravel()).reshape(near.shape)
        test[place] = near
    return train, test, places


def numbers(answer: Any, count: int) -> set[int]:
    """What the function gave, as a set of whole numbers: a list, an array, a set, or one truth value a picture."""
    import numpy as np

    if answer is None or isinstance(answer, (str, bool, int, float)):
        raise Wrong(f"the function gave {described(answer)}; wanted is a list of numbers, empty if nothing is shared.")
    values = np.asarray(sorted(answer) if isinstance(answer, (set, frozenset)) else list(answer))
    if values.dtype == bool and values.shape == (count,):
        values = np.flatnonzero(values)
    if values.size == 0:
        return set()
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise Wrong(f"the function gave {described(answer)}; wanted are whole numbers, the places in test.")
    return {int(value) for value in values}


def traffic(rng: Any) -> tuple:
    """Arrivals that begin at a moment of their own, with a burst and a pause; service times with slow ones."""
    import numpy as np

    gaps = 0.03 * (0.5 + rng.random(80))
    gaps[20:30], gaps[50] = 0.001, 0.9
    service = 0.015 * (0.5 + rng.random(80))
    service[rng.integers(0, 80, 4)] += 0.12
    arrivals, deadline = 5 + np.cumsum(gaps), 0.04
    counts = list(late_frames(arrivals, service, deadline).values())
    if len(set(counts)) < len(counts) or 0 in counts:  # two that no count tells apart, or one from no answer at all
        return traffic(rng)
    return arrivals, service, deadline


def late_frames(arrivals: Any, service: Any, deadline: float) -> dict[str, int]:
    """How many frames are late, under "", and how many each mistake counts, under the words that name it."""
    done = finished(arrivals, service)
    taken = {
        "": done - arrivals,
        "you count the frames whose own work is long. Others wait behind them.": service,
        "your worker never waits for a frame, so after a pause it is ahead of time.": (
            service.cumsum() + arrivals[0] - arrivals
        ),
        "that is the moment of the answer; the deadline counts from the frame's arrival.": done,
        "you count the waiting alone; the frame's own work belongs to it.": done - service - arrivals,
    }
    return {words: int((seconds > deadline).sum()) for words, seconds in taken.items()}


def finished(arrivals: Any, service: Any) -> Any:
    import numpy as np

    ready, free = [], 0.0
    for arrival, work in zip(arrivals, service, strict=True):
        free = max(arrival, free) + work
        ready.append(free)
    return np.array(ready)


def whole_count(value: Any) -> int:
    """A whole number of frames from a Python, NumPy or torch number."""
    plain = plain_of(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)) or plain != int(plain):
        raise Wrong(f"the function gave {described(value)}; wanted is how many frames are late, a whole number.")
    return int(plain)


def class_of(value: Any) -> int:
    """The number of a class from a Python, NumPy or torch number."""
    plain = plain_of(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise Wrong(f"the function gave {described(value)}; wanted is the number of a class, from 0 to 19, or None.")
    return plain


def track_of(rng: Any, faults: str, place: int) -> tuple:
    """Logits of nine frames of one sign, faulty in one way (a loud one at ``place``), and the right class."""
    import numpy as np

    right, other = (int(number) for number in rng.permutation(20)[:2])
    if place == 0:
        right, other = 0, 1 + other % 19  # the first class has a number that counts as False
    answers = []
    for _ in range(9):
        logits = rng.standard_normal(20).astype(np.float32)
        logits[right] += 7
        answers.append(logits)
    if faults == "broken frames":
        for lost in rng.permutation(9)[:5]:
            answers[lost] = None
    elif faults == "one loud frame":
        answers[place][other] += 120
    elif faults == "first and last wrong":
        for edge in (0, 8):
            answers[edge][other] += 16
    elif faults == "three in a row wrong":
        for hidden in range(3 * (place % 2), 3 * (place % 2) + 3):
            answers[hidden][other] += 16
    elif faults == "large logits":
        answers = [logits * 200 for logits in answers]
    return answers, right


def golden() -> tuple:
    """Twenty pictures whose answers are known: uint8 (20, 48, 48, 3), and their labels, int64 (20,)."""
    pictures, labels = _golden()
    return pictures.copy(), labels.copy()


@functools.cache
def _golden() -> tuple:
    import numpy as np
    from PIL import Image

    from labsupport.data import roadside, sign_artwork

    drawings = sign_artwork.artwork()
    rng, street = np.random.default_rng(12), roadside.roadsides("camera", count=1)
    pictures = []
    for drawing in drawings.values():
        view = Image.fromarray(street[0]).crop((80, 60, 160, 140)).resize((48, 48))
        small = drawing.resize((max(1, 40 * drawing.width // 128), max(1, 40 * drawing.height // 128)))
        view.paste(small, ((48 - small.width) // 2, (48 - small.height) // 2), small)
        noisy = np.asarray(view, np.float32) + 4 * rng.standard_normal((48, 48, 3))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return np.stack(pictures), np.arange(len(pictures), dtype=np.int64)


def classifier(rng: Any, wrong: int, swapped: bool) -> Any:
    """Reads golden pictures by the nearest one; `wrong` of them falsely, and blue for red where `swapped`."""
    import numpy as np

    pictures, labels = golden()
    originals = pictures.reshape(len(pictures), -1).astype(np.float32)
    answers = labels.copy()
    places = rng.permutation(len(labels))[:wrong]
    answers[places] = (answers[places] + 1 + rng.integers(0, 18)) % len(labels)

    def classify(shown: Any) -> Any:
        shown = np.asarray(shown)
        if shown.dtype != np.uint8 or shown.ndim != 4 or shown.shape[1:] != (48, 48, 3):
            raise Wrong(f"classify was given {shown.dtype} {shown.shape}; it takes uint8 (N, 48, 48, 3).")
        if swapped:
            shown = shown[..., ::-1]
        flat = shown.reshape(len(shown), -1).astype(np.float32)
        distance = ((flat[:, None] - originals) ** 2).mean(axis=2)
        nearest = answers[distance.argmin(axis=1)]
        return np.where(distance.min(axis=1) < 400, nearest, -1)  # a picture in other colors is none of those it knows

    return classify
