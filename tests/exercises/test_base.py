"""The exercise machinery: outcomes, messages, hints, solutions, predictions."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from labsupport.errors import LabError
from labsupport.exercises import base

LAB = "01_measuring"


class Clock(base.Exercise):
    question = "Which clock saw the GPU finish?"
    hints = ("Who waits?", "It is the device clock.")
    solution_source = """
    clock = "device"
    clock_seen.check(clock)
    """

    def judge(self, clock: str) -> str:
        if clock.strip().lower() == "host":
            raise base.Wrong("the host clock stops when the launch returns.")
        if clock.strip().lower() != "device":
            raise base.Wrong(f"{clock!r} is no clock of this lab.")
        return "CUDA events are recorded in the stream."


class Scale(base.Exercise):
    question = "Write a function that doubles."
    hints = ("Multiply.", "By two.")
    answer = "Doubling is multiplication by two."

    def judge(self, function):
        if function(3) != 6:
            raise base.Wrong(f"doubling 3 gave {function(3)}.")


class Two(base.Exercise):
    question = "How many kernels, and is it fused?"
    hints = ("Count.", "Two.")
    answer = "Two."

    def judge(self, kernels: int, fused: bool):
        if (kernels, fused) != (2, True):
            raise base.Wrong(f"{kernels} and {fused}.")
        return ""


clock_seen, scale, two = Clock(), Scale(), Two()


def test_a_checker_is_proved_by_its_helper():
    base.assert_checker(
        clock_seen,
        wrong=[("host", "launch returns"), ("wall", "'wall' is no clock"), (3, "text")],
        right=["device", " Device "],
        namespace={"clock_seen": clock_seen},
    )
    base.assert_checker(
        two,
        (..., ...),
        wrong=[((3, True), "3 and True"), (("2", True), "number is wanted")],
        right=[(2, True), (np.int64(2), True)],
    )


@pytest.mark.parametrize(
    "cases, complaint",
    [
        ({"wrong": [], "right": ["device", "Device"]}, "at least one mistake"),
        ({"wrong": [("host", "launch")], "right": ["device"]}, "twin"),
        ({"wrong": [("device", "x")], "right": ["device", "Device"]}, "judged Correct"),
        ({"wrong": [("host", "banana")], "right": ["device", "Device"]}, "does not match"),
        ({"wrong": [("host", "launch")], "right": ["device", "host"]}, "judged Not quite"),
    ],
)
def test_the_helper_refuses_a_weak_or_faulty_proof(cases, complaint):
    with pytest.raises(AssertionError, match=complaint):
        base.assert_checker(clock_seen, **cases)


def test_verdicts_read_aloud():
    assert repr(clock_seen.check(...)).startswith("Not attempted yet: Which clock")
    assert repr(clock_seen.check("host")) == "Not quite: the host clock stops when the launch returns."
    assert repr(clock_seen.check("device")) == "Correct. CUDA events are recorded in the stream."
    assert clock_seen.check("device").right and not clock_seen.check("host")
    assert repr(base.Verdict("right", "")) == "Correct."
    with pytest.raises(ValueError, match="choose one of"):
        base.Verdict("maybe", "")


def untouched_body(x): ...


def untouched_line(x):
    y = ...
    return y


def untouched_statement(x):
    x = x + 1
    ...  # your line here
    return x


def untouched_with_docstring(x):
    """Double x."""
    ...


class UntouchedClass:
    factor = ...


class UntouchedMethod:
    def __call__(self, x):
        return ...


@functools.lru_cache
def untouched_but_wrapped(x):
    return ...


@pytest.mark.parametrize(
    "starter",
    [
        untouched_body,
        untouched_line,
        untouched_statement,
        untouched_with_docstring,
        UntouchedClass,
        UntouchedMethod,
        UntouchedMethod(),
        untouched_but_wrapped,
        (..., 2),
        [1, ...],
        {"a": ...},
        {"a": [...]},
        lambda x: ...,
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),  # the processes of pytest-xdist compare names
)
def test_an_untouched_starter_is_not_attempted(starter):
    assert scale.check(starter).outcome == "not attempted"


def test_no_answer_is_not_attempted():
    assert scale.check().outcome == "not attempted"
    assert two.check(2, ...).outcome == "not attempted"


class Doubler:
    def __init__(self):
        pass

    def __call__(self, x):
        return x * 2


def doubles_with_ellipsis_index(x):
    return int((np.array([[x]])[..., 0] * 2)[0])


@pytest.mark.parametrize(
    "done",
    [
        lambda x: 2 * x,
        Doubler(),
        doubles_with_ellipsis_index,
        functools.lru_cache(lambda x: x + x),
        functools.partial(lambda k, x: k * x, 2),
    ],
)
def test_finished_code_is_judged(done):
    assert scale.check(done).right


def test_code_defined_without_source_is_judged_too():
    scope: dict = {}
    exec(
        "def started(x):\n    y = ...\n    return y\ndef empty(x):\n    'Double x.'\n    ...\n"
        "def done(x): return 2 * x",
        scope,
    )
    assert scale.check(scope["started"]).outcome == "not attempted"
    assert scale.check(scope["empty"]).outcome == "not attempted"
    assert scale.check(scope["done"]).right


def test_what_the_learners_code_raises_is_said_without_a_traceback():
    def broken(x):
        return x / 0

    verdict = scale.check(broken)
    assert verdict.outcome == "wrong"
    assert verdict.message == "your `broken` raised ZeroDivisionError: division by zero (its line 2)."
    assert "judging this answer raised TypeError" in scale.check(3).message
    assert "SystemExit" in scale.check(lambda x: sys.exit(1)).message


def test_a_lab_error_speaks_for_itself():
    def refused(x):
        raise LabError("batch 0 is no batch; give at least 1")

    assert scale.check(refused).message == "batch 0 is no batch; give at least 1"


@pytest.mark.parametrize(
    "answers, message",
    [
        ((2,), r"came with 1 answer, this exercise takes 2: check\(kernels, fused\)"),
        ((2, True, 3), "came with 3 answers"),
        (("two", True), r"kernels is 'two' \(str\); a number is wanted"),
        ((2.5, True), "kernels is 2.5; a whole number is wanted"),
        ((True, True), "a number is wanted"),
        ((None, True), "kernels is None. Did a function forget its `return`"),
        ((float("inf"), True), "a finite number is wanted"),
        ((2, "yes"), r"fused is 'yes' \(str\); wanted is True or False"),
        ((np.zeros((2, 2)), True), "kernels is a ndarray; a number is wanted"),
        ((object(), True), "kernels is a object; a number is wanted"),
    ],
)
def test_wrong_types_get_a_message(answers, message):
    verdict = two.check(*answers)
    assert verdict.outcome == "wrong"
    assert re.search(message, verdict.message), verdict.message


@pytest.mark.parametrize("kernels", [2, 2.0, np.int32(2), np.float64(2), np.array(2)])
def test_numbers_of_any_make_are_taken(kernels):
    assert two.check(kernels, fused=np.bool_(True)).right


def test_a_judge_without_a_verdict_is_never_the_learners_fault():
    class Broken(base.Exercise):
        question, hints, answer = "?", ("a", "b"), "c"

        def judge(self, value):
            return 7

    verdict = Broken().check(1)
    assert verdict.outcome == "not attempted" and "please report" in verdict.message


def test_hints_are_staged_and_end():
    assert repr(clock_seen.hint()) == "Hint 1 of 2: Who waits? (hint(2) says more.)"
    assert repr(clock_seen.hint(2)) == "Hint 2 of 2: It is the device clock."
    assert "There is no hint 3" in clock_seen.hint(3)
    assert "numbered from 1 to 2" in clock_seen.hint(0)
    assert "numbered from 1 to 2" in clock_seen.hint("x")


def test_the_solution_is_shown_and_runs():
    assert 'clock = "device"\nclock_seen.check(clock)' in clock_seen.solution()
    assert "multiplication" in scale.solution()
    assert base.run_solution(clock_seen, {"clock_seen": clock_seen}).right


def test_a_solution_without_its_check_is_refused():
    class Silent(base.Exercise):
        question, hints, solution_source = "?", ("a", "b"), "x = 1"

    with pytest.raises(LabError, match="must end with its check"):
        base.run_solution(Silent(), {})


@pytest.mark.parametrize(
    "texts, complaint",
    [
        ({"question": "", "hints": ("a", "b"), "answer": "c"}, "set `question`"),
        ({"question": "?", "hints": ("a",), "answer": "c"}, "at least 2 hints, not 1"),
        ({"question": "?", "hints": ("a b"), "answer": "c"}, "must be a tuple"),
        ({"question": "?", "hints": ("a", "b")}, "solution_source"),
    ],
)
def test_a_half_written_exercise_cannot_ship(texts, complaint):
    with pytest.raises(TypeError, match=complaint):
        type("Half", (base.Exercise,), {"__module__": "labsupport.exercises.lab99", **texts})


def test_an_exercise_knows_its_lab_and_its_name(monkeypatch):
    assert (clock_seen.lab, clock_seen.name) == ("01_measuring", "clock_seen")
    assert list(base.of(sys.modules[__name__])) == ["clock_seen", "scale", "two"]
    module = types.ModuleType("lab77")
    monkeypatch.setitem(sys.modules, "lab77", module)
    module.Later = type("Later", (Clock,), {"__module__": "lab77"})
    assert (module.Later().lab, module.Later().name) == ("lab77", "later")


CELLS = """
import test_base as tests
from IPython.core.interactiveshell import InteractiveShell
from ipykernel.compiler import XCachingCompiler

