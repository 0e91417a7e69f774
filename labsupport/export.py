"""PyTorch to ONNX, the one interchange format, and how to read what the exporter left in the graph."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from labsupport.errors import BadInput, LabError

EXPORTERS = ("torchscript", "dynamo")

# The newest ONNX operator set each parser reads. Sources: the parser support page of each release
# (operators.md in onnx-tensorrt: 8.6 reads 17, 10.x and later read 22 or above) and ONNX Runtime's
# compatibility page. A target reads every older operator set too.
NEWEST_OPSET = {"8.6": 17, "10": 20, "11": 20, "rtx": 20, "onnxruntime": 20}

# TorchScript's exporter ends at 20 and the dynamo exporter begins at 18; 17 is the one every target reads.
DEFAULT_OPSET = {"torchscript": 17, "dynamo": 18}


@dataclass(frozen=True)
class OnnxGraph:
    """A network on disk in ONNX: which operators it has, what goes in and out, what the exporter folded.

    ``inputs`` and ``outputs`` map a name to (shape, dtype); a dynamic axis is a string in the shape.
    """

    path: Path
    ops: Counter
    inputs: Mapping[str, tuple]
    outputs: Mapping[str, tuple]
    opset: int
    exporter: str = "unknown"
    folded: Mapping[str, int] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """How many operator nodes the graph has."""
        return sum(self.ops.values())

    @property
    def sha256(self) -> str:
        """Checksum of the file and of weights kept beside it, the identity that caches and sidecars go by."""
        data = self.path.read_bytes()
        digest = hashlib.sha256(data)
        for name in _external_files(data):
            digest.update((self.path.parent / name).read_bytes())
        return digest.hexdigest()

    @property
    def size_mib(self) -> float:
        """Size of the file in MiB."""
        return self.path.stat().st_size / 2**20

    def model(self):
        """The graph as an ``onnx.ModelProto``, for surgery."""
        import onnx

        return onnx.load(str(self.path))

    def __repr__(self) -> str:
        ops = ", ".join(f"{op}×{n}" if n > 1 else op for op, n in self.ops.items())
        folded = "".join(f"; exporter folded {op}×{n}" for op, n in self.folded.items())
        return f"OnnxGraph({self.nodes} node{'s' * (self.nodes != 1)}: {ops}; opset {self.opset}{folded})"


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
        raise BadInput(f"example is {kinds}; the exporter traces tensors: pass model.example_input() or a tuple of tensors")
    several = getattr(model, "output_name", None)  # a tuple of names: the network returns as many tensors
    names_in = _names(model, "input_name", "input", len(examples))
    names_out = _names(model, "output_name", "output", len(several) if isinstance(several, (tuple, list)) else 1)
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
            f"Try exporter={'dynamo' if exporter == 'torchscript' else 'torchscript'!r}, or rewrite the operation it names."
        ) from error
    finally:
        for module, training in modes:  # one by one: a frozen BatchNorm in a training network stays frozen
            module.training = training


def load(path: str | os.PathLike, *, exporter: str = "unknown", folded: Mapping[str, int] | None = None) -> OnnxGraph:
    """Read an ONNX file and check it: missing, empty, not ONNX and inconsistent files are told apart.

    TensorRT's own parser accepts an empty file, an HTML page or a PNG as a network with no layers, so the
    check stands here, before any parser sees the file. Raises BadInput.
    """
    import onnx

    if not isinstance(path, (str, os.PathLike)):
        raise BadInput(f"a graph is wanted, or the name of its file, and a {type(path).__name__} came; export one with export.to_onnx(model, example)")
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file (looked in {path.parent}); export one with export.to_onnx(model, example)")
    head = path.read_bytes()[:64] if path.stat().st_size else b""
    if not head:
        raise BadInput(f"{path.name} is empty (0 bytes): the export or the copy was cut off; export it again")
    kind = _what_is(head)
    if kind:
        raise BadInput(f"{path.name} is not an ONNX file: it is {kind}; an ONNX file comes from export.to_onnx(model, example)")
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise BadInput(f"{path.name} is not an ONNX file or is cut off ({_first_line(error)}); export it again") from error
    if not model.graph.node:
        raise BadInput(f"{path.name} holds no operator nodes: it is not an ONNX network; export it again")
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise BadInput(f"{path.name} is not a valid ONNX network: {_first_line(error)}; export it again or repair that node") from error
    initial = {i.name for i in model.graph.initializer}
    return OnnxGraph(
        path=path,
        ops=Counter(node.op_type for node in model.graph.node),
        inputs={v.name: _spec(v) for v in model.graph.input if v.name not in initial},
        outputs={v.name: _spec(v) for v in model.graph.output},
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        exporter=exporter,
        folded=dict(folded or {}),
    )


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


def save(model, path: str | os.PathLike) -> OnnxGraph:
    """Write an ``onnx.ModelProto``, check it, and only then put it in place of what was there."""
    import onnx

    path = Path(path)
    with _staged(path) as staged:
        onnx.save(model, str(staged))
        graph = load(staged)
    return replace(graph, path=path)


def another_file(path: str | os.PathLike, graph: OnnxGraph) -> Path:
    """``path`` as the place of what is made from ``graph``. Raises BadInput where it is that graph's own file, which would be lost."""
    if Path(path).resolve() == graph.path.resolve():
        raise BadInput(f"path={Path(path).name!r} is the graph that came in; give the new one a name of its own")
    return Path(path)


