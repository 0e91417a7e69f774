"""Exercises of lab A: a prediction, a loss with its gradient, back-propagation mended, layer norm backward, a "
"safe sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import array_of, on_arrays

LAB = "A_mathematics"
CLOSE = 1e-6


class WrongSigns(Prediction):
    question = "How many of the article's two gradients, dJ_dW and dJ_db, have the right sign?"
    quantity = "gradients with the right sign"
    least = 0

    def _against(self, guess: float, measured: float, seen: str) -> str:
        if guess != measured:
            raise Wrong(
                f"you predicted {guess:g}, and {measured:g} have. The listing starts with truth minus prediction."
            )
        return f"You predicted {guess:g}."


class CrossEntropy(Exercise):
    question = (
        "Write `cross_entropy(z, labels)` in NumPy: logits (N, C) and class numbers (N,) in, the mean loss and its "
        "gradient by the logits (N, C) out. Hand in the function."
    )
    hints = (
        "Subtract each row's largest logit first; the loss is log(sum(exp(shifted))) - shifted[true class].",
        "The gradient is softmax minus one-hot, divided by the number of rows.",
    )
    solution_source = """
        def cross_entropy(z, labels):
            rows = np.arange(len(z))
            logs = z - z.max(1, keepdims=True)
            logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
            slope = np.exp(logs)
            slope[rows, labels] -= 1
            return -logs[rows, labels].mean(), slope / len(z)

        labA.cross_entropy.check(cross_entropy)
    """
    answer = "In log space nothing overflows, and the logarithm's 1/p never appears."

    def judge(self, cross_entropy: Callable) -> str:
        import numpy as np

        draw = np.random.default_rng()
        for name, z, labels in (
            ("an everyday batch", draw.standard_normal((6, 5)), draw.integers(0, 5, 6)),
            ("one row", draw.standard_normal((1, 7)), draw.integers(0, 7, 1)),
            ("logits around 1,000", 1000 + draw.standard_normal((4, 3)), draw.integers(0, 3, 4)),
            ("logits 2,000 apart", np.array([[0.0, 2000.0], [0.0, -2000.0]]), np.array([0, 0])),
            ("logits around -1,000", draw.standard_normal((4, 3)) - 1000, draw.integers(0, 3, 4)),
        ):
            want_loss, want_slope = _cross_entropy(z, labels)
            loss, slope = _two(on_arrays(cross_entropy, z, labels), "the loss and its gradient")
            loss, slope = array_of(loss, (), f"{name}: the loss"), array_of(slope, z.shape, f"{name}: the gradient")
            if not (np.isfinite(loss).all() and np.isfinite(slope).all()):
                raise Wrong(
                    f"{name}: the answer holds NaN or infinity. Is the largest logit of each row subtracted first?"
                )
            if abs(loss - want_loss) > CLOSE * max(1, abs(want_loss)):
                if len(z) > 1 and abs(loss - want_loss * len(z)) < CLOSE * max(1, abs(want_loss * len(z))):
                    raise Wrong(f"{name}: that is the sum over the rows; wanted is the mean.")
                raise Wrong(f"{name}: the loss is {float(loss):.6g}; {want_loss:.6g} is right.")
            self._same(name, slope, want_slope, len(z))
        return "Stable from one end of the numbers to the other, and its gradient never exceeds 1 / N."

    @staticmethod
    def _same(name: str, slope, wanted, count: int) -> None:
        import numpy as np

        if np.abs(slope - wanted).max() <= CLOSE:
            return
        for factor, why in (
            (count, "it is the gradient of the sum; divide by the number of rows"),
            (-1, "its sign is turned round"),
        ):
            if np.abs(slope - factor * wanted).max() <= CLOSE * abs(factor):
                raise Wrong(f"{name}: the loss is right, the gradient is not: {why}.")
        raise Wrong(f"{name}: the loss is right, the gradient is off by up to {np.abs(slope - wanted).max():.2g}.")


class Repaired(Exercise):
    question = (
        "Write `backward(x, y, W1, b1, W2, b2)`: the gradients of the mean squared error by W1, b1, W2 and b2, in this "
        "order, for hidden = sigmoid(x @ W1 + b1) and y_hat = hidden @ W2 + b2. Hand in the function; NumPy only."
    )
    hints = (
        "Start at the end: d2 = 2 * (y_hat - y) / y.size, then W2's gradient is hidden.T @ d2 and b2's is d2.sum(0).",
        "Go back through W2 and the sigmoid: d1 = (d2 @ W2.T) * hidden * (1 - hidden); W1's gradient is x.T @ d1.",
    )
    solution_source = """
        def backward(x, y, W1, b1, W2, b2):
            hidden = 1 / (1 + np.exp(-(x @ W1 + b1)))
            d2 = 2 * (hidden @ W2 + b2 - y) / y.size
            d1 = (d2 @ W2.T) * hidden * (1 - hidden)
            return x.T @ d1, d1.sum(0), hidden.T @ d2, d2.sum(0)

        labA.repaired.check(backward)
    """
    answer = "Each step is a product with what stood on the other side of the forward product, turned."

    def judge(self, backward: Callable) -> str:
        import numpy as np

        draw = np.random.default_rng()
        for n, d, h, k in ((7, 5, 4, 3), (1, 2, 6, 2), (4, 4, 4, 4)):
            x, y = draw.standard_normal((n, d)), draw.standard_normal((n, k))
            weights = [draw.standard_normal(shape) for shape in ((d, h), (h,), (h, k), (k,))]
            wanted = _two_layers(x, y, *weights)
            given = on_arrays(backward, x, y, *weights)
            if not isinstance(given, (tuple, list)) or len(given) != 4:
                raise Wrong(f"the function gave {described(given)}; wanted are four gradients: of W1, b1, W2, b2.")
            where = f"{n} rows, {d} inputs, {h} hidden, {k} outputs"
            for name, got, right in zip(("W1", "b1", "W2", "b2"), given, wanted):
                got = array_of(got, right.shape, f"{where}: the gradient of {name}")
                self._compare(f"{where}: {name}", got, right, n, k)
        return "Four gradients, three sets of sizes; the article's listing fails the first of them."

    @staticmethod
    def _compare(where: str, got, right, n: int, k: int) -> None:
        import numpy as np

        size = max(float(np.abs(right).max()), 1e-9)
        if np.abs(got - right).max() <= CLOSE * size:
            return
        mistakes = {-1.0: "its sign is turned round: it is prediction minus truth",
                 n * k / 2: "the factor 2 / y.size is missing", 0.5: "the factor 2 of the square is missing",
                 float(k): "it is divided by the rows only; the mean is over y.size numbers",
                 n * k: "the mean's division by y.size is missing"}  # fmt: skip
        for factor, why in mistakes.items():
            if factor != 1 and np.abs(got - factor * right).max() <= CLOSE * size * abs(factor):
                raise Wrong(f"{where}: {why}.")
        raise Wrong(
            f"{where}: it is off by {np.abs(got - right).max() / size:.0%} of its largest entry. Hold it "
            "against differences."
        )


class LayerNorm(Exercise):
    question = (
        "Write `layer_norm_back(g, x, weight, epsilon)`: the gradients by x (N, D) and by weight (D,) of weight * (x - "
        "mean) / spread, with mean and spread = sqrt(variance + epsilon) over the last axis, and g the gradient of the "
        "result. Hand in the function."
    )
    hints = (
        "First multiply g by the weight: that is the gradient of x_hat. Then the three terms of batch norm, "
        "averaged over the last axis.",
        "dx = (gw - gw.mean(-1) - x_hat * (gw * x_hat).mean(-1)) / spread with gw = g * weight; dweight = (g * "
        "x_hat).sum(0).",
    )
    solution_source = """
        def layer_norm_back(g, x, weight, epsilon):
            spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
            x_hat = (x - x.mean(-1, keepdims=True)) / spread
            gw = g * weight
            means = gw.mean(-1, keepdims=True), (gw * x_hat).mean(-1, keepdims=True)
            return (gw - means[0] - x_hat * means[1]) / spread, (g * x_hat).sum(0)

        labA.layer_norm.check(layer_norm_back)
    """
    answer = (
        "In batch norm the weight is one number for what is averaged and comes out; here it differs along the "
        "axis, so it stays inside the means."
    )

    def judge(self, layer_norm_back: Callable) -> str:
        import numpy as np

        draw = np.random.default_rng()
        for n, d, epsilon in ((5, 8, 1e-5), (1, 3, 1e-3), (6, 4, 0.5)):
            g, x, weight = draw.standard_normal((n, d)), 3 + 2 * draw.standard_normal((n, d)), draw.random(d) + 0.5
            want_x, want_weight = _layer_norm(g, x, weight, epsilon)
            dx, dweight = _two(on_arrays(layer_norm_back, g, x, weight, epsilon), "the gradients by x and by weight")
            where = f"{n} rows of {d}, epsilon {epsilon:g}"
            dx, dweight = array_of(dx, x.shape, f"{where}: dx"), array_of(dweight, weight.shape, f"{where}: dweight")
            if not np.isfinite(dx).all():
                raise Wrong(f"{where}: dx holds NaN or infinity. What is divided by 0?")
            size = np.abs(want_x).max()
            if np.abs(dx - want_x).max() > CLOSE * max(size, 1):
                spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
                if np.allclose(dx, g * weight / spread):
                    raise Wrong(
                        f"{where}: that takes mean and spread as constants; they depend on x, and give two more terms."
                    )
                usual = _layer_norm(g, x, weight, 1e-5)[0]  # one row of three may vary so little that this is far off
                if epsilon == 0.5 or np.abs(dx - usual).max() < 0.01 * size:
                    raise Wrong(
                        f"{where}: dx is nearly right. Is epsilon in the spread, added to the variance under the root?"
                    )
                raise Wrong(
                    f"{where}: dx is off by {np.abs(dx - want_x).max() / size:.0%}. Over which axis is "
                    "averaged, and is the weight inside the means?"
                )
            if not np.abs(dweight - want_weight).max() <= CLOSE * max(np.abs(want_weight).max(), 1):
                raise Wrong(f"{where}: dx is right, dweight is not: it is the sum over the rows of g * x_hat.")
        return "The norm of every transformer, backward."


class SafeLength(Exercise):
    question = (
        "Write `safe_length(u, tolerance)`: how many positive numbers may one accumulator of unit roundoff u (FP16: "
        "2**-11) add, at most, so that the bound above guarantees a relative error within the tolerance? Hand in the "
        "function."
    )
    hints = (
        "For positive numbers the sum of magnitudes is the sum itself, so the relative error is at most gamma(n - 1).",
        "Solve k u / (1 - k u) <= tolerance for the number of additions k = n - 1; it is a whole number.",
    )
    solution_source = """
        def safe_length(u, tolerance):
            return math.floor(tolerance / (1 + tolerance) / u) + 1

        labA.safe_length.check(safe_length)
    """
    answer = "k u / (1 - k u) <= t is k <= t / (1 + t) / u, and n numbers need k = n - 1 additions."

    def judge(self, safe_length: Callable) -> str:
        import random
        from fractions import Fraction

        from labsupport.exercises.answers import as_number

        cases = [(2.0**-11, 0.01), (2.0**-8, 0.05), (2.0**-24, 1e-3), (2.0**-11, 2.0**-12)]
        cases += [(2.0 ** -random.randint(6, 20), random.uniform(0.001, 0.3)) for _ in range(20)]
        for u, tolerance in cases:
            k = _most_additions(u, tolerance)
            answer = safe_length(u, tolerance)
            answer = int(answer) if isinstance(answer, Fraction) and answer.denominator == 1 else answer
            got = as_number(answer, f"safe_length({u:g}, {tolerance:.4g})")
            if got == k + 1:
                continue
            where = f"u = {u:g}, tolerance {tolerance:.4g}: {got:g} came"
            if got != int(got):
                raise Wrong(f"{where}; a whole number of numbers is wanted, rounded down.")
            if got == k:
                raise Wrong(f"{where}. That is the number of additions; n numbers need one less than n.")
            if got == k + 2:
                raise Wrong(f"{where}; with that many the bound is already beyond the tolerance.")
            if got in (math.floor(tolerance / u), math.floor(tolerance / u) + 1):
                raise Wrong(f"{where}, and {k + 1} is right: gamma is k u / (1 - k u), not k u alone.")
            raise Wrong(f"{where}, and {k + 1} is right. The bound is gamma(n - 1) <= tolerance.")
        return (
            "FP16 guarantees one percent for some twenty numbers only; that is why kernels add in FP32, or in blocks."
        )


def _most_additions(u: float, tolerance: float) -> int:
    """The largest k with gamma_k <= tolerance; exact, in fractions."""
    from fractions import Fraction

    unit, allowed = Fraction(u), Fraction(tolerance)
    return math.floor(allowed / (1 + allowed) / unit)


def _cross_entropy(z, labels):
    import numpy as np

    rows, logs = np.arange(len(z)), z - z.max(1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    return float(-logs[rows, labels].mean()), (np.exp(logs) - np.eye(z.shape[1])[labels]) / len(z)


def _two_layers(x, y, w1, b1, w2, b2):
    import numpy as np

    hidden = 1 / (1 + np.exp(-(x @ w1 + b1)))
    d2 = 2 * (hidden @ w2 + b2 - y) / y.size
    d1 = (d2 @ w2.T) * hidden * (1 - hidden)
    return x.T @ d1, d1.sum(0), hidden.T @ d2, d2.sum(0)


def _layer_norm(g, x, weight, epsilon):
    import numpy as np

    spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    x_hat, gw = (x - x.mean(-1, keepdims=True)) / spread, g * weight
    return (gw - gw.mean(-1, keepdims=True) - x_hat * (gw * x_hat).mean(-1, keepdims=True)) / spread, (g * x_hat).sum(0)


def _two(given: Any, what: str):
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise Wrong(f"the function gave {described(given)}; wanted are two: {what}.")
    return given


signs = WrongSigns()
cross_entropy = CrossEntropy()
repaired = Repaired()
layer_norm = LayerNorm()
safe_length = SafeLength()
