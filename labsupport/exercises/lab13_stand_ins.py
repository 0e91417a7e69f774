"""What the checkers of lab 13 draw and compare: chains of operators, sessions, a module with an `if`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Wrong


def chains(draw) -> list[tuple[list[str], set[str], int]]:
    """(operators in running order, those supported, the smallest block): four fixed, and 40 drawn anew."""
    ops = {"conv", "relu", "abs"}
    fixed = [(["conv", "relu", "fft", "abs"], ops, 2), (["fft"], set(), 1), (["conv"], {"conv"}, 1), ([], set(), 5)]
    return fixed + [_chain(draw) for _ in range(40)]


def layout_shapes(draw) -> list[tuple[int, int, int]]:
    """Shapes (C, H, W) of three different lengths, so that no wrong order passes: three fixed, five drawn anew."""
    return [(2, 3, 5), (1, 4, 3), (3, 1, 2), *(tuple(draw.permutation(range(2, 9))[:3].tolist()) for _ in range(5))]


def _chain(draw) -> tuple[list[str], set[str], int]:
    names = ["conv", "relu", "add", "matmul", "fft", "unique", "det", "softmax"]
    operators = [draw.choice(names) for _ in range(draw.randint(1, 14))]
    return operators, set(draw.sample(names, draw.randint(3, 7))), draw.randint(1, 4)


def staying(operators, supported, least) -> list[int]:
    places, block = [], []
    for place, name in [*enumerate(operators), (len(operators), None)]:
        if name in supported:
            block.append(place)
            continue
        places += block if len(block) < least else []
        places += [place] if name is not None else []
        block = []
    return sorted(places)


class Session:
    """What of an InferenceSession tells about its providers."""

    def __init__(self, loaded: list[str]):
        self._loaded = list(loaded)

    def get_providers(self) -> list[str]:
        return list(self._loaded)

    def get_provider_options(self) -> dict[str, dict]:
        return {name: {} for name in self._loaded}


@functools.cache
def _gate_class():
    import torch

    class Gate(torch.nn.Module):
        """Doubles a batch of mean above 0, negates any other; by a Python `if`."""

        def forward(self, x):
            if x.mean() > 0:
                return 2 * x
            return -x

    return Gate


def Gate():  # noqa: N802 - a class to the learner, made when torch is there
    """A module that decides by a Python `if` on its data."""
    return _gate_class()()


def both_sides() -> list:
    """Batches (3, 4) drawn anew, with means on both sides of 0, near to it and far; the last two are far.

    The first has a mean of exactly 0, in whatever order its numbers are added.
    """
    import torch

    draw = torch.Generator()
    draw.seed()
    noise = [torch.randn(3, 4, generator=draw) for _ in range(8)]
    level = torch.tensor([[1.0, -1.0, 2.0, -2.0]]).repeat(3, 1)  # (3, 4)
    return [level] + [x - x.mean() + mean for x, mean in zip(noise, (0.02, -0.02, 0.2, -0.2, 0.8, -0.8, 2.0, -2.0))]


def whole_numbers(values: Any, name: str) -> list[int]:
    """Whole numbers from whatever holds some: a list, a set, a range, an array."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise Wrong(f"`{name}` gave {described(values)}; wanted is a list of positions.")
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    for value in plain:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"`{name}` gave {described(value)} among the positions; they are whole numbers from 0.")
    return plain


def same_answers(kernel, got, shape, draw) -> None:
    """Raise Wrong where the dense layer with the turned kernel answers otherwise, naming the order that it has."""
    import numpy as np

    features = draw.standard_normal((4, *shape)).astype(np.float32)  # (N, C, H, W)
    want = features.reshape(4, -1) @ kernel.T
    if np.allclose(features.transpose(0, 2, 3, 1).reshape(4, -1) @ got, want, atol=1e-3):
        return
    if np.allclose(features.reshape(4, -1) @ got, want, atol=1e-3):
        raise Wrong(f"for shape {shape} only the two axes were swapped: the rows still stand in the order C, H, W.")
    if np.allclose(features.transpose(0, 3, 2, 1).reshape(4, -1) @ got, want, atol=1e-3):
        raise Wrong(f"for shape {shape} the rows stand in the order W, H, C; Keras reads H, W, C.")
    if np.allclose(features.transpose(0, 2, 1, 3).reshape(4, -1) @ got, want, atol=1e-3):
        raise Wrong(f"for shape {shape} the rows stand in the order H, C, W; Keras reads H, W, C.")
    raise Wrong(
        f"for shape {shape} the dense layer answers otherwise than PyTorch's; which axis did each reshape name?"
    )


