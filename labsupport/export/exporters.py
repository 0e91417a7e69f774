"""PyTorch to ONNX, the one interchange format, and how to read what the exporter left in the graph."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from labsupport.errors import BadInput, LabError
from labsupport.export.onnx_graph import OnnxGraph, _staged, float_type, fresh_folder, load, save

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

    if exporter not in EXPORTERS:
        raise BadInput(f"exporter={exporter!r} is not an exporter; choose one of {list(EXPORTERS)}")
    opset = _opset_for(target, exporter, opset)
    examples = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(e, torch.Tensor) for e in examples):
        kinds = [type(e).__name__ for e in examples]
        raise BadInput(
            f"example is {kinds}; the exporter traces tensors: pass model.example_input() or a tuple of tensors"
        )
    names_in, names_out = _names(model, "input_name", "input", len(examples)), _names(model, "output_name", "output", 1)
    axes = _axes(dynamic, names_in, names_out)
    path = Path(path) if path else _scratch_file(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        write = _export_torchscript if exporter == "torchscript" else _export_dynamo
        with _staged(path) as staged, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes about the exporter this function chose on purpose
            write(model, examples, staged, opset, names_in, names_out, axes, fold_batchnorm)
            _drop_identities(staged)
            graph = load(staged, exporter=exporter, folded=_folded(model, staged))
        return replace(graph, path=path)
    except LabError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LabError(
            f"the {exporter} exporter could not export {type(model).__name__} at opset {opset}: {first}. "
            f"Try exporter={'dynamo' if exporter == 'torchscript' else 'torchscript'!r}, or rewrite the operation it "
            "names."
        ) from error
    finally:
        for module, training in modes:  # one by one: a frozen BatchNorm in a training network stays frozen
            module.training = training


def to_half(graph: OnnxGraph, *, path: str | os.PathLike | None = None, keep_io: bool = True) -> OnnxGraph:
    """The same network with FP16 weights and arithmetic, as strongly typed TensorRT (10, 11, RTX) wants it.

    ``keep_io`` leaves inputs and outputs in FP32 behind Cast nodes. Uses onnxconverter-common; lab 05 compares
    it with NVIDIA's AutoCast, which keeps layers at risk of overflow wide. Returns a new graph.
    """
    from onnxconverter_common import float16

    if float_type(graph) == "fp16":
        return graph
    out = Path(path) if path else fresh_folder() / f"{graph.path.stem}.fp16.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes about constants clipped at FP16's smallest value
        half = float16.convert_float_to_float16(graph.model(), keep_io_types=keep_io, disable_shape_infer=False)
    return save(half, out)


# --- how the two exporters are called ------------------------------------------------------------------------


def _export_torchscript(model, examples, path, opset, names_in, names_out, axes, fold):
    import torch
    from torch.onnx import TrainingMode

    # Folding happens because the model is exported for inference; PRESERVE keeps the graph as it was written.
    mode = TrainingMode.EVAL if fold else TrainingMode.PRESERVE
    torch.onnx.export(
        model,
        examples,
        str(path),
        dynamo=False,
        opset_version=opset,
        training=mode,
        do_constant_folding=fold,
        input_names=names_in,
        output_names=names_out,
        dynamic_axes=axes,
    )


def _export_dynamo(model, examples, path, opset, names_in, names_out, axes, fold):
    import logging

    import torch

    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes.get(name, {})} or None for name in names_in)
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # it warns that torchvision, which no lab needs, is missing
    try:
        with contextlib.redirect_stdout(None):
            program = torch.onnx.export(
                model,
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=names_in,
                output_names=names_out,
                dynamic_shapes=shapes if any(shapes) else None,
                optimize=fold,
                verbose=False,
            )
        program.save(str(path), external_data=False)
    finally:
        registry.setLevel(level)


def _drop_identities(path: Path) -> None:
    """Take out Identity nodes: the exporter writes one per pair of equal weights, and no runtime would run them."""
    import onnx

    model = onnx.load(str(path))
    if any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute
    ):
        return  # the branches of an If or a Loop read outer tensors by name, and are left as they are
    outputs = {o.name for o in model.graph.output}
    source = {
        n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity" and n.output[0] not in outputs
    }
    if not source:
        return
    kept = [n for n in model.graph.node if not (n.op_type == "Identity" and n.output[0] in source)]
    for node in kept:
        for i, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[i] = name
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, str(path))


def _opset_for(target: str | None, exporter: str, opset: int | None) -> int:
    if target is not None and target not in NEWEST_OPSET:
        raise BadInput(f"target={target!r} is not a known parser; choose one of {list(NEWEST_OPSET)}")
    newest = NEWEST_OPSET.get(target, 99)
    if exporter == "dynamo" and newest < DEFAULT_OPSET["dynamo"]:
        raise BadInput(
            f"TensorRT {target} reads opset {newest} and below, but the dynamo exporter writes "
            f"{DEFAULT_OPSET['dynamo']} "
            f"and above and cannot go down; use exporter='torchscript'"
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
