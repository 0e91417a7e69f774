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
    from onnx import helper
    from onnx_files import model_of, value

    made = [helper.make_node(op, reads, writes, name=name, **given) for name, op, reads, writes, given in nodes]
    domains, ends = (
        [(each.domain, 1) for each in functions],
        ([value(*each) for each in side] for side in (inputs, outputs)),
    )
    options = {"opset": opset, "ir": 8 if opset < 18 else 10, "domains": domains, "functions": functions}
    model = model_of(made, *ends, dict(weights), **options)
    onnx.save(model, str(path))
    return export.load(path)


def synthetic(name):
    return json.loads((PLANS / f"synthetic_block_{name}.json").read_text(encoding="utf-8"))
