"""Execute labs without a browser: one line a lab, and on a GPU machine their stored outputs and recordings."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from labsupport import environment, files
from labsupport.command_line import kernels
from labsupport.errors import BadInput, LabError

NOTEBOOKS = environment.REPOSITORY / "notebooks"
CELL_TIMEOUT_S = 300
WORTH_NAMING_S = 5.0  # shorter cells are not what makes a lab long


@dataclass(frozen=True)
class LabRun:
    """How one lab went; `cell` is the number that JupyterLab shows beside the failing cell."""

    lab: str
    ok: bool
    seconds: float
    runtime: str
    cell: int | None = None
    error: str | None = None
    slowest: tuple[tuple[int, float], ...] = ()  # (number of the code cell, seconds), the longest first

    def as_dict(self) -> dict:
        return asdict(self)

    def __repr__(self) -> str:
        where = f" in cell [{self.cell}]" if self.cell else ""
        outcome = "ok" if self.ok else f"FAILED{where}: {self.error}"
        long = ", ".join(f"[{cell}] {seconds:.0f} s" for cell, seconds in self.slowest if seconds >= WORTH_NAMING_S)
        return f"{self.lab:<24} {outcome}  {self.seconds:.1f} s  {self.runtime}" + (
            f"  (longest cells: {long})" if long else ""
        )


def labs(folder: Path = NOTEBOOKS) -> list[Path]:
    """All labs in the order of their numbers."""
    return sorted(folder.glob("*.ipynb"))


def find(names: Sequence[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """Labs by number ("01", "1"), name ("01_measuring") or path; all of them for no name."""
    known = labs(folder)
    if not known:
        raise BadInput(f"there is no notebook in {folder}; run this from a complete clone of the repository")
    found = []
    for name in names:
        choices = ", ".join(lab.stem for lab in known)
        if len(Path(name).parts) > 1 or name.lower().endswith(".ipynb"):
            hits = _at(name, known, folder)
            if not hits:
                raise BadInput(
                    f"{name!r} is not the path of a lab, and only labs are run; open a notebook of your own "
                    f"in JupyterLab, or choose from: {choices}"
                )
        else:
            stem = Path(name).name.lower()  # without "./"
            stem = stem.zfill(2) if stem.isdecimal() else stem
            hits = [lab for lab in known if lab.stem.lower() == stem or lab.stem.lower().startswith(f"{stem}_")]
        if len(hits) != 1:
            raise BadInput(f"{name!r} is not {'one lab only' if hits else 'a lab'}; choose from: {choices}")
        found += [hit for hit in hits if hit not in found]
    return found or known


def _at(name: str, known: list[Path], folder: Path) -> list[Path]:
    """The lab that a path leads to, from here, else from the repository or its notebooks; a file here goes first."""
    places = [place / part for place in (Path.cwd(), folder.parent, folder) for part in (name, f"{name}.ipynb")]
    first = next((place for place in places if os.path.isfile(place)), None)
    return [lab for lab in known if first is not None and lab.resolve() == first.resolve()]


def run(
    names: Sequence[str] = (),
    *,
    save: Path | None = None,
    store: bool = False,
    echo=print,
    folder: Path = NOTEBOOKS,
    timeout_s: int = CELL_TIMEOUT_S,
) -> list[LabRun]:
    """Execute labs in turn; a failing one, a damaged one included, does not keep the next from running.

    save: folder for the executed notebooks, other than their own.
    store: on a GPU machine put the outputs into the notebooks themselves and write data/recordings/.
    echo: takes each LabRun as it comes, and remarks; None for silence.
    """
    from tqdm import tqdm

    chosen = find(list(names), folder)
    echo = echo or (lambda line: None)
    notebooks = [(path, _read_or_error(path)) for path in chosen]
    keep_outputs = store and environment.has("engine execution")
    if store and not keep_outputs:
        echo(f"outputs stay as they are: {environment.why_not('engine execution')}")
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
                        result = _recorded(result, notebook if keep_outputs else None, path, metrics)
                if save is not None:
                    result = _saved(result, notebook, save / path.name)
            results.append(result)
            with tqdm.external_write_mode(file=sys.stderr):
                echo(result)
    return _listed(results, echo) if keep_outputs else results


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
    place, took = {"at": 0, "since": 0.0}, {}

    def begin(cell, cell_index):
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
                client.execute(env=_variables(metrics), stderr=log)
        except CellExecutionError as failure:
            error = f"{failure.ename}: {(failure.evalue.strip() or 'no message').splitlines()[0]}"
        except CellTimeoutError:
            error = f"Timeout: the cell ran longer than {timeout_s} s"
        except DeadKernelError:
            error = f"DeadKernel: the kernel died (a crash in native code, or out of memory){_last_line(log)}"
        except RuntimeError:
            error = f"NoKernel: the kernel did not start{_last_line(log)}"
    seconds = round(time.monotonic() - started, 2)
    slowest = tuple(sorted(took.items(), key=lambda entry: -entry[1])[:3])
    return LabRun(
        path.stem, error is None, seconds, environment.runtime_name(), place["at"] if error else None, error, slowest
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


def _last_line(log) -> str:
    log.seek(0)
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


def normalized(notebook):
    """A copy fit to be stored: counts 1…n, no timings, no traces of this machine's kernel."""
    import copy

    notebook = copy.deepcopy(notebook)
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        count += 1
        cell.metadata.pop("execution", None)
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata.pop("widgets", None)
    return notebook


def read(path: Path):
    """A notebook; BadInput for a file that is none."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)  # reading only logs what is wrong
        return notebook
    except Exception as error:  # JSON, schema and version errors of three libraries
        raise BadInput(
            f"{path} is not a notebook ({type(error).__name__}); restore it with: "
            f"python3 -m labsupport reset {path.stem}"
        ) from error


def write(notebook, path: Path) -> None:
    """Store a notebook so that a crash or a full disk leaves the former one whole."""
    import nbformat

    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    try:
        files.replace(path, text.encode("utf-8"), mode=None if path.exists() else 0o644)
    except OSError as error:
        raise LabError(f"{path} cannot be written ({error.strerror or error}); what was there is untouched") from error
