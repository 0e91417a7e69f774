"""Files that become an ONNX graph: ONNX itself, an exported program of PyTorch, a Keras model."""

from __future__ import annotations

import os
from pathlib import Path

from labsupport import export, quiet
from labsupport.errors import BadInput, LabError, NotAvailable, first_line
from labsupport.export import keras_models

KINDS = (".onnx", ".pt2", ".keras", ".h5")


def graph_of(path: str | os.PathLike, folder: Path):
    """(OnnxGraph, example feed or None) of a model file; what is not ONNX is exported into ``folder``.

    Raises BadInput for another kind of file, NotAvailable where its framework is missing, LabError from its exporter.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".pt2":
        return _from_torch(path, folder / f"{path.stem}.onnx")
    if kind in (".keras", ".h5"):
        return _from_keras(path, folder / f"{path.stem}.onnx"), None
    if kind in (".pt", ".pth"):
        raise BadInput(
            f"{path.name} may hold weights without a network; export it with export.to_onnx(model, example), or save "
            "torch.export.export(model, (example,)) as .pt2"
        )
    return export.load(path), None


def _from_torch(path: Path, target: Path):
    try:
        import torch
    except ImportError:
        raise NotAvailable(f"{path.name} is PyTorch's, which is not installed; export it to ONNX elsewhere") from None
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # zip, pickle and schema errors of several PyTorch releases
        raise BadInput(
            f"{path.name} is no exported program ({first_line(error)}); save one with "
            "torch.export.save(torch.export.export(model, (example,)), path)"
        ) from error
    args, _ = program.example_inputs or ((), {})
    if not args:
        raise BadInput(f"{path.name} holds no example inputs; export it again with torch.export.export(model, (x,))")
    try:
        with quiet.quietly():
            torch.onnx.export(program, tuple(args), str(target), dynamo=True, external_data=False, verbose=False)
    except Exception as error:  # the exporter wraps what went wrong in types of its own
        raise LabError(
            f"PyTorch cannot export {path.name}: {first_line(error)}; export the module itself with "
            "export.to_onnx(model, example)"
        ) from error
    graph = export.load(target, exporter="dynamo")
    return graph, {name: x.detach().numpy() for name, x in zip(graph.inputs, args, strict=True)}


def _from_keras(path: Path, target: Path):
    keras, _ = keras_models.keras_here()
    try:
        model = keras.saving.load_model(str(path), compile=False)  # its safe mode refuses stored Python code
    except Exception as error:  # zip, HDF5 and Keras's own types
        raise LabError(f"Keras cannot load {path.name}: {first_line(error)}; save it with model.save(path)") from error
    return keras_models.from_keras(model, path=target)
