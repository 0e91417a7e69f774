"""What a worker of `pool` is and does in its own process: load a network, answer until it is told to leave."""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler


@dataclass(frozen=True)
class Worker:
    """One process to be: an ONNX graph in ONNX Runtime, or with ``engine`` a TensorRT engine on the GPU.

    ``repeat`` computes every answer that many times: a stand-in for an older, slower device.
    """

    name: str
    graph: object = None
    engine: object = None
    threads: int = 1
    repeat: int = 1

    @property
    def source(self) -> str:
        """File that the process loads."""
        chosen = self.graph if self.engine is None else self.engine
        return str(getattr(chosen, "path", chosen))


def answer_requests(pipe, source: str, is_engine: bool, threads: int, repeat: int, example) -> None:
    """What runs in each process: load, warm up, then answer until the pipe ends."""
    leave_interrupts_to_the_parent()
    try:
        run = _load(source, is_engine, threads)
        for _ in range(5):
            _answer(run, example, repeat)
        pipe.send(0.0)
    except Exception as error:  # whatever it is, the dispatcher says it
        pipe.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            number, packed = pipe.recv(), pipe.recv_bytes()
            if number == "leave":
                return
            if number == "sleep":
                time.sleep(ForkingPickler.loads(packed))
                continue
            pipe.send((number, *_answered(run, packed, repeat)))
        except (EOFError, OSError):
            return


def leave_interrupts_to_the_parent() -> None:
    """JupyterLab interrupts all processes of a kernel at once; a worker that obeyed would be gone for the next cell."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _answered(run, packed: bytes, repeat: int) -> tuple:
    """(answer, ""), or (None, what was wrong): a request that cannot be answered must not take the worker along."""
    try:
        request = ForkingPickler.loads(packed)
    except BaseException as error:  # such as a class that only the notebook knows
        return None, f"it cannot be unpacked there: {type(error).__name__}: {error}"
    try:
        return _answer(run, request, repeat), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _load(source: str, is_engine: bool, threads: int):
    from labsupport import runtimes

    if is_engine:
        from labsupport.build import engines

        return runtimes.TensorRt(engines.load(source), cuda_graph=True)
    return runtimes.OnnxRuntime(source, threads=threads)


def _answer(run, request, repeat: int):
    for _ in range(repeat):
        outputs = run(request)
    return next(iter(outputs.values()))
