"""Record lab 08's figures over seeds: `python3 tools/record_lab08.py`, at most 150 s on a machine with a GPU.

On test images: what a teacher is worth and what even smoothing is worth, each over the student alone, with the labels
as they are and with every fourth one wrong; with twice the steps; with fewer and more labels; with hints. On validation
images, with other seeds: the sweeps from which the settings come. Each figure is recorded as soon as it is known, and
again with each further seed; what the time does not suffice for is left out, the least telling first.

The students learn on the processor's cores, one on each: networks as small as these leave a GPU waiting. On two cores
everything takes half an hour: `--seconds 1800`. `--small` tries every step on few images and records nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from labsupport import data, distillation, environment, errors, recordings, training
from labsupport.data import signs  # noqa: E402
from labsupport.distillation.hints import Hint  # noqa: E402
from tools import elapsed

LAB, COMMAND = "08_distillation", "python3 tools/record_lab08.py"
# What the sweeps on validation chose: the highest mean, the earlier of two that are equal. The notebook has the same.
LEARNING_RATE = 4e-2  # for the student alone; the others take it over
CHOSEN = {
    "labels": {"temperature": 4.0, "alpha": 0.5, "smoothing": 0.85},
    "wrong_labels": {"temperature": 4.0, "alpha": 0.9, "smoothing": 0.95},
}
HINTS = {"features": 1.0, "attention": 1.0}
# What they tried.
RATES, TEMPERATURES, ALPHAS, SMOOTHINGS = (
    (1e-2, 2e-2, 4e-2, 8e-2),
    (1.0, 2.0, 4.0, 8.0),
    (0.5, 0.9, 1.0),
    (0.5, 0.7, 0.85, 0.95),
)
HINT_WEIGHTS = {
    "features": (1.0, 0.1, 10.0),
    "attention": (1.0, 0.1, 10.0),
}  # the chosen one first: time may end in between
SWEEP_SEED = 100  # no seed of a sweep is one of a duel

WAYS = ("alone", "smoothed", "taught")
GAINS = {
    "gain_points": ("taught", "alone"),
    "smoothing_gain_points": ("smoothed", "alone"),
    "gain_over_smoothing_points": ("taught", "smoothed"),
}


@dataclass(frozen=True)
class Size:
    """How much of everything: as recorded, or for a try. `counts`: labeled images and epochs, about as many steps."""

    per_class: int = 250
    validation: int = 1000  # of each class drawn, 15 % of them for validation
    test: int = 214
    teacher_epochs: int = 12
    epochs: int = 45
    images: int = 240
    counts: tuple[tuple[int, int], ...] = ((120, 90), (960, 11))
    seeds: int = 3
    further: int = 17  # the duels have 20 seeds


SMALL = Size(
    per_class=40,
    validation=40,
    test=40,
    teacher_epochs=1,
    epochs=1,
    images=60,
    counts=((30, 1), (120, 1)),
    seeds=2,
    further=1,
)


@dataclass(frozen=True)
class Job:
    """One student, "alone", "smoothed" or "taught", and the split on which its accuracy is taken."""

    way: str
    seed: int
    split: str
    images: int
    epochs: int
    labels: str = "labels"
    learning_rate: float = LEARNING_RATE
    temperature: float | None = None  # None: as chosen
    alpha: float | None = None
    smoothing: float | None = None
    hint: Hint | None = None

    def setting(self, name: str) -> float:
        """The one tried, else the one chosen for these labels."""
        tried = getattr(self, name)
        return CHOSEN[self.labels][name] if tried is None else tried


class OutOfTime(Exception):
    """The budget is spent."""


_material: dict = {}  # of a worker: the splits and the teacher
_where: list = []  # of a worker: what `prepare` wants


def hand_out(path: Path, splits: dict[str, data.Split], teacher: torch.nn.Module) -> None:
    """Write what all jobs share where the workers read it."""
    arrays = {f"weights/{name}": value.numpy() for name, value in teacher.state_dict().items()}
    for name, split in splits.items():
        arrays.update({f"images/{name}": split.images, f"labels/{name}": split.labels})
    np.savez(path, **arrays)


def begin(*where) -> None:
    """First in each worker, when there is nothing to read yet: the imports are what takes seconds."""
    torch.set_num_threads(1)
    _where[:] = where


def prepare(path: Path, classes: tuple[str, ...], large: dict) -> None:
    """Once in each worker, at its first job: read what all its jobs share."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    teacher = distillation.staged_cnn(**large)
    teacher.load_state_dict({name: torch.from_numpy(arrays[f"weights/{name}"]) for name in teacher.state_dict()})
    splits = {
        name: data.Split(arrays[f"images/{name}"], arrays[f"labels/{name}"], classes)
        for name in ("train", "validation", "test")
    }
    _material.update(splits, teacher=distillation.freeze(teacher))


