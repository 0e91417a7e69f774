"""Exercises of lab 15: growth foretold, a forecast by the roofline, NVFP4, a diff of listings, and an old "
"program mended."""

from __future__ import annotations

import math
from collections.abc import Callable

from labsupport.exercises.answers import NotAttempted, as_number, described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import array_of, on_arrays

LAB = "15_outlook"
# ran up to TensorRT 8.x; the first line is given by the checker where a machine needs it
SEVENTH = """\
import numpy as np
import tensorrt as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(FLAGS)
x = network.add_input("x", trt.float32, (1, 3, 16, 16))
w = np.ones((4, 3, 3, 3), np.float32)
conv = network.add_convolution_nd(x, 4, (3, 3), w, np.zeros(4, np.float32))
relu = network.add_activation(conv.get_output(0), trt.ActivationType.RELU)
network.mark_output(relu.get_output(0))
config = builder.create_builder_config()
config.max_workspace_size = 1 << 26
engine = builder.build_engine(network, config)
plan = engine.serialize()
"""
WORKSPACE = 1 << 26
AIMED = """
import tensorrt as _trt
def _aimed(builder, _make=_trt.Builder.create_builder_config):
    config = _make(builder)
    config.num_compute_capabilities = 1
    config.set_compute_capability(_trt.ComputeCapability.SM89, 0)
    return config
_trt.Builder.create_builder_config = _aimed
"""
PROOF = """
import tensorrt as _t
_layers = [network.get_layer(i) for i in range(network.num_layers)]
_kinds = [layer.type.name for layer in _layers]
_limit = config.get_memory_pool_limit(_t.MemoryPoolType.WORKSPACE)
_size = 0 if plan is None else len(bytes(plan))
_values = 0 if plan is None else len(set(bytes(plan)))
_end = "nothing"
if plan is not None and _kinds[-1:] == ["ACTIVATION"] and network.num_outputs:
    _layers[-1].__class__, _y = _t.IActivationLayer, network.get_output(0)
    if _layers[-1].get_output(0).name == _y.name:
        _end = _layers[-1].type.name + ",".join(map(str, _y.shape))
print("PROOF", {word!r}, _size, _values, _limit, network.num_inputs, network.num_outputs, _end, *_kinds)
"""


class Growth(Prediction):
    question = "From V100 to B200, by which factor did FP16 arithmetic grow more than the memory's rate?"
    quantity = "growth of FP16 arithmetic over growth of the memory's rate"
    unit = "×"
    within = 1.5


class Forecast(Exercise):
    question = (
        "Write `speedup(operations, size, before, after)`: how many times shorter the roofline's floor gets. `before` "
        "and `after` are pairs (operations a second, bytes a second); `size` is in bytes. Hand in the function."
    )
    hints = (
        "The floor on one chip is the larger of operations / rate and size / rate: both overlap at best.",
        "Divide the floor before by the floor after. The term that binds may change between them.",
    )
    solution_source = """
        def speedup(operations, size, before, after):
            floors = [max(operations / rate, size / memory) for rate, memory in (before, after)]
            return floors[0] / floors[1]

        lab15.speedup.check(speedup)
    """
    answer = "Two floors, one quotient. Dividing term by term is wrong as soon as the bound changes sides."

    def judge(self, speedup: Callable) -> str:
        import random

        chips = [(1e12, 1e11), (2e13, 3e11), (1e15, 3e12), (9e15, 8e12)]
        cases: list[tuple[float, float, tuple[float, float], tuple[float, float]]] = [
            (random.uniform(1e8, 1e12), random.uniform(1e6, 1e10), random.choice(chips), random.choice(chips))
            for _ in range(30)
        ]
        cases += [
            (1e12, 1e6, (1e12, 1e11), (1e15, 1e11)),
            (1e6, 1e9, (1e12, 1e11), (1e15, 1e11)),
            (1e11, 1e10, (1e12, 2e11), (1e14, 1e11)),
        ]
        for operations, size, before, after in cases:
            given = as_number(speedup(operations, size, before, after), "the speedup")
            floors = [(operations / rate, size / memory) for rate, memory in (before, after)]
            wanted = max(floors[0]) / max(floors[1])
            if math.isclose(given, wanted, rel_tol=1e-9):
                continue
            where = (
                f"{operations:.3g} operations, {size:.3g} bytes, {before} to {after}: {given:.4g} came, "
                f"{wanted:.4g} is right"
            )
            if math.isclose(given, 1 / wanted, rel_tol=1e-9):
                raise Wrong(f"{where}. That is the quotient the other way round: faster is above 1.")
            if math.isclose(given, sum(floors[0]) / sum(floors[1]), rel_tol=1e-9):
                raise Wrong(f"{where}. Arithmetic and memory overlap at best: the slower counts, not the sum.")
            if math.isclose(given, min(floors[0]) / min(floors[1]), rel_tol=1e-9):
                raise Wrong(f"{where}. The slower of the two terms binds, not the faster.")
            quotients = [floors[0][0] / floors[1][0], floors[0][1] / floors[1][1]]
            if any(math.isclose(given, each, rel_tol=1e-9) for each in quotients):
                raise Wrong(
                    f"{where}. That is how one term grew; the bound is on one side before and may be on the "
                    "other after."
                )
            raise Wrong(f"{where}. Take the larger of the two times on each chip, then divide.")
        return "It is the question to ask before any purchase."


