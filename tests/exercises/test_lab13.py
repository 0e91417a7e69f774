"""The checkers of lab 13: untouched, each foreseen mistake, and right answers written in two ways."""

from __future__ import annotations

from collections import deque
from itertools import groupby

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from labsupport import export, roads
from labsupport.exercises import lab13
from labsupport.exercises.base import assert_checker, assert_complete


def test_the_lab_holds_its_exercises_with_hints_and_solutions():
    assert_complete(lab13, ["gain", "stays", "to_nhwc", "opset", "not_there", "frozen", "both_ways"])


# --- stays ----------------------------------------------------------------------------------------------------


def by_groups(operators, supported, min_block_size):
    places, start = [], 0
    for known, block in groupby(operators, key=lambda name: name in supported):
        length = len(list(block))
        places += range(start, start + length) if not known or length < min_block_size else []
        start += length
    return places


def by_hand(operators, supported, min_block_size):
    """A twin: walks from each operator to both ends of its block, and hands back a set of NumPy numbers."""
    out = set()
    for i, name in enumerate(operators):
        low, high = i, i
        while name in supported and low > 0 and operators[low - 1] in supported:
            low -= 1
        while name in supported and high + 1 < len(operators) and operators[high + 1] in supported:
            high += 1
        if name not in supported or high - low + 1 < min_block_size:
            out.add(np.int64(i))
    return out


def unknown_only(operators, supported, min_block_size):
    return [i for i, name in enumerate(operators) if name not in supported]


def one_too_strict(operators, supported, min_block_size):
    return by_groups(operators, supported, min_block_size + 1)


def forgets_the_last_block(operators, supported, min_block_size):
    places, block = [], []
    for i, name in enumerate(operators):
        if name in supported:
            block.append(i)
            continue
        places += [*block, i] if len(block) < min_block_size else [i]
        block = []
    return places


def test_stays():
    goes = lambda o, s, m: [i for i in range(len(o)) if i not in by_groups(o, s, m)]  # noqa: E731
    assert_checker(lab13.stays, wrong=[
        (unknown_only, "you name what is not supported; the supported ones in too short a block stay, too"),
        (goes, "you name what goes to TensorRT"), (one_too_strict, "a block of exactly . is long enough"),
        (forgets_the_last_block, "stay.|too short a block"), (lambda o, s, m: ["fft"], "they are whole numbers from 0"),
        (lambda o, s, m: "fft", "wanted is a list of positions"), (lambda o, s, m: [True], "whole numbers"),
        (lambda o, s, m: by_groups(o, s, m) * 2, "is named twice"), (lambda o, s, m: None, "wanted is a list of positions"),
        ([2, 3], "hand in the function itself, `stays`"), (lambda o, s, m: o.index("nothing"), "ValueError"),
        (lambda o, s, m: {i: 1 for i in by_groups(o, s, m)}, "wanted is a list of positions"),
    ], right=[by_groups, by_hand, lambda o, s, m: deque(reversed(by_groups(o, s, m)))], namespace={})  # fmt: skip


# --- to_nhwc --------------------------------------------------------------------------------------------------


def by_index(kernel, shape):
    """A twin: says for each place in (H, W, C) where it stood in (C, H, W)."""
    channels, height, width = shape
    order = np.arange(channels * height * width).reshape(shape).transpose(1, 2, 0).ravel()
    return kernel[:, order].T


def by_torch(kernel, shape):
    return torch.from_numpy(kernel).reshape(-1, *shape).permute(2, 3, 1, 0).reshape(-1, len(kernel))


def in_place(kernel, shape):
    kernel *= 1.5
    return by_index(kernel, shape)


def test_to_nhwc():
    def turned(order):
        return lambda k, s: k.reshape(-1, *s).transpose(order).reshape(-1, len(k))

    assert_checker(lab13.to_nhwc, wrong=[
        (lambda k, s: k.T, "only the two axes were swapped"), (lambda k, s: k, "Keras keeps the inputs on the first axis"),
        (turned((3, 2, 1, 0)), "order W, H, C"), (turned((2, 1, 3, 0)), "order H, C, W"), (turned((1, 3, 2, 0)), "answers otherwise"),
        (lambda k, s: by_index(k, s).T, "Keras keeps the inputs"), (lambda k, s: k.reshape(s[0], -1), "wanted is"),
        (in_place, "changed an array"), (lambda k, s: by_index(k, s) * 0, "answers otherwise"), (lambda k, s: None, "wanted is an array"),
        (lambda k, s: by_index(k, (1, 1, k.shape[1])), "only the two axes"), (np.zeros((4, 4)), "hand in the function"),
        (lambda k, s: k.reshape(-1, 16, 5, 5), "ValueError"),
    ], right=[by_index, by_torch], namespace={"np": np})  # fmt: skip


