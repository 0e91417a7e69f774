"""Stage 3, what is fused already, where the time goes, and what forbids more."""

from __future__ import annotations

from collections import Counter

from labsupport import environment, fusion, runtimes
from labsupport.examining.rows import Row


def stage(case) -> Row:
    """The X-ray of the working copy with the time of each kernel, and the pointwise kernels that stand alone."""
    row = Row("fusion")
    case.afford(40 * case.call_s, "the X-ray with times")
    if environment.has("engine execution"):
        times = fusion.profile(case.base, case.feeds[0], runs=5, warmup=2)
        plan = fusion.xray(case.base.source, graph=case.working, profile=times)
    else:
        with runtimes.OnnxRuntime(case.working) as run:
            times = fusion.profile(run, case.feeds[0], runs=5, warmup=2)
            plan = fusion.xray(run, graph=case.working, profile=times)
    accounts = plan.accounts()
    row.find(f"{len(plan.graph.nodes)} nodes run as {len(plan.launched)} kernels: {_kinds(plan)}", "measured", "03")
    row.find(f"every node accounted for: {'yes' if accounts.complete else 'no'}", "measured", "03")
    if plan.inserted:
        row.find(f"{len(plan.inserted)} kernels only copy or convert", "measured", "03")
    for reason, count in _alone(plan).most_common(4):
        row.find(f"{count} pointwise kernels stand alone: {reason}", "read", "03")
    if plan.total_ms:
        row.show(fusion.time_bar(plan))
        row.tables.append(fusion.table(plan).head(12)._repr_html_())
    return row


def _kinds(plan) -> str:
    return ", ".join(f"{kind}×{n}" for kind, n in Counter(kernel.kind for kernel in plan.launched).most_common(6))


def _alone(plan) -> Counter:
    """Why pointwise kernels of a single node were not taken into the one before: a reason and how often."""
    nodes, outputs = plan.graph, set(plan.graph.outputs)
    maker = {name: node for node in nodes.nodes for name in node.outputs}
    readers = Counter(name for node in nodes.nodes for name in set(node.inputs))
    reasons: Counter = Counter()
    for kernel in plan.launched:
        if kernel.kind != "pointwise" or len(kernel.nodes) != 1:
            continue
        reads = [name for name in nodes.by_name[kernel.nodes[0]].inputs if name in maker]
        if not reads:
            reasons["they read the network's input"] += 1
        elif any(readers[name] > 1 for name in reads):
            reasons["what they read has a second reader, so it must be written to memory"] += 1
        elif outputs & set(reads):
            reasons["what they read is an output of the network"] += 1
        else:
            reasons[f"no kernel here joins {maker[reads[0]].op} with them"] += 1
    return reasons
