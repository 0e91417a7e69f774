"""Who runs what: streams, pipelines, cuts between processors, queues over workers, bytes on their way.

The parts: ``inventory`` (DLA, auxiliary streams), ``streams`` (contexts at once), ``launches`` (kernels that ran),
``pipeline`` (stages in threads), ``cuts`` (a network in two), ``dispatch``, ``pool`` and ``workers`` (queues and
policies), ``cluster`` (several GPUs) and ``transfers`` (copies).
"""

from __future__ import annotations

from labsupport.placement.inventory import auxiliary, on_dla

__all__ = ["auxiliary", "on_dla"]
