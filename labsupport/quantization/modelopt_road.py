"""NVIDIA's Model Optimizer (nvidia-modelopt) as a road to explicit Q/DQ on an ONNX graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput, LabError, NotAvailable, one_of
from labsupport.quantization import calibration, fit_graphs, qdq

FORMATS = ("int8", "fp8")
NEEDED = ("modelopt", "requests", "huggingface_hub")  # the latter two are imported and not declared

# Operators with a newer version that means the same for the types in an INT8 graph.
SAME_MEANING = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Identity",
    "Reshape",
    "Shape",
    "Constant",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "ConstantOfShape",
    "Size",
    "AveragePool",
    "Equal",
    "Split",
}


def quantize_graphs(graph, batches, *, formats: Iterable[str] = FORMATS) -> dict[str, export.OnnxGraph]:
    """New graphs with the Q/DQ nodes that ``modelopt.onnx.quantization`` places, format → graph; the one that came in
    stays as it was.

    ``batches`` are calibration feeds as for ``quantization.to_qdq``. "int8" keeps the graph's opset; "fp8" (E4M3) needs
    opset 19. Raises NotAvailable without the package, BadInput, and LabError when no node was placed: for layers of few
    channels modelopt reports success and quantizes nothing.
    Source: https://nvidia.github.io/Model-Optimizer/guides/_onnx_quantization.html
    """
    formats = tuple(formats)
    if not formats:
        raise BadInput(f"formats is empty; choose from {list(FORMATS)}")
    _require()
    for format in formats:
        one_of(FORMATS, format=format)
    graph = fit_graphs.checked(graph)
    feeds = list(calibration.feeds(graph, batches))
    outs = {f: export.fresh_folder() / f"{graph.path.stem}.modelopt.{f}.onnx" for f in formats}
    folder = export.fresh_folder()  # it leaves files beside its result
    jobs = [
        {
            # it writes shapes into the file that it is given
            "onnx_path": str(export.save(graph.model(), folder / format / graph.path.name).path),
            "quantize_mode": format,
            "calibration_method": "entropy",
            "calibration_eps": ["cpu"],
            "high_precision_dtype": "fp32",
            "nodes_to_exclude": None,
            "output_path": str(folder / format / "made.onnx"),
        }
        for format in formats
    ]
    _in_a_child(folder, feeds, jobs, graph.path.name)
    import onnx

    graphs = {format: onnx.load(job["output_path"]) for format, job in zip(formats, jobs, strict=True)}
    return {
        f: _demand(export.save(_at_opset(m, graph.opset) if f == "int8" else m, outs[f]), f) for f, m in graphs.items()
    }


# In a process of its own: modelopt.onnx replaces parts of onnxruntime.quantization, after which quantize_static fails
# there.
# Without TensorRT: it would parse the graph into an implicit-batch network of 8.6, which has no such graphs.
CHILD = """
import json, sys
sys.modules["tensorrt"] = None
import numpy as np
from modelopt.onnx.quantization import quantize
for job in json.loads(sys.argv[2]):
    with np.load(sys.argv[1], allow_pickle=False) as data:
        quantize(**job, calibration_data=dict(data))
"""


def _in_a_child(folder: Path, feeds: list, jobs: list[dict], name: str) -> None:
    import numpy as np

    np.savez(folder / "feeds.npz", **{key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]})
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "feeds.npz"), json.dumps(jobs)],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ran.returncode or not all(Path(job["output_path"]).is_file() for job in jobs):
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        last = lines[-1][:300] if lines else f"exit status {ran.returncode} without a word"
        raise LabError(f"modelopt could not quantize {name}: {last}; quantization.to_qdq does it without this package")


def _demand(graph: export.OnnxGraph, format: str) -> export.OnnxGraph:
    placed = qdq.placement(graph)
    if not placed.quantized:
        raise LabError(
            f"modelopt reported success and quantized no layer of {graph.path.name} to {format} ({placed.nodes} Q/DQ "
            "nodes); it leaves layers of few channels wide: widen them, or use quantization.to_qdq"
        )
    return graph


def _require() -> None:
    for name in NEEDED:
        if find_spec(name) is None:
            raise NotAvailable(
                f"this needs nvidia-modelopt, and the package {name} is not installed; "
                "install it with: python -m pip install nvidia-modelopt requests huggingface_hub onnxslim ml_dtypes"
            )


def _at_opset(model, opset: int):
    """The model labeled with an older opset, which all its operators have in the same meaning; 8.6 reads 17."""
    import onnx

    label = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if label.version <= opset:
        return model
    for node in model.graph.node:
        since = onnx.defs.get_schema(node.op_type, label.version, node.domain).since_version
        if since > opset and node.op_type not in SAME_MEANING:
            raise LabError(
                f"modelopt raised the opset from {opset} to {label.version}, and {node.op_type} has another meaning "
                f"there; export the FP32 graph at opset {label.version}"
            )
    label.version = opset
    return model
