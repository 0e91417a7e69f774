"""PyTorch to ONNX, the one interchange format, and how to read what the exporter left in the graph."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from labsupport.errors import BadInput, LabError, one_of
from labsupport.export import frozen_values
from labsupport.export.onnx_graph import OnnxGraph, fresh_folder, load, staging, write
from labsupport.quiet import natively, quietly

EXPORTERS = ("torchscript", "dynamo")

# The newest ONNX operator set each parser reads. Sources: the parser support page of each release
# (operators.md in onnx-tensorrt: 8.6 reads 17, 10.x and later read 22 or above) and ONNX Runtime's
# compatibility page. A target reads every older operator set too.
NEWEST_OPSET = {"8.6": 17, "10": 20, "11": 20, "rtx": 20, "onnxruntime": 20}

# TorchScript's exporter ends at 20 and the dynamo exporter begins at 18; 17 is the one every target reads.
DEFAULT_OPSET = {"torchscript": 17, "dynamo": 18}


def to_onnx(
    model,
    example,
    *,
    path: str | os.PathLike | None = None,
    target: str | None = None,
    exporter: str = "torchscript",
    opset: int | None = None,
    dynamic: bool | Mapping[str, Mapping[int, str]] = True,
    fold_batchnorm: bool = True,
) -> OnnxGraph:
    """Export a PyTorch module to ONNX, in evaluation mode, with names and dynamic axes kept.

    ``example`` is an input tensor, or a tuple of them. ``target`` is a TensorRT generation ("8.6", "10", "11",
    "rtx") or "onnxruntime": it chooses an operator set its parser reads. ``dynamic=True`` leaves the first axis
    of every input and output free; a mapping name → {axis: label} says more. ``fold_batchnorm=False`` keeps
    BatchNormalization nodes, to see who would have folded them. Raises BadInput for an impossible request and
    LabError naming the operator when the exporter fails.
    Source: https://docs.pytorch.org/docs/stable/onnx.html
    """
    import torch

    one_of(EXPORTERS, exporter=exporter)
    opset = _opset_for(target, exporter, opset)
    examples = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(e, torch.Tensor) for e in examples):
        kinds = [type(e).__name__ for e in examples]
        raise BadInput(
            f"example is {kinds}; the exporter traces tensors: pass model.example_input() or a tuple of tensors"
        )
    names_in, names_out = _names(model, "input_name", "input", len(examples)), _names(model, "output_name", "output", 1)
    axes = _axes(dynamic, names_in, names_out)
    common = {"opset_version": opset, "input_names": names_in, "output_names": names_out}
    path = Path(path) if path else _scratch_file(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        into = _export_torchscript if exporter == "torchscript" else _export_dynamo
        with staging(path) as staged, torch.inference_mode(False), torch.no_grad():
            with warnings.catch_warnings(record=True) as heard, _plain_attention():
                warnings.simplefilter("ignore")  # deprecation notes about the exporter this function chose on purpose
                warnings.simplefilter("always", torch.jit.TracerWarning)
                into(model, examples, staged, axes, fold_batchnorm, common)
            _drop_identities(staged)
            frozen_values.demand_live(model, examples, load(staged), axes, heard)
            declared = frozen_values.declare(load(staged), axes)
            if declared is not None:
                write(declared, staged)
            graph = load(staged, exporter=exporter, folded=_folded(model, staged))
        return replace(graph, path=path)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"the {exporter} exporter could not export {type(model).__name__} at opset {opset}: {_cause(error)}. Try "
            f"exporter={'dynamo' if exporter == 'torchscript' else 'torchscript'!r}, or rewrite the operation it names."
        ) from error
    finally:
        for module, training in modes:  # one by one: a frozen BatchNorm in a training network stays frozen
            module.training = training


def _cause(error: BaseException) -> str:
    """What went wrong first, and for which node: the exporters wrap it in steps and advice for their own developers."""
    chain = [error]
    while (before := chain[-1].__cause__) is not None and before not in chain:
        chain.append(before)
    said = [re.sub(r"\x1b\[[0-9;]*m", "", str(each)).strip().split("\n\n")[0] for each in reversed(chain)]
    said = [" ".join(text.split()) for text in said if text and not text.startswith("Failed to ")]
    node = next((text.split(" :")[0] + ")" for text in said[1:] if text.startswith("Error when translating")), "")
    fixed = re.search(r"inferred a static shape of (\d+) for dimension (\S+?)\.?$", said[0]) if said else None
    if fixed:
        return f"the network fixes {fixed[2]} at {fixed[1]}, and it was to be free; say which axes are: dynamic={{...}}"
    first = said[0][:300].rstrip(".") if said else type(chain[-1]).__name__
    if "data-dependent" in first:
        first = f"a condition or a size depends on a tensor's value: {first}"
    return f"{first} ({node[:120].lower()}" if node else first


# --- how the two exporters are called ------------------------------------------------------------------------


@contextlib.contextmanager
def _plain_attention():
    """PyTorch's fused attention off: it is an operator of its own that no exporter knows."""
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _export_torchscript(model, examples, path, axes, fold, common):
    import torch
    from torch.onnx import TrainingMode

    # Folding happens because the model is exported for inference; PRESERVE keeps the graph as it was written.
    mode = TrainingMode.EVAL if fold else TrainingMode.PRESERVE
    with natively(1):  # its native code prints pages of its own graph where it fails
        torch.onnx.export(
            model,
            examples,
            str(path),
            dynamo=False,
            training=mode,
            do_constant_folding=fold,
            dynamic_axes=axes,
            **common,
        )


