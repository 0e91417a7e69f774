"""What all stages share: the network, its samples and answers, the working copy, the clock, and the judge."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport import benchmarking, build, comparing, environment, export, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable, one_of
from labsupport.examining import inputs, journal, sources, working_copy
from labsupport.examining.rows import Candidate
from labsupport.export import OnnxGraph

ROUNDS = (3, 15)  # of A/B/B/A, fewest and most
LARGEST_MIB = 2048  # of a network whose copies are made
PAIR_S = 3.0  # what one comparison may take where the network is fast
FRESH = 16  # more samples, where they can be made, that judge what was chosen on the others


class OutOfTime(LabError):
    """What is left of the time budget is not enough for a stage; a later run may try it."""


@dataclass(frozen=True)
class Limits:
    """What the owner asks for: a latency in ms (or None), the share of the answers to keep, and minutes to spend."""

    budget_ms: float | None = None
    keep_accuracy: float = 0.99
    minutes: float = 10.0

    def __post_init__(self) -> None:
        for name, value, good in (
            ("budget-ms", self.budget_ms, self.budget_ms is None or _positive(self.budget_ms)),
            ("keep-accuracy", self.keep_accuracy, _positive(self.keep_accuracy) and self.keep_accuracy <= 1),
            ("minutes", self.minutes, _positive(self.minutes)),
        ):
            if not good:
                wanted = (
                    "a share above 0 and at most 1, such as 0.99" if name.startswith("keep") else "a number above 0"
                )
                raise BadInput(f"--{name} {value!r}: wanted is {wanted}")

    @property
    def error(self) -> float:
        """The relative error that is allowed where there are no labels."""
        return 1 - self.keep_accuracy


def _positive(value) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


class Case:
    """One network under examination; what a stage needs is made when it is first asked for. Close it, or use `with`."""

    def __init__(
        self,
        graph: OnnxGraph,
        folder: Path,
        limits: Limits,
        samples_file: Path | None,
        example: dict | None = None,
        now=time.monotonic,
    ):
        self.graph, self.folder, self.limits, self.samples_file = graph, folder, limits, samples_file
        self.example, self.now, self.started = example, now, now()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Free the two runtimes that all stages share."""
        for name in ("original", "base"):
            if run := self.__dict__.pop(name, None):
                run.close()

    # --- the clock ------------------------------------------------------------------------------------------

    @property
    def left_s(self) -> float:
        """Seconds left of the time budget."""
        return 60 * self.limits.minutes - (self.now() - self.started)

    def afford(self, seconds: float, what: str) -> None:
        """Raise OutOfTime where ``what`` would take longer than is left."""
        if seconds > self.left_s:
            raise OutOfTime(
                f"{what} needs about {seconds:.0f} s, and {max(self.left_s, 0):.0f} s of the time budget are left; run "
                f"it again with more than --minutes {self.limits.minutes:g}, finished stages are kept"
            )

    # --- the network as given -------------------------------------------------------------------------------

    @functools.cached_property
    def original(self):
        """The network as given, in ONNX Runtime on the CPU: its answers are the reference."""
        inputs.numbers_only(self.graph)
        return runtimes.OnnxRuntime(self.graph, name="as given")

    @functools.cached_property
    def samples(self) -> inputs.Samples:
        """Feeds, given or made. Raises BadInput."""
        if self.samples_file is not None:
            return inputs.from_file(self.samples_file, self.graph)
        if self.example is not None:
            return inputs.Samples((self.example,), "the example inputs stored in the model's file", True)
        return inputs.made(self.graph, self.original)

    @functools.cached_property
    def call_s(self) -> float:
        """Seconds of one call, the better of two."""
        taken = []
        for _ in range(2):
            start = time.perf_counter()
            self.original(self.samples.feeds[0])
            taken.append(time.perf_counter() - start)
            self.afford(taken[0], "a second call of the network")
        return min(taken)

    @functools.cached_property
    def expected(self) -> list[dict]:
        """Answers of the network as given, for as many samples as a tenth of the time allows, and one at least."""
        most = max(1, int(0.1 * self.left_s / max(self.call_s, 1e-6)))
        answers = [self.original(feed) for feed in self.samples.feeds[:most]]
        if odd := [name for answer in answers for name in _odd(answer)]:
            raise BadInput(
                f"the network itself answers NaN or infinity in {odd[0]!r} with {self.samples.origin}; give real "
                "inputs with --inputs data.npz"
            )
        return answers

    @functools.cached_property
    def fresh(self) -> list[tuple[dict, dict]]:
        """(feed, answer) of samples that no stage has seen, in a fiftieth of the time; none where some were given."""
        many = min(FRESH, int(0.02 * self.left_s / max(self.call_s, 1e-6)))
        if self.samples.given or many < 1:
            return []
        feeds = inputs.made(self.graph, self.original, count=inputs.MADE + many).feeds[inputs.MADE :]
        return [(feed, answer) for feed in feeds if not _odd(answer := self.original(feed))]

    @property
    def feeds(self) -> list[dict]:
        """The samples that have an expected answer."""
        return list(self.samples.feeds[: len(self.expected)])

    @property
    def calibrating(self) -> list[dict]:
        """Every second sample. What is calibrated on these is judged by the others; a single sample does both."""
        return self.feeds[::2]

    @functools.cached_property
    def _copy(self):
        if self.graph.size_mib > LARGEST_MIB:
            raise BadInput(
                f"{self.graph.path.name} has {self.graph.size_mib / 1024:.1f} GiB: what changes a graph holds it in "
                f"memory several times, so beyond {LARGEST_MIB / 1024:g} GiB only identity and baseline are examined; "
                "examine a part of it, such as one block"
            )
        return working_copy.working(self.graph, self.feeds[0], self.expected[0], self.folder)

    @property
    def working(self) -> export.OnnxGraph:
        """The copy that stages change. Raises LabError."""
        return self._copy[0]

    @property
    def story(self) -> list[str]:
        """What was done to make the working copy."""
        return self._copy[1]

    # --- running and judging --------------------------------------------------------------------------------

    @functools.cached_property
    def base(self):
        """What every change is held against: the network as given; on a GPU its FP32 engine, without a CUDA graph."""
        return self.runtime(self.working, "fp32") if environment.has("engine execution") else self.original

    def runtime(self, graph, kind: str, *, keep_wide=(), threads: int = 1, name: str = "as given"):
        """A runtime for a graph: on a GPU its TensorRT engine ("fp32", "fp16", "int8"), else ONNX Runtime's session."""
        one_of(("fp32", "fp16", "int8"), kind=kind)
        if not environment.has("engine execution"):
            return runtimes.OnnxRuntime(graph, threads=threads, name=name)
        return runtimes.TensorRt(self.engine(graph, kind, keep_wide), name=name)

    def engine(self, graph, kind: str, keep_wide=()):
        """TensorRT's engine of a graph at the default level; the same question is answered from the cache."""
        options: dict = {"precision": "fp32" if kind == "fp32" else "as-is", "name": f"{self.graph.path.stem}-{kind}"}
        if kind == "fp16" and environment.generation() == "8.6":  # types are wishes there, made on the FP32 graph
            if keep_wide:
                raise NotAvailable(
                    "TensorRT 8.6 keeps no node wide by the graph; lab 05 shows how to prescribe types there"
                )
            options |= {"precision": "fp16", "strict": True}
            graph = self.working
        return build.engine(graph, progress=False, **options)

    def error_of(self, run: Callable, *, calibrated: bool = False) -> float:
        """‖answer − reference‖ / ‖reference‖ over all samples, the worst output; inf where a shape differs.

        Outputs of whole numbers count, by the share that differs, only where there are no others. ``calibrated``
        leaves out the samples of ``calibrating``.
        """
        judging = slice(1, None, 2) if calibrated and len(self.feeds) > 1 else slice(None)
        expected, got = self.expected[judging], [run(feed) for feed in self.feeds[judging]]
        worst = 0.0
        for floats, pairs in _by_output(expected, got):
            if any(a.shape != b.shape for a, b in pairs):
                return math.inf
            ours, theirs = (np.concatenate([np.ravel(pair[i]) for pair in pairs]) for i in (0, 1))
            worst = max(worst, comparing.relative_error(ours, theirs) if floats else float(np.mean(ours != theirs)))
        return worst

    def worst_fresh(self, run: Callable) -> float:
        """‖answer − reference‖ of the worst sample of ``fresh`` over a typical ‖reference‖, the worst output; or 0.

        A typical one is the root of the mean square: a sample whose own answer is about 0 would make any error large.
        """
        worst = 0.0
        for floats, pairs in _by_output([answer for _, answer in self.fresh], [run(feed) for feed, _ in self.fresh]):
            if any(a.shape != b.shape for a, b in pairs):
                return math.inf
            if not floats:
                worst = max(worst, *(float(np.mean(a != b)) for a, b in pairs))
                continue
            typical = np.full(1, np.sqrt(np.mean([np.linalg.norm(a.astype(np.float64)) ** 2 for a, _ in pairs])))
            apart = np.max([np.linalg.norm(b.astype(np.float64) - a) for a, b in pairs])
            worst = max(worst, comparing.relative_error(typical, typical + apart))
        return worst

    def accuracy_of(self, run: Callable) -> float | None:
        """Share of labels that the first output's largest entry meets; None without labels."""
        labels = self.samples.labels
        if labels is None:
            return None
        right = [
            int(np.argmax(next(iter(run(feed).values())))) == label for feed, label in zip(self.samples.feeds, labels)
        ]
        return float(np.mean(right))

    def keeps(self, change: Candidate) -> bool:
        """Whether a change keeps the answers: its accuracy where there are labels, else its error."""
        if change.accuracy is None:
            return change.error <= self.limits.error
        return change.accuracy >= self.limits.keep_accuracy * (self.accuracy_of(self.original) or 0)

    def judge(
        self, name: str, run, *, effort: int, code: str, lab: str, graph=None, answers=None, note="", unproven="",
        calibrated: bool = False,
    ) -> Candidate:  # fmt: skip
        """A change, timed in turn with the network as given. ``answers`` is the run whose error counts, if another.

        Its error is the larger of `error_of` and `worst_fresh`: the samples that chose a change flatter it.
        """
        rounds = int(min(max(PAIR_S / (8 * max(self.call_s, 1e-6)), ROUNDS[0]), ROUNDS[1]))
        self.afford(8 * (rounds + 1) * self.call_s, f"timing {name!r}")
        feed, judged = self.feeds[0], answers or run
        pair = benchmarking.paired(self.base, run, feed, rounds=rounds, runs_per_round=2, warmup=2)
        file, graph = graph.path.name if graph else "", graph or self.graph
        error = max(self.error_of(judged, calibrated=calibrated), self.worst_fresh(judged))
        return Candidate(
            name, effort, pair.after.samples_ms, pair.samples, error, graph.size_mib, code, lab,
            pair.after.machine, self.accuracy_of(judged), note, file, unproven,
        )  # fmt: skip


