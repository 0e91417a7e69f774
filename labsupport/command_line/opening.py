"""How `lab` starts JupyterLab: on the learner's first notebook, with kernels that say errors plainly."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_NOTEBOOK = "00_start_here.ipynb"


def command(folder: str, options: argparse.Namespace, rest: list[str]) -> list[str]:
    """JupyterLab's command line; ``rest`` goes to it as it came."""
    # A notebook as the argument would make its folder the root, and hide the data and the README.
    words = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={REPOSITORY}",
        f"--LabApp.default_url=/lab/tree/{folder}/{FIRST_NOTEBOOK}",
    ]
    if options.no_browser:
        words.append("--no-browser")
    if options.port is not None:
        words.append(f"--port={options.port}")
    return words + rest


def variables() -> dict[str, str]:
    """For the kernels: Python runs a file at their start, and after it the learner's own, where there is one."""
    ours, own = str(Path(__file__).with_name("kernel_startup.py")), os.environ.get("PYTHONSTARTUP")
    if not own or own == ours:  # ours, where `lab` is typed in a terminal of JupyterLab
        return {"PYTHONSTARTUP": ours}
    return {"PYTHONSTARTUP": ours, "LABSUPPORT_STARTUP": own}
