"""The command `test`: one pytest over tests and notebooks, side by side where there are cores, then the bands."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NBVAL = (
    "-p",
    "labsupport.command_line.kernels",
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout=300",
    "--nbval-kernel-startup-timeout=120",
)
LAST_RUN = REPOSITORY / ".labcache" / "test_seconds.json"  # what the newest whole run took here, by its kind
MOST_WORKERS = 4  # a worker and its kernel hold about 1.5 GiB
UNIT_TESTS_S = 300.0  # processor time of all unit tests on two cores of a shared machine, where nothing is known yet


def workers(rest: list[str], *, alone: bool, gpu: bool) -> int:
    """How many processes run tests at once; 1 where timings must not share the machine, or the caller says how many."""
    chosen = any(word == "--dist" or word.startswith(("-n", "--numprocesses", "--dist=")) for word in rest)
    if alone or gpu or chosen or "no:xdist" in " ".join(rest) or importlib.util.find_spec("xdist") is None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS))


def command(rest: list[str], own: Sequence[str] = (), *, fast: bool = False, at_once: int = 1) -> list[str]:
    """pytest's command line: the caller's paths where there are some, else everything.

    ``own`` are notebooks that their owner has worked in, which are left out. ``fast`` takes the unit tests only,
    without the slow ones. ``at_once`` processes share the files, a whole file each.
    """
    named = any(not word.startswith("-") and (REPOSITORY / word.split("::")[0]).exists() for word in rest)
    folders = ("tests",) if fast else ("tests", "notebooks")
    paths = [] if named else [name for name in folders if (REPOSITORY / name).is_dir()]
    left_out = [f"--ignore=notebooks/{notebook}" for notebook in own]
    shared = ["-n", str(at_once), "--dist", "loadfile"] if at_once > 1 else []
    quick = ["-m", "not slow"] if fast else []
    return [sys.executable, "-m", "pytest", *NBVAL, "--durations=10", *shared, *quick, *left_out, *rest, *paths]


def faults(rest: list[str]) -> list[str]:
    """The command line of the campaign of faults, which prints a table of what was tried, what held and what failed."""
    return [sys.executable, str(REPOSITORY / "tests" / "faults" / "campaign.py"), *rest]


def plan(rest: list[str], *, fast: bool, at_once: int) -> str:
    """One line that says what is about to run and about how long it takes; "" for a choice of tests."""
    if any(not word.startswith("-") for word in rest):
        return ""
    notebooks = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    what = "the quick unit tests" if fast else f"all unit tests and {len(notebooks)} notebooks"
    how = f"{at_once} files at once" if at_once > 1 else "one file at a time"
    return f"testing {what}, {how}: {_estimate(fast, at_once)}"


def _estimate(fast: bool, at_once: int) -> str:
    last = _last_runs().get(_kind(fast, at_once))
    if isinstance(last, (int, float)):
        return f"the last such run here took {_minutes(last)}"
    seconds = UNIT_TESTS_S / 3 if fast else UNIT_TESTS_S + sum(_lab_seconds())
    return f"about {_minutes(seconds / at_once)} on a machine like the one that recorded the labs"


def _lab_seconds() -> list[float]:
    """What each lab took where it was recorded on a processor."""
    seconds = []
    for path in (REPOSITORY / "data" / "recordings").glob("cpu-*/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            seconds.append(float(json.loads(path.read_text(encoding="utf-8"))["metrics"]["lab.seconds"]["value"]))
    return seconds


def note(started: float, *, fast: bool, at_once: int) -> None:
    """Keep how long a whole run took, for the next estimate; a folder that cannot be written fails no test."""
    runs = {**_last_runs(), _kind(fast, at_once): round(time.monotonic() - started, 1)}
    with contextlib.suppress(OSError):
        LAST_RUN.parent.mkdir(exist_ok=True)
        LAST_RUN.write_text(json.dumps(runs), encoding="utf-8")


def _last_runs() -> dict:
    with contextlib.suppress(OSError, ValueError):
        runs = json.loads(LAST_RUN.read_text(encoding="utf-8"))
        return runs if isinstance(runs, dict) else {}
    return {}


def _kind(fast: bool, at_once: int) -> str:
    return f"{'fast' if fast else 'whole'}, {at_once} at once"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
