"""What lab 10's exercises are about: a graph that no runtime knows, a kernel with a fault."""

from __future__ import annotations

ALPHA, BETA, PUZZLE_COLUMNS = 0.25, 0.5, 8
PASS = 1024  # values that one pass of the mystery kernel's block takes


WHY_NOT = {
    "laptop": {
        "plugin": "TensorRT-RTX takes no plugins.",
        "layers": "that works, but known operators need no code at all in the program that builds.",
        "kernel between engines": "two engines and a kernel, where three known operations in the graph would do.",
    },
    "parser": {
        "rewrite": "there is no ONNX operator to rewrite it into.",
        "plugin": "TensorRT has a layer for it; a plugin would write it anew in C++.",
        "kernel between engines": "TensorRT has a layer for it; nobody needs a kernel of their own.",
    },
    "tryout": {
        "plugin": "8.6 takes plugins in C++ only, and there is no compiler.",
        "layers": "that throws the Triton kernel away, and with it the fusion.",
        "rewrite": "that throws the Triton kernel away, and with it the fusion.",
    },
    "server": {
        "kernel between engines": "48 kernels make 49 engines, and the server loads one file.",
        "rewrite": "unfused it takes half the time, as the situation says.",
        "layers": "TensorRT's layers are the unfused operations; they take half the time.",
    },
}


def puzzle():
    """A graph with one node HardGate of the domain "workbook": x, gate (rows, 8) → y. What `rewrite` starts from."""

    from onnx import TensorProto, helper

    from labsupport import export

    x, gate, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", PUZZLE_COLUMNS]) for name in ("x", "gate", "y")
    )
    node = helper.make_node("HardGate", ["x", "gate"], ["y"], name="gate_it", domain="workbook", alpha=ALPHA, beta=BETA)
    model = helper.make_model(
        helper.make_graph([node], "puzzle", [x, gate], [y]),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("workbook", 1)],
    )
    return export.save(model, export.fresh_folder() / "puzzle.onnx")


def mystery(x, gate, weight):
    """An implementation of the operator with a fault at some row lengths; what `odd_size` looks into."""
    import torch

    from labsupport.plugins.gated_norm import EPSILON

    columns = x.shape[-1]
    seen = columns if columns <= PASS else columns // PASS * PASS
    v = (x * torch.nn.functional.silu(gate)).float()[..., :seen]
    y = torch.zeros_like(x)
    y[..., :seen] = v * torch.rsqrt(v.pow(2).sum(-1, keepdim=True) / columns + EPSILON) * weight[:seen]
    return y
