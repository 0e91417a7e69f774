"""Files written whole or not at all: a reader, a crash or a full disk meets the old file or the new one, never half."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Put ``data`` in the place of ``path``, which stands as it was until all of them are on the disk.

    ``mode`` are the permissions of the new file; left out, those of the file it replaces, and of a new one the owner's
    alone. The folder must be there. Raises OSError, and the caller says what to do about it.
    """
    replace_all({path: data}, mode=mode)


def replace_all(contents: Mapping[Path, bytes], *, mode: int | None = None) -> None:
    """The same for files that belong together: all are on the disk before the first takes its place. Raises OSError."""
    with contextlib.ExitStack() as stack:
        parts = {path: stack.enter_context(written_beside(path, data, mode=mode)) for path, data in contents.items()}
        for path, part in parts.items():
            os.replace(part, path)


@contextlib.contextmanager
def written_beside(path: Path, data: bytes, *, mode: int | None = None) -> Iterator[Path]:
    """``data`` whole on the disk, in a file beside ``path`` that is gone after the block unless it was moved.

    ``mode`` as in `replace`. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None or path.exists():  # mkstemp makes files that only their owner can read
            part.chmod(path.stat().st_mode & 0o777 if mode is None else mode)
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
