"""What a worker of `pool` is and does in its own process: load a network, answer until its pipe ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

from labsupport.errors import LabError


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
    try:
        run = _load(source, is_engine, threads)
        for _ in range(5):
            _answer(run, example, repeat)
        pipe.send(0.0)
    except (LabError, RuntimeError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            number, request = pipe.recv()
            if number == "sleep":
                time.sleep(request)
                continue
            pipe.send((number, *_answered(run, request, repeat)))
        except (EOFError, OSError):
            return


def _answered(run, request, repeat: int) -> tuple:
    """(answer, ""), or (None, what was wrong): a request that cannot be answered must not take the worker along."""
    try:
        return _answer(run, request, repeat), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _load(source: str, is_engine: bool, threads: int):
    from labsupport import runtimes

    if is_engine:
        from labsupport import engines

        return runtimes.TensorRt(engines.load(source), cuda_graph=True)
    return runtimes.OnnxRuntime(source, threads=threads)


def _answer(run, request, repeat: int):
    for _ in range(repeat):
        outputs = run(request)
    return next(iter(outputs.values()))
