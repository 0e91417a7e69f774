"""NVIDIA's Triton Inference Server in an environment of its own, as a child process that is always stopped."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from labsupport import environment, files
from labsupport.environment.needs import TRITON_STAMP
from labsupport.errors import BadInput, LabError
from labsupport.serving import triton_repository

REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime>=1.20")  # with NumPy 2 it starts, and no model runs
LOOPBACK = "127.0.0.1"


def folder() -> Path:
    """Where the environment lies: below the cache folder."""
    return (environment.cache_dir() / TRITON_STAMP).parent


def make_environment(*, say=print, run=subprocess.run) -> Path:
    """Make the environment that holds Triton, or find it made; its folder comes back. LabError tells pip's reason.

    nvidia-pytriton brings the server and its Python backend; the backend's stub of this Python is copied to where the
    server looks for it. ``say`` gets progress lines, ``run`` stands in for subprocess.run in tests.
    """
    place = folder()
    stamp = place / Path(TRITON_STAMP).name
    wanted = {"requirements": list(REQUIREMENTS), "python": list(sys.version_info[:2])}
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return place
    if not sys.platform.startswith("linux"):
        raise LabError("Triton's package runs on Linux only; the lab goes on with Ray Serve")
    say(f"Making {place}: {', '.join(REQUIREMENTS)}")
    shutil.rmtree(place, ignore_errors=True)
    _done(run([sys.executable, "-m", "venv", str(place)], capture_output=True, text=True), "the environment")
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _done(run([*pip, *REQUIREMENTS], capture_output=True, text=True), "Triton")
    server = _server(place)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise LabError(f"{REQUIREMENTS[0]} has no backend for Python {version}; use Python 3.10 to 3.13")
    shutil.copy(stub, server / "backends" / "python")
    files.replace(stamp, json.dumps(wanted).encode())
    return place


class TritonServer:
    """A running Triton that serves a repository on the loopback address; use it with ``with``.

    ``port`` 0 takes a free one. The process is stopped when the block ends, when Python ends, and
    on Linux also when Python is killed. Raises BadInput for a bad repository or a port in use, LabError with the end of
    the server's log when it does not come up. Source: https://github.com/triton-inference-server/server
    """

    def __init__(self, repository: str | Path, *, port: int = 0, patience_s: float = 60.0):
        environment.require("triton server")
        self.models = triton_repository.validate(repository)
        self.port, self.metrics_port = free_port(port), free_port(0)
        place = folder()
        server, site = _server(place), _site(place)
        variables = {**os.environ, "LABSUPPORT_TRITON_PATH": str(site)}
        libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]  # the stub links libpython
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        for name in ("PYTHONPATH", "PYTHONHOME"):  # the backend must not find this environment's NumPy
            variables.pop(name, None)
        command = [str(server / "bin" / "tritonserver"), f"--model-repository={Path(repository).resolve()}"]
        command += [f"--backend-directory={server / 'backends'}", "--allow-grpc=false", "--exit-timeout-secs=5"]
        command += [f"--http-address={LOOPBACK}", f"--http-port={self.port}"]
        command += [f"--metrics-address={LOOPBACK}", f"--metrics-port={self.metrics_port}"]
        command += ["--model-control-mode=poll", "--repository-poll-secs=1"]  # a new version is loaded while it serves
        self._log = tempfile.TemporaryFile()
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,  # the terminal's Ctrl-C reaches Python, which stops the server
            preexec_fn=_dying_with_parent(),
        )
        atexit.register(self.close)
        try:
            self._wait(started + patience_s)
        except BaseException:  # an interrupt, too
            self.close()
            raise
        self.start_s = time.perf_counter() - started

    @property
    def address(self) -> str:
        """For tritonclient.http.InferenceServerClient."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def log(self) -> str:
        """What the server wrote."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def metrics(self) -> dict[str, float]:
        """Triton's counters, name → value summed over models and versions, as its /metrics tells them."""
        status, text = self._get(self.metrics_port, "/metrics")
        if status != 200:
            raise LabError(f"/metrics answered {status}")
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#") and line.strip():
                name, value = line.split("{")[0].split()[0], float(line.rsplit(None, 1)[1])
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self._process.wait()

    def close(self) -> None:
        """Stop the server; calling it again does nothing."""
        atexit.unregister(self.close)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _wait(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise LabError(f"Triton ended with code {self._process.returncode}; its log ends:\n{self._tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._get(self.port, "/v2/health/ready")[0] == 200:
                    return
            time.sleep(0.1)
        raise LabError(f"Triton was not ready in time; its log ends:\n{self._tail()}")

    def _get(self, port: int, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def _tail(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip(" +-|")]
        telling = [line for line in lines if "rror" in line or "UNAVAILABLE" in line or line.startswith("E")]
        return "\n".join(line[:300] for line in (telling or lines)[-5:]) or "(empty)"


def free_port(port: int) -> int:
    """The port, if nobody listens on it, or a free one for 0."""
    if not 0 <= port <= 65535:
        raise BadInput(f"port={port!r}; give a whole number, 0 (a free one) to 65535")
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise BadInput(
                f"port {port} is in use ({error.strerror}); give another one, or 0 for a free one"
            ) from error
        return probe.getsockname()[1]


def _dying_with_parent():
    """What the child calls before it becomes the server: Linux ends it when this process ends, however that happens."""
    library = ctypes.CDLL(None)
    return lambda: library.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _site(place: Path) -> Path:
    return next(iter((place / "lib").glob("python*/site-packages")))


def _server(place: Path) -> Path:
    return _site(place) / "pytriton" / "tritonserver"


def _done(result, what: str) -> None:
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise LabError(f"{what} could not be installed: {(errors or lines or ['no message'])[-1][:300]}")
