"""A server in small: arrivals, dynamic batching with a bounded queue, and the referees and servers of other makers.

The parts: ``arrivals`` (Poisson arrivals and how requests fared), ``batching`` (the scheduler), ``referee`` (MLPerf's
load generator), ``ray_cluster`` (a local Ray that is always stopped), ``triton_repository`` (what Triton reads, written
and validated) and ``triton_server`` (its environment and its process).
"""

from __future__ import annotations

from labsupport.serving.arrivals import Load, offer, poisson
from labsupport.serving.batching import Batcher, Refused
from labsupport.serving.ray_cluster import ray_cluster
from labsupport.serving.referee import Verdict, judge
from labsupport.serving.triton_server import TritonServer

__all__ = [
    "Batcher", "Load", "Refused", "TritonServer", "Verdict", "judge", "offer", "poisson", "ray_cluster",
]  # fmt: skip
