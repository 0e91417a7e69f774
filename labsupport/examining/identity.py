"""Stage 1, who it is: operators, opset, sizes, free axes, operators of strangers, and what each parser says."""

from __future__ import annotations

from labsupport import build, environment, export
from labsupport.errors import LabError
from labsupport.examining.rows import Row
from labsupport.export import foreign_nodes

LARGEST_PARSED_MIB = 512  # a network of more is not handed to a parser here: it copies all weights


def stage(case) -> Row:
    """What the file says, then ONNX Runtime, then TensorRT's parser and, where it can, its builder."""
    row, graph = Row("identity"), case.graph
    common = ", ".join(f"{op}×{n}" for op, n in graph.ops.most_common(8))
    row.find(f"{graph.nodes} nodes of {len(graph.ops)} operators: {common}", "read", "02")
    row.find(
        f"opset {graph.opset}, {graph.size_mib:.2f} MiB, weights {export.float_type(graph)}, written by "
        f"{graph.model().producer_name or 'an exporter that does not say'}",
        "read", "02",
    )  # fmt: skip
    for what, values in (("takes", graph.inputs), ("answers", graph.outputs)):
        told = "; ".join(f"{name} {kind} ({', '.join(map(str, shape))})" for name, (shape, kind) in values.items())
        row.find(f"{what} {told}", "read", "02")
    free = [name for name, (shape, _) in graph.inputs.items() if any(not isinstance(axis, int) for axis in shape)]
    if free:
        row.find(f"free axes in {', '.join(free)}: TensorRT wants a profile for each", "read", "02")
    foreign = foreign_nodes.unknown_operators(graph)
    for node in foreign[:5]:
        row.find(f"operator outside of ONNX: {node}", "read", "10")
    _runtime(case, row)
    _parser(case, row)
    return row


def _runtime(case, row: Row) -> None:
    try:
        load_ms = case.original.load_ms
    except LabError as error:
        row.find(f"ONNX Runtime: {error}", "measured", "13")
        return
    row.find(f"ONNX Runtime loads it in {load_ms:.0f} ms", "measured", "03")
    row.find(
        f"inputs: {case.samples.origin}" if _has_samples(case) else "inputs: none that it accepts", "measured", "01"
    )


def _has_samples(case) -> bool:
    try:
        return bool(case.samples.feeds)
    except LabError:  # said by every stage that needs them
        return False


def _parser(case, row: Row) -> None:
    lacking = environment.why_not("engine building")
    if lacking:
        row.find(f"TensorRT was not asked: {lacking}", "read", "02")
        return
    machine = environment.machine()
    who = f"{machine.tensorrt_product} {machine.tensorrt}"
    if case.graph.size_mib > LARGEST_PARSED_MIB:
        row.find(f"{who} was not asked: the file is larger than {LARGEST_PARSED_MIB} MiB", "read", "02")
        return
    try:
        _, network, _ = build.parse(case.graph)
        row.find(f"{who}: the parser accepts it, {network.num_layers} layers", "measured", "02")
        case.afford(20, "an engine")
        if environment.has("engine execution"):
            engine, level = case.engine(case.working, "fp32"), "the default level"  # the baseline runs the same one
        else:
            level = "level 1"
            engine = build.engine(case.working, precision="as-is", optimization_level=1, progress=False)
        row.find(
            f"{who}: the working copy builds in {engine.build_s:.1f} s at {level}, {engine.size_mib:.2f} MiB"
            + ("" if engine.runnable_here else "; nothing here can run it"),
            "measured", "02",
        )  # fmt: skip
    except LabError as error:
        row.find(f"{who}: {error}", "measured", "02")
