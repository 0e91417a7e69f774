"""The pool of lab 09 under large, poisonous and unanswerable requests, and workers that stand still or die."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from labsupport.placement import pool

PATIENCE_S = 40  # a call that takes longer hangs


class Poison:
    """A request that ends the process which unpacks it."""

    shape = (1, 4)

    def __reduce__(self):
        return os._exit, (3,)


class Unpackable:
    """A request that Ctrl-C meets while it is packed."""

    shape = (1, 4)

    def __reduce__(self):
        raise KeyboardInterrupt


class Unreadable:
    """A request whose unpacking raises, as that of a class which only the notebook knows."""

    shape = (1, 4)

    def __reduce__(self):
        return eval, ("1 / 0",)


def doubling(folder: Path) -> Path:
    """A graph that adds its input, of any width, to itself."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "w"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    path = folder / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def timed(call) -> tuple[object, BaseException | None, float]:
    """(result, error, seconds) of a call on a thread; None and a TimeoutError for one that does not come back."""
    made: list = [None, TimeoutError(f"hangs: no answer in {PATIENCE_S} s")]

    def work():
        try:
            made[:] = [call(), None]
        except BaseException as error:
            made[:] = [None, error]

    begin, thread = time.monotonic(), threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return made[0], made[1], time.monotonic() - begin


def numbers(count: int, width: int = 4) -> list[np.ndarray]:
    return [np.full((1, width), number, np.float32) for number in range(count)]


def right(answers, requests, missing=()) -> str:
    """Why these answers are not the requests' doubles; "" where they are."""
    for number, (answer, request) in enumerate(zip(answers, requests)):
        if number not in missing and (answer is None or not np.array_equal(answer, 2 * request)):
            return f"request {number} has the answer {answer!r:.40}"
    return "" if len(answers) == len(requests) else f"{len(answers)} answers"


def large(crew, width: int, count: int = 6) -> str:
    requests = numbers(count, width)
    served, error, _ = timed(lambda: crew.serve(requests, stall_s=10))
    return f"{width * 4 / 1e6:.1f} MB: {error!r:.200}" if error else right(served.answers, requests)


def unanswerable(crew, requests: list, bad: int) -> str:
    """One request that nobody can answer: an error in time, which holds all the other answers."""
    _, error, _ = timed(lambda: crew.serve(requests, stall_s=3))
    if error is None or isinstance(error, TimeoutError):
        return f"one that cannot be answered: {error!r:.200}"
    served = getattr(error, "served", None)
    if served is None:
        return f"all finished answers are thrown away: {error!r:.150}"
    return right(served.answers, [r if isinstance(r, np.ndarray) else numbers(1)[0] for r in requests], {bad})


def trials(scale: int = 1) -> Iterator[str]:
    """One line a trial: "" where it held."""
    with tempfile.TemporaryDirectory() as folder:
        graph = doubling(Path(folder))
        crew_of = [pool.Worker(name, graph) for name in "abc"]
        for _ in range(scale):
            for ahead, widths in ((2, (1_250_000,)), (4, (125_000, 2_500_000))):
                yield from sizes(crew_of[:2], ahead, widths)
            yield from bad_requests(crew_of, 60 * scale)
            yield stopped(crew_of[:2])
            yield killed(crew_of, 200 * scale)


def apart(workers, ahead: int = 1) -> pool.Pool:
    return pool.Pool(workers, numbers(1)[0], ahead=ahead)


def sizes(workers, ahead: int, widths) -> Iterator[str]:
    for width in widths:
        crew = apart(workers, ahead)
        yield large(crew, width)
        closed(crew)


def closed(crew) -> None:
    """End a pool that may hang: by its processes, then by itself."""
    for member in crew._members:
        member.process.kill()
    timed(crew.close)


def bad_requests(workers, count: int) -> Iterator[str]:
    for bad in (Poison(), threading.Lock(), np.zeros((2, 2, 2), np.float32), Unpackable(), Unreadable()):
        requests: list = numbers(count)
        requests[7] = bad
        crew = apart(workers, 2)
        yield unanswerable(crew, requests, 7)
        closed(crew)


def stopped(workers) -> str:
    """A worker stands still (SIGSTOP) while requests wait that do not fit into its pipe."""
    crew = apart(workers, 2)
    os.kill(crew._members[0].process.pid, signal.SIGSTOP)
    requests = numbers(5, 250_000)
    served, error, seconds = timed(lambda: crew.serve(requests, "round-robin", stall_s=1.5))
    closed(crew)
    if error:
        return f"a stopped worker: {error!r:.200}"
    return right(served.answers, requests) or ("" if seconds < 15 else f"a stopped worker: {seconds:.0f} s")


def killed(workers, count: int) -> str:
    """Two of three workers are killed from outside, in the middle."""
    crew = apart(workers)
    requests = numbers(count)
    for wait_s, place in ((0.02, 0), (0.05, 1)):
        pid = crew._members[place].process.pid
        threading.Timer(wait_s, os.kill, (pid, signal.SIGKILL)).start()
    arrivals = np.linspace(0, 200, count)
    served, error, _ = timed(lambda: crew.serve(requests, arrivals_ms=arrivals))
    closed(crew)
    return f"killed workers: {error!r:.200}" if error else right(served.answers, requests)
