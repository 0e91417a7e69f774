"""Notebooks as files: read with a message for one that is damaged, made fit to be stored, written whole."""

from __future__ import annotations

from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError


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
