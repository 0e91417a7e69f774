"""The campaign of faults: `python3 -m labsupport test --faults` runs it for ten minutes and prints its table.

    python tests/faults/campaign.py [--minutes M] [--seed N] [--only WORD] [--say]

It tests a copy of the `labsupport` that Python finds first, so PYTHONPATH chooses another version, and whatever a trial
writes among the recordings or the notebooks is written there.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]
sys.path.append(str(Path(__file__).resolve().parents[2]))  # after PYTHONPATH


def hostile_calls(seed: int, count: int = 300) -> Iterator[str]:
    """A fresh set of calls on public functions; what is accepted counts as failed, too."""
    import hostile

    for what, end in hostile.campaign(seed, count):
        yield "" if end.startswith("typed") else f"{what}: {end}"


def kinds(seed: int, scale: int) -> dict[str, Callable[[], Iterator[str]]]:
    """Kind of fault → its trials, one line each, "" where the house held."""
    import disk_trials
    import pool_trials
    import run_trials
    import security_trials

    on_disk: dict = {}

    def disk(kind: str) -> Iterator[str]:
        if not on_disk:
            random.seed(seed)
            on_disk.update(disk_trials.trials(scale))
        return on_disk[kind]

    return {
        "hostile calls on public functions": lambda: hostile_calls(seed, 300 if scale > 1 else 60),
        "single flipped bits": lambda: disk("single flipped bits"),
        "damaged files": lambda: disk("damaged files"),
        "files that processes share": lambda: disk("files that processes share"),
        "one build a key, Ctrl-C in a build": lambda: disk("one build a key, Ctrl-C in a build"),
        "leftovers of killed processes": lambda: disk("leftovers of killed processes"),
        "names, foreign modules, root": lambda: security_trials.trials(scale),
        "the pool: sizes, poison, stops, kills": lambda: pool_trials.trials(1),
        "run, record, test: floods, loops, deaths, signals": lambda: run_trials.trials(scale),
    }


def measured(trials: Callable[[], Iterator[str]], until: float) -> tuple[list[str], float]:
    """(how each trial ended, seconds); an error of the campaign's own counts as a failure."""
    begin, ends = time.monotonic(), []
    try:
        for end in trials():
            ends.append(end)
            if time.monotonic() > until:
                break
    except Exception as error:
        ends.append(f"the trials stopped: {type(error).__name__}: {str(error)[:200]}")
    return ends, time.monotonic() - begin


def table(rows: list[tuple[str, int, int, float]]) -> str:
    """Markdown: what was tried, what held, what failed."""
    lines = ["| what | tried | held | failed | seconds |", "| --- | --: | --: | --: | --: |"]
    lines += [f"| {kind} | {tried} | {tried - failed} | {failed} | {took:.0f} |" for kind, tried, failed, took in rows]
    total = [sum(row[place] for row in rows) for place in (1, 2, 3)]
    return "\n".join([*lines, f"| all | {total[0]} | {total[0] - total[1]} | {total[1]} | {total[2]:.0f} |"])


def main() -> int:
    """Run and print; 1 where anything but a hostile call failed, or more than one in twenty of those."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--only", default="")
    parser.add_argument("--say", action="store_true", help="print every failure")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix=f"labsupport-{os.getpid()}-", ignore_cleanup_errors=True) as scratch:
        apart(Path(scratch))
        return run(options)


def apart(scratch: Path) -> None:
    """This process and its children work with a copy of the workbook, and with a cache and a key of their own."""
    import hostile

    os.environ |= hostile.variables(scratch)
    tempfile.tempdir = os.environ["TMPDIR"]
    sys.path[:0] = [str(scratch)]
    os.chdir(scratch)  # `python -c` looks there first


def run(options: argparse.Namespace) -> int:
    """The trials that were asked for, and their table."""
    until, rows, bad = time.monotonic() + 60 * options.minutes, [], False
    sys.stdout.write(f"seed {options.seed}\n")
    for kind, trials in kinds(options.seed, 1 if options.minutes < 5 else 2).items():
        if options.only in kind:
            ends, took = measured(trials, until)
            failed = [end for end in ends if end]
            rows.append((kind, len(ends), len(failed), took))
            bad |= len(failed) > (len(ends) // 20 if kind.startswith("hostile") else 0)
            for line in failed if options.say else []:
                sys.stdout.write(f"    {kind}: {line}\n")
            sys.stdout.flush()
    sys.stdout.write(table(rows) + "\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
