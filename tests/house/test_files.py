"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
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


def left(folder, name: str, age_s: float):
    path = folder / name
    path.mkdir(0o700) if not name.endswith(".part") else path.write_bytes(b"half")
    (path / "inside").write_bytes(b"x") if path.is_dir() else None
    os.utime(path, (0, files.time.time() - age_s))
    return path


def gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_killed_process_left_is_swept_by_age_and_owner(tmp_path):
    dead, here = gone(), os.getpid()
    swept = [
        left(tmp_path, f"labsupport-{dead}-abcdefgh", 700),
        left(tmp_path, f".export-{dead}-abcdefgh", 700),
        left(tmp_path, f".fetching-{dead}-abcdefgh", 700),
        left(tmp_path, f".03_fusion.ipynb.{dead}-abc_1234.part", 700),
    ]
    kept = [
        left(tmp_path, f"labsupport-{dead}-young_12", 60),
        left(tmp_path, f"labsupport-{here}-alive_12", 1e6),  # a kernel that has been open for days
        left(tmp_path, "somebody-elses-labsupport-1-abcdefgh", 1e6),
        left(tmp_path, "labsupport-main", 1e6),  # what unpacking the workbook's archive makes
        left(tmp_path, ".notes.part", 1e6),
        left(tmp_path, f"labsupport-{dead}-solution", 1e6),
    ]
    kept[-1].chmod(0o755)
    assert sorted(files.sweep(tmp_path)) == sorted(swept)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in swept)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_stays(tmp_path):
    path = left(tmp_path, f"labsupport-{gone()}-abcdefgh", 700)
    os.chown(path, 12345, 12345)
    assert files.sweep(tmp_path) == [] and path.exists()


def test_scratch_folders_and_half_files_are_swept_where_the_next_one_is_made(tmp_path):
    dead = gone()
    half, folder = (
        left(tmp_path, f".a.json.{dead}-abcdefgh.part", 700),
        left(tmp_path, f"labsupport-{dead}-abcdefgh", 700),
    )
    files.replace(tmp_path / "b.json", b"{}")
    assert not half.exists() and not folder.exists()
    with files.scratch(inside=tmp_path) as mine:
        assert str(os.getpid()) in mine.name
    assert names(tmp_path) == ["b.json"]


def test_a_seal_is_of_what_will_be_read():
    content = files.sealed({"counts": {10: 1, 9: 2}, "place": (1, 2)})
    assert files.whole(json.loads(json.dumps(content)))


def test_what_is_too_deep_to_be_checked_is_not_whole():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert not files.whole({"a": deep, files.SEAL: "0"})


def test_a_seal_notices_every_change_of_one_bit():
    content = files.sealed({"a": 1.5, "nested": {"b": [1, "ß", None]}})
    assert files.whole(content) and files.whole({"a": 1})
    text = json.dumps(content).encode()
    for place in range(len(text) * 8):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        try:
            read = json.loads(flipped)
        except ValueError:
            continue
        same = {key: value for key, value in read.items() if key != files.SEAL} == {
            "a": 1.5,
            "nested": content["nested"],
        }
        assert same or not files.whole(read) or files.SEAL not in read
