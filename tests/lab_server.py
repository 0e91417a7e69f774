"""A JupyterLab that `python3 -m labsupport lab` starts in a copy of the checkout, for the tests of servers and browsers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]
OF_A_TEST = ("PYTEST_CURRENT_TEST", "PYTHONPATH", "LABSUPPORT_METRICS", "LABSUPPORT_QUIET", "IPYKERNEL_CELL_NAME")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".lab*", ".scratch", "my_work", "work", "__pycache__", "*.egg-info")


def copy_of_checkout(target: Path) -> Path:
    """The workbook as somebody unpacks it, without git and without anything made here."""
    return Path(shutil.copytree(REPOSITORY, target, ignore=LEFT_OUT))


def can_mount() -> bool:
    """Whether this machine lets a process have mounts of its own (Linux with user namespaces)."""
    return bool(shutil.which("unshare")) and not subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode


def variables(checkout: Path, folder: Path, **more: str) -> dict[str, str]:
    """This environment, with cache, progress and what JupyterLab remembers in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_TEST}
    own = {"LABSUPPORT_CACHE": str(folder / "cache"), "LABSUPPORT_PROGRESS": str(folder / "progress.json")}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"):
        own[name] = str(folder / name.lower())
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), **more}


@contextlib.contextmanager
def running(checkout: Path, folder: Path, *words: str, before: str = "", browser: bool = False, **more: str):
    """(address with token, log) of a server that ends with the block. ``before`` is a line of shell that a namespace
    with mounts of its own runs first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    command = [sys.executable, "-m", "labsupport", "lab", "--without-weights"]
    command += [*([] if browser else ["--no-browser"]), *words]
    if before:
        command = [*NAMESPACES, "sh", "-c", f'{before} && cd "$0" && exec "$@"', str(checkout), *command]
    with log.open("wb") as file:
        server = subprocess.Popen(
            command,
            cwd=checkout,
            env=variables(checkout, folder, **more),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield _address(server, log), log
    finally:
        _end(server)


def _address(server: subprocess.Popen, log: Path) -> str:
    until = time.monotonic() + 180
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*token=\w+", log.read_text(errors="replace")):
            return found[0]
        time.sleep(0.3)
    raise AssertionError("JupyterLab did not start: " + log.read_text(errors="replace")[-2000:])


def _end(server: subprocess.Popen) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, sent)
                server.wait(30)