def accuracy(job: Job) -> float:
    """Train the student of a job; its share of right answers."""
    if not _material:
        prepare(*_where)
    images, start = mislabeled(_material["train"].take(job.images), job), distillation.staged_cnn(seed=job.seed)
    options = dict(epochs=job.epochs, batch_size=50, learning_rate=job.learning_rate, seed=job.seed, progress=False)
    if job.way == "taught":
        done = distillation.distill(
            start,
            _material["teacher"],
            images,
            temperature=job.setting("temperature"),
            alpha=job.setting("alpha"),
            hints=[job.hint] if job.hint else [],
            **options,
        )
    else:
        objective = even(job.setting("smoothing")) if job.way == "smoothed" else None
        done = training.fit(start, images, objective=objective, **options)
    return training.accuracy(done.model, _material[job.split])


def mislabeled(split: data.Split, job: Job) -> data.Split:
    """With "wrong_labels" every fourth label is another one, drawn by the job's seed."""
    if job.labels == "labels":
        return split
    labels, classes = split.labels.copy(), len(split.classes)
    other = torch.randint(1, classes, (len(labels[::4]),), generator=torch.Generator().manual_seed(job.seed))
    labels[::4] = (labels[::4] + other.numpy()) % classes
    return data.Split(split.images, labels, split.classes)


def even(strength: float):
    """Cross entropy on labels that are soft and know nothing."""

    def objective(model, images, labels):
        logits = model(images)
        return logits, F.cross_entropy(logits, labels, label_smoothing=strength)

    return objective


class Bench:
    """Asks workers for accuracies, each only once, and gives them out until the time is over."""

    def __init__(self, pool: futures.Executor, size: Size, seconds: float):
        self.pool, self.size, self.seconds, self.asked = pool, size, seconds, {}

    def job(self, way: str, seed: int, split: str, **options) -> Job:
        """A job of this size, and at once in the queue."""
        job = Job(way, seed, split, **{"images": self.size.images, "epochs": self.size.epochs, **options})
        if job not in self.asked:
            self.asked[job] = self.pool.submit(accuracy, job)
        return job

    def answer(self, job: Job) -> float:
        """Wait for an accuracy; OutOfTime where that takes longer than there is."""
        left = self.seconds - elapsed.seconds()
        try:
            return self.asked[job].result(timeout=max(left, 0))
        except futures.TimeoutError:
            raise OutOfTime from None

    def drop(self) -> None:
        """What no worker has begun is taken back."""
        for future in self.asked.values():
            future.cancel()


def tell(*what) -> None:
    elapsed.say("; ".join(map(str, what)))


class Ledger:
    """Accuracies of each way by seed, and the gains between them, recorded anew with each further seed."""

    def __init__(self, book, subject: str, gains: dict[str, tuple[str, str]]):
        self.book, self.subject, self.gains, self.found = book, subject, gains, []

    def add(self, accuracies: dict[str, float]) -> None:
        """One seed. `gains` say which metric is the mean gain of which way over which."""
        self.found.append(accuracies)
        for metric, (after, before) in self.gains.items():
            points = [100 * (each[after] - each[before]) for each in self.found]
            mean, deviation = statistics.mean(points), statistics.stdev(points) if len(points) > 1 else None
            # a deviation cannot be told as a share of a mean of exactly 0
            spread = deviation / abs(mean) if deviation is not None and mean else None
            self.book.record(f"{self.subject}.{metric}", mean, "points", samples=len(points), spread=spread)
            tell(
                f"{self.subject}.{metric} {mean:+.2f}" + ("" if deviation is None else f" ± {deviation:.2f}"),
                [round(each, 1) for each in points],
            )


