"""Exercises of lab 10: a gain foretold, shapes, types, a rewrite, a size at which a kernel is wrong, and the choice of
a road.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import items, yes_or_no
from labsupport.exercises.lab10_puzzles import ALPHA, BETA, PASS, PUZZLE_COLUMNS, WHY_NOT, mystery, puzzle  # noqa: F401 - learners call lab10.puzzle()

LAB, CHECK_S = "10_plugins", 120.0

ROADS = ("rewrite", "layers", "kernel between engines", "plugin")
SITUATIONS = {
    "laptop": (
        "A GeForce laptop with TensorRT-RTX. The operator is HardSwish under a name of its own: three known operations."
    ),
    "parser": (
        "TensorRT 8.6. The parser lacks the operator; TensorRT has a layer for it, but ONNX has no such operator."
    ),
    "tryout": (
        "TensorRT 8.6 from Python, no C++ compiler. A Triton kernel for the operator runs already; it stands "
        "once, in the middle."
    ),
    "server": (
        "TensorRT 11 in an inference server that loads one engine file. The operator stands 48 times, and "
        "unfused it takes half the time."
    ),
}
_RIGHT_ROADS = {"laptop": "rewrite", "parser": "layers", "tryout": "kernel between engines", "server": "plugin"}


class Gain(Prediction):
    question = "How many times faster is one fused kernel than the chain of PyTorch operations, where 201 MB must move?"
    quantity = "time of the chain divided by time of the kernel"
    unit = "×"


class Shapes(Exercise):
    question = (
        "Write `y_shape(x, gate, weight)`: from the three input shapes it returns the shape of y, and raises "
        "ValueError where "
        'they do not fit. An axis is a whole number, or a name such as "batch" where it is free.'
    )
    hints = (
        (
            "y has the shape of x. What must hold for gate and weight? Compare, do not compute: a name cannot be "
            "multiplied."
        ),
        "gate must equal x, axis by axis; weight has one axis, the last of x; x has one axis or more.",
    )
    solution_source = """
        def y_shape(x, gate, weight):
            if len(x) < 1 or tuple(gate) != tuple(x) or tuple(weight) != tuple(x)[-1:]:
                raise ValueError(f"x {x}, gate {gate} and weight {weight} do not fit together")
            return tuple(x)

        lab10.shapes.check(y_shape)
    """
    answer = (
        "TensorRT asks a plugin the same question with expressions in place of numbers, and it is answered by "
        "passing x's on."
    )

    def judge(self, y_shape: Callable) -> str:
        rows = tuple(random.randint(1, 9) for _ in range(random.randint(0, 4)))
        columns = random.randint(2, 99)
        fits = [
            ((4, 256), (4, 256), (256,)),
            ((*rows, columns), (*rows, columns), (columns,)),
            ((2, 3, 8), (2, 3, 8), (8,)),
            ((5,), (5,), (5,)),
            (("batch", 64), ("batch", 64), (64,)),
            ((1, "length", 32), (1, "length", 32), (32,)),
        ]
        for shapes in fits:
            said = f"for x {shapes[0]}, gate {shapes[1]}, weight {shapes[2]}"
            try:
                got = y_shape(*shapes)
            except Exception as error:
                raise Wrong(f"{said}, which fit, it raised {type(error).__name__}.") from error
            shape = tuple(items(got, f"for {shapes} y_shape"))
            if shape != shapes[0]:
                raise Wrong(f"{said} it gave {str(shape)[:60]}; y is shaped as x.")
        misfits: dict[str, tuple] = {
            "gate has other rows": ((4, 8), (3, 8), (8,)),
            "gate would have to be broadcast": ((4, 8), (1, 8), (8,)),
            "weight is too short": ((4, 8), (4, 8), (4,)),
            "weight would have to be broadcast": ((4, 8), (4, 8), (1,)),
            "weight has two axes": ((4, 8), (4, 8), (1, 8)),
            "x has no axis": ((), (), ()),
            "gate has another free axis": (("batch", 8), ("length", 8), (8,)),
        }
        for what, shapes in misfits.items():
            try:
                got = y_shape(*shapes)
            except ValueError:
                continue
            except Exception as error:
                raise Wrong(f"{what}: for {shapes} it raised {type(error).__name__}; wanted is ValueError.") from error
            raise Wrong(
                f"{what}: for {shapes} it gave {got} and should have raised ValueError. The kernel would read beyond "
                "the tensor's end."
            )
        return "Twelve cases. What shape inference lets through, the kernel believes: it does not look again."


class Types(Exercise):
    question = (
        "Write `may_be(position, types, layouts)`: may tensor `position` (0 x, 1 gate, 2 weight, 3 y) be as described? "
        "Types "
        'are "float32", "float16", "int8", "int32", layouts "linear" and "chw4"; the kernel takes linear tensors, all '
        "float32 or all float16."
    )
    hints = (
        (
            "TensorRT asks for position 0, then 1, 2, 3, and settles each before it asks for the next. What stands "
            "behind is not settled yet."
        ),
        (
            "Position 0 decides between the two types; every later position must equal position 0. The layout is "
            "checked at each."
        ),
    )
    solution_source = """
        def may_be(position, types, layouts):
            if layouts[position] != "linear":
                return False
            return types[position] == types[0] if position else types[0] in ("float32", "float16")

        lab10.types.check(may_be)
    """
    answer = "The answer may look back, never ahead: `tensors[position]` and `tensors[0]` are all it needs."

    def judge(self, may_be: Callable) -> str:
        kinds, places = ("float32", "float16", "int8", "int32"), ("linear", "chw4")
        for position, first, own, layout in itertools.product(range(4), ("float32", "float16"), kinds, places):
            types = [first] * position + [own] + ["int8"] * (3 - position)
            layouts = ["linear"] * position + [layout] + ["chw4"] * (3 - position)
            right = layout == "linear" and (own == first if position else own in ("float32", "float16"))
            if yes_or_no(may_be(position, list(types), list(layouts)), "may_be") == right:
                continue
            settled = [t if i <= position else first for i, t in enumerate(types)]
            if bool(may_be(position, settled, ["linear"] * position + [layout] + ["linear"] * (3 - position))) == right:
                raise Wrong(
                    f"asked for position {position}, the answer changes with what stands behind it, which is not "
                    "settled yet."
                )
            self._say(position, first, own, layout, right)
        return (
            "64 questions, as the builder asks them. Each yes is a promise that the kernel was tested with that "
            "type and layout."
        )

    def _say(self, position, first, own, layout, right) -> None:
        if right:
            raise Wrong(
                f"position {position}, {own} and linear, after x of {first}: that was refused, and the kernel takes it."
            )
        if layout != "linear":
            raise Wrong(
                f"position {position} was accepted as {layout}; the kernel walks along linear rows and would read "
                "padding as values."
            )
        if own in ("float32", "float16"):
            raise Wrong(
                f"position {position} was accepted as {own} beside an x of {first}; the kernel has one type for all "
                "tensors."
            )
        raise Wrong(f"position {position} was accepted as {own}, for which there is no kernel.")


class Rewrite(Exercise):
    question = (
        "`lab10.puzzle()` is a graph with a node HardGate that no runtime knows: y = x · clip(alpha · gate + beta, "
        "0, 1). Hand in a graph of known operators that answers the same."
    )
    hints = (
        (
            "ONNX has an operator for the clip of a straight line; its name is in the question's operator. "
            "`plugins.rewritten` does the surgery."
        ),
        "HardSigmoid has the attributes alpha and beta. The node says which; the operator's own defaults are others.",
    )
    solution_source = """
        from labsupport import plugins

        def known(surgeon, node):
            x, gate = node.inputs
            factor = surgeon.layer(op="HardSigmoid", inputs=[gate], outputs=["factor"], attrs=dict(node.attrs))[0]
            return surgeon.layer(op="Mul", inputs=[x, factor], outputs=["product"])[0]

        lab10.rewrite.check(plugins.rewritten(lab10.puzzle(), "HardGate", known))
    """
    answer = "Two nodes, and the attributes go with them."

    def judge(self, graph: Any) -> str:
        import numpy as np

        from labsupport import export, runtimes
        from labsupport.export import foreign_nodes

        if not isinstance(graph, export.OnnxGraph):
            if not isinstance(graph, (str, os.PathLike)):
                raise Wrong(f"that is {described(graph)}; hand in a graph, such as plugins.rewritten(...) returns.")
            graph = export.load(graph)
        left = [unknown for unknown in foreign_nodes.unknown_operators(graph) if not unknown.has_body]
        if left:
            raise Wrong(f"{left[0].op_type} is still in the graph: {left[0]}.")
        if set(graph.inputs) != {"x", "gate"} or set(graph.outputs) != {"y"}:
            raise Wrong(
                f"the graph reads {sorted(graph.inputs)} and gives {sorted(graph.outputs)}; callers know x and gate, "
                "and y."
            )
        rng = np.random.default_rng(0)
        with runtimes.OnnxRuntime(graph) as run:
            for rows in random.sample(range(2, 40), 3):
                x, gate = (3 * rng.standard_normal((rows, PUZZLE_COLUMNS), dtype=np.float32) for _ in range(2))
                self._compare(run, rows, x, gate)
        return "The same answers at two sizes, from operators that every runtime knows. Nothing had to be compiled."

    def _compare(self, run, rows, x, gate) -> None:
        import numpy as np

        from labsupport.errors import BadInput

        try:
            got = run({"x": x, "gate": gate})["y"]
        except Exception as error:  # the runtime's own, where a size is written into a node
            said = "" if isinstance(error, BadInput) else f" ONNX Runtime says: {str(error)[:200]}"
            raise Wrong(f"the graph does not take {rows} rows; the number of rows was free.{said}") from None

        def off(alpha, beta) -> bool:
            return got.shape != x.shape or bool(np.abs(got - x * np.clip(alpha * gate + beta, 0, 1)).max() > 1e-5)

        if not off(ALPHA, BETA):
            return
        if not off(0.2, 0.5):
            raise Wrong("that is the answer with alpha 0.2, HardSigmoid's own default. What does the node say?")
        if not off(1 / 6, 0.5):
            raise Wrong("that is HardSwish's straight line, with alpha 1/6. What does the node say?")
        if got.shape == x.shape and np.abs(got - x * (ALPHA * gate + BETA)).max() < 1e-5:
            raise Wrong("the straight line is right, but not cut at 0 and 1.")
        if got.shape == x.shape and np.abs(got - np.clip(ALPHA * gate + BETA, 0, 1)).max() < 1e-5:
            raise Wrong("that is the factor alone; y is x times it.")
        if got.shape == x.shape and np.abs(got - gate * np.clip(ALPHA * x + BETA, 0, 1)).max() < 1e-5:
            raise Wrong("x and gate have changed places.")
        raise Wrong("the graph runs and computes something else. Compare one row by hand.")


class OddSize(Exercise):
    question = (
        "`lab10.mystery(x, gate, weight)` is right for many row lengths. Which is the smallest number of "
        "columns at which it is wrong?"
    )
    hints = (
        "`plugins.examine(lab10.mystery)` tries some lengths; `columns=range(...)` tries those you name.",
        "A kernel's limits lie beside powers of two. Try each power, and the numbers just below and above it.",
    )
    solution_source = """
        from labsupport import plugins

        beside = sorted({2**k + step for k in range(12) for step in (-1, 0, 1)} - {0})
        wrong = plugins.examine(lab10.mystery, columns=beside, dtypes=["float32"]).wrong_columns
        between = range(wrong[0] - 100, wrong[0] + 1)
        lab10.odd_size.check(plugins.examine(lab10.mystery, columns=between, dtypes=["float32"]).wrong_columns[0])
    """
    answer = (
        "1025: a row of up to 1024 values is one pass of the block. A longer one takes whole passes, and the "
        "rest is forgotten."
    )

    def judge(self, columns: int) -> str:
        from labsupport.plugins.examination import examine

        if not 1 <= columns <= 20000:
            raise Wrong(f"{columns} is no row length to test; it lies between 1 and 20,000.")
        if not examine(mystery, columns=[columns], dtypes=["float32"]).wrong:
            hint = (
                " Every power of two passes: that is what makes the fault hard to find."
                if columns & (columns - 1) == 0
                else ""
            )
            raise Wrong(f"at {columns} columns it is right.{hint}")
        if columns > PASS + 1:
            raise Wrong(f"at {columns} columns it is wrong, but there is a smaller number.")
        return (
            "1025. One value more than a pass of the block holds: a whole pass is made, and the last value is never "
            "read nor written. At 2048 it would be right again."
        )


class Road(Exercise):
    question = "Which road fits? Hand in a dict from each name in `lab10.SITUATIONS` to one of `lab10.ROADS`."
    hints = (
        (
            "Ask of each: does the runtime take plugins at all? Must the result be one engine file? Who is there to "
            "compile?"
        ),
        (
            "TensorRT-RTX takes no plugins. A kernel between engines makes two engines. A layer of TensorRT needs no "
            "ONNX operator."
        ),
    )
    solution_source = """
        roads = {"laptop": "rewrite", "parser": "layers", "tryout": "kernel between engines", "server": "plugin"}
        lab10.road.check(roads)
    """
    answer = (
        "The cheapest road that ends where the network has to run; a plugin is the last, and sometimes the only one."
    )

    def judge(self, roads: dict) -> str:
        lacking, unknown = sorted(set(SITUATIONS) - set(roads)), sorted(set(map(str, roads)) - set(SITUATIONS))
        if lacking or unknown:
            raise Wrong(
                f"the dict lacks {lacking}."
                if lacking
                else f"{unknown} are no situations; they are {sorted(SITUATIONS)}."
            )
        for road in roads.values():
            if road not in ROADS:
                raise Wrong(f"{road!r} is no road; they are {list(ROADS)}.")
        for situation, right in _RIGHT_ROADS.items():
            if roads[situation] != right:
                raise Wrong(f"{situation}: {WHY_NOT[situation][roads[situation]]}")
        return "Each the cheapest that ends where the network has to run."


gain, shapes, types, rewrite, odd_size, road = Gain(), Shapes(), Types(), Rewrite(), OddSize(), Road()
