"""The guard around public functions: kinds before anything runs, words for the learner, functions that can be pickled."""

from __future__ import annotations

import multiprocessing

import hostile
import pytest

from labsupport import guards, recordings
from labsupport.data import roadside
from labsupport.errors import BadInput, LabError
from labsupport.placement import dispatch

pytestmark = pytest.mark.filterwarnings("ignore")


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


def first(names: Iterable) -> int:  # noqa: F821
    """How long the first name is."""
    return len(list(names)[0])


def test_what_is_wrong_inside_a_list_is_no_fault_of_ours():
    with pytest.raises(BadInput, match=r"\(\[None\]\) cannot work \(TypeError") as error:
        guards.guarded(first)([None])
    assert "report" not in str(error.value) and guards.guarded(first)(["ab"]) == 2


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


def test_a_call_that_is_refused_has_not_run():
    done = []

    def note(count: int, text: str = "x") -> None:
        done.append((count, text))

    for call in (lambda: guards.guarded(note)(1.5), lambda: guards.guarded(note)(1, text=None)):
        with pytest.raises(BadInput, match="; wanted (a whole number|text such as 'x')$"):
            call()
    assert done == [] and guards.guarded(note)(2) is None and done == [(2, "x")]


def test_a_store_that_is_refused_has_written_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path / "live"))
    recordings.lab("01_measuring").record("net.latency", 1.25, "ms")
    right = {"metrics_folder": tmp_path / "live", "command": "python3 -m labsupport record 01", "seconds": 3}
    for wrong in ({"command": ["python3"]}, {"metrics_folder": 7}, {"seconds": -3}, {"seconds": "long"}):
        with pytest.raises(LabError, match=f"{next(iter(wrong))}=|'long'"):
            recordings.store("01_measuring", **{**right, **wrong}, root=tmp_path / "books")
    assert not list(tmp_path.glob("books/*/*.json"))
    assert recordings.store("01_measuring", **right, root=tmp_path / "books").is_file()


def test_a_class_that_nobody_called_and_a_number_beyond_use_are_named():
    network = pytest.importorskip("torch").nn.Linear

    def count(model: nn.Module, times: int = 1, share: float = 0.5) -> int:  # noqa: F821
        return times

    guarded = guards.guarded(count)
    for call, message in (
        (lambda: guarded(network), r"model=the class Linear; wanted a torch.nn.Module"),
        (
            lambda: guarded(network(1, 1), 10**15),
            "times=1000000000000000 is beyond 1,000,000,000; wanted a whole number",
        ),
        (lambda: guarded(network(1, 1), share=True), "share=True; wanted a number such as 0.5"),
        (lambda: guarded(network(1, 1), share=float("nan")), "share=nan is not finite; wanted a number such as 0.5"),
    ):
        with pytest.raises(BadInput, match=message):
            call()
    assert guarded(network(1, 1), 3) == 3


def test_tables_of_functions_go_to_spawned_processes():
    tables = (list(dispatch.POLICIES.values()), dict(roadside.CORRUPTIONS))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        policies, corruptions = pool.apply(_same, (tables,))
    assert [policy.name for policy in policies] == list(dispatch.POLICIES) and corruptions.keys() == tables[1].keys()
    assert policies[0].choose is dispatch.POLICIES["round-robin"].choose
    assert corruptions["rain"] is roadside.rain
    with pytest.raises(BadInput, match="quality='low'"):  # the table holds the guard, too
        roadside.CORRUPTIONS["compression"]([0], None, quality="low")


def _same(value):
    return value
