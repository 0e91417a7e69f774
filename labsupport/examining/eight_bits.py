"""Stage 5, eight bits: calibration on the samples, all layers in INT8, their sensitivity, and a mix that holds."""

from __future__ import annotations

from labsupport import environment, quantization, runtimes
from labsupport.errors import LabError
from labsupport.examining.cases import OutOfTime
from labsupport.examining.rows import Row
from labsupport.fusion import roofline
from labsupport.fusion.inspection import short

METHODS = ("entropy", "max")
FEW = 32  # samples from which a calibration can be believed


def stage(case) -> Row:
    """INT8 by the better of two calibrations; where it errs too much, the layers one by one and a mix."""
    row, target = Row("eight bits"), "tensorrt" if environment.has("engine execution") else "onnxruntime"
    case.afford(40 * case.call_s + 2, "calibration and INT8")
    ranges = quantization.calibrate(case.working, case.calibrating, target=target)
    few, unseen = len(case.calibrating), len(case.feeds) - len(case.calibrating)
    said = f"calibrated on {few} {'real' if case.samples.given else 'made'} samples"
    if not case.samples.given or few < FEW:
        said += f", and {FEW} real ones are the least"
    row.find(f"{said}; errors are those of {f'{unseen} others' if unseen else 'the same one'}", "measured", "06")
    start, errors = case.now(), {}
    for method in METHODS:
        graph = quantization.to_qdq(case.working, ranges, target=target, method=method, path=_file(case, method))
        errors[method] = _error(case, graph)
        row.find(f"all layers in INT8, {method} calibration: relative error {errors[method]:.1e}", "measured", "06")
    each_s = (case.now() - start) / len(METHODS)
    best = min(errors, key=lambda method: errors[method])
    placed = quantization.placement(_file(case, best))
    row.find(f"{len(placed.quantized)} of {len(placed.quantized) + len(placed.wide)} layers quantized", "read", "06")
    _offer(case, row, _file(case, best), f"INT8, {best}", 4, _code(case, target, best, ()))
    if not case.keeps(row.candidates[-1]):
        _mixed(case, row, ranges, target, best, each_s)
    return row


def _file(case, method: str):
    return case.folder / f"int8_{method}.onnx"


def _error(case, graph, *, fresh: bool = False) -> float:
    """That of the samples that did not calibrate; ``fresh`` asks new ones, too, where the limit holds on these."""
    with runtimes.OnnxRuntime(graph) as run:
        error = case.error_of(run, calibrated=True)
        return max(error, case.worst_fresh(run)) if fresh and error <= case.limits.error else error


def _offer(case, row: Row, path, name: str, effort: int, code: str) -> None:
    from labsupport import export

    graph = export.load(path)
    with case.runtime(graph, "int8", name=name) as run:
        row.candidates.append(case.judge(name, run, effort=effort, code=code, lab="06", graph=graph, calibrated=True))


def _mixed(case, row: Row, ranges, target: str, method: str, each_s: float) -> None:
    """The most expensive layers one by one, as many as the time allows, then a greedy mix."""

    def evaluate(graph) -> float:
        if case.left_s < each_s:
            raise OutOfTime("the time budget ended among the layers; run it again with more --minutes")
        return min(_error(case, graph), 1e6)

    names = quantization.layers(case.working)
    many = int(0.3 * case.left_s / max(each_s, 1e-3))
    if many < 2:
        row.find(
            f"sensitivity left out: one layer takes {each_s:.1f} s and {case.left_s:.0f} s are left", "measured", "06"
        )
        return
    chosen = _heaviest(case, names)[:many]
    if len(chosen) < len(names):
        row.find(
            f"sensitivity of the {len(chosen)} heaviest of {len(names)} layers, for want of time", "measured", "06"
        )
    try:
        ranking = quantization.sensitivity(
            case.working, ranges, evaluate, layers=chosen, measure="error", target=target, method=method, progress=False
        )
    except LabError as error:
        row.find(f"sensitivity stopped: {error}", "measured", "06")
        return
    row.tables.append(ranking.table().head(8)._repr_html_())
    worst = f"{short(ranking.worst.layer)} ({ranking.worst.op}), adds {ranking.worst.cost:.1e}"
    row.find(f"most sensitive: {worst}", "measured", "06")
    _greedy(case, row, ranges, target, method, [each.layer for each in ranking][: len(names) - 1])


def _greedy(case, row: Row, ranges, target: str, method: str, worst_first: list[str]) -> None:
    """The worst layer kept FP32, the two worst, and so on, until the limit holds (lab 06)."""
    path = case.folder / "int8_mixed.onnx"
    for many in range(1, len(worst_first) + 1):
        wide = worst_first[:many]
        graph = quantization.to_qdq(case.working, ranges, target=target, method=method, exclude=wide, path=path)
        mixed = _error(case, graph, fresh=True)
        if mixed <= case.limits.error:
            row.find(f"{many} layers kept FP32: relative error {mixed:.1e}", "measured", "06")
            _offer(case, row, path, f"INT8, {many} layers wide", 5, _code(case, target, method, wide))
            return
        if many == len(worst_first) or case.left_s < 18 * case.limits.minutes:  # three tenths are for other stages
            row.find(f"no mix holds the limit: {many} layers wide still err by {mixed:.1e}", "measured", "06")
            return


def _heaviest(case, names) -> list[str]:
    try:
        flops = {step.name: step.flops for step in roofline.work(case.working).steps}
    except LabError:  # unknown shapes: then in running order
        return list(names)
    return sorted(names, key=lambda name: -flops.get(name, 0))


def _code(case, target: str, method: str, wide) -> str:
    given = case.samples_file.name if case.samples_file else "your_samples.npz"
    return (
        "import numpy as np\nfrom labsupport import export, quantization\n\n"
        f'graph = export.load("{case.folder.name}/{case.working.path.name}")\n'
        f'arrays = np.load("{given}")  # an array for each input, calls in front\n'
        f"places = range(0, {2 * len(case.calibrating)}, 2)  # the others judged the result\n"
        "batches = [{name: arrays[name][i : i + 1] for name in graph.inputs} for i in places]\n"
        f'int8 = quantization.to_qdq(graph, batches, target="{target}", method="{method}",\n'
        f"                           exclude={list(wide)!r}, path='int8.onnx')"
    )