def duel(bench: Bench, rounds: list[tuple[Ledger, dict[str, dict]]], seeds: range) -> Iterator[None]:
    """On test, seed by seed; a round has a ledger and what its sides are. Asks for everything, pauses, then waits for
    it.
    """
    jobs = {
        seed: [
            {side: bench.job(seed=seed, split="test", **options) for side, options in sides.items()}
            for _, sides in rounds
        ]
        for seed in seeds
    }
    yield
    for asked in jobs.values():
        for (ledger, _), sides in zip(rounds, asked, strict=True):
            ledger.add({side: bench.answer(job) for side, job in sides.items()})


def sweep(bench: Bench, book, subject: str, tried: dict[str, dict]) -> Iterator[None]:
    """Mean accuracy on validation of each setting, recorded. Asks for everything, pauses, then waits for it."""
    seeds = range(SWEEP_SEED, SWEEP_SEED + bench.size.seeds)
    jobs = {
        name: [bench.job(seed=seed, split="validation", **options) for seed in seeds] for name, options in tried.items()
    }
    yield
    means = {}
    for name, asked in jobs.items():
        found = [bench.answer(job) for job in asked]
        means[name], deviation = statistics.mean(found), statistics.stdev(found)
        book.record(
            f"{subject}.{name}", means[name], "fraction", samples=len(found), spread=deviation / (means[name] or 1)
        )
        tell(f"{subject}.{name} {means[name]:.2%} ± {deviation:.2%} on validation")
    tell(f"{subject}: the rule chooses {max(means, key=means.get)}")  # the earlier of two that are equal


def sides(**options) -> dict[str, dict]:
    """The same student alone, smoothed and taught."""
    return {way: {"way": way, **options} for way in WAYS}


def percent(share: float) -> str:
    return f"at_{100 * share:g}_percent"


def the_hint(kind: str, weight: float) -> Hint:
    return Hint("stages.2", "stages.2", kind, weight=weight)


def settings(bench: Bench, book) -> dict[str, Iterator[None]]:
    """The sweeps. Temperature at the library's alpha, alpha at the temperature chosen; the learning rate for the
    student alone.
    """
    wrong = {"labels": "wrong_labels"}
    tried = {
        "validation_temperature": {f"at_{T:g}": dict(way="taught", temperature=T, alpha=0.9) for T in TEMPERATURES},
        "validation_alpha": {
            percent(a): dict(way="taught", temperature=CHOSEN["labels"]["temperature"], alpha=a) for a in ALPHAS
        },
        "validation_smoothing": {percent(s): dict(way="smoothed", smoothing=s) for s in SMOOTHINGS},
        "validation_alpha_wrong": {percent(a): dict(way="taught", alpha=a, **wrong) for a in ALPHAS},
        "validation_smoothing_wrong": {percent(s): dict(way="smoothed", smoothing=s, **wrong) for s in SMOOTHINGS},
        "validation_rate": {f"at_{1000 * rate:g}_thousandths": dict(way="alone", learning_rate=rate) for rate in RATES},
        **{
            f"validation_{kind}": {
                f"at_{100 * weight:g}_hundredths": dict(way="taught", hint=the_hint(kind, weight)) for weight in weights
            }
            for kind, weights in HINT_WEIGHTS.items()
        },
    }
    return {subject: sweep(bench, book, subject, each) for subject, each in tried.items()}


