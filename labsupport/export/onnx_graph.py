"""An ONNX file: checked when it is read, written whole, and never overwritten by what is made from it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError, NotAvailable, first_line
from labsupport.export.node_walks import bodies, everywhere, external, tensors_of
from labsupport.export.sparse_weights import written_out

LARGEST_INSIDE = 2**30  # bytes of weights that a file of at most 2 GB takes in


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
        digest = hashlib.sha256()
        for file in self._files():
            with file.open("rb") as opened:
                while part := opened.read(2**24):
                    digest.update(part)
        return digest.hexdigest()

    @property
    def size_mib(self) -> float:
        """Size in MiB of the file, and of those beside it that hold its weights."""
        return sum(file.stat().st_size for file in self._files()) / 2**20

    def _files(self) -> list[Path]:
        """The file itself, then the files of its weights, wherever in the graph a tensor names one."""
        beside = {place["location"] for place in map(external, tensors_of(_light(self.path))) if place}
        return [self.path, *(self.path.parent / name for name in sorted(beside))]

    def model(self):
        """The graph as an ``onnx.ModelProto``, for surgery; its sparse weights are written out with their zeros."""
        import onnx

        return written_out(onnx.load(str(self.path)))

    def __repr__(self) -> str:
        ops = ", ".join(f"{op}×{n}" if n > 1 else op for op, n in self.ops.items())
        folded = "".join(f"; exporter folded {op}×{n}" for op, n in self.folded.items())
        return f"OnnxGraph({self.nodes} node{'s' * (self.nodes != 1)}: {ops}; opset {self.opset}{folded})"


def load(
    source: OnnxGraph | str | os.PathLike, *, exporter: str = "unknown", folded: Mapping[str, int] | None = None
) -> OnnxGraph:
    """Read an ONNX file and check it: missing, empty, not ONNX and inconsistent files are told apart.

    A graph that was read already comes back as it is.

    TensorRT's own parser accepts an empty file, an HTML page or a PNG as a network with no layers, so the
    check stands here, before any parser sees the file. Raises BadInput.
    """
    if isinstance(source, OnnxGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise BadInput(
            f"a graph is wanted, or the name of its file, and a {type(source).__name__} came; export one with "
            "export.to_onnx(model, example)"
        )
    path = Path(source)
    if not path.exists():
        raise BadInput(
            f"{path.name}: no such file (looked in {path.parent}); export one with export.to_onnx(model, example)"
        )
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise BadInput(f"{path.name} is {kind}, no ordinary file; give the .onnx file itself")
    with path.open("rb") as opened:
        head = opened.read(64)
    if not head:
        raise BadInput(f"{path.name} is empty (0 bytes): the export or the copy was cut off; export it again")
    kind = _what_is(head)
    if kind:
        raise BadInput(
            f"{path.name} is not an ONNX file: it is {kind}; an ONNX file comes from export.to_onnx(model, example)"
        )
    try:
        model = _light(path)
    except Exception as error:
        raise _unread(path, error) from error
    if not model.graph.node:
        raise BadInput(f"{path.name} holds no operator nodes: it is not an ONNX network; export it again")
    _check(model, path)
    initial = {i.name for i in model.graph.initializer}
    return OnnxGraph(
        path=path,
        ops=Counter(node.op_type for node in model.graph.node),
        inputs={v.name: spec_of(v) for v in model.graph.input if v.name not in initial},
        outputs={v.name: spec_of(v) for v in model.graph.output},
        opset=_opset(model),
        exporter=exporter,
        folded=dict(folded or {}),
    )


def _unread(path: Path, error: Exception) -> LabError:
    if isinstance(error, ImportError):
        said = f"{path.name} cannot be read here: {first_line(error)}"
        return NotAvailable(f"{said}; `python3 -m labsupport doctor` says what is missing")
    return BadInput(f"{path.name} is not an ONNX file or is cut off ({first_line(error)}); export it again")


def _light(path: Path):
    """The model of a file, without the weights that are kept beside it."""
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _check(model, path: Path) -> None:
    """Refuse a network whose weights are not there, whose opset nobody knows yet, or that ONNX's checker refuses."""
    import onnx

    for tensor in tensors_of(model):
        place = external(tensor)
        file = path.parent / place["location"] if place else path
        if not file.is_file() or place and file.stat().st_size < place["end"]:
            raise BadInput(
                f"{path.name} keeps the weight {tensor.name!r} in {file.name}, which is "
                f"{'too short' if file.is_file() else 'not there'}; copy that file beside it (looked in {file.parent})"
            )
    opset, newest = _opset(model), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise BadInput(
            f"{path.name} says that it is opset {opset}, and onnx {onnx.__version__} knows {newest} at most; "
            "export it again with a lower opset (17 is read by every target), or install a newer onnx"
        )
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type not in onnx.TensorProto.DataType.values():
            raise BadInput(
                f"{path.name}: {value.name!r} has element type {value.type.tensor_type.elem_type}, which ONNX does not "
                "know; export it again"
            )
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise BadInput(
                f"{path.name}: {value.name!r} declares no shape, not even how many axes it has, and ONNX asks for that "
                "at the border of a network; onnx.shape_inference.infer_shapes may know it, else export it again"
            )
    _check_names(model, path)
    if any(node.domain == "ai.onnx" for node in everywhere(model.graph.node)):
        raise BadInput(
            f"{path.name} spells the domain of ONNX's own operators 'ai.onnx' at its nodes, which onnx's checker does "
            "not take; write '' there: for node in model.graph.node: node.domain = ''"
        )
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path.name} is not a valid ONNX network: {said}; export it again or repair that node"
        ) from error