# --- opset ----------------------------------------------------------------------------------------------------


def by_set(can_write, can_read):
    """A twin: tries every set from the newest down."""
    for candidate in range(can_write[1], can_write[0] - 1, -1):
        if all(newest >= candidate for newest in can_read.values()):
            return np.int64(candidate)


def test_opset():
    least = lambda w, r: min(r.values(), default=w[1])  # noqa: E731
    assert_checker(lab13.opset, wrong=[
        (lambda w, r: max(r.values(), default=w[1]), "does not read it|no set fits"), (least, "no set fits|the exporter does not write it"),
        (lambda w, r: min(least(w, r), w[1]), "no set fits: the exporter writes nothing so old"),
        (lambda w, r: 17, "does not read it|no set fits|is newer|does not write it"), (lambda w, r: None, "you say None, and"),
        (lambda w, r: max(w[0], min(least(w, r), w[1])), "no set fits"), (lambda w, r: "17", "wanted is a whole number or None"),
        (lambda w, r: w[0] if w[0] <= least(w, r) else None, "is newer, and everyone reads it"), (lambda w, r: True, "wanted is a whole number"),
        (17, "hand in the function itself"), (lambda w, r: r["8.6"], "KeyError|no set fits"),
    ], right=[lambda w, r: by_set(w, r), by_set, lambda w, r: (lambda n: n if n >= w[0] else None)(min([*r.values(), w[1]]))],
        namespace={})  # fmt: skip


# --- not_there ------------------------------------------------------------------------------------------------


def plain_name(entry):
    return entry if isinstance(entry, str) else entry[0]


def by_session(session, wanted):
    return [plain_name(entry) for entry in wanted if plain_name(entry) not in session.get_providers()]


def by_options(session, wanted):
    """A twin: asks for the options of each provider, which only loaded ones have; a tuple."""
    loaded = session.get_provider_options()
    return tuple(name for name in map(plain_name, wanted) if name not in loaded)


def by_package(session, wanted):
    return [plain_name(entry) for entry in wanted if plain_name(entry) not in ort.get_available_providers()]


def test_not_there():
    assert_checker(lab13.not_there, wrong=[
        (by_package, "You asked what this package was built with; ask the session"),
        (lambda s, w: [entry for entry in w if entry not in s.get_providers()], "An entry may be a pair; hand back its name alone"),
        (lambda s, w: [plain_name(e) for e in w if plain_name(e) in s.get_providers()], "You name those that are there|lacks"),
        (lambda s, w: sorted(by_session(s, w), reverse=True)[::-1], "in this order|lacks"), (lambda s, w: [], "lacks .'TensorrtExecutionProvider'"),
        (lambda s, w: set(by_session(s, w)), "wanted is a list of names"), (lambda s, w: bool(by_session(s, w)), "wanted is a list"),
        (lambda s, w: [e for e in by_session(s, w) if e != "CUDAExecutionProvider"], "lacks"),
        (lambda s, w: s.get_providers() != w, "wanted is a list"), (["CUDAExecutionProvider"], "hand in the function itself"),
        (lambda s, w: s.providers, "AttributeError"),
    ], right=[by_session, by_options], namespace={})  # fmt: skip


# --- frozen ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mxnet_graph():
    return roads.mxnet_graph()


def saved(model):
    return export.save(model, export.fresh_folder() / "answer.onnx")


def constants_only(graph):
    model = graph.model()
    weights = {tensor.name for tensor in model.graph.initializer}
    keep = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(keep)
    return model


