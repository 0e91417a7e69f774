"""A PyTorch network as a graph of calls, with batch norms folded, and nothing changed in place."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fusion
from torch.utils import _pytree

from labsupport.errors import LabError

FOLDS = (
    (nn.Conv1d, nn.BatchNorm1d, fusion.fuse_conv_bn_eval),
    (nn.Conv2d, nn.BatchNorm2d, fusion.fuse_conv_bn_eval),
    (nn.Conv3d, nn.BatchNorm3d, fusion.fuse_conv_bn_eval),
    (nn.Linear, nn.BatchNorm1d, fusion.fuse_linear_bn_eval),
)
PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)


def folded(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """A copy of the network, traced; it answers on ``images`` as the network does. Raises LabError."""
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model).cpu().eval())
    except Exception as error:  # tracing runs the network's own code
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise LabError(
            f"{type(model).__name__} cannot be traced: {first}. Write its forward without conditions on tensors, "
            "or quantize its ONNX graph: quantization.to_qdq"
        ) from error
    _out_of_place(graph, images)
    _fold_norms(graph)
    for node in list(graph.graph.nodes):  # the same tensor under two names would get two quantizers
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), PASSING):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    graph.recompile()
    expected, again, got = (_answers(each, images) for each in (model, model, graph))
    settled = all(map(torch.equal, expected, again))  # one that draws numbers cannot be compared
    if settled and not all(
        torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max())) for a, b in zip(expected, got)
    ):
        raise LabError(
            f"{type(model).__name__} answers otherwise once it is traced: what its forward reads from a tensor, or "
            "changes in place, became a constant; write it without, or quantize its ONNX graph: quantization.to_qdq"
        )
    return graph


def _answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        answer = copy.deepcopy(model).cpu().eval()(images.clone())
    return [y.double() for y in _pytree.tree_leaves(answer) if isinstance(y, Tensor)]


def _out_of_place(graph: fx.GraphModule, images: Tensor) -> None:
    """Give what is changed in place a tensor of its own: a quantizer beside it would read the values of before."""
    values: dict[fx.Node, Any] = {}

    class Keeping(fx.Interpreter):
        def run_node(self, node):
            values[node] = super().run_node(node)
            return values[node]

    with torch.inference_mode():
        Keeping(graph, garbage_collect_values=False).run(images.clone())
    modules = {name for name, module in graph.named_modules() if getattr(module, "inplace", False)}
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in order:
        changed = next(iter(node.all_input_nodes), None)
        if not isinstance(values.get(changed), Tensor) or not _made_plain(node, modules):
            continue
        place = values[changed].untyped_storage().data_ptr()
        for other in [n for n in order if isinstance(values[n], Tensor) and order[n] < order[node]]:
            later = [user for user in other.users if order[user] > order[node]]
            if other is not changed and later and values[other].untyped_storage().data_ptr() == place:
                raise LabError(
                    f"{node} changes a part of {other} in place, which {later[0]} reads; write that line of the "
                    "network without a change in place"
                )
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)
    for name in modules:
        graph.get_submodule(name).inplace = False


def _made_plain(node: fx.Node, modules: set[str]) -> bool:
    """Whether a node changes its input in place; a function or method that does gives way to the one that does not."""
    if node.op == "call_module":
        return node.target in modules
    if node.op == "call_method":
        plain = node.target.removesuffix("_")
        if plain == node.target or node.target.endswith("__"):
            return False
        if not hasattr(Tensor, plain):
            raise LabError(
                f"{node} is {node.target}(), which has no form that leaves its tensor alone; write it without"
            )
        node.target = plain
        return True
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        node.target = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
    else:
        try:
            given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):  # a function of C tells no signature, and has no such argument
            return False
        if not given.arguments.get("inplace"):
            return False
        given.arguments["inplace"] = False
        node.args, node.kwargs = given.args, given.kwargs
    return True


def _fold_norms(folded: fx.GraphModule) -> None:
    """Fold each batch norm into the layer before it, where both are called once and nobody else reads the layer.

    A layer that is called twice has one set of weights and may not take in what follows one of the calls.
    """
    calls = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    shared = Counter(id(p) for module in folded.modules() for p in module.parameters(recurse=False))
    for node in list(folded.graph.nodes):
        first = node.all_input_nodes[0] if node.op == "call_module" else None
        if first is None or first.op != "call_module" or len(first.users) != 1:
            continue
        layer, norm = folded.get_submodule(first.target), folded.get_submodule(node.target)
        fuse = next((f for kind, norms, f in FOLDS if isinstance(layer, kind) and isinstance(norm, norms)), None)
        once = fuse and calls[first.target] == calls[node.target] == 1 and norm.track_running_stats
        if once and all(shared[id(p)] == 1 for p in layer.parameters(recurse=False)):
            folded.set_submodule(first.target, fuse(layer, norm))
            node.replace_all_uses_with(first)
            folded.graph.erase_node(node)
    folded.recompile()
