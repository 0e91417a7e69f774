"""Plans that are recorded or written by hand, and small ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

from labsupport import export, fusion, recordings

PLANS = Path(__file__).parents[1] / "fixtures" / "plans"
REAL = "resnet18_b32.fp16"
LEVELS = ("off", "basic", "extended", "all")
COMMITTED = sorted(
    path.stem for path in (Path(recordings.__file__).parents[1] / "data/recordings/plans").glob("*.json")
)
# Of these the kernels' names alone are recorded, at least as many: their graphs are made by a tool.
BARE = {"gemm_n4096_m4096.sparse24": 1, "resnet50_b64.sparse24": 41}
EVERY = [name for name in COMMITTED if name not in BARE]


def recorded(name, **options):
    return fusion.xray(recordings.load_plan(name), **options)


def records_of(name):
    return {record["Name"]: record for record in recordings.load_plan(name).plan["Layers"]}


def onnx_file(path, nodes, inputs, outputs, weights=(), *, opset=17, functions=()):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node(op, reads, writes, name=name, **attributes) for name, op, reads, writes, attributes in nodes],
        "block",
        [value(*i) for i in inputs],
        [value(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)],
        functions=list(functions),
        ir_version=8 if opset < 18 else 10,
    )
    onnx.save(model, str(path))
    return export.load(path)


def synthetic(name):
    return json.loads((PLANS / f"synthetic_block_{name}.json").read_text(encoding="utf-8"))