class Nvfp4(Exercise):
    question = (
        "Write `to_nvfp4(x)`: round an array (its size a multiple of 16) to NVFP4 and return the numbers that it "
        "stands for, same shape. Blocks of 16 along the last axis; block scale max / 6, rounded to E4M3 after division "
        "by the tensor's scale max / (6 * 448). Hand in the function."
    )
    hints = (
        "`narrow` of the notebook rounds to both formats: E4M3 is (3, -6, 448.0), FP4 is (1, 0, 6.0). "
        "ml_dtypes can do it, too.",
        "tensor = abs(x).max() / (6 * 448); scale = E4M3(block max / 6 / tensor) * tensor; result = FP4(x / "
        "scale) * scale, and 0 stays 0.",
    )
    solution_source = """
        def to_nvfp4(x):
            parts = x.reshape(-1, 16)
            tensor = np.abs(x).max() / (6 * 448) or 1.0
            scale = narrow(np.abs(parts).max(1, keepdims=True) / 6 / tensor, 3, -6, 448.0) * tensor
            safe = np.where(scale == 0, 1, scale)
            return (narrow(parts / safe, 1, 0, 6.0) * scale).reshape(x.shape)

        lab15.nvfp4.check(to_nvfp4)
    """
    answer = "Two levels: the block scale follows the block, the tensor scale keeps block scales inside E4M3."

    def judge(self, to_nvfp4: Callable) -> str:
        import numpy as np

        draw = np.random.default_rng()
        plain, zeros = draw.standard_normal((4, 32)), draw.standard_normal((3, 32))
        zeros[1] = 0
        spread = draw.standard_normal((8, 16)) * 10.0 ** draw.integers(-2, 2, (8, 1))
        cases = {"an everyday tensor": plain, "a block of zeros": zeros, "numbers around 1e6": 1e6 * plain,
                 "numbers around 1e-6": 1e-6 * plain, "blocks of different size": spread,
                 "one block": draw.standard_normal(16), "nothing but zeros": np.zeros((2, 16))}  # fmt: skip
        for name, x in cases.items():
            self._judge_one(name, x, array_of(on_arrays(to_nvfp4, x), x.shape, f"{name}: the answer"))
        return "Four and a half bits a number, and each block has its own ruler."

    @staticmethod
    def _judge_one(name: str, x, given) -> None:
        import numpy as np

        from labsupport.exercises import lab15_formats as formats

        wanted = formats.as_nvfp4(x)
        top = max(float(np.abs(wanted).max()), 1e-300)
        if np.abs(given - wanted).max() <= 1e-6 * top:
            return
        if not np.isfinite(given).all():
            raise Wrong(f"{name}: the answer holds NaN or infinity. What is divided where the scale is 0?")
        if np.allclose(given, x, rtol=1e-3, atol=0):
            raise Wrong(f"{name}: nothing was rounded.")
        for how, twin in {
            "one scale for the whole tensor came; each block of 16 has its own": formats.blocked(x, x.size),
            "the block scale is exact; it has 8 bits, round it to E4M3": formats.exact_scales(x),
            "the scale is a power of two, which is MXFP4; NVFP4 has E4M3": formats.powers(x),
            "blocks of 32 came; NVFP4 has blocks of 16": formats.blocked(x, 32) if x.size % 32 == 0 else wanted,
            "the tensor's scale is missing; without it E4M3 cannot hold these block scales": formats.no_tensor_scale(x),
        }.items():
            if np.allclose(given, twin, rtol=1e-6, atol=1e-9 * top) and not np.allclose(
                twin, wanted, rtol=1e-6, atol=1e-9 * top
            ):
                raise Wrong(f"{name}: {how}.")
        raise Wrong(f"{name}: off by up to {np.abs(given - wanted).max() / top:.0%} of the largest number.")