shell = InteractiveShell.instance(compiler_class=XCachingCompiler)
shell.user_ns["exercise"] = tests.scale
for cell in (
    "class Starter:\\n    def __call__(self, x):\\n        return ...\\nprint(exercise.check(Starter()))",
    "def crash(x):\\n    return [][x]\\nprint(exercise.check(crash))",
    "def started(x):\\n    y = ...  # your line\\n    return y",
    "print(exercise.check(started))",
    "print(exercise.check(lambda x: x + x))",
):
    shell.run_cell(cell)
"""


@pytest.mark.parametrize("cell_name", ["", "<cell>"])
def test_starters_defined_in_notebook_cells_are_seen(tmp_path, cell_name):
    here = Path(__file__).parent
    variables = {
        **os.environ,
        "IPYTHONDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)]),
    }
    if cell_name:  # all cells share one file name then, and inspect may hand out another cell's lines
        variables["IPYKERNEL_CELL_NAME"] = cell_name
    ran = subprocess.run([sys.executable, "-c", CELLS], env=variables, capture_output=True, text=True, check=True)
    heads = re.findall(r"^(Not attempted yet|Not quite|Correct)", ran.stdout, re.M)
    assert heads == ["Not attempted yet", "Not quite", "Not attempted yet", "Correct"], ran.stdout
    assert "your `crash` raised IndexError: list index out of range (its line 2)." in ran.stdout
