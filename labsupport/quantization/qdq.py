"""Explicit quantization: QuantizeLinear and DequantizeLinear nodes placed in an ONNX graph, as each runtime wants
them.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput, LabError
from labsupport.export import qdq_nodes
from labsupport.export.qdq_nodes import LAYERS, QDQ
from labsupport.quantization import calibration
from labsupport.quantization.calibration import Calibration

TARGETS = ("tensorrt", "onnxruntime")
RESIDUAL = ("convolutions", "shortcut", "both")


@dataclass(frozen=True)
class Placement:
    """How many Q/DQ nodes a graph has, and which of its layers compute on quantized inputs."""

    quantize: int
    dequantize: int
    quantized: tuple[str, ...]
    wide: tuple[str, ...]
    residual_adds: int = 0

    @property
    def nodes(self) -> int:
        """Q and DQ nodes together."""
        return self.quantize + self.dequantize

    def __repr__(self) -> str:
        adds = f", {self.residual_adds} residual add{'s' * (self.residual_adds != 1)}" if self.residual_adds else ""
        layers = len(self.quantized) + len(self.wide)
        return (
            f"Placement({self.quantize} QuantizeLinear and {self.dequantize} DequantizeLinear: "
            f"{len(self.quantized)} of {layers} layers quantized{adds})"
        )


def placement(graph) -> Placement:
    """Where Q/DQ nodes stand: a layer is quantized when its data and its weights come from DequantizeLinear."""
    model = _loaded(graph).model()
    maker = {name: node for node in model.graph.node for name in node.output}

    def narrow(name: str) -> bool:
        return name in maker and maker[name].op_type == "DequantizeLinear"

    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    quantized = [node.name for node in layers if all(narrow(name) for name in node.input[:2])]
    adds = [node for node in model.graph.node if node.op_type == "Add" and any(map(narrow, node.input))]
    ops = Counter(node.op_type for node in model.graph.node)
    return Placement(
        ops["QuantizeLinear"],
        ops["DequantizeLinear"],
        tuple(quantized),
        tuple(node.name for node in layers if node.name not in quantized),
        len(adds),
    )


def layers(graph) -> tuple[str, ...]:
    """Names of the layers that can be quantized, in the order in which they run."""
    return tuple(name for name, op in operators(graph).items() if op in LAYERS)


def operators(graph) -> dict[str, str]:
    """Node name → operator, with the names that ``to_qdq`` gives to unnamed nodes."""
    return {node.name: node.op_type for node in qdq_nodes.named(_loaded(graph).model()).graph.node}


def calibrate(graph, batches, *, target: str = "tensorrt") -> Calibration:
    """Histograms of just the activations that ``to_qdq`` will quantize; made once, they serve many calls of it."""
    graph = _fit_for_quantization(graph)
    _check_choice("target", target, TARGETS)
    if isinstance(batches, Calibration):
        return batches
    model = qdq_nodes.named(graph.model())
    return calibration.collect(graph, batches, tensors=qdq_nodes.activations(model) if target == "tensorrt" else None)


def to_qdq(
    graph,
    batches,
    *,
    target: str = "tensorrt",
    method: str = "entropy",
    percentile: float = 99.99,
    exclude: Iterable[str] = (),
    residual: str = "convolutions",
    per_channel: bool = True,
    reduce_range: bool = False,
    path: str | Path | None = None,
) -> export.OnnxGraph:
    """A new INT8 graph with explicit Q/DQ nodes; the graph that came in and its file stay as they were.

    ``batches`` are calibration feeds (see ``calibration.collect``) or the Calibration that ``calibrate`` made of them.
    ``target="tensorrt"``: signed, symmetric, FP32 biases, Q/DQ on the inputs of convolutions and matrix products and on
    the shortcut of each residual add, nowhere else, so that add and ReLU fuse into the convolution and pooling stays
    between one pair. ``target="onnxruntime"``: unsigned activations with a zero point, signed weights, every operator
    that has a CPU kernel. ``method``: "max", "percentile", "entropy", "mse". ``exclude`` names layers that stay FP32.
    ``residual`` says which residual adds read codes for TensorRT: "convolutions" those that a convolution takes in;
    "shortcut" also those after a matrix product, on the side that goes round it; "both" the product's side as well, so
    that a transformer's products write one byte a number. ``reduce_range`` gives weights 7 bits, for CPUs without VNNI,
    whose U8S8 product saturates. ``placement`` says how many nodes were placed. Raises BadInput, and LabError when none
    were. Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    graph = _fit_for_quantization(graph)
    _check_choice("target", target, TARGETS)
    _check_choice("method", method, calibration.METHODS)
    _check_choice("residual", residual, RESIDUAL)
    model = qdq_nodes.named(graph.model())
    kept = _kept_wide(model, exclude)
    known = batches if isinstance(batches, Calibration) else calibrate(graph, batches, target=target)
    if known.sha256 != graph.sha256:
        raise BadInput(
            f"the calibration was made on another graph than {graph.path.name}; calibrate this one: "
            "quantization.calibrate(graph, batches)"
        )
    format = "int8" if target == "tensorrt" else "uint8"
    ranges = {name: h.range(method, percentile=percentile, format=format) for name, h in known.histograms.items()}
    qdq_nodes.clip_early(model, ranges)
    made = _quantized(model, ranges, known.sample, target, kept, per_channel, reduce_range)
    if target == "tensorrt":
        qdq_nodes.only_layers_read_codes(made)
        qdq_nodes.quantize_shortcuts(made, qdq_nodes.shortcuts(model, kept, residual), ranges)
    out = Path(path) if path else export.fresh_folder() / f"{graph.path.stem}.{target}.int8.onnx"
    if out.resolve() == graph.path.resolve():
        raise BadInput(f"path={out.name!r} is the graph being quantized; give the new one a name of its own")
    saved = export.save(made, out)
    placed = placement(saved)
    if not placed.nodes or not placed.quantized:
        raise LabError(
            f"{graph.path.name}: ONNX Runtime placed {placed.nodes} Q/DQ nodes and quantized no layer; look at "
            "exclude and at placement(graph)"
        )
    return saved


