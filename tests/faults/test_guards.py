"""The guard around public functions: kinds before anything runs, words for the learner, functions that can be pickled."""

from __future__ import annotations

import itertools
import multiprocessing
import os

import hostile
import numpy as np
import pytest

from labsupport import comparing, examining, guards, models, quantization, recordings, roads, runtimes, serving
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
        (lambda: guarded(network(1, 1), share=float("nan")), "share=nan; wanted a number such as 0.5"),
    ):
        with pytest.raises(BadInput, match=message):
            call()
    assert guarded(network(1, 1), 3) == 3


class Dead:
    """Raises whatever it is asked for, its class, too."""

    def __getattribute__(self, name):
        raise LookupError(f"dead {name}")


def test_an_object_that_raises_on_its_class_is_answered():
    def loose(thing) -> int:
        return len(thing)

    with pytest.raises(BadInput, match="count=a Dead is of the kind Dead; wanted a whole number"):
        guards.guarded(whole)(Dead())
    for function in (loose, first):
        with pytest.raises(BadInput, match="a Dead"):
            guards.guarded(function)(Dead())


def test_a_network_without_a_forward_is_named():
    torch = pytest.importorskip("torch")

    def annotated(model: nn.Module) -> None:  # noqa: F821
        return model(1)

    def loose(run) -> None:
        return run(1)

    with pytest.raises(BadInput, match="model=Module.* is of the kind Module; wanted a torch.nn.Module with a forward"):
        guards.guarded(annotated)(torch.nn.Module())
    with pytest.raises(BadInput, match='missing the required "forward" function'):
        guards.guarded(loose)(torch.nn.Module())
    assert guards.guarded(annotated)(torch.nn.Identity()) == 1


def test_a_runtime_of_ours_is_not_the_caller_s_own_code():
    with pytest.raises(BadInput, match=r"a Dead\) cannot work \(LookupError: dead"):
        guards.guarded(lambda run, feed: run(feed))(runtimes.Torch(models.article_cnn(size=28)), Dead())


def test_a_class_method_is_guarded():
    for content in ([1], 2.5, None):
        with pytest.raises(BadInput, match="Row.from_plain: content=.*; wanted a mapping"):
            examining.Row.from_plain(content)
    assert examining.Row.from_plain(examining.Row("a").plain()) == examining.Row("a")


def test_a_value_that_raises_when_numpy_or_python_looks_at_it_is_answered():
    class Odd(str):
        def __str__(self):
            raise UnicodeError("no text")

        def __array__(self, *_, **__):
            raise ArithmeticError("no array")

    for look in (str, np.asarray):
        with pytest.raises(BadInput, match="(UnicodeError: no text|ArithmeticError: no array)"):
            guards.guarded(lambda value, look=look: look(value))(Odd("a"))


def counted(names: Sequence[str] = (), sizes: Iterable[int] = (), warmup=1, wait_ms=0) -> tuple:  # noqa: F821
    """What came."""
    return list(names), list(sizes), warmup, wait_ms


def test_items_are_checked_and_default_values_say_a_kind():
    guarded = guards.guarded(counted)
    for given, message in (
        ({"names": itertools.repeat("a", 5)}, "wanted a list of names"),
        ({"names": {"a"}}, r"names=\{'a'\}; wanted a list of names"),
        ({"names": ["a", None]}, r"names=\['a', None\]; wanted a list of names"),
        ({"names": ["a\0b"]}, "wanted a list of names"),
        ({"names": ["\ud800"]}, "wanted a list of names"),
        ({"sizes": [1, float("inf")]}, r"sizes=\[1, inf\]; wanted a list of whole numbers"),
        ({"warmup": 10**400}, "warmup=1.* is beyond 1,000,000,000; wanted a whole number such as 1"),
        ({"warmup": 1.5}, "warmup=1.5; wanted a whole number"),
        ({"wait_ms": "long"}, "wait_ms='long'; wanted a number such as 0"),
    ):
        with pytest.raises(BadInput, match=message):
            guarded(**given)
    given = {"names": {"a": 1}.keys(), "sizes": (n for n in (1, 2)), "wait_ms": 0.5}
    assert guarded(**given) == (["a"], [1, 2], 1, 0.5)


def test_what_makes_no_sense_is_refused_before_anything_waits(tmp_path):
    torch = pytest.importorskip("torch")
    histogram = quantization.histogram([0.5, 1.0])
    os.mkfifo(tmp_path / "pipe")
    for call, message in (
        (lambda: histogram.add(torch.nn.Sequential()), "wanted an array of numbers"),
        (lambda: histogram.add({"a": 1}), "wanted an array of numbers"),
        (lambda: histogram.threshold(format="int3"), "format='int3' is not known"),
        (lambda: histogram.threshold(percentile=float("inf")), "percentile=inf"),
        (lambda: serving.Batcher([len], shape=[float("inf")]), "wanted a list of whole numbers"),
        (lambda: serving.Batcher([len], shape=[-1]), "shape=-1; wanted a whole number of at least 0"),
        (lambda: comparing.pareto(itertools.repeat({}, 5)), "rows=.*; wanted a list"),
        (lambda: recordings.check_live(tmp_path / "pipe"), "folder=.*; wanted a path to a folder"),
        (lambda: recordings.lab("01_measuring").recorded(None), "metric=None; wanted text"),
        (lambda: roads.travel({}, {}, [0], [0]), "roads is empty"),
    ):
        with pytest.raises(BadInput, match=message):
            call()
    assert histogram.add(torch.ones(3)).counts.sum() == 5


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
