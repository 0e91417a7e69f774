"""The campaign of faults in small; `python3 -m labsupport test --faults` runs the long one and prints its table."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import campaign
import disk_trials
import hostile
import pool_trials
import pytest
import run_trials
import security_trials

from labsupport import files, guards
from labsupport.command_line import kernels, shadows
from labsupport.errors import BadInput, LabError
from labsupport.recordings import provenance

pytestmark = pytest.mark.filterwarnings("ignore")


def held(ends) -> None:
    ends = list(ends)
    assert ends and not [end for end in ends if end]


def test_hostile_calls_end_in_typed_errors():
    counts = Counter(end.split(":")[0] for _, end in hostile.campaign(random.randrange(2**31), 40))
    assert counts.keys() <= {"typed", "accepted"} and counts["accepted"] <= 5, counts


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


def test_a_worker_that_stands_still_is_ended(tmp_path):
    held([pool_trials.stopped([pool_trials.pool.Worker(name, pool_trials.doubling(tmp_path)) for name in "ab"])])


@pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of POSIX")
def test_run_sees_a_dead_kernel_and_an_interrupt():
    held([run_trials.run(run_trials.DIES, wanted="the kernel died", within_s=30)])
    held([run_trials.stopped("record", run_trials.signal.SIGINT, 130, after_s=1.5)])


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


def test_a_foreign_package_is_found_and_this_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shadows.foreign(tmp_path) == []
    (tmp_path / "notebooks" / "labsupport").mkdir(parents=True)
    (tmp_path / "notebooks" / "labsupport" / "__init__.py").touch()
    with pytest.raises(LabError, match="labsupport is not the workbook's"):
        shadows.refuse(tmp_path)


def whole(count: int, *, title: str = "") -> str:
    """Repeat a word."""
    return title * [0, 1, 2][count]


def test_a_guard_names_what_came_and_what_is_wanted():
    guarded = guards.guarded(whole)
    assert guarded(2, title="ab") == "abab" and guarded.__doc__ == "Repeat a word."
    for call, message in (
        (lambda: guarded("2"), "count='2'; wanted a whole number"),
        (lambda: guarded(1, title=3), "title=3; wanted text"),
        (lambda: guarded(1, name="a"), "unexpected keyword argument 'name'"),
        (lambda: guarded(count=hostile.Raising()), "count=a Raising is of the kind Raising; wanted a whole number"),
    ):
        with pytest.raises(BadInput, match=message) as error:
            call()
        assert str(error.value.__cause__ or "x")


def test_a_fault_of_ours_asks_for_a_report():
    with pytest.raises(LabError, match=r"\(7, title='a'\): unexpected IndexError inside .*please report it") as error:
        guards.guarded(whole)(7, title="a")
    assert not isinstance(error.value, BadInput) and isinstance(error.value.__cause__, IndexError)


class Faulty:
    def name(self):
        return {}["a slip of the learner's"]


def test_what_a_learner_s_object_raises_is_his():
    with pytest.raises(KeyError, match="slip"):
        guards.guarded(lambda thing: thing.name())(Faulty())


def test_what_a_learner_s_function_raises_is_his():
    def mine(*args):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        guards.guarded(lambda function: function())(mine)


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
