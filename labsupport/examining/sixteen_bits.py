"""Stage 4, sixteen bits: what FP16 costs, which nodes it breaks, and the graph with those kept wide."""

from __future__ import annotations

import math

from labsupport import environment, precision, runtimes
from labsupport.errors import LabError
from labsupport.examining.rows import Row
from labsupport.fusion.inspection import short
from labsupport.precision import layerwise

SCANNED = 3  # samples at most; each scan runs the network three times with every tensor an output
WORST = 8
PLAIN = "fp16.onnx"


def stage(case) -> Row:
    """All FP16, its error by rounding as a GPU does; the scan; and the repaired graph as a change."""
    row = Row("sixteen bits")
    case.afford(60 * case.call_s, "FP16 and its scan")
    plain = _cast(case, ())
    row.find(f"all in FP16, rounded as the graph says: relative error {_error(case, plain):.1e}", "measured", "05")
    keep = _scanned(case, row)
    half, error = plain, _error(case, plain)
    if error > case.limits.error:
        half, error = _repaired(case, keep)
        row.find(f"with {len(keep)} nodes kept FP32: relative error {error:.1e}", "measured", "05")
    if not math.isfinite(error):
        row.find("FP16 answers NaN or infinity here even so; BF16 or a rewritten formula is the way", "measured", "05")
        return row
    _offer(case, row, half, keep if half is not plain else [])
    return row


def _cast(case, keep):
    return precision.cast(case.working, keep_wide=keep, path=case.folder / ("fp16_repaired.onnx" if keep else PLAIN))


def _error(case, graph) -> float:
    with runtimes.OnnxRuntime(precision.rounded(graph), name="rounded") as run:
        return case.error_of(run)


def _scanned(case, row: Row) -> list[str]:
    """Names of nodes that FP16 breaks on any of the first samples."""
    keep: dict[str, None] = {}
    worst: list[str] = []
    for number, feed in enumerate(case.feeds[:SCANNED]):
        start = case.now()
        scan = layerwise.scan(case.working, feed)
        keep |= dict.fromkeys(scan.keep_wide)
        if not number:
            row.tables.append(scan.table(worst=WORST)._repr_html_())
            for fault in scan.faults[:WORST]:
                why = f"{fault.cause}, own error {fault.own_error:.1e}"
                row.find(f"FP16 breaks {short(fault.node)} ({fault.op}): {why}", "measured", "05")
            if not scan.faults:
                row.find(f"FP16 breaks none of {len(scan)} computing nodes by itself", "measured", "05")
            worst = [r.node for r in sorted(scan, key=lambda r: -r.own_error)[: max(1, len(scan) // 4)]]
        if case.now() - start > 0.1 * case.left_s:
            break
    return list(keep) or worst  # without a single culprit many small roundings add up: the worst quarter stays wide


def _repaired(case, keep: list[str]):
    """(graph, error) with the nodes kept wide; then with their readers, then with all that leads to them.

    A wide node is not enough where its reader narrows the tensor again, or where a narrow one before lost the digits.
    The first that holds the limit is taken, else the best; ``keep`` becomes what it keeps wide.
    """
    tried: list[tuple[float, list[str]]] = []
    for wide in (keep, _with_readers(case.working, keep), _with_makers(case.working, keep)):
        tried.append((_error(case, _cast(case, wide)), wide))
        if tried[-1][0] <= case.limits.error:
            break
    error, best = min(tried, key=lambda pair: pair[0])
    keep[:] = list(best)
    return _cast(case, best), error


def _with_readers(graph, names: list[str]) -> list[str]:
    nodes = graph.model().graph.node
    written = {out for node in nodes for out in node.output if node.name in names}
    return [node.name for node in nodes if node.name in names or written & set(node.input)]


def _with_makers(graph, names: list[str]) -> list[str]:
    """The nodes and all that leads to them, in running order."""
    nodes, needed, wide = graph.model().graph.node, set(), set()
    for node in reversed(nodes):
        if node.name in names or needed & set(node.output):
            wide.add(node.name)
            needed |= set(node.input)
    return [node.name for node in nodes if node.name in wide]


def _offer(case, row: Row, half, keep: list[str]) -> None:
    code = (
        "from labsupport import export, precision\n\n"
        f'graph = export.load("{case.folder.name}/{case.working.path.name}")\n'
        f"half = precision.cast(graph, keep_wide={keep!r}, path='half.onnx')"
    )
    name = f"FP16, {len(keep)} nodes wide" if keep else "FP16"
    with runtimes.OnnxRuntime(precision.rounded(half), name="rounded") as rounded:
        try:
            run = case.runtime(half, "fp16", keep_wide=keep, name=name)
        except LabError as error:
            row.find(f"the FP16 graph does not load here: {error}", "measured", "05")
            return
        with run:
            live = environment.has("engine execution")
            told = {"answers": None if live else rounded, "unproven": "" if live else _computed_wide(half)}
            row.candidates.append(case.judge(name, run, effort=3, code=code, lab="05", graph=half, **told))


def _computed_wide(half) -> str:
    """Why the time of a session says nothing of FP16; "" where some kernel really computes in it."""
    with runtimes.OnnxRuntime(half, optimization="basic") as run:  # whose operators are ONNX's own
        if "fp16" in precision.node_types(run.executed.path).values():
            return ""
    return "ONNX Runtime computes it in FP32 here, so its time is no gain of FP16 (lab 05); measure it on a GPU"
