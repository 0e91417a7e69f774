"""The gradient check: right slopes pass, wrong ones show, and a point without a slope is refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport.errors import BadInput
from labsupport.training import gradients

POINT = np.array([[0.3, -1.2], [2.0, 5.0]])
SMOOTH = {
    "square": (lambda x: (x**2).sum(), lambda x: 2 * x),
    "exponential": (lambda x: np.exp(x).sum(), np.exp),
    "product": (lambda x: x.prod(), lambda x: x.prod() / x),
    "sine": (lambda x: np.sin(3 * x).sum(), lambda x: 3 * np.cos(3 * x)),
    "straight line": (lambda x: 7 * x.sum() + 1e6, lambda x: np.full_like(x, 7)),
}


@pytest.mark.parametrize("function, gradient", SMOOTH.values(), ids=SMOOTH)
def test_smooth_functions_agree(function, gradient):
    assert gradients.check(function, gradient(POINT), POINT).gap < 1e-4
    assert np.allclose(gradients.numeric(function, POINT), gradient(POINT), rtol=1e-4)


def test_the_bottom_of_a_parabola_is_no_kink():
    assert np.abs(gradients.numeric(lambda x: 1 + (x**2).sum(), np.zeros(3))).max() < 1e-9
    assert np.abs(gradients.numeric(lambda x: (x**4).sum(), np.zeros(3))).max() < 1e-9


@pytest.mark.parametrize("distance", [1e-3, 4e-6, 1e-6, 5e-7, -7e-7, 2e-7])
def test_beside_a_kink_the_slope_is_the_one_of_its_side(distance):
    assert gradients.numeric(lambda x: np.abs(x).sum(), np.array([distance])) == pytest.approx(
        np.sign(distance), abs=1e-6
    )


@pytest.mark.parametrize("function, said", [
    (lambda x: np.abs(x).sum(), "the slope is -1 from the left and 1 from the right"),
    (lambda x: np.maximum(x, 0).sum(), "the slope is 0 from the left and 1 from the right"),
    (lambda x: float(np.max(np.append(x, 0.0))), "kink at (1,)"),
    (lambda x: np.sqrt(np.abs(x)).sum(), "kink"),
    (lambda x: np.where(x < 0, 0.0, 1.0).sum(), "kink"),
])  # fmt: skip
def test_a_kink_is_refused(function, said):
    with pytest.raises(BadInput, match="there is no derivative at 0; move the point off it") as refused:
        gradients.numeric(function, np.array([-1.0, 0.0]))
    assert said in str(refused.value)


@pytest.mark.parametrize("function, point, options, said", [
    (lambda x: x, POINT, {}, "gave float64 of shape .2, 2.; a gradient needs one real number"),
    (lambda x: "3", POINT, {}, "a gradient needs one real number"),
    (lambda x: complex(3), POINT, {}, "a gradient needs one real number"),
    (lambda x: np.log(x).sum(), np.array([0.0]), {}, "gave -inf near this point|gave nan near"),
    (lambda x: x.sum(), np.array([np.nan]), {}, "holds NaN or infinity"),
    (lambda x: x.sum(), np.zeros(0), {}, "has shape .0,. and so no entry"),
    (lambda x: x.sum(), ["a"], {}, "a list that holds no real numbers"),
    (lambda x: x.sum(), POINT, {"step": 0}, "step=0; wanted is a number between 0 and 1"),
    (lambda x: x.sum(), POINT, {"step": -1e-6}, "wanted is a number between"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_has_no_gradient_is_refused(function, point, options, said):
    with pytest.raises(BadInput, match=said):
        gradients.numeric(function, point, **options)


def test_a_wrong_gradient_shows_where():
    wrong = 2 * POINT
    wrong[1, 0] += 0.5
    seen = gradients.check(SMOOTH["square"][0], wrong, POINT)
    assert seen.index == (1, 0) and seen.gap == pytest.approx(0.05, rel=1e-3)
    assert repr(seen).startswith("gap 5.0e-02 at (1, 0): 4.5 by hand, 4")


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(BadInput, match=r"the gradient has shape \(2,\), the point \(2, 2\)"):
        gradients.check(SMOOTH["square"][0], np.zeros(2), POINT)


def test_the_point_is_not_moved():
    kept = POINT.copy()
    gradients.numeric(lambda x: (x**2).sum(), POINT)
    assert (POINT == kept).all()