def _odd(answer: dict) -> list[str]:
    """Names of the outputs with a NaN or an infinity."""
    return [name for name, x in answer.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]


def _by_output(expected: list[dict], got: list[dict]):
    """(whether it has floats, [(reference, answer) of each sample]) for each output that counts."""
    kinds = {name: x.dtype.kind for name, x in (expected[0] if expected else {}).items() if x.size}
    floats = [name for name, kind in kinds.items() if kind == "f"]
    for name in floats or kinds:
        yield bool(floats), [(y[name], answer[name]) for y, answer in zip(expected, got, strict=True)]


def case_of(
    model: str | os.PathLike,
    *,
    inputs: str | os.PathLike | None = None,
    limits: Limits | None = None,
    save: str | os.PathLike | None = None,
) -> Case:
    """Open a model file for examination, in a folder beside it or in ``save``. Raises BadInput and LabError.

    Nothing is run yet; ``inputs`` is an .npz with an array for each input.
    """
    path = Path(model)
    if not path.is_file():
        export.load(path)  # raises, and says whether nothing is there, or a folder
    folder = journal.folder_for(path, Path(save) if save else None)
    graph, example = sources.graph_of(path, folder)
    return Case(graph, folder, limits or Limits(), Path(inputs) if inputs else None, example)
