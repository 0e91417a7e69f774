"""Kernel timings that one build measured and the next may reuse: one file per TensorRT version and GPU."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from labsupport import environment, files
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
    with _locked(file):
        data = _whole(file)
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
    timing_cache = config.get_timing_cache()
    with _locked(file):
        now = _whole(file)
        if now and now != before:
            timing_cache.combine(config.create_timing_cache(now), ignore_mismatch=False)
        data = bytes(timing_cache.serialize())
        engines.write_atomically(_checksum(file), hashlib.sha256(data).hexdigest().encode())
        engines.write_atomically(file, data)


def _whole(file: Path) -> bytes:
    """The file's bytes; b"" where there are none, or others than its checksum says: they are only measured again."""
    data = file.read_bytes() if file.is_file() else b""
    wanted = _checksum(file).read_bytes() if _checksum(file).is_file() else None
    return data if wanted in (None, hashlib.sha256(data).hexdigest().encode()) else b""


def _checksum(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _locked(file: Path):
    file.parent.mkdir(parents=True, exist_ok=True)
    return files.locked(file)
