"""The checkers of lab B: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest
import torch
from torch import nn

from labsupport import export
from labsupport.exercises import labB
from labsupport.exercises.base import assert_checker, assert_complete

NAMES = {"export": export, "nn": nn, "tempfile": tempfile}


def test_the_lab_holds_five_exercises_with_hints_and_solutions():
    assert_complete(labB, ["compiles", "converted", "missing_names", "contained", "faster"])


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return torch.exp(torch.log_softmax(self.model(images), dim=1))


def plain(model, example):
    return export.to_onnx(nn.Sequential(model, nn.Softmax(-1)).eval(), example)


def test_converted():
    def frozen(model, example):
        return export.to_onnx(nn.Sequential(model, nn.Softmax(-1)).eval(), example, dynamic=False)

    def trained_on(model, example):
        with torch.no_grad():
            model[1].running_mean += 1
        return plain(model, example)

    def appended(model, example):
        return export.to_onnx(model.append(nn.Softmax(-1)), example)

    def left_in_training(model, example):
        graph = plain(model, example)
        model.train()
        return graph

    def parts_in_training(model, example):
        return export.to_onnx(nn.Sequential(*model, nn.Softmax(-1)).train(), example)

    assert_checker(labB.converted, wrong=[
        (appended, "changed the model itself"), (left_in_training, "changed the model itself"), (parts_in_training, "changed the model itself"),
        (lambda m, e: export.to_onnx(m, e), "do not sum to 1: these are no probabilities"), (frozen, "it refuses 1 images|it refuses 7 images"),
        (lambda m, e: export.to_onnx(nn.Sequential(m, nn.Softmax(0)).eval(), e), "the softmax went over the batch"),
        (lambda m, e: export.to_onnx(nn.Sequential(m, nn.Softmax(-1), nn.Softmax(-1)).eval(), e), "the probabilities are off by"),
        (trained_on, "changed the model's weights or statistics"), (lambda m, e: m, "wanted is the OnnxGraph"), (lambda m, e: None, "wanted is the OnnxGraph"),
        (lambda m, e: export.to_onnx(nn.Sequential(m, nn.Sigmoid()).eval(), e), "do not sum to 1"), ("graph", "hand in the function itself"),
        (lambda m, e: plain(nn.Linear(3, 3), torch.zeros(1, 3)), "it refuses"), (lambda m: m, "TypeError"),
    ], right=[plain, lambda m, e: export.to_onnx(Wrapped(m).eval(), e), lambda m, e: plain(m, e).path], namespace=NAMES)  # fmt: skip


def by_tree(code, names):
    nodes = list(ast.walk(ast.parse(code)))
    aliases = {a.asname or a.name for n in nodes if isinstance(n, ast.Import) for a in n.names if a.name == "tensorrt"}
    taken = {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "tensorrt" for a in n.names}
    taken |= {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in aliases
    }
    return taken - set(names)


class Visitor(ast.NodeVisitor):
    def __init__(self):
        self.aliases, self.taken = [], []

    def visit_Import(self, node):
        self.aliases += [alias.asname or "tensorrt" for alias in node.names if alias.name == "tensorrt"]

    def visit_ImportFrom(self, node):
        self.taken += [alias.name for alias in node.names if node.module == "tensorrt"]

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and node.value.id in self.aliases:
            self.taken.append(node.attr)
        self.generic_visit(node)


def by_visitor(code, names):
    visitor = Visitor()
    visitor.visit(ast.parse(code))
    return sorted({name for name in visitor.taken if name not in names})


def by_text(code, names):
    return set(re.findall(r"trt\.(\w+)", code)) - names


def by_running(code, names):
    exec(code)
    return set()


EITHER = "came too much|known to nobody"  # the cases come in a new order each time


def test_missing_names():
    def no_aliases(code, names):
        return by_tree(code.replace(" as trt", ""), names)

    def no_from(code, names):
        return by_tree("\n".join(line for line in code.splitlines() if not line.startswith("from")), names)

    def every_attribute(code, names):
        return {n.attr for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute)} - names

    def by_prefix(code, names):
        """tensorrt_llm and tensorrt_rtx are other modules."""
        return by_tree(re.sub(r"tensorrt_\w+", "tensorrt", code), names)

    assert_checker(labB.missing_names, wrong=[
        (by_prefix, "came too much"), (lambda c, n: [[each] for each in by_tree(c, n)], "each of them text|known to nobody"),
        (by_text, EITHER), (no_from, EITHER), (every_attribute, EITHER), (lambda c, n: by_tree(c, ()), "came too much"),
        (lambda c, n: set(), "known to nobody"), (by_running, "raised|known to nobody"), (lambda c, n: "x", "wanted is a set of names"), (lambda c, n: 3, "wanted is a set"),
        (no_aliases, f"{EITHER}|raised"), ({"x"}, "hand in the function itself"),
    ], right=[by_tree, by_visitor, lambda c, n: (name for name in by_tree(c, n))], namespace=NAMES)  # fmt: skip


def by_run(code, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        try:
            child = subprocess.run(
                [sys.executable, "-c", code],
                cwd=scratch,
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        except subprocess.TimeoutExpired:
            return "hung"
    return "ok" if child.returncode == 0 else "raised"


def by_popen(code, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        child = subprocess.Popen(
            [sys.executable, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=scratch,
        )
        try:
            child.communicate(code.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return "hung"
        return "raised" if child.returncode else "ok"


def by_sandbox(code, seconds):
    from labsupport.listings import sandbox

    kind = sandbox.python(code, seconds=seconds).kind
    return kind if kind in ("ok", "hung") else "raised"


def by_exec(code, seconds):
    try:
        exec(code, {})
    except BaseException:
        return "raised"
    return "ok"


def in_this_folder(code, seconds):
    try:
        child = subprocess.run(
            [sys.executable, "-c", code], timeout=seconds, stdin=subprocess.DEVNULL, capture_output=True
        )
    except subprocess.TimeoutExpired:
        return "hung"
    return "ok" if child.returncode == 0 else "raised"


RUNNING = []


def left_running(code, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            RUNNING.append(child)
            return "hung"
    return "ok" if child.returncode == 0 else "raised"


def interrupted(code, seconds):
    """An interrupt is an exception to Python code, so code that catches all goes on."""
    with tempfile.TemporaryDirectory() as scratch:
        away = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
        child = subprocess.Popen([sys.executable, "-c", code], cwd=scratch, **away)
        RUNNING.append(child)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)  # a loop that does not catch it ends, however busy the machine is
            return "hung"
    return "ok" if child.returncode == 0 else "raised"


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    for child in RUNNING:
        child.kill()
        child.wait()
    RUNNING.clear()
    assert os.listdir() == []


def test_contained(in_empty_folder):
    assert_checker(labB.contained, wrong=[
        (in_this_folder, "code that writes a file: the file stayed in the current folder"), (left_running, 'you said "hung", and it is still running'),
        (lambda c, s: "ok", "code that raises: your function says 'ok'"), (lambda c, s: by_run(c, s) == "ok", "your function says True"),
        (lambda c, s: "hung", "code that ends: your function says 'hung'"), (lambda c, s: "hung" if "while" in c else by_run(c, s), "Was it run at all"),
        (interrupted, "code that catches all: you said .hung., and it is still running"), ("ok", "hand in the function itself"),
    ], right=[by_run, by_popen, by_sandbox], namespace=NAMES)  # fmt: skip


def test_an_answer_that_runs_the_code_here_is_seen():
    """It would end at the first loop, so the checker meets exit codes before."""
    assert (
        labB.contained.check(
            lambda code, seconds: by_exec(code, seconds) if "_exit" not in code and "while" not in code else "raised"
        ).outcome
        == "wrong"
    )


def test_faster():
    assert_checker(labB.faster, wrong=[
        (lambda b, a: 100 * (1 - a / b), "is the time saved"), (lambda b, a: b / a, "wanted are percent"), (lambda b, a: 100 * b / a, "take the 100 % off"),
        (lambda b, a: b / a - 1, "wanted are percent"), (lambda b, a: abs(100 * (b / a - 1)), "it became slower"), (lambda b, a: b - a, "is right"),
        (lambda b, a: "30 %", "a number is wanted"), (lambda b, a: 100 * (a / b - 1), "came, and"), (30, "hand in the function itself"),
    ], right=[lambda b, a: 100 * (b / a - 1), lambda before_ms, after_ms: (1000 / after_ms - 1000 / before_ms) / (1000 / before_ms) * 100], namespace=NAMES)  # fmt: skip


@pytest.mark.parametrize("name", ["converted", "missing_names", "contained", "faster"])
def test_a_solution_changes_nothing_else_in_the_notebook(name):
    import solutions

    starters = {"convert", "missing", "contained", "percent_faster"}
    assert not solutions.shared_names(getattr(labB, name).solution_source, "B_article_map", starters=starters)
