"""The campaign of faults in small; `python3 -m labsupport test --faults` runs the long one and prints its table."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import campaign
import disk_trials
import hostile
import pool_trials
import pytest
import run_trials
import security_trials

from labsupport import files
from labsupport.command_line import kernels, shadows
from labsupport.errors import LabError
from labsupport.recordings import provenance

pytestmark = pytest.mark.filterwarnings("ignore")


def held(ends) -> None:
    ends = list(ends)
    assert ends and not [end for end in ends if end]


def of_ours() -> dict[Path, bytes]:
    folders = (provenance.ROOT, provenance.ROOT.parents[1] / "notebooks")
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*.[ij]*") if path.is_file()}


def test_hostile_calls_end_in_typed_errors_and_change_no_file_of_ours():
    before = of_ours()
    counts = Counter(end.split(":")[0] for _, end in hostile.campaign(random.randrange(2**31), 40))
    assert counts.keys() <= {"typed", "accepted"} and counts["accepted"] <= 5, counts
    assert before and of_ours() == before


def test_what_a_call_of_the_campaign_stores_lies_in_its_copy(tmp_path):
    before = of_ours()
    code = "from labsupport import recordings as r; print(r.store('01_measuring', 'none', command='x', seconds=1))"
    variables = hostile.variables(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "own", env=variables, capture_output=True, text=True, timeout=60
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path), done.stderr
    assert of_ours() == before


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_trials.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("LABSUPPORT_METRICS", "")
    return disk_trials.trials()


@pytest.mark.parametrize("kind", ["single flipped bits", "damaged files", "files that processes share"])
def test_what_lies_on_the_disk_never_changes_in_silence(disk, kind):
    held(disk[kind])


def test_one_build_a_key_and_ctrl_c_waits_for_the_builder(disk):
    ends = list(disk["one build a key, Ctrl-C in a build"])  # none without a builder
    assert not [end for end in ends if end]
    held(disk["leftovers of killed processes"])


def test_names_and_foreign_modules_are_refused():
    held(security_trials.trials())


@pytest.mark.parametrize("ahead, width", [(2, 1_250_000), (4, 125_000)])
def test_the_pool_takes_requests_of_any_size(tmp_path, ahead, width):
    workers = [pool_trials.pool.Worker(name, pool_trials.doubling(tmp_path)) for name in "ab"]
    held(pool_trials.sizes(workers, ahead, (width,)))


def test_the_pool_keeps_every_answer_beside_a_request_that_kills(tmp_path):
    workers = [pool_trials.pool.Worker(name, pool_trials.doubling(tmp_path)) for name in "abc"]
    crew = pool_trials.apart(workers, 2)
    requests: list = [*pool_trials.numbers(30), pool_trials.Poison()]
    with (
        crew,
        pytest.raises(pool_trials.pool.Unanswered, match="request 30 .* two workers in turn died of it") as error,
    ):
        crew.serve(requests, stall_s=5)
    assert error.value.served.lost == 1 and len(error.value.served.died) == 2
    assert not pool_trials.right(error.value.served.answers[:30], requests[:30])


@pytest.mark.parametrize(
    "request_, why", [(pool_trials.Unpackable(), "cannot be sent: KeyboardInterrupt"),
                      (pool_trials.Unreadable(), "cannot be unpacked there: ZeroDivisionError")]
)  # fmt: skip
def test_a_request_that_cannot_be_packed_or_unpacked_ends_no_worker(tmp_path, request_, why):
    crew = pool_trials.apart([pool_trials.pool.Worker(name, pool_trials.doubling(tmp_path)) for name in "ab"], 2)
    requests: list = [*pool_trials.numbers(9), request_]
    with crew, pytest.raises(pool_trials.pool.Unanswered, match=f"request 9 cannot be answered, .*{why}") as error:
        crew.serve(requests, stall_s=5)
    assert error.value.served.died == () and not pool_trials.right(error.value.served.answers[:9], requests[:9])


def test_a_worker_that_stands_still_is_ended(tmp_path):
    held([pool_trials.stopped([pool_trials.pool.Worker(name, pool_trials.doubling(tmp_path)) for name in "ab"])])


@pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of POSIX")
def test_run_sees_a_dead_kernel_and_an_interrupt():
    held([run_trials.run(run_trials.DIES, wanted="the kernel died", within_s=30)])
    held([run_trials.stopped("record", run_trials.signal.SIGINT, 130, after_s=1.5)])


def test_run_says_in_a_line_what_a_cell_says_without_end():
    held([run_trials.run(run_trials.SHOUTS, wanted="ValueError: yyy", within_s=60)])


@pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of POSIX")
def test_test_sees_a_dead_kernel():
    held([run_trials.nbval(run_trials.DIES, wanted="the kernel died", within_s=30)])


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def test_streams_are_merged_as_nbclient_does():
    shown = {"output_type": "display_data", "data": {}}
    outputs = [stream("a\n"), stream("1%\r2%\r", "stderr"), shown, stream("b\rc"), stream("3%\n", "stderr")]
    assert kernels.merged(outputs) == [stream("a\nc"), stream("3%\n", "stderr"), shown]
    assert kernels.merged([stream("x", "stderr"), stream("y")]) == [stream("y"), stream("x", "stderr")]
    assert kernels.merged([stream("done\r\n")]) == [stream("done\r\n")]


def test_a_flood_is_cut_with_a_word():
    quota, texts = kernels.Quota(), []
    for _ in range(30):
        message = {"msg_type": "stream", "content": {"text": "y" * 100_000}}
        if quota.admit(message):
            texts.append(message["content"]["text"])
    assert len("".join(texts)) == kernels.MOST_TEXT + len(kernels.LEFT_OUT) and texts[-1] == kernels.LEFT_OUT


def test_displays_and_errors_are_cut_with_a_word():
    quota, big = kernels.Quota(), "y" * 6_000_000
    shown = [{"msg_type": "display_data", "content": {"data": {"text/html": big}}} for _ in range(5)]
    assert all(map(quota.admit, shown))
    kept = [message["content"]["data"] for message in shown]
    assert kept[2] == {"text/html": big} and kept[3] == kept[4] == {"text/plain": kernels.left_out(20_000_000)}
    error = {"msg_type": "error", "content": {"ename": "E", "evalue": big, "traceback": [big, big]}}
    assert kernels.Quota().admit(error)
    cut = "y" * kernels.MOST_ERROR + kernels.left_out(kernels.MOST_ERROR)
    assert error["content"] == {"ename": "E", "evalue": cut, "traceback": cut.split("\n")}
    small = {"msg_type": "error", "content": {"ename": "E", "evalue": "a\nb", "traceback": ["a", "b"]}}
    assert kernels.Quota().admit(small) and small["content"]["traceback"] == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["labsupport.py", "labsupport/__init__.py", "labsupport.pyc", "kept/labsupport.py", "labsupport.abi3.so"]
)
def test_a_foreign_package_is_found_and_this_one_is_not(tmp_path, monkeypatch, name):
    if name.endswith(".so") and ".abi3.so" not in EXTENSION_SUFFIXES:
        pytest.skip("native modules have another name here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / "labsupport").mkdir(parents=True)  # a folder alone is no package
    os.symlink(shadows.PACKAGE, tmp_path / "labsupport")  # this package, from elsewhere
    assert shadows.foreign(tmp_path) == []
    path = tmp_path / "work" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(LabError, match="labsupport[.a-z0-9]* is not the workbook's"):
        shadows.refuse(tmp_path)


def test_the_campaign_prints_a_table():
    ends, _ = campaign.measured(lambda: iter(["", "torn"]), until=float("inf"))
    assert ends == ["", "torn"]
    assert campaign.measured(lambda: 1 / 0, until=0)[0] == ["the trials stopped: ZeroDivisionError: division by zero"]
    told = campaign.table([("flips", 360, 0, 3.2), ("calls", 40, 2, 8.0)])
    assert told.splitlines()[2:] == [
        "| flips | 360 | 360 | 0 | 3 |",
        "| calls | 40 | 38 | 2 | 8 |",
        "| all | 400 | 398 | 2 | 11 |",
    ]


def test_every_stored_recording_carries_its_checksum():
    paths = sorted(provenance.ROOT.glob("*/*.json"))
    bare = [path.name for path in paths if files.SEAL not in json.loads(path.read_text(encoding="utf-8"))]
    assert paths and not bare, f"{bare}: python3 tools/seal_recordings.py gives them one"