def plan(bench: Bench, book) -> dict[str, Iterator[None]]:
    """All steps, the most telling first."""
    size, sweeps = bench.size, settings(bench, book)
    few, further = range(size.seeds), range(size.seeds, size.seeds + size.further)
    both = [(Ledger(book, f"{labels}{size.images}", GAINS), sides(labels=labels)) for labels in CHOSEN]
    patient = [(Ledger(book, f"patient{size.images}", GAINS), sides(epochs=2 * size.epochs))]
    amounts = [
        (Ledger(book, f"labels{count}", GAINS), sides(images=count, epochs=epochs)) for count, epochs in size.counts
    ]
    hints = [
        (
            Ledger(book, f"hints_{kind}", {"gain_over_soft_labels": ("hinted", "taught")}),
            {"taught": {"way": "taught"}, "hinted": {"way": "taught", "hint": the_hint(kind, weight)}},
        )
        for kind, weight in HINTS.items()
    ]
    last = {name: sweeps.pop(name) for name in [f"validation_{kind}" for kind in HINTS]}
    return {
        "the duels": duel(bench, both, few),
        "further seeds": duel(bench, both, further),
        **sweeps,
        "twice the steps": duel(bench, patient, few),
        "other numbers of labels": duel(bench, amounts, few),
        "hints": duel(bench, hints, few),
        **last,
    }


def measure(bench: Bench, book) -> list[str]:
    """Have every student in the queue, then take one step after the other; the names of those that failed."""
    steps, failed, name = plan(bench, book), [], "the first students"
    try:
        for step in steps.values():
            next(step)
        for name, step in steps.items():
            try:
                next(step, None)
            except BrokenProcessPool:
                raise
            except (errors.LabError, RuntimeError) as reason:
                failed.append(name)
                tell(f"{name} failed: {type(reason).__name__}: {str(reason)[:300]}")
    except OutOfTime:
        bench.drop()
        tell(f"the time is over in {name}")
    except BrokenProcessPool as reason:
        failed.append(f"{name} and all after it")
        tell(f"a worker died: {reason}")
    return failed


@contextlib.contextmanager
def workers(count: int, size: Size, device: str, folder: Path):
    """A pool whose processes hold the splits and a teacher trained here; `folder` is for what is handed to them."""
    large = {"width": 32, "depth": 2}
    # through a file: a large argument would keep each start waiting until the worker before it has imported PyTorch;
    # spawn: what is forked from a process that has used CUDA may hang
    pool = futures.ProcessPoolExecutor(
        count, get_context("spawn"), begin, (folder / "material.npz", tuple(signs.FACES), large)
    )
    try:
        for _ in range(count):
            pool.submit(int)  # each starts a worker, which imports PyTorch while the teacher learns
        known = data.road_signs(24, per_class=size.per_class)
        validation = data.road_signs(24, per_class=size.validation, seed=1).validation
        test = data.road_signs(
            24, per_class=size.test, seed=1
        ).train  # another stream of that seed: no image is in both
        tell("signs drawn")
        history = training.fit(
            distillation.staged_cnn(**large),
            known.train,
            epochs=size.teacher_epochs,
            learning_rate=5e-3,
            device=device,
            progress=False,
        )
        tell(history, f"on validation {training.accuracy(history.model, validation):.1%}")
        hand_out(folder / "material.npz", {"train": known.train, "validation": validation, "test": test}, history.model)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def options(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=140.0, help="no result is waited for longer than this (140)")
    parser.add_argument(
        "--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1) - 2)), help="students at once"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the teacher learns",
    )
    parser.add_argument("--small", action="store_true", help="try every step on few images; records nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and store what there is; what failed makes the exit status 1."""
    given = options(arguments)
    size = SMALL if given.small else Size()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one core each
    tell(f"{environment.machine_class()}, {given.workers} workers, teacher on {given.device}, {size}")
    with tempfile.TemporaryDirectory(prefix="lab08-") as folder:
        if given.small:
            os.environ["LABSUPPORT_METRICS"] = folder
        with (
            recordings.session(LAB, command=COMMAND) as book,
            workers(given.workers, size, given.device, Path(folder)) as pool,
        ):
            failed = measure(Bench(pool, size, given.seconds), book)
    tell("done")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    # a terminated recording keeps what it knows: an exit runs what stores it, the signal alone would not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    main()
