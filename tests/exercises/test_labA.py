"""The checkers of lab A: untouched, each foreseen mistake, right answers in two ways; and which cells need NumPy only."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from labsupport.exercises import labA
from labsupport.exercises.base import assert_checker, assert_complete

NAMES = {"np": np, "math": math}
NOTEBOOK = (
    next(parent for parent in Path(__file__).resolve().parents if (parent / "notebooks").is_dir())
    / "notebooks"
    / "A_mathematics.ipynb"
)


def cells(tag: str) -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [
        "".join(cell["source"])
        for cell in content["cells"]
        if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])
    ]


def test_the_lab_holds_five_exercises_with_hints_and_solutions():
    assert_complete(labA, ["signs", "cross_entropy", "repaired", "layer_norm", "safe_length"])


def right_loss(z, labels):
    rows, shifted = np.arange(len(z)), z - z.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    slope = np.exp(logs)
    slope[rows, labels] -= 1
    return -logs[rows, labels].mean(), slope / len(z)


def loss_row_by_row(z, labels):
    losses, slopes = [], []
    for row, label in zip(z.tolist(), labels.tolist()):
        top = max(row)
        total = sum(math.exp(value - top) for value in row)
        losses.append(top + math.log(total) - row[label])
        slopes.append([math.exp(value - top) / total - (place == label) for place, value in enumerate(row)])
    return sum(losses) / len(z), np.array(slopes) / len(z)


def by_torch(z, labels):
    import torch

    z = torch.tensor(z, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(labels))
    loss.backward()
    return loss, z.grad


def plain(z, labels):
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(z)), labels]).mean(), (p - np.eye(z.shape[1])[labels]) / len(z)


def clipped(z, labels):
    p = np.clip(
        np.exp(z - z.max(1, keepdims=True)) / np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True), 1e-12, 1
    )
    return -np.log(p[np.arange(len(z)), labels]).mean(), (p - np.eye(z.shape[1])[labels]) / len(z)


def whole_batch_maximum(z, labels):
    return plain(z - z.max() + 5, labels)


def changes(z, labels):
    z -= z.max(1, keepdims=True)
    return right_loss(z, labels)


def scaled(by_loss, by_slope):
    return lambda z, labels: (
        right_loss(z, labels)[0] * (len(z) if by_loss else 1),
        right_loss(z, labels)[1] * by_slope(z),
    )


def test_cross_entropy():
    assert_checker(labA.cross_entropy, wrong=[
        (plain, "logits around 1,000: the answer holds NaN or infinity. Is the largest"), (clipped, "logits 2,000 apart: the loss is"),
        (changes, "changed an array"), (scaled(True, len), "that is the sum over the rows"), (scaled(False, len), "gradient of the sum; divide"),
        (scaled(False, lambda z: -1), "its sign is turned round"), (scaled(False, lambda z: 0.5), "the gradient is off by up to"),
        (lambda z, labels: right_loss(z, labels)[0], "wanted are two"), (lambda z, labels: (right_loss(z, labels)[0], None), "the gradient is None"),
        (lambda z, labels: (right_loss(z, labels)[0], right_loss(z, labels)[1].T), "has shape|off by"), (lambda z, labels: right_loss(z, labels)[::-1], "the loss has shape"),
        (3, "hand in the function itself"), (lambda z: 0, "TypeError"), (whole_batch_maximum, "NaN or infinity|the loss is"),
    ], right=[right_loss, loss_row_by_row, by_torch], namespace=NAMES)  # fmt: skip


def back(x, y, W1, b1, W2, b2, *, sign=1, factor=None, sigma=True):
    h = 1 / (1 + np.exp(-(x @ W1 + b1)))
    d2 = sign * (h @ W2 + b2 - y) * (2 / y.size if factor is None else factor(y))
    d1 = (d2 @ W2.T) * (h * (1 - h) if sigma else h)
    return x.T @ d1, d1.sum(0), h.T @ d2, d2.sum(0)


def back_by_einsum(x, y, W1, b1, W2, b2):
    h = 0.5 * (1 + np.tanh((np.einsum("nd,dh->nh", x, W1) + b1) / 2))
    d2 = 2 * (np.einsum("nh,hk->nk", h, W2) + b2 - y) / (y.shape[0] * y.shape[1])
    d1 = np.einsum("nk,hk->nh", d2, W2) * (h - h**2)
    return [np.einsum("nd,nh->dh", x, d1), np.sum(d1, axis=0), np.einsum("nh,nk->hk", h, d2), np.sum(d2, axis=0)]


def back_by_torch(*arrays):
    import torch

    x, y, *weights = (torch.tensor(array, requires_grad=index > 1) for index, array in enumerate(arrays))
    h = torch.sigmoid(x @ weights[0] + weights[1])
    return torch.autograd.grad(torch.nn.functional.mse_loss(h @ weights[2] + weights[3], y), weights)


def test_repaired():
    assert_checker(labA.repaired, wrong=[
        (lambda *a: back(*a, sign=-1), "7 rows, 5 inputs, 4 hidden, 3 outputs: W1: its sign is turned round"),
        (lambda *a: back(*a, factor=lambda y: 1), "the factor 2 / y.size is missing"), (lambda *a: back(*a, factor=lambda y: 2 / len(y)), "divided by the rows only"),
        (lambda *a: back(*a, factor=lambda y: 1 / y.size), "the factor 2 of the square"), (lambda *a: back(*a, factor=lambda y: 2), "division by y.size is missing"),
        (lambda *a: back(*a, sigma=False), "W1: it is off by .*Hold it against differences"), (lambda *a: back(*a)[:2], "wanted are four gradients"),
        (lambda *a: back(*a)[::-1], "the gradient of W1 has shape"), (lambda x, y, W1, b1, W2, b2: (x * (y - y), 0, 0, 0), "ValueError"),
        (lambda *a: (*back(*a)[:3], back(*a)[3] * 2), "b2: it is off"), (lambda x, y, *w: [x.sort(), *back(x, y, *w)][1:], "changed an array"), (np.ndarray, "hand in the function"),
    ], right=[back, back_by_einsum, back_by_torch], namespace=NAMES)  # fmt: skip


def norm_back(g, x, weight, epsilon, *, axis=-1, inside=True, constants=False):
    spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    x_hat = (x - x.mean(-1, keepdims=True)) / spread
    gw = g * weight if inside else g
    dx = (
        gw - (0 if constants else gw.mean(axis, keepdims=True) + x_hat * (gw * x_hat).mean(axis, keepdims=True))
    ) / spread
    return dx if inside else dx * weight, (g * x_hat).sum(0)


def norm_by_torch(g, x, weight, epsilon):
    import torch

    x, weight = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    out = torch.nn.functional.layer_norm(x, weight.shape, weight, None, epsilon)
    return torch.autograd.grad((torch.tensor(g) * out).sum(), (x, weight))


def test_layer_norm():
    assert_checker(labA.layer_norm, wrong=[
        (lambda *a: norm_back(*a, axis=0), "Over which axis is averaged"), (lambda *a: norm_back(*a, inside=False), "is the weight inside the means"),
        (lambda *a: norm_back(*a, constants=True), "takes mean and spread as constants"), (lambda g, x, w, e: norm_back(g, x, w, 1e-5), "Is epsilon in the spread"),
        (lambda *a: (norm_back(*a)[0], norm_back(*a)[1] / len(a[0])), "dx is right, dweight is not"), (lambda *a: norm_back(*a)[0], "wanted are two"),
        (lambda *a: norm_back(*a)[::-1], "dx has shape"), (lambda g, x, w, e: (g, np.inf * w), "off by"),
        (lambda *a: (np.nan * a[1], norm_back(*a)[1]), "dx holds NaN"), (lambda *a: (norm_back(*a)[0], np.nan * a[2]), "dweight is not"), ("text", "hand in the function itself"),
    ], right=[norm_back, norm_by_torch], namespace=NAMES)  # fmt: skip


def by_search(u, tolerance):
    k = 0
    while (k + 1) * u < 1 and (k + 1) * u / (1 - (k + 1) * u) <= tolerance:
        k += 1
    return k + 1


def test_safe_length():
    right = labA._most_additions
    assert_checker(labA.safe_length, wrong=[
        (lambda u, t: right(u, t), "That is the number of additions"), (lambda u, t: right(u, t) + 2, "already beyond the tolerance"),
        (lambda u, t: math.floor(t / u) + 1, "gamma is k u / .1 - k u., not k u alone|already beyond"), (lambda u, t: t / (1 + t) / u + 1, "a whole number of numbers"),
        (lambda u, t: math.ceil(t / (1 + t) / u), "u = 0.000488281, tolerance 1: 1024 came. That is the number of additions"),
        (lambda u, t: 21, "and .* is right"), (lambda u, t: None, "a number is wanted"), (21, "hand in the function itself"), (lambda u: 21, "TypeError"),
    ], right=[by_search, lambda u, t: int(t / ((1 + t) * u)) + 1, lambda u, t: Fraction(by_search(u, t))], namespace=NAMES)  # fmt: skip


BROWSER = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"not in a browser: {name}")

ALLOWED = {"numpy", *sys.stdlib_module_names}
sys.meta_path.insert(0, Refused())
"""


def test_cells_that_say_so_need_numpy_only():
    tagged = cells("numpy-only")
    script = (
        BROWSER + "\n".join(tagged) + "\nassert not {'torch', 'onnx', 'labsupport', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-"],
        input=script,
        cwd=NOTEBOOK.parent,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    everything = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(tagged) > 0.4 * sum(cell["cell_type"] == "code" for cell in everything)


def test_a_cell_that_needs_more_would_be_seen():
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=BROWSER + "import torch", capture_output=True, text=True, timeout=60
    )
    assert "not in a browser: torch" in done.stderr


def test_the_engine_has_at_most_sixty_lines():
    lines = [line.strip() for cell in cells("engine") for line in cell.splitlines()]
    assert 30 < sum(bool(line) and not line.startswith(('"""', "#")) for line in lines) <= 60


@pytest.mark.parametrize("name", ["cross_entropy", "repaired", "layer_norm", "safe_length"])
def test_a_solution_changes_nothing_else_in_the_notebook(name):
    import solutions

    starters = {"cross_entropy", "backward", "layer_norm_back", "safe_length"}
    assert not solutions.shared_names(getattr(labA, name).solution_source, "A_mathematics", starters=starters)
