"""Versions read as text, and the folder of caches."""

from __future__ import annotations

import errno
import shutil
from types import SimpleNamespace

import pytest

from labsupport import environment
from labsupport.environment import packages
from labsupport.errors import LabError

# --- packages ---


def test_versions_are_read_without_metadata_too(tmp_path, monkeypatch):
    folder = tmp_path / "tensorrt"
    folder.mkdir()
    (folder / "__init__.py").write_text('raise SystemExit("imported")\n__version__ = "8.6.0"\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "DISTRIBUTIONS", {"tensorrt": ("no-such-distribution",)})
    assert packages.package_version("tensorrt") == "8.6.0"


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = None", None), ("cuda = '13.0'", "13.0"), ("cuda: Optional[str] = '12.6'", "12.6")],
)
def test_torch_is_read_as_text(tmp_path, monkeypatch, line, cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0+x'\n{line}\n")
    monkeypatch.setattr(packages, "package_folder", lambda name: tmp_path)
    assert packages.torch_build() == ("2.13.0+x", cuda)


def test_no_torch(monkeypatch):
    monkeypatch.setattr(packages, "package_folder", lambda name: None)
    assert packages.torch_build() == (None, None)


# --- the cache folder ---


def test_cache_dir_is_made_and_left_clean(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "a" / "b"))
    assert environment.cache_dir() == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_an_unwritable_cache_dir_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LabError, match="cannot be written .*; set LABSUPPORT_CACHE to a folder that can"):
        environment.cache_dir()


def test_a_full_cache_dir_names_the_variable(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 << 20))
    with pytest.raises(LabError, match="has 3 MiB left .* set LABSUPPORT_CACHE to a folder on another disk"):
        environment.cache_dir()


def test_a_disk_that_fills_up_at_the_probe(monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(LabError, match="No space left on device.*LABSUPPORT_CACHE"):
        environment.cache_dir()
