"""Kernel timings that one build measured and the next may reuse: one file per TensorRT version and GPU."""

from __future__ import annotations

import re
from pathlib import Path

from labsupport import environment
from labsupport.build import engines


def path() -> Path:
    """Where measured kernel timings are kept: one file per TensorRT version and GPU, shared by every process."""
    target = engines.built_for()
    gpu = re.sub(r"[^a-z0-9]+", "-", (target["gpu"] or "no-gpu").lower()).strip("-")
    return environment.cache_dir() / "timing" / f"{target['product']}-{target['version']}-{gpu}.cache"


def read(trt, config, file: Path | None, log) -> bytes:
    """Load the cache kept by earlier builds into a config; its bytes, b"" where there are none."""
    if file is None:
        return b""
    from filelock import FileLock

    with FileLock(_lock(file)):
        data = file.read_bytes() if file.is_file() else b""
    timing_cache = config.create_timing_cache(data)
    if not config.set_timing_cache(timing_cache, ignore_mismatch=False):
        log.log(
            trt.ILogger.Severity.WARNING,
            f"{file.name} was made by another TensorRT or GPU; starting an empty timing cache",
        )
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return b""
    return data


def merge(config, file: Path, before: bytes) -> None:
    """Merge what this build measured into the shared file; a lock keeps two builders from losing each other's work."""
    from filelock import FileLock

    timing_cache = config.get_timing_cache()
    with FileLock(_lock(file)):
        now = file.read_bytes() if file.is_file() else b""
        if now and now != before:
            timing_cache.combine(config.create_timing_cache(now), ignore_mismatch=False)
        engines.write_atomically(file, bytes(timing_cache.serialize()))


def _lock(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    return str(file) + ".lock"
