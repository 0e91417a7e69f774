"""The gated RMS norm of Mamba-2, an operator that no runtime knows, and a network block that needs it.

    y = weight · v / sqrt(mean(v²) + epsilon),   v = x · silu(gate),   row by row

Dao and Gu 2024, arXiv:2405.21060, §7 and figure 6. In ONNX it is the node GatedRmsNorm of the domain "workbook" with
the inputs x, gate and weight and the attribute epsilon.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labsupport.errors import BadInput

OP_TYPE, DOMAIN = "GatedRmsNorm", "workbook"
EPSILON = 1e-5
DTYPES = ("float32", "float16")


def reference(x, gate, weight, epsilon: float = EPSILON) -> np.ndarray:
    """The formula in float64, whatever came in: (…, columns) → the same shape. What every road is held against."""
    x, gate, weight = (np.asarray(_on_host(array), dtype=np.float64) for array in (x, gate, weight))
    v = x * gate / (1 + np.exp(-gate))
    return weight * v / np.sqrt((v**2).mean(-1, keepdims=True) + epsilon)


def _on_host(array):
    return array.detach().cpu().double().numpy() if hasattr(array, "detach") else array


def chain(x: Tensor, gate: Tensor, weight: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The formula as PyTorch code is mostly written: one kernel an operation, each through memory."""
    v = x * nn.functional.silu(gate)
    return v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def output_shape(x: tuple, gate: tuple, weight: tuple) -> tuple:
    """Shape of y from the shapes of the inputs; an axis is a whole number, or a name where it is free.

    Raises BadInput where they do not fit together.
    """
    if len(x) < 1 or tuple(gate) != tuple(x):
        raise BadInput(
            f"{OP_TYPE}: x has shape {tuple(x)} and gate {tuple(gate)}; both need one and the same, of one axis or more"
        )
    if len(weight) != 1 or weight[0] != x[-1]:
        raise BadInput(f"{OP_TYPE}: weight has shape {tuple(weight)}; wanted is one value a column, ({x[-1]},)")
    return tuple(x)


class _Node(torch.autograd.Function):
    """Computes the chain; the exporter writes one node of our own domain in its place."""

    @staticmethod
    def forward(ctx, x, gate, weight, epsilon):
        return chain(x, gate, weight, epsilon)

    @staticmethod
    def symbolic(graph, x, gate, weight, epsilon):
        return graph.op(f"{DOMAIN}::{OP_TYPE}", x, gate, weight, epsilon_f=epsilon).setType(x.type())


class GatedBlock(nn.Module):
    """Half of a Mamba-2 layer, without its scan: (tokens, hidden) → the same shape.

    One projection gives x and gate side by side, the operator joins them, a second projection goes back. With
    ``as_node`` the exporter writes the operator as one node; without, as the operations of the chain.
    """

    input_name = "tokens"
    output_name = "mixed"

    def __init__(self, hidden: int = 64, inner: int = 256, *, as_node: bool = True) -> None:
        super().__init__()
        if not all(isinstance(size, int) and size > 0 for size in (hidden, inner)):
            raise BadInput(f"hidden={hidden!r}, inner={inner!r}; both are whole numbers of 1 or more")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.up, self.down = nn.Linear(hidden, 2 * inner), nn.Linear(inner, hidden)
            self.scale = nn.Parameter(torch.rand(inner) + 0.5)
        self.hidden, self.inner, self.as_node = hidden, inner, as_node
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        x, gate = self.up(tokens).split(self.inner, -1)  # views of one tensor: their rows lie 2 · inner values apart
        norm = _Node.apply if self.as_node else chain
        return tokens + self.down(norm(x, gate, self.scale, EPSILON))

    def example_input(self, batch: int = 4, seed: int = 0) -> Tensor:
        """Normal noise, float32 (batch, hidden)."""
        return torch.randn(batch, self.hidden, generator=torch.Generator().manual_seed(seed))


def example(
    rows: int, columns: int, *, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x, gate (rows, columns) of normal noise and weight (columns,) between 0.5 and 1.5, on a device."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype={dtype!r}; the operator is there for {list(DTYPES)}")
    generator = torch.Generator(device).manual_seed(seed)
    kind = getattr(torch, dtype)
    x, gate = (torch.randn(rows, columns, generator=generator, device=device).to(kind) for _ in range(2))
    return x, gate, (torch.rand(columns, generator=generator, device=device) + 0.5).to(kind)
