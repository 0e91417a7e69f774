"""What an exercise is: a question with ``check``, ``hint`` and ``solution``, judged outside the notebook.

The outcome model follows Kaggle's learntools: untouched starter code is "not attempted", never "wrong".
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from labsupport.errors import LabError
from labsupport.exercises import answers as given_answers
from labsupport.exercises import progress, shared_machine, withheld
from labsupport.exercises.answers import NotAttempted, Wrong
from labsupport.exercises.calling import needs_function, returned
from labsupport.exercises.feedback import Text, box, lines

CHECK_S = 120.0  # for one check, where a lab's module names no other
LONGEST = 1500  # letters of a message; an answer may be a book
_HEADS = {"not attempted": "Not attempted yet: ", "wrong": "Not quite: ", "right": "Correct. "}


@dataclass(frozen=True)
class Verdict:
    """What a check found: ``outcome`` is "not attempted", "wrong" or "right"; ``message`` says why."""

    outcome: str
    message: str
    note: str = field(default="", compare=False)  # about the progress file, never about the answer

    def __post_init__(self) -> None:
        if self.outcome not in _HEADS:
            raise ValueError(f"outcome={self.outcome!r} is unknown; choose one of {list(_HEADS)}")

    @property
    def right(self) -> bool:
        return self.outcome == "right"

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        said = (_HEADS[self.outcome] + self.message).rstrip()
        return said if not self.note else f"{said}\n({self.note})"

    def __str__(self) -> str:
        return lines(repr(self))

    def _repr_html_(self) -> str | None:
        return box(self.outcome, "\n\n".join(filter(None, [self.message, self.note])))


class Exercise:
    """One question to the learner. A subclass sets the texts and writes ``judge``; a module keeps one instance.

    ``question`` is one sentence, ``hints`` holds at least two, mild to plain. ``solution_source`` is a runnable
    cell whose last line is the ``check`` call; where a sentence answers better, set ``answer`` (both may be set).
    """

    question = ""
    hints: tuple[str, ...] = ()
    answer = ""
    solution_source = ""
    _least_hints = 2

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ != __name__ and (faults := _faults_of(cls)):
            raise TypeError(f"exercise {cls.__name__}: " + "; ".join(faults))

    @property
    def lab(self) -> str:
        """The notebook this belongs to: ``LAB`` of the module that defines the class."""
        module = sys.modules[type(self).__module__]
        return getattr(module, "LAB", module.__name__.rpartition(".")[2])

    @property
    def name(self) -> str:
        """The module variable that holds this exercise; the learner types it."""
        held = vars(sys.modules[type(self).__module__])
        for name, value in held.items():
            if value is self and not name.startswith("_"):
                return name
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def judge(self, *answers: Any) -> str | Verdict | None:
        """Return what a right answer teaches, or raise ``Wrong("why")``.

        Annotate a parameter ``int``, ``float``, ``str``, ``bool``, ``list``, ``dict`` or ``Callable`` and other types
        are refused with a message before the judge sees them (NumPy and torch scalars become Python numbers).
        """
        raise NotImplementedError(f"{type(self).__name__} has no judge")

    def check(self, *answers: Any, **named: Any) -> Verdict:
        """Judge the answers. What the learner's code raises, and that it never ends, becomes part of the verdict."""
        patience = getattr(sys.modules[type(self).__module__], "CHECK_S", CHECK_S)
        try:
            verdict = returned(lambda: self._judged(answers, named), "what you handed in", patience)
        except NotAttempted as reason:
            verdict = Verdict("not attempted", str(reason))
        except (Wrong, LabError) as reason:
            verdict = self._unless_unfinished(answers, named, Verdict("wrong", _cut(str(reason))))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a learner's exit() must not end the kernel either
            verdict = Verdict("wrong", _cut(given_answers.what_was_raised(error)))
            verdict = self._unless_unfinished(answers, named, verdict)
        note = progress.record(self.lab, self.name, verdict.outcome)
        return Verdict(verdict.outcome, verdict.message, note or verdict.note)

    def _unless_unfinished(self, answers: tuple, named: dict[str, Any], verdict: Verdict) -> Verdict:
        """A wrong answer in which a line of the starter is left is not finished; a right one is right all the same."""
        if not any(given_answers.is_untouched(value, leftover=True) for value in (*answers, *named.values())):
            return verdict
        return Verdict("not attempted", f"a `...` still stands in a line of its own. As it is: {verdict.message}")

    def _judged(self, answers: tuple, named: dict[str, Any]) -> Verdict:
        given = (*answers, *named.values())
        if not given or any(given_answers.is_untouched(value) for value in given):
            raise NotAttempted(f"{self.question} Replace the `...` with your answer, then run the cell again.")
        bound = given_answers.bound(self.judge, answers, named)
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].annotation == "Callable":
                needs_function(value, name)
        finding = self.judge(*bound.args, **bound.kwargs)
        if isinstance(finding, Verdict):
            return finding
        if finding is None or isinstance(finding, str):
            return Verdict("right", finding or "")
        raise NotAttempted(f"the checker of {self.name} returned {finding!r}, which is no verdict; please report this.")

    def hint(self, n: int = 1) -> Text:
        """The n-th hint, from 1; the later, the plainer."""
        total = len(self.hints)
        if not total:
            return Text("There is no hint: a prediction is yours alone.")
        if not isinstance(n, int) or n < 1:
            return Text(f"Hints are numbered from 1 to {total}: ask for hint(1).")
        if n > total:
            further = withheld.SAID if withheld.solutions() else f"`{self.name}.solution()` shows one way."
            return Text(f"There is no hint {n}; hint {total} is the last. {further}")
        said = self.hints[n - 1] + (f" (hint({n + 1}) says more.)" if n < total else "")
        return Text(f"Hint {n} of {total}: {said}", "hint", said, word=f"Hint {n} of {total}:")

    def solution(self) -> Text:
        """One way to do it, runnable as a cell, and the reason; a note where they are withheld."""
        if withheld.solutions():
            return Text(withheld.SAID)
        parts = [textwrap.dedent(self.solution_source).strip(), textwrap.dedent(self.answer).strip()]
        whole = f"Solution: {self.question}\n\n" + "\n\n".join(part for part in parts if part)
        return Text(whole, "solution", self.question, *parts)

    def __repr__(self) -> str:
        return f"{self.name}: {self.question}"