class Gone(Exercise):
    question = (
        'Write `went(before, after)` for two listings (name → entry with "members", "enum" or neither): a sorted list '
        'of lost classes, and of lost members of classes that stay, as "Class.member". Hand in the function.'
    )
    hints = (
        "Loop over `before`. A name that `after` lacks is gone, and its members need no mention.",
        'For a class that stays: set of entry.get("members", []) + entry.get("enum", []) before, minus the same after.',
    )
    solution_source = """
        def went(before, after):
            lost = []
            for name, entry in before.items():
                if name not in after:
                    lost.append(name)
                    continue
                old, new = ({*each.get("members", []), *each.get("enum", [])} for each in (entry, after[name]))
                lost += [f"{name}.{member}" for member in old - new]
            return sorted(lost)

        lab15.gone.check(went)
    """
    answer = "Two levels of sets; a class that is gone is one line, not fifty."

    def judge(self, went: Callable) -> str:
        import copy

        from labsupport.listings import releases

        listings = [releases.listing(release) for release in releases.RELEASES]
        cases = [*_invented(), ("8.6.0 and 10.16.1.11", *listings[:2]), ("11.0.0.114 and 11.4.0.106", *listings[2:4])]
        for name, before, after in cases:
            given = went(copy.deepcopy(before), copy.deepcopy(after))
            if isinstance(given, str) or not hasattr(given, "__iter__"):
                raise Wrong(f"{name}: the function gave {described(given)}; wanted is a sorted list of names.")
            given, wanted = list(given), _went(before, after)
            if odd := next((each for each in given if not isinstance(each, str)), None):
                raise Wrong(f"{name}: {described(odd)} is among the names; each is text, such as 'Class.member'.")
            if given == wanted:
                continue
            if sorted(map(str, given)) == wanted:
                raise Wrong(f"{name}: the names are right, their order is not: sort them.")
            extra, lacking = sorted(set(map(str, given)) - set(wanted)), sorted(set(wanted) - set(given))
            if any(each.partition(".")[0] in wanted for each in extra):
                raise Wrong(f"{name}: {extra[0]} came, and the whole class is gone: name the class once.")
            if extra:
                raise Wrong(f"{name}: {extra[0]} came, and it is not gone.")
            if lacking:
                raise Wrong(f"{name}: {lacking[0]} is gone and is not among {len(given)} names.")
            raise Wrong(f"{name}: a name came twice.")
        return "Run it on your next upgrade, with the names that your program uses."


