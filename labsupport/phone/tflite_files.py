"""What stands in a `.tflite` file, read with the schema that LiteRT ships: operators, and the bytes of each type."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from labsupport import environment
from labsupport.errors import BadInput


@dataclass(frozen=True, repr=False)
class Contents:
    """``operators`` name → how often, ``weight_bytes`` type → bytes of constants, ``inputs`` and ``outputs`` shapes."""

    name: str
    size_bytes: int
    operators: Counter
    weight_bytes: Counter
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        common = ", ".join(f"{count} {name}" for name, count in self.operators.most_common(4))
        return f"{self.name}: {self.size_bytes / 1024:.0f} KiB, {sum(self.operators.values())} operators ({common})"


def contents(path: str | Path) -> Contents:
    """Read a `.tflite` file without running it. Raises NotAvailable without LiteRT, BadInput for another file."""
    environment.require("litert")
    from ai_edge_litert import schema_py_generated as schema

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no file {path.name}; give the path of a .tflite file")
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise BadInput(f"{path.name} is no .tflite file: its bytes 4 to 8 are {data[4:8]!r}, and TFL3 is wanted")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    operators = _names(schema.BuiltinOperator)
    types = _names(schema.TensorType)
    codes = [operators[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    ran, stored = Counter(codes[operator.opcodeIndex] for operator in graph.operators), Counter()
    for tensor in graph.tensors:
        constant = model.buffers[tensor.buffer].data
        if constant is not None:
            stored[types[tensor.type]] += len(constant)
    shapes = [tuple(tuple(map(int, graph.tensors[i].shape)) for i in ends) for ends in (graph.inputs, graph.outputs)]
    return Contents(path.name, len(data), ran, stored, *shapes)


def _names(enum) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}
