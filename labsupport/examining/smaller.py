"""Stage 7, less network: what pruning could save and where the network can be cut, as estimates."""

from __future__ import annotations

import numpy as np

from labsupport import export
from labsupport.errors import BadInput
from labsupport.examining.rows import Row
from labsupport.export.qdq_nodes import LAYERS
from labsupport.fusion import roofline
from labsupport.fusion.inspection import short
from labsupport.placement import cuts


def stage(case) -> Row:
    """Where the operations are, what half of the channels would leave, weights that are nothing, and narrow places."""
    row = Row("pruning and cuts")
    _channels(case, row)
    _weights(case, row)
    _narrow_places(case, row)
    return row


def _channels(case, row: Row) -> None:
    try:
        work = roofline.work(case.working)
    except BadInput as error:
        row.find(f"operations cannot be counted: {error}", "read", "07")
        return
    heavy = [step for step in work.steps if step.op in LAYERS]
    share = sum(step.flops for step in heavy) / max(work.flops, 1)
    row.find(f"{len(heavy)} layers do {share:.0%} of {work.flops / 1e6:.1f} million operations", "estimate", "07")
    if heavy:
        left = 1 - share * 3 / 4
        row.find(f"half of all channels gone leaves about {left:.0%} of the operations; it takes training again, and a "
                 "width that the machine's kernels like", "estimate", "07")  # fmt: skip
        top = max(heavy, key=lambda step: step.flops)
        row.find(
            f"the heaviest layer is {short(top.name)} ({top.op}), {top.flops / max(work.flops, 1):.0%}",
            "estimate",
            "07",
        )


def _weights(case, row: Row) -> None:
    from onnx import numpy_helper

    floats = [
        w for w in export.onnx_graph.tensors_of(case.working.model()) if w.data_type == w.FLOAT and len(w.dims) > 1
    ]
    arrays = [np.abs(numpy_helper.to_array(w)) for w in floats]
    count = sum(x.size for x in arrays)
    if not count:
        return
    tiny = sum(int((x < 0.01 * x.max()).sum()) for x in arrays if x.size)
    text = f"{tiny / count:.0%} of {count:,} weights are below a hundredth of their tensor's largest"
    row.find(f"{text}; zeros alone make nothing faster", "measured", "07")


def _narrow_places(case, row: Row) -> None:
    try:
        places = cuts.natural(case.working)
    except BadInput as error:
        row.find(f"no cut between two devices: {error}", "read", "09")
        return
    inner = places[1:-1]
    if not inner:
        row.find("no tensor inside carries the network alone, so it cannot be cut in two", "estimate", "09")
        return
    best = min(inner, key=lambda cut: cut.mib)
    narrowest = f"the narrowest is {short(best.name)} with {best.mib * 1024:.1f} KiB"
    row.find(f"{len(inner)} places to cut; {narrowest}, the input has {places[0].mib * 1024:.1f} KiB", "estimate", "09")
