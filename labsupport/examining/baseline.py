"""Stage 2, where it stands: latency, memory, the floor of this machine, and the changes that cost nothing."""

from __future__ import annotations

import contextlib

from labsupport import benchmarking, environment, footprint, runtimes
from labsupport.errors import LabError
from labsupport.examining.rows import Row
from labsupport.fusion import roofline

BUSY = 5  # times its floor: from there on neither arithmetic nor memory explains the time


def stage(case) -> Row:
    """Latency with its spread, memory of a session, the roofline, and two changes: fixed shapes, a second thread."""
    row = Row("baseline")
    runs = int(min(max(5 / max(case.call_s, 1e-6), 10), 200))
    case.afford((runs + 12) * case.call_s, "the baseline")
    latency = benchmarking.latency(case.base, case.feeds[0], runs=runs, warmup=2, name="as given")
    row.find(f"latency {latency}, on {latency.machine}", "measured", "01")
    if case.base is case.original:
        row.find(_memory(case), "measured", "04")
    row.candidates.append(
        case.judge("do nothing", case.base, effort=0, code=_code(case, ""), lab="01", note="the noise of this machine")
    )
    _free_changes(case, row)
    _floor(case, row, latency.median_ms)
    return row


def _memory(case) -> str:
    python, *stages = footprint.serve_session(case.graph, feed=case.feeds[0]).lines
    return f"a session that has answered once holds {sum(mib for _, mib, _ in stages):.1f} MiB in a process of its own"


def _free_changes(case, row: Row) -> None:
    if environment.has("engine execution"):
        return  # the FP32 engine is the network with its shapes fixed
    if environment.machine().cores > 1:
        with runtimes.OnnxRuntime(case.graph, threads=2, name="two threads") as run:
            code = _code(case, ", threads=2")
            row.candidates.append(case.judge("two threads", run, effort=1, code=code, lab="01"))
    try:
        working = case.working
    except LabError as error:
        row.find(f"no working copy: {error}", "measured", "03")
        return
    with runtimes.OnnxRuntime(working, name="shapes fixed") as run:
        code = f"run = runtimes.OnnxRuntime({str(_kept(case.working))!r})"
        candidate = case.judge(
            "shapes fixed", run, effort=2, code=f"from labsupport import runtimes\n\n{code}", lab="03",
            graph=case.working, note="; ".join(case.story),
        )  # fmt: skip
    row.candidates.append(candidate)
    row.find(f"the working copy: {'; '.join(case.story)}; error {candidate.error:.1e}", "measured", "03")


def _floor(case, row: Row, median_ms: float) -> None:
    if environment.has("engine execution"):
        ceiling = roofline.measure("cuda")
    else:
        with _one_thread():
            ceiling = roofline.measure("cpu", rounds=2)
    try:
        work = roofline.work(case.working)
    except LabError as error:
        row.find(f"no floor: {error}", "read", "03")
        return
    floor = ceiling.floor_ms(work)
    apart, together = ceiling.floor_ms(work, together=False), max(work.bytes_together, 1)
    rates = f"{ceiling.gb_per_s:.3g} GB/s from memory, {ceiling.gflop_per_s:.3g} GFLOP/s in FP32"
    row.find(f"this machine: {rates}", "measured", "03")
    apart_mib, together_mib = (size / 2**20 for size in (work.bytes_apart, work.bytes_together))
    moved = f"{apart_mib:.1f} MiB moved node by node, {together_mib:.1f} MiB in one kernel"
    row.find(f"the work: {work.flops / 1e9:.3g} GFLOP in {len(work.steps)} nodes; {moved}", "estimate", "03")
    row.find(
        f"floor {floor:.3g} ms, {apart:.3g} ms with each node alone; it takes {median_ms:.3g} ms", "estimate", "03"
    )
    memory_ms = together / (ceiling.gb_per_s * 1e6)
    if median_ms > BUSY * apart:
        bound = "calls of small kernels (launches), neither arithmetic nor memory"
    else:
        bound = "memory" if memory_ms >= floor else "arithmetic"
    row.find(f"what binds it: {bound}", "estimate", "10" if "launches" in bound else "03")


@contextlib.contextmanager
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kept(graph) -> str:
    return f"{graph.path.parent.name}/{graph.path.name}"


def _code(case, options: str) -> str:
    return f'from labsupport import runtimes\n\nrun = runtimes.OnnxRuntime("{case.graph.path.name}"{options})'