class Prediction(Exercise):
    """A number the learner guesses first and meets again when it has been measured.

    A subclass sets ``question``, ``quantity`` ("median latency of batch 1") and ``unit``; a guess within the
    factor ``within`` of the measurement counts as right. A guess is above 0, or ``least`` and more where that is set.
    Once the result was shown, the guess stays as it is.
    """

    quantity = ""
    unit = ""
    within = 2.0
    least: float | None = None
    _least_hints = 0
    _guess: float | None = None
    _shown = _late = False

    def predict(self, guess: Any = ...) -> Text:
        """Note the guess; nothing is judged yet."""
        if given_answers.is_untouched(guess):
            said = f"{self.question} Replace the `...` with a number; a rough one will do."
            return Text(f"Not attempted yet: {said}", "not attempted", said)
        try:
            number = self._possible(guess)
        except Wrong as reason:
            return Text(f"Not quite: {reason}", "wrong", str(reason))
        kept = progress.noted(self.lab, self.name)
        shown = self._shown or kept.get("shown", False)
        before = self._guess if self._guess is not None else kept.get("prediction")
        if shown and before is not None and before != number:
            said = f"the result was shown already, so your prediction of {self._with_unit(before)} stays."
            return Text(f"Not noted: {said} What did it leave out?", "wrong", said, word="Not noted")
        self._guess = number
        late = before is None and shown
        facts = {"prediction": number, **({"late": True} if late else {})}
        note = progress.record(self.lab, self.name, "not attempted", **facts)
        said = f"you predict {self._with_unit(number)} for {self.quantity}."
        if late:
            self._late = True
            said += " The result was shown before, so this guess is compared and not counted."
        said += f"\n({note})" if note else ""
        return Text(f"Noted: {said}", "noted", said)

    def _possible(self, guess: Any) -> float:
        number = given_answers.as_number(guess, "your prediction")
        if self.least is None and number <= 0:
            raise Wrong(f"you predict {self._with_unit(number)}, and {self.quantity} can only be above 0.")
        if self.least is not None and number < self.least:
            raise Wrong(f"you predict {self._with_unit(number)}; {self._with_unit(self.least)} is the least possible.")
        return number

    def compare(self, measured: Any = ...) -> Verdict:
        """The prediction beside ``measured``: a number, or a measurement that has ``as_metric()``."""
        return self.check(measured)

    def judge(self, measured: Any) -> str:
        shared_machine.judge_quiet(measured)
        if hasattr(measured, "as_metric"):
            measured = measured.as_metric()["value"]
        measured = given_answers.as_number(measured, "the measurement")
        kept = progress.noted(self.lab, self.name)
        guess = self._guess if self._guess is not None else kept.get("prediction")
        self._shown = True
        progress.record(self.lab, self.name, "not attempted", shown=True)
        if guess is None:
            raise NotAttempted(
                f"{self.quantity}: measured {self._with_unit(measured)}; there is no prediction "
                f"to hold against it, `{self.name}.predict(...)` takes one."
            )
        seen = f"You predicted {self._with_unit(guess)} for {self.quantity}; measured {self._with_unit(measured)}"
        if self._late or kept.get("late", False):
            raise NotAttempted(f"{seen}. It was guessed after the result was shown, so it does not count.")
        return self._against(guess, measured, seen)

    def _against(self, guess: float, measured: float, seen: str) -> str:
        """What a prediction made in time is worth."""
        if guess == measured:
            return f"{seen}: exactly."
        if guess <= 0 or measured <= 0:
            raise Wrong(f"{seen}. The difference is {self._with_unit(guess - measured)}.")
        factor, way = max(guess / measured, measured / guess), "high" if guess > measured else "low"
        if factor > self.within:
            raise Wrong(f"{seen}: {factor:.3g} times too {way}. What did the guess leave out?")
        return f"{seen}: within a factor of {factor:.3g}."

    def _with_unit(self, value: float) -> str:
        return f"{value:.4g} {self.unit}".rstrip()


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 300]} … {message[-300:]}"


