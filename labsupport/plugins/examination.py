"""Is an implementation of the operator right? At even and odd sizes, in both types, packed, sliced and transposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from labsupport.errors import BadInput, LabError, one_of
from labsupport.plugins.gated_norm import DTYPES, EPSILON, example, reference

COLUMNS = (1, 2, 7, 31, 32, 33, 128, 255, 256, 257, 1000, 1023, 1024, 1025, 4096, 4099)
LAYOUTS = ("packed", "sliced", "transposed")
# Largest |error| over largest |value| that rounding explains: the sum in FP32, the result rounded once to its type.
TOLERANCE = {"float32": 2e-5, "float16": 2e-3}


@dataclass(frozen=True)
class Case:
    """One call: what went in, how far off the answer was, or the sentence with which it was refused."""

    rows: int
    columns: int
    dtype: str
    layout: str
    error: float | None
    refused: str = ""

    @property
    def right(self) -> bool:
        """Whether an answer came and its error is rounding."""
        return self.error is not None and self.error <= TOLERANCE[self.dtype]

    @property
    def wrong(self) -> bool:
        """Whether an answer came that rounding does not explain; a refusal is not wrong."""
        return self.error is not None and not self.error <= TOLERANCE[self.dtype]

    def __repr__(self) -> str:
        said = (
            f"refused: {self.refused}"
            if self.error is None
            else f"relative error {self.error:.1e}" + (" WRONG" if self.wrong else "")
        )
        return f"({self.rows}, {self.columns}) {self.dtype} {self.layout}: {said}"


@dataclass(frozen=True)
class Examination:
    """All cases of one implementation."""

    name: str
    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        """Whether no case was answered wrongly and at least one was answered."""
        return not self.wrong and any(case.right for case in self.cases)

    @property
    def wrong(self) -> tuple[Case, ...]:
        """The cases with a wrong answer."""
        return tuple(case for case in self.cases if case.wrong)

    @property
    def wrong_columns(self) -> tuple[int, ...]:
        """Row lengths at which some answer was wrong."""
        return tuple(sorted({case.columns for case in self.wrong}))

    @property
    def worst(self) -> float:
        """Largest relative error of all answers."""
        return max((case.error for case in self.cases if case.error is not None), default=float("nan"))

    def __repr__(self) -> str:
        refused = sum(case.error is None for case in self.cases)
        return (
            (
                f"{self.name}: {sum(case.right for case in self.cases)} of {len(self.cases)} cases right, "
                f"{len(self.wrong)} wrong"
            )
            + (f", {refused} refused" if refused else "")
            + f"; worst relative error {self.worst:.1e}"
        )


def examine(
    run: Callable,
    *,
    name: str | None = None,
    device: str = "cpu",
    rows: Iterable[int] = (3,),
    columns: Iterable[int] = COLUMNS,
    dtypes: Iterable[str] = DTYPES,
    layouts: Iterable[str] = ("packed",),
) -> Examination:
    """Hold ``run(x, gate, weight)`` against the float64 reference over sizes, types and memory layouts.

    ``run`` gets torch tensors on ``device``. Layouts: "packed"; "sliced", two halves of one wider tensor; "transposed",
    columns that lie side by side. A LabError that ``run`` raises counts as refused, not as wrong.
    """
    rows, dtypes, layouts = list(rows), list(dtypes), list(layouts)  # they are gone through more than once
    unknown = sorted(set(layouts) - set(LAYOUTS))
    if unknown:
        raise BadInput(f"layouts={unknown} are unknown; choose from {list(LAYOUTS)}")
    cases = [
        _case(run, device, r, c, dtype, layout) for c in columns for r in rows for dtype in dtypes for layout in layouts
    ]
    return Examination(name or getattr(run, "name", None) or getattr(run, "__name__", "run"), tuple(cases))


def _case(run, device, rows, columns, dtype, layout) -> Case:
    x, gate, weight = example(rows, columns, dtype=dtype, device=device, seed=columns)
    x, gate = laid_out(x, gate, layout)
    try:
        y = run(x, gate, weight)
    except LabError as refusal:
        return Case(rows, columns, dtype, layout, None, str(refusal))
    if tuple(getattr(y, "shape", ())) != (rows, columns):  # also of None, where a return was forgotten
        return Case(rows, columns, dtype, layout, float("inf"))
    expected = reference(x, gate, weight, EPSILON)
    got = np.asarray(y.detach().cpu().double().numpy() if hasattr(y, "detach") else y, dtype=np.float64)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    return Case(rows, columns, dtype, layout, error if error == error else float("inf"))


def laid_out(x, gate, layout: str):
    """The same values in another place: as two halves of one tensor, or with columns side by side."""
    import torch

    one_of(LAYOUTS, layout=layout)
    if layout == "sliced":
        return torch.cat([x, gate], -1).split(x.shape[-1], -1)
    if layout == "transposed":
        return x.t().contiguous().t(), gate.t().contiguous().t()
    return x, gate
