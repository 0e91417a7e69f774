"""One block of memory for all tensors: a plan of addresses, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from labsupport.errors import BadInput
from labsupport.footprint.tensor_lifetimes import Lifetimes, Tensor


@dataclass(frozen=True)
class Arena:
    """One block of memory that all tensors of ``lifetimes`` share: ``offsets`` in MiB by tensor name, checked."""

    lifetimes: Lifetimes
    offsets: Mapping[str, float]

    @property
    def size_mib(self) -> float:
        """How large the block has to be."""
        return max((self.offsets[tensor.name] + tensor.mib for tensor in self.lifetimes.tensors), default=0.0)

    def __repr__(self) -> str:
        return (
            f"Arena({self.size_mib:.1f} MiB for {len(self.offsets)} tensors; all apart {self.lifetimes.total_mib:.1f}, "
            f"at least {self.lifetimes.peak_mib:.1f})"
        )


def arena(lives: Lifetimes, offsets: Mapping[str, float]) -> Arena:
    """A plan of addresses, after checking that every tensor has one and no two living tensors share a byte.

    ``offsets``: tensor name → MiB from the start of the block. Raises BadInput naming the two that collide.
    """
    if not isinstance(offsets, Mapping):
        raise BadInput(
            f"offsets is a {type(offsets).__name__}; wanted is a mapping from tensor name to its offset in MiB"
        )
    names = {tensor.name for tensor in checked(lives).tensors}
    for what, those in (("places no", names - set(offsets)), ("places an unknown", set(offsets) - names)):
        if those:
            raise BadInput(
                f"the plan {what} tensor {sorted(map(str, those))[0]!r} (and {len(those) - 1} more); "
                "give every tensor of the network one offset"
            )
    for name, offset in offsets.items():
        if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not 0 <= offset < math.inf:
            raise BadInput(f"{name!r} is placed at {offset!r}; an offset is a number of MiB, 0 or more")
    for i, one in enumerate(lives.tensors):
        for other in lives.tensors[i + 1 :]:
            low, high = sorted((one, other), key=lambda tensor: offsets[tensor.name])
            if one.overlaps(other) and offsets[low.name] + low.mib > offsets[high.name] + 1e-9:
                raise BadInput(
                    f"{one.name!r} and {other.name!r} are both alive in step {max(one.born, other.born)} and share "
                    f"memory: {_span(one, offsets)} and {_span(other, offsets)}"
                )
    return Arena(lives, dict(offsets))


def checked(lives) -> Lifetimes:
    """The lifetimes. Raises BadInput for anything else."""
    if not isinstance(lives, Lifetimes):
        raise BadInput(f"a {type(lives).__name__} came; wanted are lifetimes: footprint.lifetimes(graph)")
    return lives


def _span(tensor: Tensor, offsets: Mapping[str, float]) -> str:
    return f"{offsets[tensor.name]:g} to {offsets[tensor.name] + tensor.mib:g} MiB"
