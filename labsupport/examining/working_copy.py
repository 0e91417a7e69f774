"""The copy that the stages work on: shapes fixed, functions written out, an operator set that every tool reads."""

from __future__ import annotations

from pathlib import Path

from labsupport import comparing, export, runtimes
from labsupport.errors import BadInput, LabError, first_line
from labsupport.export import surgery

OLDEST, LIFTED = 13, 17  # per-channel scales came with 13; every target reads 17
SAME = 1e-3  # relative error up to which a rewritten copy counts as the same network


def fixed(graph, feed, answer, folder: Path) -> export.OnnxGraph:
    """The network for this feed's shapes only, in a new file. ``answer`` maps output → array. Raises LabError."""
    import onnx

    model = surgery.plain(graph.model())
    if graph.opset < OLDEST:
        try:
            model = onnx.version_converter.convert_version(model, LIFTED)
        except Exception as error:  # the converter's own types, one for each operator that it does not know
            raise LabError(
                f"{graph.path.name} is opset {graph.opset}, and ONNX's converter does not bring it to {LIFTED} "
                f"({first_line(error)}); export it again"
            ) from error
    for value, array in [(v, feed[v.name]) for v in model.graph.input] + [
        (v, answer[v.name]) for v in model.graph.output
    ]:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in array.shape:
            shape.dim.add().dim_value = size
    del model.graph.value_info[:]
    return export.save(surgery.named(model), folder / "fixed.onnx")


def _simplified(graph, folder: Path) -> export.OnnxGraph:
    """The same after ONNX Runtime's "basic" rewrites: constants folded, batch norms in their convolutions (lab 03)."""
    with runtimes.OnnxRuntime(graph, optimization="basic") as run:
        model = run.executed.model()
    return export.save(surgery.named(model), folder / "working.onnx")


def working(graph, feed, answer, folder: Path) -> tuple[export.OnnxGraph, list[str]]:
    """(the copy, what was done to it): simplified where that keeps the answer, else only with fixed shapes.

    Raises LabError where even that copy answers differently.
    """
    copy, told = fixed(graph, feed, answer, folder), ["shapes fixed to those of the first sample"]
    if graph.opset < OLDEST:
        told.append(f"opset {graph.opset} lifted to {copy.opset} by ONNX's converter")
    try:
        off = _off(copy, feed, answer)
    except LabError as error:
        raise LabError(f"{graph.path.name} does not run once {', '.join(told)}: {first_line(error)}") from error
    if not off <= SAME:
        alone = _off(graph, feed, answer, optimization="off")  # the same file, computed in another order
        if alone > SAME:
            raise LabError(
                f"on these inputs the answer of {graph.path.name} is mostly rounding: without ONNX Runtime's "
                f"optimization the same file is off by {alone:.0%}, so no change can be judged; give inputs as in "
                "service with --inputs data.npz"
            )
        raise LabError(
            f"{graph.path.name} answers differently once {', '.join(told)} (off by {off:.1%}); the stages that change "
            "the network are left out"
        )
    try:
        less = _simplified(copy, folder)
        if _off(less, feed, answer) <= SAME:
            return less, [*told, f"ONNX Runtime's basic rewrites: {copy.nodes} → {less.nodes} nodes"]
        told.append("ONNX Runtime's basic rewrites change the answer and were not kept")
    except BadInput as error:  # operators of ONNX Runtime's own, which the checker does not know
        told.append(f"ONNX Runtime's basic rewrites were not kept: {first_line(error)}")
    return copy, told


def _off(graph, feed, answer, **options) -> float:
    """Relative error of a graph's answer; infinity where it has another shape."""
    with runtimes.OnnxRuntime(graph, **options) as run:
        got = run(feed)
    try:
        return comparing.relative_error(answer, got)
    except BadInput:
        return float("inf")
