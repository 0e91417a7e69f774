"""Files written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from labsupport import files


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    files.replace(path, b"one")
    files.replace(path, b"two")
    assert path.read_bytes() == b"two" and names(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.replace(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.json"]


def test_of_two_files_that_belong_together_neither_is_replaced_when_the_second_does_not_fit(tmp_path, monkeypatch):
    plan, beside = tmp_path / "a.engine", tmp_path / "a.engine.json"
    files.replace_all({plan: b"old plan", beside: b"old facts"})
    sync, calls = os.fsync, []

    def full_at_the_second(descriptor):
        calls.append(descriptor)
        return full(descriptor) if len(calls) == 2 else sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError):
        files.replace_all({plan: b"new plan", beside: b"new facts"})
    assert len(calls) == 2
    assert (plan.read_bytes(), beside.read_bytes()) == (b"old plan", b"old facts") and len(names(tmp_path)) == 2


def test_a_folder_that_is_not_there_is_the_caller_s_to_explain(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.replace(tmp_path / "nowhere" / "a", b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no such permissions")
def test_permissions_are_those_asked_for_then_those_of_the_file_replaced(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    path = tmp_path / "a"
    files.replace(path, b"x")
    assert mode(path) == 0o600
    files.replace(path, b"y", mode=0o644)
    assert mode(path) == 0o644
    files.replace(path, b"z")
    assert mode(path) == 0o644
