"""The same work through Ray, an existing engine: actors that each hold a session, on this machine or on many.

Ray places actors, moves arrays between processes and machines, and restarts what died; a cluster is joined by one
address in place of a local start. Here it is started locally, without a dashboard and without usage reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

import numpy as np

from labsupport.environment.packages import package_version
from labsupport.errors import BadInput, LabError, NotAvailable

OBJECT_STORE_MIB = 80  # the least that Ray accepts is 75; lab arrays are small
RESTARTS = 1  # Ray starts an actor that died once more and repeats what it was doing


def why_not() -> str:
    """Why Ray cannot be used here, and how to get it; "" where it can."""
    return "" if package_version("ray") else "ray is not installed; get it with: python3 -m pip install ray"


class Actors:
    """Ray actors, each holding an ONNX Runtime session of the graph; use it with ``with``, which starts and stops Ray.

    ``start_s`` is what starting Ray and loading the sessions took. Raises BadInput, NotAvailable without Ray, LabError
    when Ray does not start. Source: https://docs.ray.io/en/latest/ray-core/actors.html
    """

    def __init__(self, graph, *, actors: int = 2, threads: int = 1):
        if type(actors) is not int or actors < 1:
            raise BadInput(f"actors={actors!r}; give one actor at least")
        if why_not():
            raise NotAvailable(why_not())
        begin = time.perf_counter()
        self._ray = _started(actors)
        try:
            remote = self._ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Session)
            self._actors = [remote.remote(str(getattr(graph, "path", graph)), threads) for _ in range(actors)]
            self._ray.get([actor.ready.remote() for actor in self._actors])
        except Exception as error:
            self.close()
            raise LabError(f"a Ray actor could not load {getattr(graph, 'path', graph)}: {_first(error)}") from error
        except BaseException:  # an interrupt: Ray would go on running, and nobody holds these actors to stop it
            self.close()
            raise
        self.start_s = time.perf_counter() - begin

    def map(self, batches) -> list:
        """One answer per batch, in order; the next batch goes to whichever actor is free."""
        from ray.util import ActorPool

        batches = list(batches)
        if not batches:
            raise BadInput("no batches; give one at least")
        if not self._ray.is_initialized():  # or Ray would start again by itself, with a dashboard and all cores
            raise LabError("these Actors are closed, and Ray with them; start new Actors")
        try:
            answers = ActorPool(self._actors).map(lambda actor, batch: actor.run.remote(batch), batches)
            return [np.array(answer) for answer in answers]
        except self._ray.exceptions.RayError as error:
            raise LabError(
                f"Ray could not finish the batches: {_first(error)}; start new Actors and serve them again"
            ) from error

    def close(self) -> None:
        """Stop the actors and Ray; calling it again does nothing."""
        if self._ray.is_initialized():
            self._ray.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Session:
    """What lives in each actor's process."""

    def __init__(self, path: str, threads: int):
        from labsupport import runtimes

        self.run_session = runtimes.OnnxRuntime(path, threads=threads)

    def ready(self) -> bool:
        return True

    def run(self, batch):
        return next(iter(self.run_session(batch).values()))


def _started(actors: int):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would report home
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # or it warns about what it will do to CUDA_VISIBLE_DEVICES
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        raise LabError("Ray is running in this process already; close the other Actors first, or call ray.shutdown()")
    import psutil

    others = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            num_cpus=actors,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            object_store_memory=OBJECT_STORE_MIB << 20,
        )
    except BaseException as error:
        ray.shutdown()
        left = set(psutil.Process().children(recursive=True)) - others  # Ray forgets what it began to start
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=3)
        if not isinstance(error, Exception):
            raise
        raise LabError(
            f"Ray does not start here: {_first(error)}; the pool of processes does the same on one machine"
        ) from error
    return ray


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
