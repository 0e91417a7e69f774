"""Exercises of lab B: a count foretold, a conversion, invented names, a child process, and what "faster" means."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from labsupport import files
from labsupport.errors import first_line
from labsupport.exercises.answers import as_number, described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.labB_sources import KNOWN, LOOP, SOURCES, STUBBORN

LAB = "B_article_map"


class Compiles(Prediction):
    question = "How many of the article's Python listings run to their end as printed?"
    quantity = "listings that run as printed"
    least = 0
    within = 1.5


class Converted(Exercise):
    question = (
        "Write `convert(model, example)`: an OnnxGraph of the model that answers with probabilities and takes any "
        "number of images. The model gives logits, and has to be left as it is. Hand in the function."
    )
    hints = (
        "The softmax may be a module around the model: nn.Sequential(model, nn.Softmax(-1)).",
        "export.to_onnx(wrapped, example) frees the batch axis; dynamic=False would freeze it. Put the wrapped "
        "model in eval mode.",
    )
    solution_source = """
        def convert(model, example):
            return export.to_onnx(nn.Sequential(model, nn.Softmax(-1)).eval(), example)

        labB.converted.check(convert)
    """
    answer = "The softmax goes over the classes, the last axis; the exporter keeps the batch free."

    def judge(self, convert: Callable) -> str:
        import numpy as np
        import torch

        from labsupport import export, runtimes

        model, example, batches = _network()
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        layers, training = str(model), model.training
        graph = convert(model, example)
        if str(model) != layers or model.training != training:
            raise Wrong("the function changed the model itself (its layers or its mode); build a new one around it.")
        graph = export.load(graph) if isinstance(graph, (str, Path)) else graph
        if not isinstance(graph, export.OnnxGraph):
            raise Wrong(
                f"the function gave {described(graph)}; wanted is the OnnxGraph of export.to_onnx or export.load."
            )
        if any(not torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items()):
            raise Wrong("the function changed the model's weights or statistics; leave them as they are.")
        if len(graph.outputs) != 1 or len(graph.inputs) != 1:
            raise Wrong(f"inputs {list(graph.inputs)} and outputs {list(graph.outputs)}; one of each is wanted.")
        with runtimes.OnnxRuntime(graph) as run:
            for batch in batches:
                with torch.inference_mode():
                    wanted = model.eval()(batch).softmax(-1).numpy()
                try:
                    given = np.asarray(next(iter(run(batch.numpy()).values())))
                except Exception as error:
                    raise Wrong(
                        f"it refuses {len(batch)} images: {first_line(error)}. Is the batch axis free?"
                    ) from None
                self._compare(given, wanted, len(batch))
        return "One file, any batch, probabilities: that is what the article's converter and server were for."

    @staticmethod
    def _compare(given, wanted, count: int) -> None:
        import numpy as np

        if given.shape != wanted.shape:
            raise Wrong(f"for {count} images the answer has shape {given.shape}; wanted is {wanted.shape}.")
        if np.abs(given - wanted).max() < 1e-5:
            return
        if not np.allclose(given.sum(-1), 1, atol=1e-4):
            if count == 1 or not np.allclose(given.sum(0), 1, atol=1e-4):
                raise Wrong(f"the {count} answers do not sum to 1: these are no probabilities. Where is the softmax?")
            raise Wrong(
                "each class sums to 1 over the images: the softmax went over the batch; it belongs over the classes."
            )
        raise Wrong(
            f"the probabilities are off by up to {np.abs(given - wanted).max():.2g}. Was the model in eval "
            "mode, and the softmax there once?"
        )


class MissingNames(Exercise):
    question = (
        "Write `missing(code, names)`: the set of names that the Python source `code` takes from the module tensorrt "
        "(trt.Name, from tensorrt import Name) and that are not in the set `names`. The code must not be run. "
        "Hand in the function."
    )
    hints = (
        "ast.parse gives a tree, ast.walk every node. Import nodes say under which name the module goes; "
        "Attribute nodes with that name are uses.",
        "For `import tensorrt as t` keep t; for each ast.Attribute whose value is ast.Name with that id, its "
        "attr is taken. ImportFrom names count, too.",
    )
    solution_source = """
        import ast

        def missing(code, names):
            nodes = list(ast.walk(ast.parse(code)))
            aliases = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import)
                       for alias in node.names if alias.name == "tensorrt"}
            taken = {alias.name for node in nodes if isinstance(node, ast.ImportFrom)
                     for alias in node.names if node.module == "tensorrt"}
            for node in nodes:
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                    taken.add(node.attr)
            return taken - set(names)

        labB.missing_names.check(missing)
    """
    answer = "A syntax tree sees aliases and ignores comments; a search for text does neither."

    def judge(self, missing: Callable) -> str:
        import random

        for name, template, wanted in random.sample(SOURCES, len(SOURCES)):
            words = {
                key: f"{key.upper()}{random.choice(('Graph', 'Server', 'Core'))}{random.randint(10, 99)}"
                for key in "xy"
            }
            code = template.format(a=random.choice(("trt", "t", "engine_room")), **words)
            given = missing(code, set(KNOWN))
            if isinstance(given, str) or not hasattr(given, "__iter__"):
                raise Wrong(f"{name}: the function gave {described(given)}; wanted is a set of names.")
            if odd := next((each for each in given if not isinstance(each, str)), None):
                raise Wrong(f"{name}: {described(odd)} came; wanted is a set of names, each of them text.")
            given, right = set(given), {words[key] for key in wanted}
            shown = code.replace("\n", "; ")
            if given - right:
                raise Wrong(f"{name}: `{shown}`: {sorted(map(str, given - right))} came too much.")
            if right - given:
                raise Wrong(f"{name}: `{shown}`: {sorted(right - given)} is taken from tensorrt and known to nobody.")
        return "Run it on appendix E with a release's listing before you install anything."


class Contained(Exercise):
    question = (
        'Write `contained(code, seconds)`: run Python code in a child; answer "ok", "raised" or "hung" (and stop it). '
        "No file may be left in the current folder and no process running. Hand in the function."
    )
    hints = (
        "subprocess.run([sys.executable, '-c', code], cwd=..., timeout=seconds) stops the child when the time "
        "is over and raises TimeoutExpired.",
        "Use tempfile.TemporaryDirectory() as its folder; returncode 0 is ok. Send its output away: "
        "capture_output=True.",
    )
    solution_source = """
        import subprocess, sys

        def contained(code, seconds):
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    child = subprocess.run([sys.executable, "-c", code], cwd=scratch, timeout=seconds,
                                           stdin=subprocess.DEVNULL, capture_output=True)
                except subprocess.TimeoutExpired:
                    return "hung"
            return "ok" if child.returncode == 0 else "raised"

        labB.contained.check(contained)
    """
    answer = (
        "A folder of its own, a limit, no stdin: the least that unknown code deserves. `sandbox.python` also "
        "refuses other places."
    )

    def judge(self, contained: Callable) -> str:
        word = f"left_{os.urandom(4).hex()}"
        with files.scratch() as folder:
            mark = folder / "mark"
            cases = (
                ("code that ends", "x = 1 + 1", "ok"), ("code that prints a lot", "print('x' * 10**6)", "ok"),
                ("code that raises", "1 / 0", "raised"), ("code that does not compile", "x = (", "raised"),
                ("code that ends with an error code", "import sys; sys.exit(3)", "raised"),
                ("code that ends with code 0", "import sys; sys.exit(0)", "ok"),
                ("code that kills its process", "import os; os._exit(1)", "raised"),
                ("code that writes a file", f"open('{word}', 'w').write('x')", "ok"),
                ("code that loops", LOOP.format(mark=str(mark)), "hung"),
                ("code that asks for input", "input()", "raised"),
                ("code that catches all", STUBBORN.format(mark=str(mark) + "_stubborn"), "hung"),
            )  # fmt: skip
            for name, code, wanted in cases:
                self._one(contained, name, code, wanted, word)
            for name, file in (("code that loops", mark), ("code that catches all", Path(f"{mark}_stubborn"))):
                self._still(name, file)
        return "Eleven programs, three endings, nothing left."

    @staticmethod
    def _one(function: Callable, name: str, code: str, wanted: str, word: str) -> None:
        import time

        started = time.monotonic()
        limit = 2.0 if wanted == "hung" else 20.0
        before = set(os.listdir())
        try:
            given = function(code, limit)
        except SystemExit:
            raise Wrong(f"{name}: it ended your own program. Run the code in a child process.") from None
        took = time.monotonic() - started
        left = sorted(entry for entry in set(os.listdir()) - before if word in entry)
        for entry in left:
            os.unlink(entry)
        if given != wanted:
            raise Wrong(f"{name}: your function says {described(given)}; {wanted!r} is right.")
        if left:
            raise Wrong(
                f"{name}: the file stayed in the current folder. Give the child a folder of its own, and remove it."
            )
        if wanted == "hung" and took < 0.8 * limit:
            raise Wrong(
                f'{name}: you said "hung" after {took:.1f} s, and the limit was {limit:g} s. Was it run at all?'
            )
        if took > limit + 30:
            raise Wrong(
                f"{name}: it took {took:.0f} s with a limit of {limit:g} s. Is the child stopped when the time is over?"
            )

    @staticmethod
    def _still(name: str, mark: Path) -> None:
        import time

        size = mark.stat().st_size if mark.exists() else 0
        time.sleep(0.4)
        if mark.exists() and mark.stat().st_size != size:
            mark.unlink()
            raise Wrong(f'{name}: you said "hung", and it is still running. Stop the child, then wait for it.')


class Faster(Exercise):
    question = (
        "Write `percent_faster(before_ms, after_ms)`: by how many percent the rate (inferences in a second) rose. "
        "Negative where it fell. Hand in the function."
    )
    hints = (
        "The rate is 1 / time. From 10 ms to 5 ms the rate doubles: 100 percent more.",
        "It is 100 * (before_ms / after_ms - 1).",
    )
    solution_source = """
        def percent_faster(before_ms, after_ms):
            return 100 * (before_ms / after_ms - 1)

        labB.faster.check(percent_faster)
    """
    answer = '"30 % faster" is a rate of 1.3 and saves 23 % of the time; "30 % less time" is a rate of 1.43.'

    def judge(self, percent_faster: Callable) -> str:
        import random

        cases = [(10.0, 5.0), (13.0, 10.0), (5.0, 8.0), (7.0, 7.0)] + [
            (random.uniform(0.1, 50), random.uniform(0.1, 50)) for _ in range(10)
        ]
        for before, after in cases:
            given = as_number(percent_faster(before, after), f"percent_faster({before:g}, {after:g})")
            wanted = 100 * (before / after - 1)
            if math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-6):
                continue
            where = f"from {before:.4g} ms to {after:.4g} ms"
            if math.isclose(given, 100 * (1 - after / before), rel_tol=1e-6):
                raise Wrong(
                    f"{where}: {given:.4g} % is the time saved. The rate went from {1000 / before:.4g} to "
                    f"{1000 / after:.4g} in a second."
                )
            if math.isclose(given, wanted / 100, rel_tol=1e-6) or math.isclose(given, before / after, rel_tol=1e-6):
                raise Wrong(f"{where}: {given:.4g} came; wanted are percent, and only what was added.")
            if math.isclose(given, 100 * before / after, rel_tol=1e-6):
                raise Wrong(
                    f"{where}: {given:.4g} % is the new rate in percent of the old; take the 100 % off that "
                    "were there before."
                )
            if math.isclose(given, abs(wanted), rel_tol=1e-6):
                raise Wrong(f"{where}: it became slower, so the number is below 0.")
            raise Wrong(f"{where}: {given:.4g} came, and {wanted:.4g} % is right.")
        return "Say which of the two you mean, and name the rival."


def _network():
    """(network, example, batches of 2, 1 and 7 images), drawn anew; dropout tells training from use."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(4), "little"))
        layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 5)
        layers[1].running_mean.normal_()
        return nn.Sequential(*layers).eval(), torch.randn(2, 1, 6, 6), [torch.randn(n, 1, 6, 6) for n in (2, 1, 7)]


compiles = Compiles()
converted = Converted()
missing_names = MissingNames()
contained = Contained()
faster = Faster()
