"""Execute labs without a browser: one line a lab, and on a GPU machine their stored outputs and recordings."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from labsupport import environment, files
from labsupport.command_line import kernels
from labsupport.command_line.lab_paths import NOTEBOOKS, find
from labsupport.command_line.notebook_files import normalized, read, write
from labsupport.errors import BadInput, LabError
from labsupport.exercises import editions

CELL_TIMEOUT_S = 300
WORTH_NAMING_S = 5.0  # shorter cells are not what makes a lab long


@dataclass(frozen=True)
class LabRun:
    """How one lab went; `cell` is the number that JupyterLab shows beside the failing cell, `below` the heading above
    it.
    """

    lab: str
    ok: bool
    seconds: float
    runtime: str
    cell: int | None = None
    error: str | None = None
    slowest: tuple[tuple[int, float], ...] = ()  # (number of the code cell, seconds), the longest first
    below: str = ""

    def as_dict(self) -> dict:
        return asdict(self)

    def __repr__(self) -> str:
        where = f" in cell [{self.cell}]" if self.cell else ""
        where += f', below "{self.below}"' if self.cell and self.below else ""
        outcome = "ok" if self.ok else f"FAILED{where}: {self.error}"
        long = ", ".join(f"[{cell}] {seconds:.0f} s" for cell, seconds in self.slowest if seconds >= WORTH_NAMING_S)
        return f"{self.lab:<24} {outcome}  {self.seconds:.1f} s  {self.runtime}" + (
            f"  (longest cells: {long})" if long else ""
        )


def run(
    names: Sequence[str] = (),
    *,
    save: Path | None = None,
    store: bool = False,
    processor: bool = False,
    echo=print,
    folder: Path = NOTEBOOKS,
    timeout_s: int = CELL_TIMEOUT_S,
) -> list[LabRun]:
    """Execute labs in turn; a failing one, a damaged one included, does not keep the next from running.

    save: folder for the executed notebooks, other than their own.
    store: on a GPU machine put the outputs into the notebooks themselves and write data/recordings/.
    processor: on a machine without one do so, too, but outputs that a GPU has made stay.
    echo: takes each LabRun as it comes, and remarks; None for silence.
    """
    from tqdm import tqdm

    chosen = find(list(names), folder)
    echo = echo or (lambda line: None)
    notebooks = [(path, _read_or_error(path)) for path in chosen]
    if store and (mine := [path for path in chosen if path.parent != folder]):
        raise BadInput(f"{mine[0]} is your own copy, and record stores the shipped labs; `run` executes yours")
    on_gpu = environment.has("engine execution")
    if store and not on_gpu:
        kept = "outputs from a GPU stay as they are" if processor else "nothing is stored (--processor does)"
        echo(f"{kept}: {environment.why_not('engine execution')}")
    store = store and (on_gpu or processor)
    keep_outputs = {path for path, notebook in notebooks if store and (on_gpu or _of_processor(notebook))}
    if save is not None:
        _make_folder(save, folder)
    results = []
    total = sum(
        cell.cell_type == "code"
        for _, notebook in notebooks
        if not isinstance(notebook, BadInput)
        for cell in notebook.cells
    )
    # disable=None: a bar on a terminal, silence in a log file.
    with tqdm(total=total, unit="cell", file=sys.stderr, leave=False, disable=None) as bar:
        for path, notebook in notebooks:
            bar.set_description(path.stem)
            if isinstance(notebook, BadInput):
                result = LabRun(path.stem, False, 0.0, environment.runtime_name(), None, f"BadInput: {notebook}")
            else:
                with files.scratch() as metrics:
                    result = execute(notebook, path, metrics=metrics, timeout_s=timeout_s, tick=bar.update)
                    if store and result.ok:
                        result = _recorded(result, notebook if path in keep_outputs else None, path, metrics)
                if save is not None:
                    result = _saved(result, notebook, save / path.name)
            if path.parent != folder:
                result = replace(result, lab=f"{path.parent.name}/{path.stem}")
            results.append(result)
            with tqdm.external_write_mode(file=sys.stderr):
                echo(result)
    return _listed(results, echo) if keep_outputs else results


def _of_processor(notebook) -> bool:
    """Whether its stored outputs come from a machine without a GPU."""
    try:
        return not editions.machine(notebook)["gpu"]
    except (BadInput, LookupError, TypeError):
        return False


def _make_folder(save: Path, notebooks: Path) -> None:
    if save.exists() and notebooks.exists() and os.path.samefile(save, notebooks):
        raise BadInput(
            f"--save {save} is the folder of the notebooks themselves, and they would be overwritten; "
            "name another folder"
        )
    try:
        save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"--save {save} cannot be written ({error.strerror}); name another folder") from error


def _read_or_error(path: Path):
    try:
        return read(path)
    except BadInput as error:
        return error


def _saved(result: LabRun, notebook, path: Path) -> LabRun:
    """Write the executed notebook; a full disk fails this lab, not the others."""
    try:
        write(notebook, path)
    except LabError as error:
        before = f"{result.error}; " if result.error else ""
        return replace(result, ok=False, error=f"{before}{type(error).__name__}: {error}")
    return result


def _listed(results: list[LabRun], echo) -> list[LabRun]:
    """Note the stored notebooks as the shipped ones; where that fails the labs count as failed, none is lost."""
    from labsupport.exercises import resetting

    try:
        resetting.write_manifest()
    except (OSError, ValueError) as error:  # a full disk; a damaged notebook
        reason = (
            f"the list of shipped notebooks could not be renewed ({type(error).__name__}: {error}); mend that, "
            "then: python3 -m labsupport.exercises.resetting --write-manifest"
        )
        echo(reason)
        return [replace(result, ok=False, error=result.error or f"LabError: {reason}") for result in results]
    return results


def _recorded(result: LabRun, notebook, path: Path, metrics: Path) -> LabRun:
    """Store metrics, then outputs; a refusal (a metric out of its band, a full disk) fails this lab, not the others."""
    from labsupport import recordings

    try:
        recordings.store(
            path.stem, metrics, command=f"python3 -m labsupport record {path.stem}", seconds=result.seconds
        )
        if notebook is not None:
            write(normalized(notebook), path)
    except LabError as error:
        return replace(result, ok=False, error=f"{type(error).__name__}: {error}")
    return result


def execute(notebook, path: Path, *, metrics: Path, timeout_s: int = CELL_TIMEOUT_S, tick=lambda cells: None) -> LabRun:
    """Execute every cell of `notebook` in place, in a fresh kernel of this very Python."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    place: dict
    place, took = {"at": 0, "since": 0.0, "index": 0}, {}

    def begin(cell, cell_index):
        place["index"] = cell_index
        place["at"] += cell.cell_type == "code"
        place["since"] = time.monotonic()

    def done(cell, cell_index, **_):
        cell.outputs = kernels.merged(cell.outputs)
        took[place["at"]] = round(time.monotonic() - place["since"], 2)
        tick(1)

    client = _client(notebook, path.parent, timeout_s, begin, done)
    error, started = None, time.monotonic()
    with tempfile.TemporaryFile() as log:
        try:
            # The kernel's own log would run through the progress bar; it is read only when the kernel dies.
            with _told_when_stopped(client):
                # Nor is its standard output ours: what its own processes and threads print there may never end.
                client.execute(env=_variables(metrics), stderr=log, stdout=subprocess.DEVNULL)
        except CellExecutionError as failure:
            error = f"{failure.ename}: {_first_line(failure.evalue) or 'no message'}"
        except CellTimeoutError:
            error = f"Timeout: the cell ran longer than {timeout_s} s"
        except DeadKernelError:
            error = f"DeadKernel: the kernel died (a crash in native code, or out of memory){_last_line(log)}"
        except RuntimeError:
            error = f"NoKernel: the kernel did not start{_last_line(log)}"
        except Exception as failure:  # what a cell displayed is no output that a notebook can hold
            error = f"{type(failure).__name__}: {_first_line(str(failure))}"
    seconds = round(time.monotonic() - started, 2)
    slowest = tuple(sorted(took.items(), key=lambda entry: -entry[1])[:3])
    return LabRun(
        path.stem,
        error is None,
        seconds,
        environment.runtime_name(),
        place["at"] if error else None,
        error,
        slowest,
        _heading(notebook.cells[: place["index"]]) if error else "",
    )


