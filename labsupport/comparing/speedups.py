"""Which way a speed-up points, and what may not be compared."""

from __future__ import annotations

from labsupport.benchmarking.measurements import Latency, Speedup
from labsupport.errors import BadInput


def speedup(before: Latency, after: Latency) -> Speedup:
    """How many times faster `after` is; refuses what is not comparable: machines, clocks or batch sizes that differ."""
    pair = {"before": before, "after": after}
    machines = {side: getattr(value, "machine", None) for side, value in pair.items()}
    if None not in machines.values() and machines["before"] != machines["after"]:
        raise BadInput(
            f"before ran on {machines['before']}, after on {machines['after']}; re-run one of them, "
            "a speed-up across machines compares the machines"
        )
    for side, value in pair.items():
        if not isinstance(value, Latency):
            raise BadInput(
                f"{side} is a {type(value).__name__}; speedup() takes two results of benchmarking.latency() "
                "or of device_latency()"
            )
    if before.clock != after.clock:
        raise BadInput(
            f"before was read on the {before.clock} clock, after on the {after.clock} clock; "
            "measure both with latency() or both with device_latency()"
        )
    if before.batch != after.batch:
        raise BadInput(
            f"before ran batch {before.batch}, after batch {after.batch}; "
            "measure both at one batch, or compare their items/s"
        )
    if not before.median_ms or not after.median_ms:
        raise BadInput("a median of 0 ms cannot be compared; give the calls more work, such as a larger batch")
    return Speedup(before, after)
