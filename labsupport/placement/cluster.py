"""One network on several GPUs, data-parallel: a process per GPU, each with its own engine, context and stream."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass

import numpy as np

from labsupport import environment
from labsupport.errors import BadInput, LabError, NotAvailable, one_of
from labsupport.placement.workers import leave_interrupts_to_the_parent

FEEDS = ("host", "device")
START_S = 120  # CUDA, TensorRT and the engine are loaded by every process before it answers
LONGEST_S = 3600


def devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty where there is none."""
    if not environment.has("gpu"):
        return ()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(str(index) for index in range(environment.machine().gpus))
    return tuple(part.strip() for part in chosen.split(",") if part.strip())


def choose(wanted) -> tuple[str, ...]:
    """The names of the GPUs with these indices, counted from 0 among :func:`devices`. Raises BadInput, NotAvailable."""
    here = devices()
    if not here:
        raise NotAvailable(
            f"{environment.why_not('gpu') or 'no GPU'}; the same work runs on CPU workers in a pool.Pool"
        )
    wanted = list(range(len(here))) if wanted is None else list(wanted)
    for index in wanted:
        if type(index) is not int or not 0 <= index < len(here):
            raise BadInput(
                f"device {index!r}: this machine has {len(here)} GPU{'s' * (len(here) != 1)}, numbered from 0"
            )
    if not wanted or len(set(wanted)) != len(wanted):
        raise BadInput(f"devices={wanted}; give each GPU once, and one at least")
    return tuple(here[index] for index in wanted)


@dataclass(frozen=True, repr=False)
class GpuRate:
    """Items per second of an engine on one or more GPUs at once, with the largest difference between their answers."""

    feed: str
    batch: int
    items_per_s: float
    each: tuple[float, ...]
    max_difference: float

    @property
    def gpus(self) -> int:
        return len(self.each)

    def as_metric(self) -> dict:
        return {"value": self.items_per_s, "unit": "items/s", "samples": self.gpus, "spread": None}

    def __repr__(self) -> str:
        each = " + ".join(f"{rate:,.0f}" for rate in self.each)
        return (
            f"{self.gpus} GPU{'s' * (self.gpus != 1)}, batch {self.batch}, fed from the {self.feed}: "
            f"{self.items_per_s:,.0f} items/s ({each}); answers differ by {self.max_difference:.1e} at most"
        )


class GpuWorkers:
    """A process for each of the GPUs, ready to run one engine; use it with ``with``.

    ``wanted`` holds indices among :func:`devices`, None means all. Processes are spawned, never forked: CUDA cannot be
    used in a fork. Each sees only its own GPU, so nothing can be created on the wrong one. Raises BadInput,
    NotAvailable, LabError when a worker cannot start.
    """

    def __init__(self, engine, wanted=None, *, batch: int):
        self.names = choose(wanted)
        environment.require("engine execution")
        context = multiprocessing.get_context("spawn")
        self.batch, self._workers = batch, []
        try:
            for name in self.names:
                ours, theirs = context.Pipe()
                process = context.Process(target=_gpu_worker, args=(theirs, name, str(engine.path), batch), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
            self._answers = [
                np.asarray(self._hear(name, ours)) for name, (_, ours) in zip(self.names, self._workers, strict=True)
            ]
        except BaseException:  # an interrupt as well: nobody holds these workers, so nobody else can end them
            self.close()
            raise

    def rate(self, gpus: int | None = None, *, feed: str = "host", seconds: float = 1.0) -> GpuRate:
        """Throughput of the first ``gpus`` workers running at once; "host" copies every batch in and its answer out."""
        one_of(FEEDS, feed=feed)
        if not 0 < seconds <= LONGEST_S:
            raise BadInput(f"seconds={seconds!r}; give a time above 0 and up to {LONGEST_S} s")
        gpus = len(self._workers) if gpus is None else gpus
        if type(gpus) is not int or not 1 <= gpus <= len(self._workers):
            raise BadInput(f"gpus={gpus!r}; give 1 to {len(self._workers)}, as many as were started")
        begin = time.time() + 0.1  # one wall clock for all processes of this machine
        for _, pipe in self._workers[:gpus]:
            with contextlib.suppress(OSError):  # it died; whoever listens to it below says so
                pipe.send((feed, begin, seconds))
        told = [
            self._hear(name, pipe, seconds + START_S)
            for name, (_, pipe) in zip(self.names[:gpus], self._workers[:gpus], strict=True)
        ]
        start, stop = min(t["start"] for t in told), max(t["stop"] for t in told)
        each = tuple(t["batches"] * self.batch / (t["stop"] - t["start"]) for t in told)
        apart = max(float(np.abs(answer - self._answers[0]).max()) for answer in self._answers[:gpus])
        return GpuRate(feed, self.batch, sum(t["batches"] for t in told) * self.batch / (stop - start), each, apart)

    def _hear(self, name: str, pipe, patience_s: float = START_S):
        try:
            if not pipe.poll(patience_s):
                self.close()  # or what it says later would pass for the answer to another question
                raise LabError(
                    f"the worker on GPU {name} has been silent for {patience_s:g} s; is the GPU busy? Close "
                    "other programs on it"
                )
            said = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise LabError(
                f"the worker on GPU {name} died before it answered; run its part alone to see why"
            ) from error
        if isinstance(said, str):
            self.close()
            raise LabError(f"the worker on GPU {name} could not start: {said}")
        return said

    def close(self) -> None:
        """End the processes; calling it again does nothing."""
        for _, pipe in self._workers:
            pipe.close()  # a worker that reads the end of its pipe leaves by itself
        for process, _ in self._workers:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(5)
        self._workers = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _gpu_worker(pipe, device: str, engine_path: str, batch: int) -> None:
    """What runs in each process: choose the GPU before anything is created, load, then answer until the pipe closes."""
    leave_interrupts_to_the_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        lanes = _lanes(engine_path, batch)
        for lane in lanes:
            lane.infer()
        pipe.send(next(iter(lanes[0].result().values())).astype("float32"))
    except Exception as error:  # whatever it is, the dispatcher says it
        pipe.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            feed, begin, seconds = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_run_for(lanes, feed, begin, seconds))


def _lanes(engine_path: str, batch: int) -> list:
    from labsupport import runtimes
    from labsupport.build import engines
    from labsupport.placement import streams

    run = runtimes.TensorRt(engines.load(engine_path))
    name, spec = next(iter(run.inputs.items()))
    images = np.random.default_rng(0).standard_normal((batch, *spec.shape[1:])).astype(spec.dtype)
    return [streams.Lane(run, {name: images}) for _ in range(2)]


def _run_for(lanes, feed: str, begin: float, seconds: float) -> dict:
    import torch

    host, batches = feed == "host", 0
    for lane in lanes:
        lane.infer()
    torch.cuda.synchronize()
    time.sleep(max(0.0, begin - time.time()))
    start = time.time()
    while time.time() - start < seconds:
        lane = lanes[batches % len(lanes)]
        lane.done.synchronize()  # its host buffers are free again
        lane.infer(upload=host)
        batches += 1
    torch.cuda.synchronize()
    return {"batches": batches, "start": start, "stop": time.time()}
