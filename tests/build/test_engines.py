"""Engines on disk: whole, signed, and refused when damaged, unknown or from elsewhere."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading

import pytest

from labsupport import environment
from labsupport.build import engines, timing_cache
from labsupport.errors import EngineError, LabError, UntrustedEngine

FACTS = {
    "name": "net",
    "precision": "fp16",
    "precisions": {"fp16": 3, "fp32": 1},
    "evidence": "engine inspector",
    "build_s": 1.5,
    "layers": [],
}


@pytest.fixture
def engine(tmp_path):
    return engines.save(b"plan bytes" * 100, tmp_path / "net.plan", {**FACTS, "built_for": engines.built_for()})


def test_a_saved_engine_comes_back_whole(engine):
    again = engines.load(engine.path)
    assert again.plan() == b"plan bytes" * 100
    assert repr(again).startswith(
        "Engine(net: asked fp16, got fp16×3, fp32×1; 0.0 MiB; found in the cache, built in 1.5 s"
    )


@pytest.mark.parametrize(
    "damage", [lambda d: d[:50], lambda d: b"", lambda d: d[:10] + b"X" + d[11:], lambda d: os.urandom(len(d))]
)
def test_a_damaged_engine_is_refused_before_anything_runs_it(engine, damage):
    engine.path.write_bytes(damage(engine.path.read_bytes()))
    with pytest.raises(EngineError, match="net.plan is (damaged|empty).*build it again"):
        engines.load(engine.path)


def test_a_missing_engine(tmp_path):
    with pytest.raises(EngineError, match="no.plan: no such engine.*build one with build.engine"):
        engines.load(tmp_path / "no.plan")


def test_an_engine_without_a_sidecar_is_refused_with_the_way_to_allow_it(engine):
    engines.sidecar_path(engine.path).unlink()
    with pytest.raises(UntrustedEngine, match="has no sidecar.*allow_foreign=True"):
        engines.load(engine.path)
    stranger = engines.load(engine.path, allow_foreign=True)
    assert stranger.plan() and stranger.build_s == 0 and stranger.precisions == {"unknown": 1}


def test_timings_of_each_gpu_and_each_release_lie_in_a_file_of_their_own(monkeypatch):
    makers = [("rtx", "1.7", "NVIDIA L4"), ("rtx", "1.7", "NVIDIA H200"), ("rtx", "1.8", "NVIDIA L4"),
              ("tensorrt", "1.7", "NVIDIA L4"), ("rtx", "1.7", None)]  # fmt: skip
    names = []
    for product, version, gpu in makers:
        target = {"product": product, "version": version, "gpu": gpu}
        monkeypatch.setattr(engines, "built_for", lambda target=target: target)
        names.append(timing_cache.path().name)
    assert names[:2] == ["rtx-1.7-nvidia-l4.cache", "rtx-1.7-nvidia-h200.cache"]
    assert names[-1] == "rtx-1.7-no-gpu.cache" and len(set(names)) == 5


def test_somebody_elses_engine_is_refused(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_KEYS", str(tmp_path / "another user"))
    with pytest.raises(UntrustedEngine, match="was not built by this user.*allow_foreign=True"):
        engines.load(engine.path)
    assert engines.load(engine.path, allow_foreign=True).name == "net"


def test_a_doctored_sidecar_is_refused(engine):
    beside = engines.sidecar_path(engine.path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "precision": "fp32"}))
    with pytest.raises(UntrustedEngine, match="another signature"):
        engines.load(engine.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "\x00\x01"])
def test_a_broken_sidecar_is_refused(engine, text):
    engines.sidecar_path(engine.path).write_text(text)
    with pytest.raises(EngineError, match="net.plan.json is damaged or not a sidecar"):
        engines.load(engine.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "99.1"}, "was built by .* 99.1, and this is"),
        ({"product": "tensorrt_other"}, "was built by tensorrt_other"),
        ({"os": "plan9"}, "was built on plan9, and this is"),
    ],
)
def test_a_foreign_version_or_platform_is_named(tmp_path, change, message):
    saved = engines.save(b"x" * 64, tmp_path / "net.plan", {**FACTS, "built_for": {**engines.built_for(), **change}})
    with pytest.raises(EngineError, match=message + ".*build it again on this machine"):
        engines.load(saved.path)


def test_another_gpu_is_named(tmp_path, monkeypatch):
    here = {**engines.built_for(), "compute_capability": [8, 9]}
    saved = engines.save(
        b"x" * 64, tmp_path / "net.plan", {**FACTS, "built_for": {**here, "compute_capability": [9, 0]}}
    )
    monkeypatch.setattr(engines, "built_for", lambda capability=None: here)
    with pytest.raises(EngineError, match="compute capability 9.0, and this GPU has 8.9"):
        engines.load(saved.path)


def test_a_full_disk_leaves_the_old_engine(engine, monkeypatch):
    before = engine.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="could not be written.*No space left.*LABSUPPORT_CACHE"):
        engines.save(b"new" * 100, engine.path, FACTS)
    assert engine.path.read_bytes() == before
    assert sorted(p.name for p in engine.path.parent.iterdir() if p.is_file() and p.suffix != ".lock") == [
        "net.plan",
        "net.plan.json",
    ]


def test_a_disk_that_fills_up_at_the_sidecar_leaves_the_old_pair(engine, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="could not be written"):
        engines.save(b"new" * 100, engine.path, {**FACTS, "built_for": engines.built_for()})
    monkeypatch.undo()
    monkeypatch.setenv("LABSUPPORT_KEYS", str(engine.path.parent / "keys"))
    assert engines.load(engine.path).plan() == b"plan bytes" * 100


def test_an_engine_that_was_built_again_says_so(engine):
    engines.save(b"other" * 100, engine.path, {**FACTS, "built_for": engines.built_for()})
    with pytest.raises(EngineError, match="was built again since; use the engine that the later"):
        engine.plan()


def _make_key(folder, results):
    os.environ["LABSUPPORT_KEYS"] = str(folder)
    results.put(engines._key())


def test_processes_that_start_together_make_one_key(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_make_key, args=(tmp_path / "shared", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    keys = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(keys) == 1 and len(keys.pop()) == 32


@pytest.mark.parametrize(
    "change",
    [{"signature": 5}, {"signature": None}, {"signature": "é"}, {"precisions": 5}, {"built_for": [1]}, {"bytes": "x"}],
)
@pytest.mark.parametrize("allow", [False, True])
def test_a_sidecar_of_the_wrong_types_is_refused_in_words(engine, change, allow):
    beside = engines.sidecar_path(engine.path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **change}))
    if allow and "signature" in change:
        assert engines.load(engine.path, allow_foreign=True).name == "net"
        return
    with pytest.raises(EngineError, match="net.plan"):
        engines.load(engine.path, allow_foreign=allow)


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, old, new, torn = tmp_path / "file", b"a" * 200_000, b"b" * 200_000, []
    engines.write_atomically(path, old)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            if path.read_bytes() not in (old, new):
                torn.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        engines.write_atomically(path, new if i % 2 else old)
    stop.set()
    reader.join()
    assert not torn


def test_an_unusable_key_folder_says_which_variable(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LABSUPPORT_KEYS", str(blocked / "keys"))
    with pytest.raises(LabError, match="LABSUPPORT_KEYS"):
        engines.save(b"x", tmp_path / "net.plan", FACTS)


def test_machine_decides_runnable_here(engine, monkeypatch):
    assert engine.runnable_here == environment.has("engine execution")


def test_who_waits_for_a_builder_is_told_at_his_line(tmp_path):
    path, done = tmp_path / "net.plan", threading.Event()

    def build():
        with engines.turn(path):
            done.wait(10)

    builder = threading.Thread(target=build)
    builder.start()
    while not (tmp_path / "net.build.lock").exists():
        pass
    threading.Timer(2.5, done.set).start()
    with pytest.warns(UserWarning, match="net.plan is being built by another process; waiting") as told:
        with engines.turn(path):
            assert done.is_set()
    assert told[0].filename == __file__
    builder.join()
