"""`run`, `record` and `test` on notebooks that flood, loop and die, and under signals; each in a child of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LONG_LINE = "import os\nfor _ in range({count}):\n    os.write(1, b'y' * 100_000)"
LINES = "for number in range({count}):\n    print(number, 'x' * 100)"
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
EXITS = "import os\nos._exit(3)"
LOOPS = "while True:\n    pass"
DEAF = "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except KeyboardInterrupt:\n        pass"
PRINTS = "while True:\n    print('x' * 1000)"
SHOUTS = """import threading
def shout():
    while True:
        print('x' * 1000)
threading.Thread(target=shout, daemon=True).start()
raise ValueError('y' * 10_000_000)"""
DISPLAYS = "from IPython.display import HTML, display\nfor _ in range(100):\n    display(HTML('x' * 10_000_000))"
INVALID = "from IPython.display import display\ndisplay({'image/png': 3}, raw=True)"
SLEEPS = "import time\ntime.sleep(120)"
MEMORY_KIB = 1_500_000

RUN = """
import functools, sys
from pathlib import Path
from labsupport.command_line import cli, running
cli.prepare = lambda *a, **k: None
running.run = functools.partial(running.run, folder=Path(sys.argv[2]), timeout_s=int(sys.argv[3]))
code = cli.main([sys.argv[1], "99"])
# not ru_maxrss, which begins with the memory of the process that started this one
print("peak", *(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))
sys.exit(code)
"""


def notebook(folder: Path, *sources: str) -> Path:
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = [new_markdown_cell("# Why?"), *(new_code_cell(source, execution_count=1) for source in sources)]
    path = folder / "99_fault.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def variables(folder: Path) -> dict[str, str]:
    own = {"LABSUPPORT_CACHE": str(folder / "cache"), "LABSUPPORT_PROGRESS": str(folder / "p.json")}
    kept = {name: value for name, value in os.environ.items() if name != "LABSUPPORT_METRICS"}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "IPYKERNEL_CELL_NAME": "<cell>"}


def ended(process: subprocess.Popen, within_s: float) -> tuple[float, str]:
    """(seconds, all that it said); a process that does not end is killed with all its children, and math.inf returned."""
    begin = time.monotonic()
    try:
        said, _ = process.communicate(timeout=within_s)
        return time.monotonic() - begin, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return float("inf"), said


def start(command: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=variables(folder),
        start_new_session=True,
    )


def run(source: str, *, wanted: str, limit_s: int = 30, within_s: float = 60) -> str:
    """Execute one cell by the command `run`; why that went wrong, or ""."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook(folder, source)
        seconds, said = ended(start([sys.executable, "-c", RUN, "run", str(folder), str(limit_s)], folder), within_s)
    peak = next((int(line.split()[1]) for line in said.splitlines() if line.startswith("peak ")), 0)
    if seconds == float("inf"):
        return f"run hangs beyond {within_s:.0f} s on: {source.splitlines()[-1].strip()}"
    if wanted not in said:
        return f"run on {source.splitlines()[-1].strip()!r} says {said[-300:]!r} in place of {wanted!r}"
    if len(said) > 10_000:
        return f"run prints {len(said):,} characters on: {source.splitlines()[-1].strip()}"
    return f"run held {peak >> 10} MiB" if peak > MEMORY_KIB else ""


def nbval(source: str, *, wanted: str, limit_s: int = 300, within_s: float = 60) -> str:
    """The same by the command line of `test`."""
    from labsupport.command_line import testing

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = notebook(folder, "1 + 1", source, "2 + 2")
        command = [*testing.command([str(path), "-p", "no:cacheprovider"]), f"--nbval-cell-timeout={limit_s}"]
        seconds, said = ended(start(command, folder), within_s)
    if seconds == float("inf"):
        return f"test hangs beyond {within_s:.0f} s on: {source.splitlines()[-1].strip()}"
    return "" if wanted in said else f"test on {source.splitlines()[-1].strip()!r} says {said[-300:]!r}"


def stopped(command: str, number: int, code: int, *, after_s: float) -> str:
    """A signal in the middle: its exit code within seconds, one line, and no kernel left behind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook(folder, f"open({str(folder / 'begun')!r}, 'w').close()", SLEEPS)
        process = start([sys.executable, "-c", RUN, command, str(folder), "100"], folder)
        waited = time.monotonic() + 40
        while after_s > 1 and not (folder / "begun").exists() and time.monotonic() < waited:
            time.sleep(0.1)
        time.sleep(after_s)
        process.send_signal(number)
        seconds, said = ended(process, 20)
        left = [line for line in _processes() if str(folder) in line and "ipykernel" in line]
    lines = [line for line in said.splitlines() if line.strip()]
    if process.returncode != code or seconds > 10:
        return (
            f"{command}: signal {number} gives exit code {process.returncode} after {seconds:.0f} s, {len(lines)} lines"
        )
    if number == signal.SIGINT and (len(lines) > 4 or "labsupport: interrupted" not in said):
        return f"{command}: Ctrl-C says {len(lines)} lines: {said[-200:]!r}"
    return f"{command}: a kernel is left" if left else ""


def _processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()


def trials(scale: int = 1) -> Iterator[str]:
    """One line a trial: "" where it held."""
    yield run(LONG_LINE.format(count=200 if scale == 1 else 2000), wanted="ok", within_s=60)
    yield run(DIES, wanted="the kernel died", within_s=25)
    yield run(SHOUTS, wanted="ValueError: yyy", within_s=60)
    yield stopped("run", signal.SIGINT, 130, after_s=1.5)
    yield nbval(DIES, wanted="the kernel died", within_s=25)
    yield nbval(LONG_LINE.format(count=100 if scale == 1 else 2000), wanted="3 passed", within_s=60)
    if scale > 1:
        yield run(LINES.format(count=300_000), wanted="ok")
        yield run(DISPLAYS, wanted="ok")
        yield run(INVALID, wanted="FAILED in cell [1]")
        yield nbval(DISPLAYS, wanted="3 passed")
        yield run(EXITS, wanted="the kernel died", within_s=25)
        yield from (run(source, wanted="Timeout", limit_s=5, within_s=40) for source in (LOOPS, DEAF, PRINTS))
        yield stopped("record", signal.SIGINT, 130, after_s=1.5)
        yield stopped("run", signal.SIGINT, 130, after_s=0.8)
        yield stopped("run", signal.SIGTERM, 143, after_s=1.5)
        yield nbval(EXITS, wanted="the kernel died", within_s=25)
        yield from (nbval(source, wanted="1 passed", limit_s=5, within_s=90) for source in (LOOPS, DEAF))
        yield nbval(PRINTS, wanted="failed", limit_s=5, within_s=120)


if __name__ == "__main__":
    for line in trials(int(sys.argv[1])):
        sys.stdout.write(json.dumps(line or "held") + "\n")
        sys.stdout.flush()
