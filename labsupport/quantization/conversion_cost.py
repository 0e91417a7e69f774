"""What a border between precisions costs: the kernels of a plan that compute nothing and only change a type or a
layout.
"""

from __future__ import annotations

from labsupport.errors import BadInput
from labsupport.export.qdq_nodes import QDQ
from labsupport.fusion.kernels import Kernel, Plan

# A kernel that holds nothing but these moves numbers from one type into another.
CONVERTING = (*QDQ, "Cast")


def conversions(plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of an X-ray that run and only convert: copies that the builder put in, and Q, DQ or Cast left alone.

    The plan must have been read with its ONNX graph. Raises BadInput.
    """
    if not isinstance(plan, Plan):
        raise BadInput(
            f"conversions wants a plan, and a {type(plan).__name__} came; make one with fusion.xray(engine, "
            "graph=graph)"
        )
    if plan.graph is None:
        raise BadInput(
            f"{plan.name} was read without its ONNX graph, so a conversion cannot be told from a layer; pass graph= "
            "to fusion.xray"
        )
    ops = {name: node.op for name, node in plan.graph.by_name.items()}
    return tuple(k for k in plan.launched if all(ops.get(name) in CONVERTING for name in k.nodes))
