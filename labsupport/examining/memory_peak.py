"""Stage 6, memory: how long each tensor lives, the fullest step, and what the weights take in each precision."""

from __future__ import annotations

from labsupport import footprint
from labsupport.examining.rows import Row
from labsupport.footprint import shipped
from labsupport.fusion.inspection import short

DRAWN = 400  # tensors; of more a picture shows nothing


def stage(case) -> Row:
    """Lifetimes in the order of the nodes; an address plan of a runtime can need more, never less."""
    row = Row("memory")
    lives = footprint.lifetimes(case.working)
    row.find(f"activations: {lives.total_mib:.2f} MiB if each kept its place, {lives.peak_mib:.2f} MiB alive at most",
             "estimate", "04")  # fmt: skip
    if lives.steps:
        alive = sorted(lives.at(lives.peak_step), key=lambda tensor: -tensor.mib)[:3]
        held = ", ".join(f"{short(tensor.name)} {tensor.mib:.2f} MiB" for tensor in alive)
        row.find(f"the fullest step is {short(lives.steps[lives.peak_step])}, which holds {held}", "estimate", "04")
    for kind in ("fp32", "fp16"):
        takes = shipped.shipped(case.working, kind)
        row.find(f"shipped in {kind}: weights {takes.weights_mib:.2f}, activations {takes.activations_mib:.2f} MiB",
                 "estimate", "04")  # fmt: skip
    if 0 < len(lives.tensors) <= DRAWN:
        row.show(footprint.draw_lifetimes(lives, title="memory over one inference"))
    return row
