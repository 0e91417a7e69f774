"""Stand-ins that lab 04's checkers hand to a learner's code: counted runtimes, schedules drawn anew."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from labsupport.errors import BadInput
from labsupport.exercises.answers import Wrong, as_number


class BadRequest(Exception):
    """What the counting runtime raises for a request that is no number."""


class Counter:
    """Stands in for the runtimes of a service: counts how many were made and how many are open."""

    def __init__(self) -> None:
        self.made = self.open = 0

    def make(self):
        """A runtime that answers a number with ten times it, until it is closed."""
        self.made += 1
        self.open += 1
        return _Counted(self)


class _Counted:
    name, device = "counting runtime", "cpu"

    def __init__(self, counter: Counter) -> None:
        self._counter, self.closed = counter, False

    def __call__(self, images):
        if self.closed:
            raise Wrong("a request reached a runtime that was closed already; answer before the `with` block ends.")
        if isinstance(images, Exception):
            raise images
        if not isinstance(images, int):
            raise BadRequest("this request cannot be answered")
        return 10 * images

    def close(self) -> None:
        """Free it; calling it again does nothing."""
        self._counter.open -= not self.closed
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def resnet_schedule():
    """ResNet-50's activations for 4 images in FP32, in the order its ONNX graph runs them, without the graph."""
    from labsupport import footprint

    steps, before = [("conv1", 12.25, ["images"]), ("relu1", 12.25, ["conv1"]), ("pool", 3.0625, ["relu1"])], "pool"
    for stage, (blocks, wide) in enumerate(((3, 12.25), (4, 6.125), (6, 3.0625), (3, 1.53125))):
        for block in range(blocks):
            at = f"{stage}{block}"
            # a later stage's first block shrinks the picture in its second convolution, so its first is still large
            first = wide if block == 0 and stage else wide / 4
            skip = before
            steps += [
                (f"a{at}", first, [before]),
                (f"ra{at}", first, [f"a{at}"]),
                (f"b{at}", wide / 4, [f"ra{at}"]),
                (f"rb{at}", wide / 4, [f"b{at}"]),
                (f"c{at}", wide, [f"rb{at}"]),
            ]
            if block == 0:
                skip = f"s{at}"
                steps.append((skip, wide, [before]))
            steps += [(f"sum{at}", wide, [f"c{at}", skip]), (f"out{at}", wide, [f"sum{at}"])]
            before = f"out{at}"
    steps += [("mean", 0.03125, [before]), ("flat", 0.03125, ["mean"]), ("logits", 0.0152587890625, ["flat"])]
    return footprint.schedule(steps)


def random_schedule(seed: int):
    """A network of 24 steps whose sizes and skips are drawn at random, the same for the same seed."""
    from labsupport import footprint

    draw, steps = random.Random(seed), []
    sizes = draw.sample(range(1, 400), 24)  # no two alike: which of two comes first is not the question here
    for step in range(24):
        earlier = [name for name, _, _ in steps[-5:]]
        reads = draw.sample(earlier, min(len(earlier), draw.choice((1, 1, 2)))) or ["images"]
        steps.append((f"t{step}", sizes[step] / 8, reads))
    return footprint.schedule(steps)


def largest_first(lives) -> float:
    """MiB that a network takes when its largest tensors are placed first, each at the lowest free place."""
    offsets: dict[str, float] = {}
    for tensor in sorted(lives.tensors, key=lambda each: (-each.mib, each.born)):
        others = [other for other in lives.tensors if other.name in offsets and other.overlaps(tensor)]
        start = 0.0
        for low, high in sorted((offsets[other.name], offsets[other.name] + other.mib) for other in others):
            if low - start >= tensor.mib:
                break
            start = max(start, high)
        offsets[tensor.name] = start
    return max(offsets[tensor.name] + tensor.mib for tensor in lives.tensors)


def planned(place_tensors: Callable, lives, name: str):
    """A learner's plan of addresses for one network, if it is one."""
    from labsupport import footprint

    offsets = place_tensors(list(lives.tensors))
    if offsets is None:
        raise Wrong("place_tensors gave None. Did it forget its `return`?")
    if isinstance(offsets, Mapping):
        offsets = {each: as_number(offset, f"the offset of {each!r}") for each, offset in offsets.items()}
    try:
        return footprint.arena(lives, offsets)
    except BadInput as fault:
        raise Wrong(f"for {name}, {fault}.") from None
