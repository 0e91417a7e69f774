"""Files written whole or not at all: a reader, a crash or a full disk meets the old file or the new one, never half.

Also what belongs to it: the lock that processes share, the checksum that JSON of ours carries, scratch folders, and
the sweeping of what killed processes left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SEAL = "sha256"  # the key of the checksum in JSON of ours
SCRATCH = "labsupport-"
# What a killed process leaves: scratch folders, half files beside their place, probes; each with its process's number.
LEFT = re.compile(rf"(?:{SCRATCH}|\.(?:export|fetching)-|\..+\.)(\d+)-[a-z0-9_]{{8}}(?:\.part)?|\.probe-(\d+)")
GONE_S = 600.0  # so young ones stay: on a shared disk the process may run on another machine


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
    check_ordinary(path)
    sweep(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}-", suffix=".part")
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


def check_ordinary(path: Path) -> None:
    """Raise OSError where a device, a pipe or a socket stands: root's file in its place takes it from every program."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a device, a pipe or a socket stands there", str(path))


@contextlib.contextmanager
def locked(path: Path, *, patience_s: float = 60) -> Iterator[None]:
    """One process at a time is in this block for one path.

    The lock is the system's: it ends with the process that holds it, however that ends. Raises OSError, as TimeoutError
    where another process has held it for ``patience_s``, such as one that is stopped; -1 waits for ever.
    """
    try:
        import filelock
    except ImportError:  # an environment that is still being made: better an update lost than a command that fails
        yield
        return
    with filelock.FileLock(f"{path}.lock").acquire(timeout=patience_s, poll_interval=0.02):
        yield


def sealed(content: Mapping) -> dict:
    """JSON content with its checksum, so that `whole` can tell when a single bit of it changed."""
    return {**content, SEAL: _checksum(content)}


def whole(content) -> bool:
    """Whether content is as it was `sealed`; content that was written before there were seals counts as whole."""
    try:
        return SEAL not in content or content[SEAL] == _checksum(content)
    except RecursionError:  # nested deeper than anything of ours
        return False


def _checksum(content: Mapping) -> str:
    body = {key: value for key, value in content.items() if key != SEAL}
    body = json.loads(json.dumps(body))  # as it will be read: keys that are numbers become text, in another order
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@contextlib.contextmanager
def scratch(*, inside: Path | None = None, prefix: str = SCRATCH) -> Iterator[Path]:
    """A folder that goes with the block, or at a later `sweep` when the process is killed. Raises OSError."""
    folder = scratch_folder(inside=inside, prefix=prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_folder(*, inside: Path | None = None, prefix: str = SCRATCH) -> Path:
    """The same for whoever ends it himself; its name says whose it is. Raises OSError."""
    sweep(Path(inside or tempfile.gettempdir()))
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=inside))


def sweep(folder: Path) -> list[Path]:
    """Remove what killed processes left in a folder: ours by name, this user's, ten minutes old. Says what went.

    The name must be one that `scratch_folder` or `written_beside` made, and its process gone: a folder of a kernel that
    somebody keeps open for days stays, and so does whatever else is called so.
    """
    gone = []
    with contextlib.suppress(OSError):
        for path in list(os.scandir(folder)):
            if (name := LEFT.fullmatch(path.name)) and _is_left(path, int(name.group(1) or name.group(2))):
                remove = shutil.rmtree if path.is_dir(follow_symlinks=False) else os.unlink
                with contextlib.suppress(OSError):
                    remove(path.path)
                    gone.append(Path(path.path))
    return gone


def _is_left(path: os.DirEntry, process: int) -> bool:
    facts = path.stat(follow_symlinks=False)
    if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
        return False
    if stat.S_ISDIR(facts.st_mode) and hasattr(os, "geteuid") and facts.st_mode & 0o077:  # mkdtemp's are private
        return False
    return time.time() - facts.st_mtime > GONE_S and not _is_running(process)


def _is_running(process: int) -> bool:
    if not hasattr(os, "geteuid"):  # on Windows, asking by a signal would end it
        try:
            import psutil  # which ipykernel brings
        except ImportError:
            return True
        return psutil.pid_exists(process)
    try:
        os.kill(process, 0)
    except OverflowError:
        return True
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
