"""The stopwatch: end-to-end time and device time as two functions, and results that say when they are noisy."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from labsupport.benchmarking.joules import Energy, energy_counter
from labsupport.benchmarking.measurements import CLOCKS, Latency, Ratio, Throughput
from labsupport.errors import BadInput, NotAvailable, at_least, one_of


def latency(run, feed, *, runs=100, warmup=10, warmup_ms=0, batch=None, name=None, now=time.perf_counter_ns) -> Latency:
    """End-to-end time of `run(feed)` on the host clock: copies in and out included, device synchronized each call.

    `run` is any callable. `batch` None reads the first dimension of the first input. Warm-up lasts at least `warmup`
    calls and at least `warmup_ms`. Feed random data, not zeros: power draw depends on the bits, and a GPU fed
    zeros clocks higher. `now` returns nanoseconds.
    """
    at_least(runs=runs)
    batch = _batch_size(batch, feed)
    wait = _warm_up(run, feed, warmup, warmup_ms, now)
    samples = _host_samples(run, feed, runs, wait, now)
    return Latency(name or _name(run), "host", tuple(samples), batch, _machine(run))


def device_latency(
    run, feed, *, runs=100, warmup=10, warmup_ms=0, enqueues=1, event=None, now=time.perf_counter_ns
) -> Latency:
    """Time on the GPU between two CUDA events round `run.enqueue()`; inputs already on the device, copies not timed.

    All `runs` are enqueued before the first result is awaited, so that the GPU does not idle between them. `enqueues`
    above 1 divides one pair of events among that many calls, for networks near the events' 0.5 µs resolution.
    Source: CUDA runtime API, cudaEventElapsedTime. On a runtime without a device queue: NotAvailable.
    """
    at_least(runs=runs)
    at_least(enqueues=enqueues)
    _needs_queue(run, "device_latency")
    run.bind(feed)
    _warm_up(run, feed, warmup, warmup_ms, now, call=lambda _: run.enqueue())
    samples = _device_samples(run, runs, enqueues, event)
    return Latency(_name(run), "device", tuple(samples), _batch(feed), _machine(run))


def paired(
    before,
    after,
    feed,
    *,
    feed_after=None,
    rounds=30,
    runs_per_round=5,
    warmup=10,
    clock="host",
    event=None,
    now=time.perf_counter_ns,
) -> Ratio:
    """Time two runtimes in turn, A/B/B/A, in this process, and keep each round's ratio before time / after time.

    Alternating puts a drifting clock or a busy neighbour on both sides. Time A against A for the noise floor.
    `feed_after` feeds `after` where it wants another dtype or layout; None gives it `feed`.
    """
    one_of(CLOCKS, clock=clock)
    at_least(rounds=rounds)
    at_least(runs_per_round=runs_per_round)
    feed_after = feed if feed_after is None else feed_after
    if _batch(feed) != _batch(feed_after):
        raise BadInput(f"before gets batch {_batch(feed)}, after batch {_batch(feed_after)}; feed both the same batch")
    sides = [
        _timer(run, its_feed, runs_per_round, warmup, clock, event, now)
        for run, its_feed in ((before, feed), (after, feed_after))
    ]
    ratios, pooled = [], ([], [])
    for _ in range(rounds):
        medians = [0.0, 0.0]
        for side in (0, 1, 1, 0):
            samples = sides[side]()
            medians[side] += float(np.median(samples))
            pooled[side].extend(samples)
        if not medians[1]:
            raise BadInput(f"{_name(after)} took 0 ms by the clock; give it more work, such as a larger batch")
        ratios.append(medians[0] / medians[1])
    pair = [
        Latency(_name(run), clock, tuple(samples), _batch(feed), _machine(run))
        for run, samples in zip((before, after), pooled)
    ]
    return Ratio(tuple(ratios), *pair)


def throughput(run, feed, *, seconds=1.0, in_flight=1, warmup=10, event=None, now=time.perf_counter_ns) -> Throughput:
    """Items per second over at least `seconds` of wall time.

    in_flight 1 waits for each `run(feed)`, copies included. Above 1, calls are enqueued ahead on inputs already on the
    device: more items per second, while each waits longer for its turn.
    """
    at_least(in_flight=in_flight)
    if not 0 < seconds < math.inf:
        raise BadInput(f"seconds={seconds!r}: throughput needs a positive stretch of time")
    if in_flight == 1:
        wait = _warm_up(run, feed, warmup, 0, now)
        finished = _keep_going(lambda: (run(feed), wait()), lambda: None, seconds, now)
    else:
        _needs_queue(run, f"throughput(in_flight={in_flight})", instead="throughput(run, feed, in_flight=1)")
        run.bind(feed)
        _warm_up(run, feed, warmup, 0, now, call=lambda _: run.enqueue())
        step, drain = _queue(run, in_flight, event)
        finished = _keep_going(step, drain, seconds, now)
    calls, batch = len(finished) - 1, _batch(feed)
    marks = np.unique(np.linspace(0, calls, min(calls, 10) + 1).astype(int))
    times_s = np.asarray(finished)[marks] / 1e9
    rates = tuple(float(rate) for rate in batch * np.diff(marks) / np.maximum(np.diff(times_s), 1e-9))
    return Throughput(_name(run), calls, float(times_s[-1] - times_s[0]), batch, in_flight, rates, _machine(run))


def energy(run, feed, *, seconds=2.0, now=time.perf_counter_ns) -> Energy:
    """Joule per inference from the GPU's own energy counter (NVML), whole board, idle power included.

    Where there is no counter the result says why instead of a number. At least 1 s, because the counter moves in
    steps of up to 100 ms. Source: nvmlDeviceGetTotalEnergyConsumption, NVML API reference.
    """
    if not callable(run):
        raise BadInput(f"run is a {type(run).__name__}; wanted a runtime, or a function of its feed")
    if not 1 <= seconds < math.inf:
        raise BadInput(f"seconds={seconds!r}: the energy counter moves in steps of up to 100 ms; use 1 s or more")
    counter, why_not = energy_counter(str(getattr(run, "device", "cpu")))
    if counter is None:
        return Energy(_name(run), None, 0, 0.0, _batch(feed), _machine(run), why_not)
    throughput(run, feed, seconds=0.2, now=now)  # the first second after idling is spent raising the clocks
    before = counter()
    done = throughput(run, feed, seconds=seconds, warmup=0, now=now)
    return Energy(done.name, counter() - before, done.calls, done.seconds, done.batch, done.machine, "")


def _host_samples(run, feed, runs, wait, now) -> list[float]:
    samples_ms = []
    for _ in range(runs):
        wait()  # otherwise this call pays for what the previous one left in the queue
        start = now()
        run(feed)
        wait()  # otherwise the clock stops when the work is queued, not when it is done
        samples_ms.append((now() - start) / 1e6)
    return samples_ms


def _device_samples(run, runs, enqueues, event) -> list[float]:
    event = event or _cuda_event
    pairs = [(event(), event()) for _ in range(runs)]
    for start, stop in pairs:
        start.record(run.stream)
        for _ in range(enqueues):
            run.enqueue()
        stop.record(run.stream)
    pairs[-1][1].synchronize()
    return [start.elapsed_time(stop) / enqueues for start, stop in pairs]


def _timer(run, feed, runs, warmup, clock, event, now):
    """A warmed-up function that takes `runs` samples in ms."""
    if clock == "device":
        _needs_queue(run, "paired(clock='device')", instead="paired(before, after, feed, clock='host')")
        run.bind(feed)
        _warm_up(run, feed, warmup, 0, now, call=lambda _: run.enqueue())
        return lambda: _device_samples(run, runs, 1, event)
    wait = _warm_up(run, feed, warmup, 0, now)
    return lambda: _host_samples(run, feed, runs, wait, now)


def _warm_up(run, feed, warmup, warmup_ms, now, call=None):
    """Call until warm; returns the function that waits for the device `run` computes on."""
    at_least(0, warmup=warmup)
    call, outputs, calls, begun = call or run, None, 0, now()
    while calls < warmup or (now() - begun) / 1e6 < warmup_ms:
        outputs = call(feed)
        calls += 1
        if warmup_ms:
            _waiter(run, feed, outputs)()  # a full queue is not elapsed time
    wait = _waiter(run, feed, outputs)
    wait()
    return wait


def _waiter(run, feed, outputs):
    if callable(getattr(run, "synchronize", None)):
        return run.synchronize
    on_gpu = str(getattr(run, "device", "")).startswith("cuda") or any(
        # a bare function or module does not say where it runs; its tensors do
        getattr(tensor, "is_cuda", False)
        for values in (feed, outputs)
        for tensor in _tensors(values)
    )
    if not on_gpu:
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _keep_going(step, drain, seconds, now) -> list[int]:
    """Times in ns of the start and of each finished step, until `seconds` have passed."""
    marks = [now()]
    while len(marks) == 1 or marks[-1] - marks[0] < seconds * 1e9:
        step()
        marks.append(now())
    drain()
    marks[-1] = max(now(), marks[0] + 1)
    return marks


def _queue(run, in_flight, event):
    pending, event = deque(), event or _cuda_event

    def step():
        run.enqueue()
        mark = event()
        mark.record(run.stream)
        pending.append(mark)
        if len(pending) >= in_flight:
            pending.popleft().synchronize()

    def drain():
        while pending:
            pending.popleft().synchronize()

    return step, drain


def _needs_queue(run, caller, instead="latency(run, feed), which reads the host clock") -> None:
    device = str(getattr(run, "device", "cpu"))
    lacking = [part for part in ("bind", "enqueue", "stream") if not hasattr(run, part)]
    if lacking or not device.startswith("cuda"):
        what = f"has no {', '.join(lacking)}" if lacking else "has no CUDA queue"
        raise NotAvailable(
            f"{caller} needs a runtime on a GPU; {_name(run)!r} runs on {device} and {what}: use {instead}"
        )


def _cuda_event():
    import torch

    return torch.cuda.Event(enable_timing=True)


def _tensors(values):
    if isinstance(values, Mapping):
        return list(values.values())
    return list(values) if isinstance(values, (tuple, list)) else [values]


def _batch_size(batch, feed) -> int:
    if batch is None:
        return _batch(feed)
    at_least(batch=batch)
    return int(batch)


def _batch(feed) -> int:
    for tensor in _tensors(feed):
        shape: tuple = getattr(tensor, "shape", ())
        if len(shape):
            return int(shape[0])
    return 1


def _name(run) -> str:
    return str(getattr(run, "name", None) or getattr(run, "__name__", None) or type(run).__name__)


def _machine(run) -> str:
    """The processor that `run` computes on: a GPU and the CPU beside it are two machines, not to be compared."""
    from labsupport import environment

    machine = environment.machine()
    on_gpu = machine.gpu and not machine.problem and str(getattr(run, "device", "cuda")) != "cpu"
    return machine.gpu if on_gpu else f"{machine.cpu}, {machine.cores} cores"