@contextlib.contextmanager
def _told_when_stopped(client):
    """A signal ends the run: whatever nbclient makes of the kernel that is gone, it was the signal."""
    from asyncio import CancelledError

    try:
        yield
    except (Exception, CancelledError):
        kernels.raise_if_stopped(client)
        raise


def _heading(cells) -> str:
    """The last heading in these cells: the question that a reader looks for."""
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    found = [title.strip() for text in texts for title in re.findall(r"(?m)^#{1,6} (.+)$", text)]
    return found[-1] if found else ""


def _first_line(text: str) -> str:
    return next((line[:300] for line in text[:10_000].splitlines() if line.strip()), "")


def _last_line(log) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 10_000))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if "without encryption" not in line]
    return f"; its last words: {lines[-1][:200]}" if lines else ""


def _client(notebook, folder: Path, timeout_s: int, begin, done):
    """An nbclient for this Python, whatever kernel the notebook was stored with."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    if sys.platform == "win32":
        import asyncio

        # ZeroMQ needs add_reader, which the default loop of Windows lacks.
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self):
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
            )

    return kernels.client_class()(
        notebook,
        kernel_manager_class=ThisPython,
        kernel_name="python3",
        timeout=timeout_s,
        startup_timeout=120,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=begin,
        on_cell_executed=done,
    )


def _variables(metrics: Path) -> dict[str, str]:
    paths = [str(environment.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Warnings name the file of the cell, which holds a process number; nbval compares them.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "LABSUPPORT_METRICS": str(metrics),
        "IPYKERNEL_CELL_NAME": "<cell>",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