def at_batch(graph, batch: int, *, path: str | Path | None = None) -> export.OnnxGraph:
    """The same graph for one batch size: TensorRT 8.6 tells the types of an engine's layers for fixed shapes only."""
    graph = _loaded(graph)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch={batch!r}; give a whole number of items, 1 or more")
    model = graph.model()
    weights = {w.name for w in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in weights:
            continue
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value") and first.dim_value not in (0, batch):
            raise BadInput(
                f"{graph.path.name} has its batch fixed at {first.dim_value}; export it with dynamic=True, then "
                f"choose {batch}"
            )
        first.dim_value = batch
    del model.graph.value_info[:]
    out = path or export.fresh_folder() / f"{graph.path.stem}.b{batch}.onnx"
    return export.save(model, export.another_file(out, graph))


def _quantized(
    model, ranges: Mapping, sample: Mapping, target: str, kept: set[str], per_channel: bool, reduce_range: bool
):
    """One call of quantize_static with our ranges; it wants a calibration run of its own, so it gets one item."""
    from onnxruntime import quantization as ort

    trt = target == "tensorrt"
    options = {
        "ActivationSymmetric": trt,
        "WeightSymmetric": True,
        "QuantizeBias": not trt,  # TensorRT refuses a DequantizeLinear of INT32
        "AddQDQPairToWeight": trt,
        "OpTypesToExcludeOutputQuantization": list(LAYERS) if trt else [],
        "TensorQuantOverrides": {name: [_override(pair, trt)] for name, pair in ranges.items()},
    }
    folder = export.fresh_folder()
    out = folder / "quantized.onnx"
    with _quiet():
        ort.quantize_static(
            model,
            str(out),
            _one_item(sample),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=per_channel,
            op_types_to_quantize=list(LAYERS) if trt else None,
            nodes_to_exclude=sorted(kept),
            reduce_range=reduce_range,
            activation_type=ort.QuantType.QInt8 if trt else ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod.MinMax,
            extra_options=options,
        )
    import onnx

    return onnx.load(str(out))


def _override(pair: tuple[float, float], symmetric: bool) -> dict:
    import numpy as np

    low, high = pair
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return {"rmin": np.float32(low), "rmax": np.float32(high)}


def _one_item(sample: Mapping):
    from onnxruntime.quantization import CalibrationDataReader

    class OneItem(CalibrationDataReader):
        def __init__(self):
            self.left = [dict(sample)]

        def get_next(self):
            return self.left.pop() if self.left else None

    return OneItem()


# --- what is refused ------------------------------------------------------------------------------------------


def _fit_for_quantization(graph) -> export.OnnxGraph:
    graph = _loaded(graph)
    there = {
        op: graph.ops[op]
        for op in (*QDQ, "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger")
        if graph.ops.get(op)
    }
    if there:
        said = ", ".join(f"{op}×{n}" for op, n in there.items())
        raise BadInput(
            f"{graph.path.name} is quantized already ({said}); quantize the FP32 graph it was made from, two "
            "roundings only add error"
        )
    if graph.opset < 13:
        raise BadInput(
            f"{graph.path.name} is opset {graph.opset}, and scales per channel came with 13; export it again, opset "
            "17 is read everywhere"
        )
    kind = export.float_type(graph)
    if kind != "fp32":
        raise BadInput(
            f"{graph.path.name} has {kind} weights; quantize the FP32 graph, and let the builder choose the type of "
            "what stays wide"
        )
    if not any(graph.ops.get(op) for op in LAYERS):
        raise BadInput(
            f"{graph.path.name} has no layer with an INT8 kernel: it is made of {', '.join(graph.ops)}; "
            f"{', '.join(LAYERS)} have one"
        )
    if graph.ops.get("BatchNormalization"):
        raise BadInput(
            f"{graph.path.name} has BatchNormalization×{graph.ops['BatchNormalization']}, whose factors belong into "
            "the weights before "
            "they are rounded; export it with fold_batchnorm=True"
        )
    return graph


def _kept_wide(model, exclude: Iterable[str]) -> set[str]:
    exclude = [exclude] if isinstance(exclude, str) else list(exclude) if isinstance(exclude, Iterable) else [exclude]
    if not all(isinstance(name, str) for name in exclude):
        raise BadInput(f"exclude={exclude!r}; give the names of the layers that stay wide, an empty list for none")
    exclude = set(exclude)
    ops = {node.name: node.op_type for node in model.graph.node}
    for name in sorted(exclude - set(ops)):
        near = difflib.get_close_matches(name, ops, 3, 0.3) or list(ops)[:3]
        raise BadInput(f"exclude names {name!r}, which is no node of the graph; did you mean one of {near}?")
    if not [name for name, op in ops.items() if op in LAYERS and name not in exclude]:
        raise BadInput(
            "exclude names every layer that could be quantized; leave at least one, or use the FP32 graph as it is"
        )
    return exclude


def _loaded(graph) -> export.OnnxGraph:
    return graph if isinstance(graph, export.OnnxGraph) else export.load(graph)


def _check_choice(option: str, value, choices: tuple) -> None:
    if value not in choices:
        raise BadInput(f"{option}={value!r} is not one; choose one of {list(choices)}")


@contextlib.contextmanager
def _quiet():
    """Without the root logger's advice to run a pre-processing that export has done."""
    root = logging.getLogger()
    was = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(was)