def folded_by_hand(graph):
    """A twin: scale and shift moved into the convolution by NumPy, the batch norm taken out."""
    model = constants_only(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    gamma, beta, mean, variance = (arrays[name] for name in norm.input[1:])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    conv = next(node for node in model.graph.node if norm.input[0] in node.output)
    new = {"w": arrays[conv.input[1]] * scale[:, None, None, None], "b": beta - mean * scale}
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in new.items()
    )
    del conv.input[1:]
    conv.input.extend(["w", "b"])
    conv.output[0] = norm.output[0]
    model.graph.node.remove(norm)
    return model


def without_norm(graph):
    model = constants_only(graph)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    for node in model.graph.node:
        node.input[:] = [norm.input[0] if name == norm.output[0] else name for name in node.input]
    model.graph.node.remove(norm)
    return model


def one_left_open(graph):
    model = constants_only(graph)
    mean = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("running_mean"))
    model.graph.input.append(helper.make_tensor_value_info(mean.name, TensorProto.FLOAT, list(mean.dims)))
    return model


def fixed_batch(graph):
    model = constants_only(graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def renamed(graph):
    model = constants_only(graph)
    model.graph.input[0].name = "images"
    model.graph.node[0].input[0] = "images"
    return model


def test_frozen(mxnet_graph):
    assert_checker(lab13.frozen, wrong=[
        (mxnet_graph, "the answers are right, and the batch norm is still executed"), (saved(one_left_open(mxnet_graph)), "still executed"),
        (saved(without_norm(mxnet_graph)), "its answers are off by"), (saved(renamed(mxnet_graph)), "this graph goes from .'images'."),
        (saved(fixed_batch(mxnet_graph)), "shape|batch"), (constants_only(mxnet_graph), "hand in the OnnxGraph"),
        (str(mxnet_graph.path), "hand in the OnnxGraph"),
    ], right=[saved(constants_only(mxnet_graph)), saved(folded_by_hand(mxnet_graph))],
        namespace={"mxnet_graph": mxnet_graph, "export": export})  # fmt: skip


# --- both_ways ------------------------------------------------------------------------------------------------


def module(forward):
    return type("Answer", (torch.nn.Module,), {"forward": forward})()


def by_sign(self, x):
    """A twin: a factor of 2 or -1, computed from the sign."""
    above = (x.mean() > 0).to(x.dtype)
    return x * (3 * above - 1)


def test_both_ways():
    assert_checker(lab13.both_ways, wrong=[
        (lab13.Gate(), "the exporter wrote down one way only"), (module(lambda self, x: 2 * x), "the module itself answers otherwise"),
        (module(lambda self, x: torch.where(x > 0, 2 * x, -x)), "the module itself answers otherwise"),
        (module(lambda self, x: torch.where(torch.as_tensor(bool(x.mean() > 0)), 2 * x, -x)), "one way only"),
        (module(lambda self, x: 2 * x if float(x.mean()) > 0 else -x), "one way only"),
        (lambda x: x, "hand in a torch.nn.Module"), (torch.nn.Module, "hand in a torch.nn.Module"),
        (module(lambda self, x: torch.where(x.mean() >= 1, 2 * x, -x)), "otherwise"), (module(lambda self, x: 1 / 0), "ZeroDivisionError"),
    ], right=[module(lambda self, x: torch.where(x.mean() > 0, 2 * x, -x)), module(by_sign)], namespace={"torch": torch})  # fmt: skip


def test_the_number_of_outputs_is_the_kernels_own():
    def to_nhwc(kernel, shape):
        return kernel.reshape(10, *shape).transpose(2, 3, 1, 0).reshape(-1, 10)

    def seven(kernel, shape):
        return kernel.reshape(7, *shape).transpose(2, 3, 1, 0).reshape(-1, 7)

    assert {lab13.to_nhwc.check(each).outcome for each in (to_nhwc, seven)} == {"wrong"}


def test_a_misspelled_provider_is_not_there():
    def not_there(session, wanted):
        loaded = {name.lower() for name in session.get_providers()}
        names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
        return [name for name in names if name.lower() not in loaded]

    assert "TensorRTExecutionProvider" in lab13.not_there.check(not_there).message


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: torch.where(x.mean() >= 0, 2 * x, -x),
        lambda x: x * (0.5 + 1.5 * torch.sign(x.mean())),
    ],
)
def test_a_mean_of_exactly_0_is_negated(gate):
    class Both(torch.nn.Module):
        def forward(self, x):
            return gate(x)

    assert "mean 0" in lab13.both_ways.check(Both()).message