def of(module: ModuleType) -> dict[str, Exercise]:
    """The exercises a lab's module holds, by the name the learner types, in the order written."""
    return {
        name: value for name, value in vars(module).items() if isinstance(value, Exercise) and not name.startswith("_")
    }


def _faults_of(cls: type[Exercise]) -> list[str]:
    """What a subclass left out; said at import, so that a lab with a half-written exercise cannot ship."""
    faults = []
    if not isinstance(cls.question, str) or not cls.question.strip():
        faults.append("set `question` to one sentence")
    hints = cls.hints
    if isinstance(hints, str) or not all(isinstance(hint, str) and hint.strip() for hint in hints):
        faults.append("`hints` must be a tuple of sentences")
    elif len(hints) < cls._least_hints:
        faults.append(f"give at least {cls._least_hints} hints, not {len(hints)}")
    if cls._least_hints and not (cls.solution_source.strip() or cls.answer.strip()):
        faults.append("set `solution_source` (a runnable cell) or `answer`")
    return faults


def assert_complete(lab: Any, names: list[str]) -> None:
    """Prove, for the tests, that a lab has these exercises in this order, each with two hints, a solution and its
    reason.
    """
    exercises = of(lab)
    assert list(exercises) == names
    for exercise in exercises.values():
        if not isinstance(exercise, Prediction):
            assert len(exercise.hints) >= 2 and exercise.solution_source and exercise.answer


def assert_checker(
    exercise: Exercise,
    untouched: Any = ...,
    *,
    wrong: list[tuple[Any, str]],
    right: list,
    namespace: dict[str, Any] | None = None,
) -> None:
    """Prove a checker, for the tests: the starter is not attempted, each mistake is told apart, right is right.

    ``wrong`` pairs each foreseen mistake with a pattern its message must match; ``right`` holds the answer and at
    least one differently written twin. A judge with several parameters gets each answer as a tuple. With
    ``namespace`` (what the cells above define) ``solution_source`` is run and its last line must say right.
    """

    def judged(answer: Any) -> Verdict:
        several = len(inspect.signature(exercise.judge).parameters) > 1
        return exercise.check(*answer) if several and isinstance(answer, tuple) else exercise.check(answer)

    assert wrong, f"{exercise.name}: name at least one mistake a learner will make"
    assert len(right) >= 2, f"{exercise.name}: give the right answer and a differently written twin"
    for starter in (untouched, ...):
        assert judged(starter).outcome == "not attempted", f"{exercise.name}: starter judged {judged(starter)!r}"
    assert exercise.check().outcome == "not attempted"
    for answer, pattern in wrong:
        verdict = judged(answer)
        assert verdict.outcome == "wrong", f"{exercise.name}: {answer!r} judged {verdict!r}"
        assert re.search(pattern, verdict.message), f"{exercise.name}: {verdict.message!r} does not match {pattern!r}"
    for answer in right:
        assert judged(answer).right, f"{exercise.name}: {answer!r} judged {judged(answer)!r}"
    for junk in (object(), float("nan"), "\0", None):
        assert not exercise.check(junk).right, f"{exercise.name} accepts {junk!r}"
    if exercise.solution_source and namespace is not None:
        verdict = run_solution(exercise, namespace)
        assert isinstance(verdict, Verdict) and verdict.right, f"{exercise.name}: its solution gives {verdict!r}"


def run_solution(exercise: Exercise, namespace: dict[str, Any]) -> Any:
    """Run ``solution_source`` as the learner would, after the cells that made ``namespace``; its last line's value."""
    module = sys.modules[type(exercise).__module__]
    scope = {module.__name__.rpartition(".")[2]: module, **namespace}
    tree = ast.parse(textwrap.dedent(exercise.solution_source))
    call = tree.body.pop() if tree.body else None
    if not isinstance(call, ast.Expr):
        raise LabError(f"the solution of {exercise.name} must end with its check(...) call")
    last = ast.Expression(call.value)
    exec(compile(tree, "<solution>", "exec"), scope)
    return eval(compile(last, "<solution>", "eval"), scope)
