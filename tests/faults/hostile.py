"""Hostile calls on what the rooms hand on, drawn anew from a seed: right arguments but one, which nobody could want.

    python tests/faults/hostile.py SEED COUNT          # the whole set, in child processes
    python tests/faults/hostile.py --child SEED A B    # the calls A to B - 1, a line of JSON each

Every call runs in a child under a limit of time and memory, so that one that hangs or crashes is counted as such.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT_S = 30  # of one call
ROOMS = (
    "benchmarking build comparing data distillation environment export footprint fusion listings models phone "
    "placement plugins precision pruning quantization recordings roads runtimes serving training"
).split()
PARTS = (
    "placement.dispatch placement.pool placement.cuts placement.pipeline placement.transfers "
    "training.checkpoints precision.layerwise fusion.roofline comparing.timeline language.generation "
    "language.serving language.weights language.tokenizer"
).split()
# Starts servers, asks the hardware, or patches the process: not for a campaign of hundreds of calls.
LEFT_OUT = {
    "ray_cluster",
    "TritonServer",
    "Runtime",
    "Road",
    "Objective",
    "Refused",
    "session",
    "unregister",
    "register",
}

# What looks hostile and is right there: any text is a title, any number a seed, anything an item of a pipeline.
LABEL = ("300 characters", "a NUL")
RIGHT = dict.fromkeys(("name", "title", "label", "row", "article", "command"), LABEL) | {
    "seed": ("absurd",), "end": ("absurd",), "items": ("a set of sets", "bytes", "list of None"),
    "patience_s": ("infinite", "absurd"), "stall_s": ("infinite", "absurd"), "path": ("a path to nothing",),
}  # fmt: skip


class Raising:
    """Every attribute raises, as that of a closed session or a dead proxy does."""

    def __getattr__(self, name):
        raise ReferenceError(f"the object behind {name!r} is gone")

    def __repr__(self):
        raise ReferenceError("no name either")


class Endless:
    """A batch loader that never ends would hang; this one raises after a while."""

    def __iter__(self):
        for _ in range(10_000):
            yield None
        raise MemoryError("more batches than anybody wants")


def hostile_values(name: str, annotation: str, default: Any, draw: random.Random) -> tuple[str, Any]:
    """(its kind, a value that cannot be right for a parameter that is so annotated)."""
    wrong: dict[str, Any] = {
        "an object whose attributes raise": Raising(),
        "bytes": b"\x00\xff",
        "a set of sets": {frozenset({1})},
        "complex": complex(1, 2),
        "an ellipsis": ...,
        "a class": Raising,
    }
    if default is not None and "None" not in annotation and annotation:
        wrong["None"] = None
    elif not annotation and default is inspect.Parameter.empty:
        wrong["None"] = None
    if ("str" in annotation or "Path" in annotation) and "int" not in annotation:
        wrong |= {"a NUL": "a\0b", "300 characters": "x" * 300 + "/" + "y" * 300, "a number": 7, "a list": [1, 2]}
    elif "int" in annotation or "float" in annotation or type(default) in (int, float):
        wrong |= {
            "text": "many",
            "minus": -3,
            "NaN": math.nan,
            "infinite": math.inf,
            "a list": [1, 2],
            "absurd": 10**15,
        }
    elif "bool" in annotation or type(default) is bool:
        wrong |= {"text": "perhaps", "a list": [True]}
    elif any(word in annotation for word in ("Iterable", "Sequence", "tuple", "Mapping", "dict")):
        wrong |= {"a number": 3, "list of None": [None, None], "text with a newline": "two\n"}
    else:
        wrong |= {"text": "no such thing\n", "a number": 3, "list of None": [None], "a wrong mapping": {"a": Raising()}}
        wrong |= {"a path to nothing": Path("gone/away.onnx"), "endless": Endless()}
    for right in RIGHT.get(name, ()):
        wrong.pop(right, None)
    kind = draw.choice(sorted(wrong))
    return kind, wrong[kind]


class Right:
    """Arguments that a call would take, by the name of the parameter; made once, when first asked for."""

    def __init__(self, folder: Path):
        import numpy as np
        import torch

        from labsupport import benchmarking, data, export, models, quantization, runtimes

        self.folder = folder
        model = models.article_cnn(size=28)
        images = np.zeros((4, 1, 28, 28), np.float32)
        split = data.mnist().test.take(8)
        graph = export.to_onnx(model, model.example_input(), path=folder / "net.onnx")
        run = runtimes.OnnxRuntime(graph)
        feed = {next(iter(graph.inputs)): images}
        latency = benchmarking.latency(run, feed, runs=3, warmup=1)
        rows = [{"name": "a", "median ms": 1.0, "latency, ms": 1.0, "accuracy": 0.9}]
        self.values: dict[str, Any] = dict(
            model=model, student=model, teacher=model, images=torch.zeros(4, 1, 28, 28), split=split, batch=split,
            graph=graph, source=graph, run=run, runtime=run, feed=feed, feeds=[images], before=latency, after=latency,
            latencies=[latency], reference=images, outputs=images, expected=images, got=images, batches=[feed],
            example=model.example_input(), examples=torch.zeros(4, 1, 28, 28), plan=None, rows=rows, name="net",
            lab="01_measuring", path=folder / "made.onnx", folder=folder, op_type="Conv", domain="ours", requests=4,
            make_feed=lambda n: feed, build=lambda: graph, load=lambda made: run, evaluate=lambda *_: 0.5, budget=0.1,
            values=images, weight=torch.ones(8, 8), mask=torch.ones(8, 8, dtype=torch.bool), sparsity=0.5,
            layers=[], labels=torch.zeros(4, dtype=torch.long), tensors=["logits"], scale=quantization.scale_of(images + 1),
            codes=images.astype(np.int8), histogram=None, rate_per_s=5.0, submit=lambda feed: feed, arrivals_s=[0.0],
            arrivals_ms=[0.0, 1.0], service_ms={"a": [1.0]}, chosen="round-robin", load_share=0.5, mean_gap_ms=1.0,
            spans=[], items=[1, 2], stages={"one": lambda value: value}, mib=0.1, sizes_mib=[0.1, 0.2], epoch=1,
            facts={"seed": 0}, stem="net", logits=np.zeros(8, np.float32), tokens=[1, 2, 3, 1, 2], ahead=2, guesses=[1],
            metrics_folder=folder, command="python3", json_text='{"Layers": [1]}', buffer=np.zeros(100, np.uint8),
            features=torch.ones(2, 3, 4, 4), kind="pageable", roads={}, weights={}, length=4, vocabulary=9, engine=None,
            first=torch.nn.Conv2d(4, 4, 1), norm=None, second=torch.nn.Conv2d(4, 4, 1), keep=[0, 1], drop=[0], at=1,
            x=torch.ones(2, 8), gate=torch.ones(2, 8), make_first=runtimes.OnnxRuntime, rule=lambda *shapes: shapes[0],
            make_second=runtimes.OnnxRuntime, make=lambda node: [node], body=None, columns=8, layout="rows",
            classes=3, low=-1.0, high=1.0, limits=None, steps=[("relu", 1.0, ["images"])], lives=None,
            session=None, network=model, temperature=1.0, optimizer=None, step=lambda *_: 0.0, masks={},
            criterion="magnitude", sequence=[1], to="fp16", inputs=["images"], target="tensorrt",
        )  # fmt: skip


def callables() -> list[tuple[str, Any]]:
    """(how it is called, the function or class), of every room's face and of the parts that learners import."""
    found = {}
    for place in [*ROOMS, *PARTS]:
        module = importlib.import_module(f"labsupport.{place}")
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            result = inspect.isclass(value) and hasattr(value, "__dataclass_fields__")
            plain = result and "__post_init__" not in vars(value)  # what a call returns, not what it takes
            signature = _signature(value)
            if not (name.startswith("_") or name in LEFT_OUT or plain or signature is None) and signature.parameters:
                found[f"{place}.{name}"] = value
    return sorted(found.items())


