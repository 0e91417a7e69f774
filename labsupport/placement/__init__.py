"""Who runs what: streams, pipelines, cuts between processors, queues over workers, bytes on their way.

The parts: ``inventory`` (cores, GPUs, DLA), ``utilization`` (how busy), ``streams`` (contexts at once), ``launches``
(what a call costs), ``pipeline`` (stages in threads), ``cuts`` (a network in two), ``dispatch``, ``pool`` and
``workers`` (queues and policies), ``cluster`` and ``ray_actors`` (several GPUs and machines), ``transfers`` and
``handover`` (copies).
"""

from __future__ import annotations

from labsupport.placement.inventory import Processors, auxiliary, dla_cores, on_dla, processors
from labsupport.placement.utilization import LOOKS_BACK_S, Load, Watch

__all__ = [
    "LOOKS_BACK_S", "Load", "Processors", "Watch", "auxiliary", "dla_cores", "on_dla", "processors",
]  # fmt: skip