def _check_names(model, path: Path) -> None:
    """Refuse two tensors of one name in one graph: onnx's checker overlooks some, and runtimes take either of them."""
    graphs = [model.graph, *(body for node in everywhere(model.graph.node) for body in bodies(node))]
    scopes = [(f.name, f.node, list(f.input), []) for f in model.functions]
    for graph in graphs:
        weights = [w.name for w in graph.initializer] + [w.values.name for w in graph.sparse_initializer]
        scopes.append((graph.name, graph.node, [value.name for value in graph.input], weights))
    for place, nodes, given, weights in scopes:
        given = given + [name for name in weights if name not in given]  # IR 3 lists weights among the inputs
        counts = Counter([*given, *(name for node in nodes for name in node.output if name)])
        counts += Counter(weights) - Counter(set(weights))
        for name in (name for name, times in counts.items() if times > 1):
            makers = " and ".join(f"{node.op_type} {node.name!r}" for node in nodes if name in node.output)
            raise BadInput(
                f"{path.name} has two tensors named {name!r} in {place!r}{makers and f', written by {makers}'}; give "
                "each a name of its own, or export it again"
            )


def _opset(model) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def save(model, path: str | os.PathLike) -> OnnxGraph:
    """Write an ``onnx.ModelProto``, check it, and only then put it in place of what was there.

    Weights of more than 1 GiB go into a file beside it, ``<name>.data``: one ONNX file holds 2 GB at most.
    """
    if not hasattr(model, "graph") or not isinstance(path, (str, os.PathLike)):
        raise BadInput(
            f"a {type(model).__name__} and a {type(path).__name__} came; wanted are an onnx.ModelProto and a name"
        )
    path = Path(path)
    with staging(path) as staged:
        write(model, staged)
        graph = load(staged)
    return replace(graph, path=path)


def write(model, path: Path) -> None:
    """Write a model unchecked, with large weights in a file beside it."""
    import onnx

    if sum(len(tensor.raw_data) for tensor in tensors_of(model)) <= LARGEST_INSIDE:
        onnx.save(model, str(path))
        return
    beside = f"{path.name}.data"
    onnx.save(model, str(path), save_as_external_data=True, location=beside, convert_attribute=True)
    onnx.load_external_data_for_model(model, str(path.parent))  # onnx empties the model that it writes


