"""Where caches go, and whether somebody watches the progress bars."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from labsupport import files
from labsupport.environment.machines import REPOSITORY
from labsupport.errors import LabError


def cache_dir() -> Path:
    """Folder for engines and timing caches: LABSUPPORT_CACHE, else `.labcache` in the repository; made on demand."""
    folder = Path(os.environ.get("LABSUPPORT_CACHE") or REPOSITORY / ".labcache")
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        probe.write_bytes(b"\0" * 4096)
        free_mib = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        raise LabError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}); "
            "set LABSUPPORT_CACHE to a folder that can"
        ) from error
    finally:
        try:
            probe.unlink(missing_ok=True)
        except OSError:
            pass
    if free_mib < 16:
        raise LabError(
            f"the cache folder {folder} has {free_mib} MiB left and an engine needs more; "
            "free some space, or set LABSUPPORT_CACHE to a folder on another disk"
        )
    return folder


def headless() -> bool:
    """Whether a test or a headless run drives this process: then no progress bar is drawn into the outputs."""
    return any(name in os.environ for name in ("PYTEST_CURRENT_TEST", "LABSUPPORT_METRICS", "LABSUPPORT_QUIET"))