@contextlib.contextmanager
def _staged(path: Path):
    """A file of the same name in a folder of its own, which takes the place of ``path`` if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=".export-"))
        try:
            yield folder / path.name
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise LabError(f"{path} cannot be written ({error.strerror or error}); name another file, or free some space. What was there is unchanged") from error


def _external_files(data: bytes) -> list[str]:
    """Files beside the graph that hold its weights; large networks keep them apart."""
    if b"location" not in data:  # the key that every such weight carries; reading the whole graph would be slow
        return []
    import onnx

    model = onnx.load_from_string(data)
    entries = (e for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL for e in w.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def float_type(graph: OnnxGraph) -> str:
    """Which floating-point type the weights have: "fp32", "fp16", "bf16" or "mixed"."""
    import onnx

    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    # Scalars and shape constants stay FP32 in many half-precision graphs; weights have at least one axis of 2 or more.
    kinds = {names[w.data_type] for w in graph.model().graph.initializer if w.data_type in names and any(d > 1 for d in w.dims)}
    if not kinds:
        kinds = {dtype for _, dtype in graph.inputs.values() if dtype in names.values()} or {"fp32"}
    return kinds.pop() if len(kinds) == 1 else "mixed"


# --- how the two exporters are called ------------------------------------------------------------------------


def _export_torchscript(model, examples, path, opset, names_in, names_out, axes, fold):
    import torch
    from torch.onnx import TrainingMode

    # Folding happens because the model is exported for inference; PRESERVE keeps the graph as it was written.
    mode = TrainingMode.EVAL if fold else TrainingMode.PRESERVE
    torch.onnx.export(
        model, examples, str(path), dynamo=False, opset_version=opset, training=mode, do_constant_folding=fold,
        input_names=names_in, output_names=names_out, dynamic_axes=axes,
    )  # fmt: skip


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
                model, examples, dynamo=True, opset_version=opset, input_names=names_in, output_names=names_out,
                dynamic_shapes=shapes if any(shapes) else None, optimize=fold, verbose=False,
            )  # fmt: skip
        program.save(str(path), external_data=False)
    finally:
        registry.setLevel(level)


def _drop_identities(path: Path) -> None:
    """Take out Identity nodes: the exporter writes one per pair of equal weights, and no runtime would run them."""
    import onnx

    model = onnx.load(str(path))
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute):
        return  # the branches of an If or a Loop read outer tensors by name, and are left as they are
    outputs = {o.name for o in model.graph.output}
    source = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity" and n.output[0] not in outputs}
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
            f"TensorRT {target} reads opset {newest} and below, but the dynamo exporter writes {DEFAULT_OPSET['dynamo']} "
            f"and above and cannot go down; use exporter='torchscript'"
        )
    if opset is None:
        return min(DEFAULT_OPSET[exporter], newest)
    if not isinstance(opset, int) or not 9 <= opset <= 25:
        raise BadInput(f"opset={opset!r}; an ONNX operator set is a whole number from 9 to 25 (17 is read by every target)")
    if opset > newest:
        raise BadInput(f"opset {opset} was asked for, but {target} reads {newest} and below; leave opset out or lower it")
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


def _spec(value) -> tuple:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
    short = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return shape, short.get(name, name)


def _what_is(head: bytes) -> str:
    signatures = {
        b"<!DOCTYPE": "an HTML page (a failed download?)", b"<html": "an HTML page (a failed download?)",
        b"version https://git-lfs": "a Git LFS pointer (run: git lfs pull)", b"\x89PNG": "a PNG picture",
        b"PK\x03\x04": "a zip archive or a PyTorch checkpoint", b"{": "JSON text", b"ftrt": "a TensorRT engine",
        b"\x80": "a Python pickle", b"\x93NUMPY": "a NumPy array",
    }  # fmt: skip
    stripped = head.lstrip()
    return next((what for magic, what in signatures.items() if stripped[: len(magic)].lower() == magic.lower()), "")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


@functools.lru_cache(maxsize=None)
def scratch_folder() -> Path:
    """A folder for files that nobody named; it goes with the process, because exports are as large as their weights."""
    folder = Path(tempfile.mkdtemp(prefix="labsupport-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fresh_folder() -> Path:
    """An empty folder inside `scratch_folder()`: what is written there overwrites nothing that somebody still reads."""
    return Path(tempfile.mkdtemp(dir=scratch_folder()))


def _scratch_file(model) -> Path:
    return fresh_folder() / f"{type(model).__name__.lower()}.onnx"