def _export_dynamo(model, examples, path, axes, fold, common):
    import torch

    free = [axes.get(name, {}) for name in common["input_names"]]
    shapes: tuple = tuple({axis: torch.export.Dim.DYNAMIC for axis in each} or None for each in free)
    kinds = [each.kind for each in inspect.signature(model.forward).parameters.values()]
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else None
    given = shapes if named is None else (*shapes[:named], tuple(shapes[named:]))  # *args are one argument of many
    with quietly():  # it warns that torchvision, which no lab needs, is missing
        program = torch.onnx.export(
            model,
            examples,
            dynamo=True,
            dynamic_shapes=given,
            optimize=fold,
            verbose=False,
            **common,
        )
    program.save(str(path), external_data=False)


def _drop_identities(path: Path) -> None:
    """Take out Identity nodes: the exporter writes one per pair of equal weights, and no runtime would run them."""
    import onnx_ir as ir
    from onnx_ir.passes.common import IdentityEliminationPass

    model = ir.load(path)
    if IdentityEliminationPass()(model).modified:
        write(ir.to_proto(model), path)


def _opset_for(target: str | None, exporter: str, opset: int | None) -> int:
    if target is not None:
        one_of(NEWEST_OPSET, target=target)
    newest = NEWEST_OPSET.get(target, 99)
    if exporter == "dynamo" and newest < DEFAULT_OPSET["dynamo"]:
        raise BadInput(
            f"TensorRT {target} reads opset {newest} and below, but the dynamo exporter writes "
            f"{DEFAULT_OPSET['dynamo']} and above and cannot go down; use exporter='torchscript'"
        )
    if opset is None:
        return min(DEFAULT_OPSET[exporter], newest)
    if not isinstance(opset, int) or not 9 <= opset <= 25:
        raise BadInput(
            f"opset={opset!r}; an ONNX operator set is a whole number from 9 to 25 (17 is read by every target)"
        )
    if opset > newest:
        raise BadInput(
            f"opset {opset} was asked for, but {target} reads {newest} and below; leave opset out or lower it"
        )
    return opset


def _names(model, attribute: str, fallback: str, count: int) -> list[str]:
    name = getattr(model, attribute, None)
    if isinstance(name, str):
        name = [name]
    if name and len(name) == count:
        return list(name)
    return [fallback] if count == 1 else [f"{fallback}_{i}" for i in range(count)]


def _axes(dynamic, names_in: list[str], names_out: list[str]) -> dict[str, dict[int, str]]:
    if dynamic is True:
        return {name: {0: "batch"} for name in names_in + names_out}
    axes = {name: dict(free) for name, free in (dynamic or {}).items()}
    unknown = set(axes) - set(names_in + names_out)
    if unknown:
        raise BadInput(f"dynamic names {sorted(unknown)}, but the network has {names_in + names_out}")
    return axes


def _folded(model, path: Path) -> dict[str, int]:
    """BatchNorms that the module has and the graph has not: the exporter's own fusion, to be credited to it."""
    import onnx
    from torch import nn

    had = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    kept = sum(n.op_type == "BatchNormalization" for n in onnx.load(str(path)).graph.node)
    return {"BatchNorm": had - kept} if had > kept else {}


def _scratch_file(model) -> Path:
    return fresh_folder() / f"{type(model).__name__.lower()}.onnx"
