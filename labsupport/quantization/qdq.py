"""Explicit quantization: QuantizeLinear and DequantizeLinear nodes placed in an ONNX graph, as each runtime wants
them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labsupport import export
from labsupport.errors import BadInput, LabError, one_of
from labsupport.export import constant_folding, onnx_graph, qdq_nodes, surgery
from labsupport.export.qdq_nodes import LAYERS
from labsupport.quantization import calibration, fit_graphs, kept_wide
from labsupport.quantization.calibration import Calibration
from labsupport.quiet import quietly

TARGETS = ("tensorrt", "onnxruntime")
RESIDUAL = ("convolutions", "shortcut", "both")


@dataclass(frozen=True)
class Placement:
    """How many Q/DQ nodes a graph has, and which of its layers compute on quantized inputs."""

    quantize: int
    dequantize: int
    quantized: tuple[str, ...]
    wide: tuple[str, ...]
    residual_adds: int

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
    """Where Q/DQ nodes stand: a layer is quantized when its data and weights come, transposed or not, from a
    DequantizeLinear.

    Layers inside branches, loop bodies and local functions count as well; one without a name goes by its output.
    """
    return _placement(export.load(graph).model())


def _placement(model) -> Placement:
    scopes = [_with_makers(nodes, {}) for nodes in (model.graph.node, *(f.node for f in model.functions))]
    found = [each for scope in scopes for each in scope]
    low: dict[str, list[str]] = {"quantized": [], "wide": []}
    for node, makers in found:
        if node.op_type in LAYERS:
            narrow = [_is_decoded(name, makers) for name in node.input[:2]]
            low["quantized" if all(narrow) else "wide"].append(node.name or node.output[0])
    ops = Counter(node.op_type for node, _ in found)
    adds = [
        node
        for node, makers in found
        if node.op_type == "Add" and any(_is_decoded(name, makers) for name in node.input)
    ]
    return Placement(
        ops["QuantizeLinear"], ops["DequantizeLinear"], tuple(low["quantized"]), tuple(low["wide"]), len(adds)
    )


def _with_makers(nodes, outer: Mapping) -> Iterator[tuple]:
    """(node, tensor → the node that writes it, as the node sees it) for nodes and those in their bodies."""
    makers = {**outer, **{name: node for node in nodes for name in node.output}}
    for node in nodes:
        yield node, makers
        for body in onnx_graph.bodies(node):
            yield from _with_makers(body.node, makers)


def _is_decoded(name: str, makers: Mapping) -> bool:
    while name in makers and makers[name].op_type == "Transpose":  # torch turns the weight of a dense layer so
        name = makers[name].input[0]
    return name in makers and makers[name].op_type == "DequantizeLinear"


def layers(graph) -> tuple[str, ...]:
    """Names of the layers that can be quantized, in the order in which they run."""
    return tuple(name for name, op in operators(graph).items() if op in LAYERS)


def operators(graph) -> dict[str, str]:
    """Node name → operator, with the names that ``to_qdq`` gives to unnamed nodes."""
    return {node.name: node.op_type for node in _plain(export.load(graph)).graph.node}


def calibrate(graph, batches, *, target: str = "tensorrt") -> Calibration:
    """Histograms of just the activations that ``to_qdq`` will quantize; made once, they serve many calls of it."""
    graph = fit_graphs.checked(graph)
    one_of(TARGETS, target=target)
    if isinstance(batches, Calibration):
        return batches
    wanted = qdq_nodes.activations(_plain(graph)) if target == "tensorrt" else None
    return calibration.collect(graph, batches, tensors=wanted)


def to_qdq(
    graph,
    batches,
    *,
    target: str = "tensorrt",
    method: str = "entropy",
    percentile: float = 99.99,
    exclude: str | Iterable[str] = (),
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
    that has a CPU kernel. Weights that constants make (behind Transpose, Cast …) count as weights, scales per channel;
    what reads or writes a mask (−inf, −1e9 …) stays FP32, for a scale that holds it leaves the scores no codes.
    ``method``: "max", "percentile", "entropy", "mse". ``exclude`` names layers that stay FP32.
    ``residual`` says which residual adds read codes for TensorRT: "convolutions" those that a convolution takes in;
    "shortcut" also those after a matrix product, on the side that goes round it; "both" the product's side as well, so
    that a transformer's products write one byte a number. ``reduce_range`` gives weights 7 bits, for CPUs without VNNI,
    whose U8S8 product saturates. ``placement`` says how many nodes were placed. Raises BadInput, and LabError when none
    were. Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    graph = fit_graphs.checked(graph)
    one_of(TARGETS, target=target)
    one_of(calibration.METHODS, method=method)
    one_of(RESIDUAL, residual=residual)
    out = Path(path) if path else export.fresh_folder() / f"{graph.path.stem}.{target}.int8.onnx"
    if out.resolve() == graph.path.resolve():
        raise BadInput(f"path={out.name!r} is the graph being quantized; give the new one a name of its own")
    model = _plain(graph)
    kept = _kept_wide(model, exclude, {node.name for node in graph.model().graph.node})
    kept_wide.check_weights(model, graph.path.name)
    known = batches if isinstance(batches, Calibration) else calibrate(graph, batches, target=target)
    if known.sha256 != graph.sha256:
        raise BadInput(
            f"the calibration was made on another graph than {graph.path.name}; calibrate this one: "
            "quantization.calibrate(graph, batches)"
        )
    format = "int8" if target == "tensorrt" else "uint8"
    _check_complete(model, known, target)
    tensors = {name for node in model.graph.node for name in node.output} | set(graph.inputs)  # weights have no range
    histograms = {name: h for name, h in known.histograms.items() if name in tensors}
    ranges = {name: h.range(method, percentile=percentile, format=format) for name, h in histograms.items()}
    qdq_nodes.clip_early(model, ranges)
    qdq_nodes.plain_biases(model)
    kept_wide.part_weights(model)
    kept |= kept_wide.masked(model, histograms, known.masked) | qdq_nodes.stays_wide(model)
    if target == "onnxruntime":
        kept |= kept_wide.lookups(model) | kept_wide.untaken(model)
    result = _quantized(model, ranges, target, kept, per_channel, reduce_range)
    if target == "tensorrt":
        qdq_nodes.only_layers_read_codes(result)
        qdq_nodes.quantize_shortcuts(result, qdq_nodes.shortcuts(model, kept, residual), ranges)
    placed = _placement(result)
    if not placed.nodes or not placed.quantized:
        wide = [name for name in placed.wide if name in kept]
        why = f", because {', '.join(wide[:3])} must stay wide (exclude, or a mask)" if wide else ""
        raise LabError(
            f"{graph.path.name}: ONNX Runtime placed {placed.nodes} Q/DQ nodes and quantized no layer{why}; look at "
            "exclude and at placement(graph)"
        )
    return export.save(result, out)


def _quantized(model, ranges: Mapping, target: str, kept: set[str], per_channel: bool, reduce_range: bool):
    """ONNX Runtime's placement of Q/DQ nodes with our ranges: what quantize_static does after its calibration.

    It names what it adds after tensors, whoever has that name already: it sees numbers for names, put back afterwards.
    """
    from onnx import TensorProto, helper
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    trt = target == "tensorrt"
    untyped = sorted(
        set(ranges) - set(surgery.values_of(model))
    )  # ONNX Runtime ran them and knows that they are floats
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in untyped)
    numbers, back = surgery.numbered(model)
    options: dict = {
        "ActivationSymmetric": trt,
        "WeightSymmetric": True,
        "QuantizeBias": not trt,  # TensorRT refuses a DequantizeLinear of INT32
        "AddQDQPairToWeight": trt,
        "OpTypesToExcludeOutputQuantization": list(LAYERS) if trt else [],
    }
    overrides = {numbers[name]: _override(pair, trt) for name, pair in ranges.items()}
    axes = {numbers[name]: {"axis": axis} for name, axis in _odd_axes(model).items()} if per_channel else {}
    options["TensorQuantOverrides"] = {name: [pair] for name, pair in {**axes, **overrides}.items()}
    pairs = {name: (pair["rmin"], pair["rmax"]) for name, pair in overrides.items()}
    passed = _without_handed_out(model)
    with quietly():  # it advises a pre-processing that export has done
        quantizer = QDQQuantizer(
            surgery.renamed(model, numbers.__getitem__),
            per_channel,
            reduce_range,
            weight_qType=ort.QuantType.QInt8,
            activation_qType=ort.QuantType.QInt8 if trt else ort.QuantType.QUInt8,
            tensors_range=TensorsData(ort.CalibrationMethod.MinMax, pairs),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(kept),
            op_types_to_quantize=list(LAYERS) if trt else sorted({*QLinearOpsRegistry, *QDQRegistry}),
            extra_options=options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    surgery.renamed(model, back)
    result = surgery.renamed(quantizer.model.model, back)
    result.graph.output.extend(passed)
    # Its own sorting overlooks what branches read.
    return surgery.sort_nodes(result) if any(map(onnx_graph.bodies, result.graph.node)) else result


def _without_handed_out(model) -> list:
    """Take the inputs that are outputs as well from the outputs, in place; the quantizer would give them a new name."""
    given = {value.name for value in model.graph.input}
    passed = [value for value in model.graph.output if value.name in given]
    for value in passed:
        model.graph.output.remove(value)
    return passed


def _odd_axes(model) -> dict[str, int]:
    """Weights of products whose output channels lie elsewhere than on axis 1, where ONNX Runtime looks for them."""
    ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    read = [
        (name, kept_wide.axis_of(node, place, ranks.get(name, 0)))
        for node in products
        for place, name in enumerate(node.input)
    ]
    return {name: axis for name, axis in read if ranks.get(name, 0) > 1 and axis != 1}


def _override(pair: tuple[float, float], symmetric: bool) -> dict:
    import numpy as np

    low, high = pair
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return {"rmin": np.float32(low), "rmax": np.float32(high)}


# --- what is refused ------------------------------------------------------------------------------------------


def _check_complete(model, calibration: Calibration, target: str) -> None:
    """Refuse a calibration made for TensorRT, which watched fewer tensors than ONNX Runtime quantizes."""
    if target == "tensorrt":
        return
    kinds = {name: value.type.tensor_type.elem_type for name, value in surgery.values_of(model).items()}
    wanted = [name for node in model.graph.node for name in node.output if kinds.get(name) == 1]
    missing = [name for name in wanted if name not in calibration.histograms and name not in calibration.masked]
    if missing:
        raise BadInput(
            f"the calibration did not watch {missing[0]!r} (and {len(missing) - 1} more), which target={target!r} "
            f"quantizes; make it with quantization.calibrate(graph, batches, target={target!r})"
        )


def _plain(graph: export.OnnxGraph):
    return constant_folding.with_plain_weights(graph.model(), LAYERS)


def _kept_wide(model, exclude: Iterable[str], also: Iterable[str] = ()) -> set[str]:
    exclude = [exclude] if isinstance(exclude, str) else list(exclude) if isinstance(exclude, Iterable) else [exclude]
    if not all(isinstance(name, str) for name in exclude):
        raise BadInput(f"exclude={exclude!r}; give the names of the layers that stay wide, an empty list for none")
    exclude = set(exclude)
    ops = {node.name: node.op_type for node in model.graph.node}
    for name in sorted(exclude - set(ops) - set(also)):
        near = difflib.get_close_matches(name, ops, 3, 0.3) or list(ops)[:3]
        raise BadInput(f"exclude names {name!r}, which is no node of the graph; did you mean one of {near}?")
    if not [name for name, op in ops.items() if op in LAYERS and name not in exclude]:
        raise BadInput(
            "exclude names every layer that could be quantized; leave at least one, or use the FP32 graph as it is"
        )
    return exclude & set(ops)
