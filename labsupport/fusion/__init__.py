"""X-ray: which nodes of a graph each kernel swallowed, for TensorRT's plans and ONNX Runtime's graphs alike; never
guesses.

The parts: ``inspection`` (the calls), ``kernels`` (a plan), ``plan_schema``, ``plan_text`` and ``plan_sources``
(inspector files), ``executed_plan`` and ``executed_nodes`` (ONNX Runtime), ``onnx_nodes`` (the graph),
``node_accounts`` (every node accounted for), ``layer_names``, ``layer_times``, ``region_nodes``, ``unnamed_nodes``,
``plan_diff``; ``pictures`` draws; ``blocks`` (small networks to try it on) and ``roofline`` (what a
step costs at least).
"""

from __future__ import annotations

from labsupport.fusion.inspection import draw, dump, table, time_bar, xray
from labsupport.fusion.kernels import Kernel, Plan
from labsupport.fusion.layer_times import profile
from labsupport.fusion.node_accounts import Accounts
from labsupport.fusion.onnx_nodes import NodeGraph
from labsupport.fusion.plan_diff import Diff, diff

__all__ = [
    "Accounts", "Diff", "Kernel", "NodeGraph", "Plan", "diff", "draw", "dump", "profile", "table", "time_bar", "xray",
]  # fmt: skip
