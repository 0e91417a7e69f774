"""Exercises of lab 13: what falls back, a layout, an opset, a provider that is not there, frozen weights, a branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import on_arrays
from labsupport.exercises.lab13_stand_ins import (
    Gate,
    Session,
    both_sides,
    chains,
    layout_shapes,
    opset_cases,
    opset_fault,
    provider_cases,
    same_answers,
    staying,
    stays_fault,
    whole_numbers,
)

LAB = "13_frameworks"
CLOSE = 1e-4


class Gain(Prediction):
    question = (
        "On a large GPU, how many times faster is TensorRT's FP16 engine than torch.compile, for an encoder of 8 times"
        " 128 tokens?"
    )
    quantity = "the time of torch.compile over that of the engine"
    within = 1.3


class Stays(Exercise):
    question = (
        "Write `stays(operators, supported, min_block_size)`: the positions of the operators that stay in PyTorch."
        " `operators` is a chain in running order, `supported` a set of names. A block of neighbors that are supported"
        " becomes an engine only if it holds at least `min_block_size` of them. Hand in the function."
    )
    hints = (
        "Two kinds stay: what is not supported, and what is supported and stands in a block that is too short.",
        "`itertools.groupby(operators, key=lambda name: name in supported)` gives the blocks; count places as you go.",
    )
    solution_source = """
        from itertools import groupby

        def stays(operators, supported, min_block_size):
            places, start = [], 0
            for known, block in groupby(operators, key=lambda name: name in supported):
                length = len(list(block))
                if not known or length < min_block_size:
                    places += range(start, start + length)
                start += length
            return places

        lab13.stays.check(stays)
    """
    answer = (
        "Unsupported operators stay, and so do supported ones in a block shorter than the limit: each engine costs a"
        " crossing."
    )

    def judge(self, stays: Callable) -> str:
        import random

        for operators, supported, least in chains(random.Random()):
            got = stays(list(operators), set(supported), least)
            places = whole_numbers(got, "stays")
            want = staying(operators, supported, least)
            if sorted(places) == want:
                continue
            stays_fault(operators, supported, least, places, want)
        return (
            "`min_block_size` is Torch-TensorRT's own option, 5 by default; with 1 every supported operator gets an"
            " engine, and every block two crossings."
        )


class ToNhwc(Exercise):
    question = (
        "Write `to_nhwc(kernel, shape)`: `kernel` (out, C·H·W) is the weight of a PyTorch dense layer behind a"
        " flattened tensor of `shape` (C, H, W). Hand back the kernel (H·W·C, out) for a Keras layer that flattens (H,"
        " W, C). Hand in the function."
    )
    hints = (
        "The numbers are right, their order is not: name the axes before you move them.",
        (
            "`kernel.reshape(-1, C, H, W)` has the axes (out, C, H, W). In which order does Keras read them, and where"
            " does `out` go?"
        ),
    )
    solution_source = """
        def to_nhwc(kernel, shape):
            named = kernel.reshape(-1, *shape)                       # (out, C, H, W)
            return named.transpose(2, 3, 1, 0).reshape(-1, len(kernel))   # (H*W*C, out)

        lab13.to_nhwc.check(to_nhwc)
    """
    answer = "Name the axes with a reshape, move them with a transpose, and close them with a reshape."

    def judge(self, to_nhwc: Callable) -> str:
        import numpy as np

        draw = np.random.default_rng()
        for shape in layout_shapes(draw):
            channels, height, width = shape
            outputs = int(draw.integers(11, 40))
            outputs += outputs == channels * height * width
            kernel = draw.standard_normal((outputs, channels * height * width)).astype(np.float32)
            got = on_arrays(to_nhwc, kernel, shape)
            got = got.detach().numpy() if hasattr(got, "detach") else got
            got = np.asarray(got) if isinstance(got, (list, tuple)) else got
            if not isinstance(got, np.ndarray):
                raise Wrong(f"the function gave {described(got)}; wanted is an array (H·W·C, out).")
            if got.shape == kernel.shape:
                raise Wrong(
                    f"for shape {shape} the kernel is {got.shape}; Keras keeps the inputs on the first axis and wants"
                    f" {got.shape[::-1]}."
                )
            if got.shape != kernel.shape[::-1]:
                raise Wrong(f"for shape {shape} the kernel is {got.shape}; wanted is {kernel.shape[::-1]}.")
            same_answers(kernel, got, shape, draw)
        return (
            "Convolutions move their axes one by one; only behind a Flatten does a wrong layout keep the right shape,"
            " and nothing complains."
        )


class Opset(Exercise):
    question = (
        "Write `opset(can_write, can_read)`: `can_write` is (lowest, highest) of an exporter, `can_read` a dict from"
        " parser to the newest operator set that it reads. Give the newest that all the parsers read and the exporter"
        " writes, or None. Hand in the function."
    )
    hints = (
        "One file for all: the parser that reads the least decides. It reads every older set, too.",
        "Take the smallest of `can_read.values()` and the exporter's highest; is it below the lowest?",
    )
    solution_source = """
        def opset(can_write, can_read):
            lowest, highest = can_write
            newest = min([highest, *can_read.values()])
            return newest if newest >= lowest else None

        lab13.opset.check(opset)
    """
    answer = "The smallest number that anyone reads, unless the exporter begins above it."

    def judge(self, opset: Callable) -> str:
        import random

        for can_write, can_read in opset_cases(random.Random()):
            got = opset(tuple(can_write), dict(can_read))
            newest = min([can_write[1], *can_read.values()])
            want = newest if newest >= can_write[0] else None
            got = got.item() if hasattr(got, "item") else got
            if got == want and not isinstance(got, bool):
                continue
            opset_fault(can_write, can_read, got, want)
        return "`export.to_onnx(target=…)` chooses so for one parser; a file for several needs the smallest."


class NotThere(Exercise):
    question = (
        "Write `not_there(session, wanted)`: those of the `wanted` execution providers on which this session cannot"
        " compute, in their order. An entry of `wanted` is a name, or a pair of name and options. Hand in the function."
    )
    hints = (
        "What the package was built with says nothing about this session.",
        "`session.get_providers()` lists what could be loaded. Take the name out of a pair first.",
    )
    solution_source = """
        def not_there(session, wanted):
            loaded = session.get_providers()
            names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
            return [name for name in names if name not in loaded]

        lab13.not_there.check(not_there)
    """
    answer = (
        "Ask the session, not the package: `get_available_providers()` names what was built in, also where it does not"
        " load."
    )

    def judge(self, not_there: Callable) -> str:
        import random

        import onnxruntime as ort

        built_in = ort.get_available_providers()
        for loaded, wanted in provider_cases(random.Random(), ort.get_all_providers(), built_in):
            got = not_there(Session(loaded), list(wanted))
            names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
            want = [name for name in names if name not in loaded]
            if isinstance(got, (str, set, dict)) or not isinstance(got, Iterable):
                raise Wrong(f"the function gave {described(got)}; wanted is a list of names, in order.")
            got = list(got)
            if list(got) == want:
                continue
            case = f"a session that loaded {loaded}, asked for {wanted},"
            if list(got) == [name for name in names if name not in built_in]:
                raise Wrong(
                    f"{case} lacks {want}. You asked what this package was built with; ask the session what it loaded."
                )
            if any(not isinstance(entry, str) for entry in got):
                raise Wrong(f"{case} lacks {want}. An entry may be a pair; hand back its name alone.")
            if list(got) == [name for name in names if name in loaded]:
                raise Wrong(f"{case} lacks {want}. You name those that are there.")
            if sorted(got) == sorted(want):
                raise Wrong(f"{case} lacks {want}, in this order.")
            raise Wrong(f"{case} lacks {want}; you say {list(got)}.")
        return (
            "`roads.providers.session` refuses with this list, and also where a loaded provider leaves nodes to the"
            " CPU."
        )


class Frozen(Exercise):
    question = (
        "ONNX Runtime executes the batch norm of MXNet's file as a node of its own. Make a graph of the same answers in"
        " which nothing of it is left to execute, and hand in the graph (an OnnxGraph, as `export.save(model, path)`"
        " gives it)."
    )
    hints = (
        "A runtime folds constants only. Which of the file's tensors could a caller still replace?",
        "MXNet lists every weight among `model.graph.input`, too. Leave only `data` there.",
    )
    solution_source = """
        model = mxnet_graph.model()
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        lab13.frozen.check(export.save(model, export.fresh_folder() / "frozen.onnx"))
    """
    answer = "A weight that is also an input can be fed anew with every call, so no runtime may fold it."

    def judge(self, graph: Any) -> str:
        import numpy as np

        from labsupport import export, roads, runtimes

        if not isinstance(graph, export.OnnxGraph):
            raise Wrong(f"that is {described(graph)}; hand in the OnnxGraph that export.save or export.load gives.")
        reference = roads.mxnet_graph()
        if list(graph.inputs) != list(reference.inputs) or list(graph.outputs) != list(reference.outputs):
            raise Wrong(
                f"this graph goes from {list(graph.inputs)} to {list(graph.outputs)}; keep {list(reference.inputs)} and"
                f" {list(reference.outputs)}."
            )
        images = np.random.default_rng().uniform(-1, 1, (8, 1, 28, 28)).astype(np.float32)
        with runtimes.OnnxRuntime(reference) as exact, runtimes.OnnxRuntime(graph) as run:
            (want,), (got,) = exact({"data": images}).values(), run({"data": images}).values()
            ops = run.executed.ops
        left = sum(ops[kind] for kind in ("BatchNormalization", "InstanceNormalization", "Mul", "Sub", "Div", "Add"))
        left += max(0, sum(count for kind, count in ops.items() if "Conv" in kind) - 2)
        if want.shape != got.shape:
            raise Wrong(
                f"for 8 images it answers {got.shape}; MXNet's file answers {want.shape}. Was the batch axis fixed?"
            )
        if not np.abs(want - got).max() < CLOSE:
            raise Wrong(
                f"its answers are off by {np.abs(want - got).max():.2g}. Batch norm subtracts, divides, scales and"
                " shifts; it may not just go."
            )
        if left:
            raise Wrong(
                "the answers are right, and the batch norm is still executed. What keeps the runtime from folding it"
                " into the convolution?"
            )
        return (
            "Scale and shift went into the convolution before it. Exporters of 2019 wrote such files, so look at"
            " `graph.input` of any old one."
        )


class BothWays(Exercise):
    question = (
        "`lab13.Gate()` doubles a batch whose mean is above 0 and negates any other, by a Python `if`. Write a module"
        " of the same answers whose ONNX export keeps both ways. Hand in the module."
    )
    hints = (
        "The exporter runs the module once and writes down the operations that it saw. An `if` is not one of them.",
        "`torch.where(condition, a, b)` is an operation: both sides are computed, and the tensor decides.",
    )
    solution_source = """
        class Both(torch.nn.Module):
            def forward(self, x):
                return torch.where(x.mean() > 0, 2 * x, -x)

        lab13.both_ways.check(Both())
    """
    answer = "`torch.where` writes the condition into the graph. `torch.cond` does, too, and computes one side only."

    def judge(self, module: Any) -> str:
        import torch

        from labsupport import export, runtimes
        from labsupport.errors import LabError

        if not isinstance(module, torch.nn.Module):
            raise Wrong(f"that is {described(module)}; hand in a torch.nn.Module: check(Both()).")
        gate, batches = Gate(), both_sides()
        for batch in batches:
            with torch.no_grad():
                if not torch.allclose(torch.as_tensor(module(batch)), gate(batch), atol=1e-6):
                    raise Wrong(
                        f"for a batch of mean {float(batch.mean()):.2g} the module itself answers otherwise than Gate."
                    )
        for example in batches[-2:]:
            try:
                graph = export.to_onnx(module, example)
            except LabError:
                graph = export.to_onnx(module, example, exporter="dynamo")
            with runtimes.OnnxRuntime(graph) as run:
                for batch in batches:
                    (got,) = run(next(iter(graph.inputs)) and batch.numpy()).values()
                    if not torch.allclose(torch.from_numpy(got), gate(batch), atol=1e-6):
                        seen, other = ("above", "below") if example.mean() > 0 else ("below", "above")
                        raise Wrong(
                            f"exported with a batch of mean {seen} 0, the graph answers wrongly for one {other} 0: the"
                            " exporter wrote down one way only."
                        )
        return (
            "Whatever decides by data must be an operation of the graph. Test an export with inputs from both sides of"
            " every `if`."
        )


gain = Gain()
stays = Stays()
to_nhwc = ToNhwc()
opset = Opset()
not_there = NotThere()
frozen = Frozen()
both_ways = BothWays()
