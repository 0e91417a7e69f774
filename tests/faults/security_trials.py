"""Names that are none, a file that takes the package's place, and what a root user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from labsupport import build, recordings
from labsupport.errors import LabError
from labsupport.training import checkpoints

NAMES = ("01_measuring\n", "x" * 300, "../../outside", "a\0b", "a/b", "", "..")


def refused(what: str, call: Callable, name: str) -> str:
    try:
        call(name)
    except LabError:
        return ""
    except Exception as error:
        return f"{what}({name!r:.30}): {type(error).__name__}"
    return f"{what}({name!r:.30}) is accepted"


def names(folder: Path) -> Iterator[str]:
    """Each name for each thing that has a name and becomes a file."""
    import torch

    from labsupport import environment

    model = torch.nn.Linear(2, 2)
    calls: dict[str, Callable] = {
        "recordings.lab": lambda name: recordings.lab(name, folder),
        "recordings.load_plan": lambda name: recordings.load_plan(name, folder),
        "recordings.save_plan": lambda name: recordings.save_plan(name, "[1]", folder),
        "record": lambda name: recordings.lab("01_measuring", folder).record(f"net.{name}", 1, "ms"),
        "checkpoints.place": lambda name: checkpoints.place(folder, name, model),
    }
    if environment.has("engine building"):
        calls["build.engine"] = lambda name: build.engine(folder / "no.onnx", name=name or "/")
    for what, call in calls.items():
        yield from (refused(what, call, name) for name in NAMES)


def commands(folder: Path) -> Iterator[str]:
    """A foreign labsupport.py where notebooks run stops every command; as root, `lab` says what that means."""
    paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "") or str(Path(__file__).resolve().parents[2])}
    code = "import sys; from labsupport.command_line import cli; cli.prepare = lambda *a, **k: 1; "
    (folder / "labsupport.py").write_text("raise SystemExit('the foreign module ran')\n")
    for command in ("run", "test", "record", "lab"):
        words = [
            sys.executable,
            "-P" if sys.version_info >= (3, 11) else "-B",
            "-c",
            code + f"sys.exit(cli.main(['{command}']))",
        ]
        done = subprocess.run(
            words, cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, timeout=60
        )
        told = "labsupport.py is not the workbook's" in done.stderr
        yield (
            "" if told and done.returncode == 1 else f"{command} beside a foreign labsupport.py: {done.stderr[-80:]!r}"
        )
    import inspect

    from labsupport.command_line import cli

    yield (
        ""
        if "as root" in " ".join(inspect.getsource(cli.lab).split('"'))
        else "--allow-root does not say what runs as root"
    )


def trials(scale: int = 1) -> Iterator[str]:
    """One line a trial: "" where it held."""
    with tempfile.TemporaryDirectory() as name:
        yield from names(Path(name))
        yield from commands(Path(name))