class Seventh(Exercise):
    question = (
        "Mend `lab15.SEVENTH`: it sets a workspace and builds an engine as up to 8.x. Keep network and workspace, "
        "leave the plan in `plan`. Hand in the program as text."
    )
    hints = (
        "`config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, ...)` sets the workspace since 8.4.",
        "`builder.build_serialized_network(network, config)` gives the plan at once; there is no engine to serialize.",
    )
    solution_source = """
        lab15.seventh.check(lab15.SEVENTH.replace(
            "config.max_workspace_size = 1 << 26",
            "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 26)").replace(
            "engine = builder.build_engine(network, config)",
            "plan = builder.build_serialized_network(network, config)").replace(
            "plan = engine.serialize()", ""))
    """
    answer = "Two names changed, one line went; the calls run in 8.6 and in every release since."

    def judge(self, program: str) -> str:
        import os

        from labsupport import environment
        from labsupport.listings import sandbox

        if not environment.has("engine building"):
            raise NotAttempted(environment.why_not("engine building"))
        word = os.urandom(8).hex()
        on_rtx = environment.generation() == "rtx" and not environment.has("engine execution")
        given = {"FLAGS": 1 if environment.generation() == "8.6" else 0}
        code = (AIMED if on_rtx else "") + program + "\n" + PROOF.format(word=word)
        modules = {"tensorrt": environment.tensorrt().__name__}
        outcome = sandbox.python(code, seconds=120, modules=modules, given=given)
        proof = next((line.split() for line in outcome.printed.splitlines() if line.startswith(f"PROOF {word}")), None)
        if proof is None:
            self._explain(outcome, len((AIMED if on_rtx else "").splitlines()))
        size, values, limit, inputs, outputs, end, *kinds = proof[2:]
        if int(limit) != WORKSPACE:
            raise Wrong(f"the workspace is limited to {int(limit):,} bytes; the old program set {WORKSPACE:,}.")
        if kinds != ["CONVOLUTION", "ACTIVATION"] or (inputs, outputs) != ("1", "1"):
            raise Wrong(f"the network has the layers {kinds}; leave the convolution and the activation as they were.")
        if int(size) < 500:
            raise Wrong(
                f"`plan` holds {size} bytes; a plan of this network has some thousands. Did the builder return None?"
            )
        if int(values) < 16:
            raise Wrong(f"`plan` is {values} byte value(s), again and again; keep in it what the builder returns.")
        if end != "RELU1,4,14,14":
            raise Wrong("the network does not end in its ReLU of 4 × 14 × 14 values any more; leave it as it was.")
        return "The builder took it; so does every release from 8.6 on."

    @staticmethod
    def _explain(outcome, shift: int) -> None:
        if outcome.kind == "hung":
            raise Wrong("the program did not end.")
        line = f" in line {outcome.line - shift}" if outcome.line and outcome.line > shift else ""
        if outcome.ok:
            raise Wrong("the program ended before its last line. Does it call exit()?")
        raise Wrong(f"it still breaks{line}: {outcome.error or outcome.kind}: {outcome.message}.")


def _invented():
    """(name, before, after): small listings with every kind of change, drawn anew."""
    import random

    word = f"{random.randint(100, 999)}"
    keep = {"members": ["a", "b" + word]}
    yield "a lost member", {"Builder": keep}, {"Builder": {"members": ["a"]}}
    yield "a lost class", {f"Lost{word}": keep, "Builder": keep}, {"Builder": keep}
    yield "a lost value", {"Flag": {"enum": ["X" + word, "Y"]}}, {"Flag": {"enum": ["Y", "Z"]}}
    yield "a lost function", {f"init{word}": {}, "Builder": keep}, {"Builder": keep}
    yield "nothing lost", {"Builder": keep}, {"Builder": {"members": ["a", "b" + word, "c"]}, "New": keep}
    yield "members that became values", {"Kind": {"members": ["a"], "enum": ["Z" + word]}}, {"Kind": {"enum": ["a"]}}
    yield "several", {"B": {"members": ["z", "y"]}, "A" + word: keep, "C": {}}, {"B": {"members": []}, "C": {}}


def _went(before: dict, after: dict) -> list[str]:
    lost = [name for name in before if name not in after]
    for name in before.keys() & after.keys():
        old, new = ({*each.get("members", ()), *each.get("enum", ())} for each in (before[name], after[name]))
        lost += [f"{name}.{member}" for member in old - new]
    return sorted(lost)


growth = Growth()
speedup = Forecast()
nvfp4 = Nvfp4()
gone = Gone()
seventh = Seventh()