def _signature(value):
    if not callable(value) or inspect.isclass(value) and issubclass(value, BaseException):
        return None
    with contextlib.suppress(ValueError, TypeError):
        return inspect.signature(value)
    return None


def draw(seed: int, number: int, known: list, right: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """The call of this number: (what it does, the function, its arguments)."""
    dice = random.Random(f"{seed}/{number}")
    while True:
        title, function = dice.choice(known)
        parameters = [
            each
            for each in inspect.signature(function).parameters.values()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        ]
        if parameters:
            break
    given = {each.name: right[each.name] for each in parameters if each.default is each.empty and each.name in right}
    way = dice.random()
    if way < 0.05:
        return f"{title}(…, quality=11)", function, {**given, "quality": 11}
    target = dice.choice(parameters)
    annotation = target.annotation if isinstance(target.annotation, str) else ""
    kind, value = hostile_values(target.name, annotation, target.default, dice)
    return f"{title}({target.name}={kind})", function, {**given, target.name: value}


def child(seed: int, first: int, last: int) -> None:
    """Run calls and say of each what it was and how it ended."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    folder = Path(tempfile.mkdtemp(dir=os.environ["LABSUPPORT_CACHE"]))
    os.chdir(folder)
    right, known = Right(folder).values, callables()
    from labsupport.errors import LabError

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def ring(*_):
        raise SystemExit("hang")

    signal.signal(signal.SIGALRM, ring)
    for number in range(first, last):
        what, function, given = draw(seed, number, known, right)
        out.write(json.dumps({"number": number, "what": what}) + "\n")
        signal.alarm(LIMIT_S)
        try:
            value = function(**given)
            end = f"accepted: {type(value).__name__}"
        except LabError as error:
            end = f"typed: {type(error).__name__}: {error}"
        except SystemExit:
            end = "hang"
        except BaseException as error:
            end = f"raw: {type(error).__name__}: {str(error)[:150]}"
        signal.alarm(0)
        out.write(json.dumps({"number": number, "what": what, "end": end}) + "\n")


def copied(folder: Path) -> Path:
    """The workbook that Python finds, copied: what a call writes among the recordings or notebooks stays in here."""
    found = importlib.util.find_spec("labsupport")
    assert found is not None and found.origin is not None
    for part in ("labsupport", "data", "notebooks"):
        shutil.copytree(Path(found.origin).parents[1] / part, folder / part)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """The environment of a child that works on a copy of the workbook, with cache, key and progress beside it."""
    own = {name: str(folder / "own") for name in ("LABSUPPORT_CACHE", "LABSUPPORT_KEYS", "TMPDIR")}
    (folder / "own").mkdir()
    paths = [str(copied(folder)), *filter(None, [os.environ.get("PYTHONPATH")])]
    own |= {"LABSUPPORT_PROGRESS": str(folder / "own" / "p.json"), "PYTHONPATH": os.pathsep.join(paths)}
    kept = {name: value for name, value in os.environ.items() if name != "LABSUPPORT_METRICS"}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def campaign(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """(call, how it ended) of ``count`` calls: "typed: …", "raw: …", "accepted: …", "hang" or "crash"."""
    number = 0
    while number < count:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", str(seed), str(number), str(count)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if number == 0 else subprocess.DEVNULL,
                text=True, env=variables(Path(folder)),
            )  # fmt: skip
            begun = None
            for line in process.stdout or ():
                said = json.loads(line)
                begun = (said["number"], said["what"])
                if "end" in said:
                    yield said["what"], said["end"]
                    begun, number = None, said["number"] + 1
                    if said["end"] == "hang":
                        break
            process.kill()
            process.wait()
            if begun:
                yield begun[1], "crash"
                number = begun[0] + 1
            elif process.returncode not in (0, -9):
                raise RuntimeError(f"the child could not start: {process.stderr and process.stderr.read()[-800:]}")


def main() -> None:
    """Print how each call ended, then the counts."""
    if sys.argv[1] == "--child":
        return child(*(int(word) for word in sys.argv[2:5]))
    counts: Counter = Counter()
    for what, end in campaign(int(sys.argv[1]), int(sys.argv[2])):
        counts[end.split(":")[0]] += 1
        if not end.startswith("typed") or "-v" in sys.argv:
            sys.stdout.write(f"{what:<75} {end}\n")
    sys.stdout.write(f"{dict(counts)}\n")


if __name__ == "__main__":
    main()