def another_file(path: str | os.PathLike, graph: OnnxGraph) -> Path:
    """``path`` as the place of what is made from ``graph``. Raises BadInput where it is that graph's own file, which
    would be lost.
    """
    if Path(path).resolve() == graph.path.resolve():
        raise BadInput(f"path={Path(path).name!r} is the graph that came in; give the new one a name of its own")
    return Path(path)


@contextlib.contextmanager
def staging(path: Path):
    """A file of the same name in a folder of its own, which takes the place of ``path`` if the block succeeds."""
    try:
        files.check_ordinary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.scratch(inside=path.parent, prefix=".export-") as folder:
            yield folder / path.name
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # weights first
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise LabError(
            f"{path} cannot be written ({error.strerror or error}); name another file, or free some space. What was "
            "there is unchanged"
        ) from error


def float_type(graph: OnnxGraph) -> str:
    """Which floating-point type the weights have: "fp32", "fp16", "bf16", "fp64" or "mixed".

    FP64 counts where there is nothing else: exporters write single FP64 numbers into FP32 graphs.
    """
    return weight_type(_light(graph.path), graph.inputs)


def weight_type(model, inputs: Mapping[str, tuple]) -> str:
    """`float_type` of a model in memory, whose inputs decide where it has no weights."""
    import onnx

    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    names[onnx.TensorProto.DOUBLE] = "fp64"
    # Scalars and shape constants stay FP32 in many half-precision graphs; weights have at least one axis of 2 or more.
    kinds = {names[w.data_type] for w in tensors_of(model) if w.data_type in names and any(d > 1 for d in w.dims)}
    if not kinds - {"fp64"}:
        read = {{"double": "fp64"}.get(dtype, dtype) for _, dtype in inputs.values()} & set(names.values())
        kinds = read or kinds or {"fp32"}
    kinds = kinds - {"fp64"} or kinds
    return kinds.pop() if len(kinds) == 1 else "mixed"


def bits(kind: int, *, of_floats: int) -> int:
    """Bits of one value of an element type, ``of_floats`` for the usual floating-point ones.

    0 for what has no size of its own: text, a sequence, a map.
    """
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("UNDEFINED", "STRING"):
        return 0
    if name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"):
        return of_floats
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # several to a byte
    return packed.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def spec_of(value) -> tuple:
    """(shape, type) of an input or output; a sequence, map or optional has no shape, and its kind for a type."""
    import onnx

    kind = value.type.WhichOneof("value") or "tensor_type"
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return (), kind.removesuffix("_type")
    tensor = getattr(value.type, kind)
    free = [not d.HasField("dim_value") or d.dim_value < 0 for d in tensor.shape.dim]  # some exporters write -1
    shape = tuple(d.dim_param or ("?" if open else d.dim_value) for d, open in zip(tensor.shape.dim, free))
    short = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return shape, short.get(name, name)


def _what_is(head: bytes) -> str:
    signatures = {
        b"<!DOCTYPE": "an HTML page (a failed download?)",
        b"<html": "an HTML page (a failed download?)",
        b"version https://git-lfs": "a Git LFS pointer (run: git lfs pull)",
        b"\x89PNG": "a PNG picture",
        b"PK\x03\x04": "a zip archive or a PyTorch checkpoint",
        b"{": "JSON text",
        b"ftrt": "a TensorRT engine",
        b"\x80": "a Python pickle",
        b"\x93NUMPY": "a NumPy array",
    }
    stripped = head.lstrip()
    return next((what for magic, what in signatures.items() if stripped[: len(magic)].lower() == magic.lower()), "")


@functools.lru_cache(maxsize=None)
def scratch_folder() -> Path:
    """A folder for files that nobody named; it goes with the process, because exports are as large as their weights."""
    folder = files.scratch_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fresh_folder() -> Path:
    """An empty folder inside `scratch_folder()`: what is written there overwrites nothing that somebody still reads."""
    return Path(tempfile.mkdtemp(dir=scratch_folder()))
