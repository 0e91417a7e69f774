"""A Ray on this machine alone, for Ray Serve: on the loopback address, without a dashboard, and always stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from unittest import mock

from labsupport import environment
from labsupport.errors import LabError
from labsupport.quiet import quietly

OBJECT_STORE_MIB = 80  # the least that Ray accepts is 75
ATTEMPTS = 4  # Ray gives its own agent 15 s to start, which a busy machine may miss


@contextlib.contextmanager
def ray_cluster(*, cpus: int = 2, object_store_mib: int = OBJECT_STORE_MIB):
    """Start Ray and hand out the module ``ray.serve``; Serve and Ray are shut down however the block ends.

    ``cpus`` is what replicas may ask for together, and need not be what the machine has. Raises NotAvailable without
    Ray Serve, LabError when Ray does not start or runs already.
    Source: https://docs.ray.io/en/latest/serve/api/index.html
    """
    environment.require("ray serve")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would report home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or a replica loses its CUDA_VISIBLE_DEVICES
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # or it takes the network's address on Linux
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Serve starts the workers that it needs
    import psutil
    import ray
    from ray import serve

    if ray.is_initialized():
        raise LabError("Ray is running in this process already; call ray.shutdown() first")
    loggers = [logging.getLogger(name) for name in ("ray", "ray.serve")]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    others = set(psutil.Process().children(recursive=True))
    try:
        for left in reversed(range(ATTEMPTS)):
            try:
                _start(ray, cpus, object_store_mib)
                break
            except Exception as error:
                with quietly():
                    ray.shutdown()
                _end(set(psutil.Process().children(recursive=True)) - others)
                if left:
                    _warm()
                else:
                    reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
                    raise LabError(f"Ray does not start here, tried {ATTEMPTS} times: {reason}") from error
        with quietly():
            serve.start(proxy_location="Disabled")  # requests come through handles: no HTTP port is opened
        yield serve
    finally:
        with quietly():  # Ray reports its own shutdown as failures
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
        _end(set(psutil.Process().children(recursive=True)) - others)


def _start(ray, cpus: int, object_store_mib: int) -> None:
    # With the packages of its dashboard Ray starts an agent that imports all of them, opens ports, and has 15 s for it;
    # without them it takes a small one. Serve needs neither.
    question = "ray._private.utils.get_dashboard_dependency_error"
    exists = hasattr(ray._private.utils, question.rpartition(".")[2])
    small = mock.patch(question, lambda: ImportError("not wanted")) if exists else contextlib.nullcontext()
    with small:
        ray.init(
            num_cpus=cpus,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            object_store_memory=object_store_mib << 20,
        )


def _warm() -> None:
    """Read what Ray's agent imports, so that it comes from memory at the next attempt."""
    command = [sys.executable, "-c", "import ray.dashboard.agent, ray._private.runtime_env.agent.main"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)


def _end(processes) -> None:
    """Ray forgets what it began to start, when the start fails or is interrupted."""
    import psutil

    left = [process for process in processes if "ray" in _command(process)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _command(process) -> str:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""