def opset_cases(draw) -> list[tuple[tuple[int, int], dict[str, int]]]:
    """(what an exporter writes, what each parser reads): five fixed pairs, and 40 drawn anew."""
    fixed = [((18, 23), {"8.6": 17}), ((9, 20), {"8.6": 17, "onnxruntime": 20}), ((9, 20), {"11": 22})]
    cases = [*fixed, ((18, 23), {"a": 18}), ((9, 20), {})]
    for _ in range(40):
        lowest = draw.randint(7, 20)
        readers = {f"parser {i}": draw.randint(9, 24) for i in range(draw.randint(1, 4))}
        cases.append(((lowest, lowest + draw.randint(0, 8)), readers))
    return cases


def provider_cases(draw, names: list[str], built_in: list[str]) -> list[tuple[list[str], list]]:
    """(what a session loaded, what was wanted of it): six that people meet, and 20 drawn anew."""
    cpu = "CPUExecutionProvider"
    gpu = ["TensorrtExecutionProvider", "CUDAExecutionProvider", cpu]
    cases: list[tuple[list[str], list]] = [
        ([cpu], gpu),
        (gpu, gpu),
        ([cpu], [*built_in]),
        ([gpu[1], cpu], gpu),
        ([cpu], []),
    ]
    cases.append(([cpu], [(gpu[0], {"trt_fp16_enable": True}), cpu]))
    misspelled = "TensorRTExecutionProvider"  # the right one has a small rt, and a session tells them apart
    cases.append((gpu, [misspelled, cpu]))
    for _ in range(20):
        loaded = [*draw.sample([name for name in names if name != cpu], draw.randint(0, 3)), cpu]
        wanted = draw.sample(names, draw.randint(1, 5))
        cases.append((loaded, [(name, {}) if draw.random() < 0.3 else name for name in wanted]))
    return cases


def opset_fault(can_write, can_read, got, want) -> None:
    """Raise Wrong, saying who does not write or read the set `got`, or that `want` is newer."""
    case = f"an exporter of {can_write[0]} to {can_write[1]} and parsers {can_read}"
    if got is not None and (isinstance(got, bool) or not isinstance(got, (int, float))):
        raise Wrong(f"for {case} the function gave {described(got)}; wanted is a whole number or None.")
    if want is None:
        raise Wrong(f"for {case} no set fits: the exporter writes nothing so old. You say {got}; say None.")
    if got is None:
        raise Wrong(f"for {case} you say None, and {want} fits.")
    if got > want:
        slow = [name for name, newest in can_read.items() if newest < got]
        raise Wrong(
            f"for {case} you say {got}; "
            + (f"{slow[0]!r} does not read it." if slow else "the exporter does not write it.")
        )
    raise Wrong(f"for {case} you say {got}; {want} is newer, and everyone reads it.")


def stays_fault(operators, supported, least, places, want) -> None:
    """Raise Wrong, saying which part of the rule the positions `places` break."""
    if len(set(places)) != len(places):
        raise Wrong(f"position {max(places, key=places.count)} is named twice.")
    unknown = [i for i, name in enumerate(operators) if name not in supported]
    shown = f"{operators}, supported {sorted(supported)}, min_block_size={least}"
    if sorted(places) == unknown:
        raise Wrong(
            f"for {shown} you name what is not supported; the supported ones in too short a block stay, too: {want}."
        )
    if sorted(places) == [i for i in range(len(operators)) if i not in want]:
        raise Wrong(f"for {shown} you name what goes to TensorRT; asked is what stays: {want}.")
    at_most = staying(operators, supported, least + 1)
    if sorted(places) == at_most:
        raise Wrong(f"for {shown}: a block of exactly {least} is long enough; {want} stay.")
    raise Wrong(f"for {shown} you say {sorted(places)}; {want} stay.")
