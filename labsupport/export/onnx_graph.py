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

from labsupport.errors import BadInput, LabError


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


def load(path: str | os.PathLike, *, exporter: str = "unknown", folded: Mapping[str, int] | None = None) -> OnnxGraph:
    """Read an ONNX file and check it: missing, empty, not ONNX and inconsistent files are told apart.

    TensorRT's own parser accepts an empty file, an HTML page or a PNG as a network with no layers, so the
    check stands here, before any parser sees the file. Raises BadInput.
    """
    import onnx

    if not isinstance(path, (str, os.PathLike)):
        raise BadInput(
            f"a graph is wanted, or the name of its file, and a {type(path).__name__} came; export one with "
            "export.to_onnx(model, example)"
        )
    path = Path(path)
    if not path.is_file():
        raise BadInput(
            f"{path.name}: no such file (looked in {path.parent}); export one with export.to_onnx(model, example)"
        )
    head = path.read_bytes()[:64] if path.stat().st_size else b""
    if not head:
        raise BadInput(f"{path.name} is empty (0 bytes): the export or the copy was cut off; export it again")
    kind = _what_is(head)
    if kind:
        raise BadInput(
            f"{path.name} is not an ONNX file: it is {kind}; an ONNX file comes from export.to_onnx(model, example)"
        )
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise BadInput(
            f"{path.name} is not an ONNX file or is cut off ({_first_line(error)}); export it again"
        ) from error
    if not model.graph.node:
        raise BadInput(f"{path.name} holds no operator nodes: it is not an ONNX network; export it again")
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise BadInput(
            f"{path.name} is not a valid ONNX network: {_first_line(error)}; export it again or repair that node"
        ) from error
    initial = {i.name for i in model.graph.initializer}
    return OnnxGraph(
        path=path,
        ops=Counter(node.op_type for node in model.graph.node),
        inputs={v.name: spec_of(v) for v in model.graph.input if v.name not in initial},
        outputs={v.name: spec_of(v) for v in model.graph.output},
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        exporter=exporter,
        folded=dict(folded or {}),
    )


def save(model, path: str | os.PathLike) -> OnnxGraph:
    """Write an ``onnx.ModelProto``, check it, and only then put it in place of what was there."""
    import onnx

    path = Path(path)
    with _staged(path) as staged:
        onnx.save(model, str(staged))
        graph = load(staged)
    return replace(graph, path=path)


def another_file(path: str | os.PathLike, graph: OnnxGraph) -> Path:
    """``path`` as the place of what is made from ``graph``. Raises BadInput where it is that graph's own file, which
    would be lost.
    """
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
        raise LabError(
            f"{path} cannot be written ({error.strerror or error}); name another file, or free some space. What was "
            "there is unchanged"
        ) from error


def _external_files(data: bytes) -> list[str]:
    """Files beside the graph that hold its weights; large networks keep them apart."""
    if b"location" not in data:  # the key that every such weight carries; reading the whole graph would be slow
        return []
    import onnx

    model = onnx.load_from_string(data)
    entries = (
        e for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL for e in w.external_data
    )
    return sorted({entry.value for entry in entries if entry.key == "location"})


def float_type(graph: OnnxGraph) -> str:
    """Which floating-point type the weights have: "fp32", "fp16", "bf16" or "mixed"."""
    import onnx

    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    # Scalars and shape constants stay FP32 in many half-precision graphs; weights have at least one axis of 2 or more.
    kinds = {
        names[w.data_type]
        for w in graph.model().graph.initializer
        if w.data_type in names and any(d > 1 for d in w.dims)
    }
    if not kinds:
        kinds = {dtype for _, dtype in graph.inputs.values() if dtype in names.values()} or {"fp32"}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def spec_of(value) -> tuple:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
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
