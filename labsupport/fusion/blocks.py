"""The smallest networks in which one kind of fusion can be seen each, and a way to forbid all of it.

Every block knows its ``example_input``. The plans recorded under the same names were built from these modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport import export
from labsupport.errors import BadInput


class Block(nn.Module):
    """A network of one input and one output; ``make`` gives it its layers, with the same weights for the same seed."""

    input_name = "input"
    output_name = "output"
    shape: tuple[int, ...] = (64, 56, 56)  # of one item
    batch = 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reseed every GPU too
            self.make()
        self.eval()

    def make(self) -> None:
        """Create the layers; a block without weights has none."""

    def example_input(self, batch: int | None = None, seed: int = 0, *, shape: tuple[int, ...] | None = None) -> Tensor:
        """Normal noise, float32 (batch, *shape); without arguments the size that the recorded plan was built for."""
        size = (self.batch if batch is None else batch, *(shape or self.shape))
        if not all(isinstance(axis, int) and axis > 0 for axis in size):
            raise BadInput(f"an input of shape {size} was asked for; every axis is a whole number of 1 or more")
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class ConvBlock(Block):
    """Convolution, batch norm, ReLU: (N, 64, H, W) → the same shape."""

    def make(self) -> None:
        """A norm with statistics as training leaves them, so that folding it changes the weights."""
        self.conv, self.bn = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class PointwiseChain(Block):
    """Nine operations that each look at one value: (N, …) → the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x * 1.5 + 0.25)
        y = torch.sigmoid(y - 0.5) * y
        return torch.relu(y + 0.125) * 0.75


class HandGelu(Block):
    """GELU as its formula says, five operations: (N, …) → the same shape. Hendrycks and Gimpel, arXiv:1606.08415."""

    shape, batch = (2048,), 2048

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class HandNorm(Block):
    """Layer normalization as its formula says, nine operations: (N, L, 256) → the same. Ba et al., arXiv:1607.06450."""

    shape, batch = (128, 256), 8

    def make(self) -> None:
        """Scale and shift, one value a channel."""
        self.scale, self.shift = nn.Parameter(torch.rand(256) + 0.5), nn.Parameter(torch.randn(256))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5)
        return centered / deviation * self.scale + self.shift


class Siblings(Block):
    """Three 1×1 convolutions that read the same tensor, added up: (N, 64, H, W) → the same shape."""

    def make(self) -> None:
        """Three layers of one shape."""
        self.left, self.middle, self.right = (nn.Conv2d(64, 64, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.left(x)) + torch.relu(self.middle(x)) + torch.relu(self.right(x))


class SiblingMatmuls(Block):
    """Three dense layers that read the same tensor, as query, key and value do: (N, L, 256) → the same shape."""

    shape, batch = (128, 256), 8

    def make(self) -> None:
        """Three layers of one shape."""
        self.q, self.k, self.v = (nn.Linear(256, 256) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.q(x)) + torch.relu(self.k(x)) * torch.sigmoid(self.v(x))


class Concat(Block):
    """Two branches joined along the channels and read by a third layer: (N, 64, H, W) → the same shape."""

    def make(self) -> None:
        """A 1×1 and a 3×3 branch, and the layer that reads both."""
        self.a, self.b, self.c = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(128, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)))


class Residual(Block):
    """A convolution block, a convolution, and the input added again: (N, 64, H, W) → the same. arXiv:1512.03385."""

    def make(self) -> None:
        """The block and the second convolution."""
        self.one, self.two = ConvBlock(), nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(self.one(x)) + x)


class Attention(Block):
    """Self-attention with four heads: (N, L, 256) → the same shape. Vaswani et al., arXiv:1706.03762."""

    shape, batch = (128, 256), 8

    def make(self) -> None:
        """Queries, keys and values from one dense layer."""
        self.qkv, self.out = nn.Linear(256, 768), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (part.reshape(n, length, 4, 64).transpose(1, 2) for part in self.qkv(x).split(256, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8.0, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, 256))


class Mlp(Block):
    """A transformer's second half, from the normalization to the residual sum: (N, L, 256) → the same shape."""

    shape, batch = (128, 256), 8

    def make(self) -> None:
        """Four times wider in the middle, as in BERT."""
        self.norm, self.up, self.down = nn.LayerNorm(256), nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def unfused(graph) -> export.OnnxGraph:
    """The same network with every intermediate tensor made an output, so that each must be written to memory.

    The first outputs stay the first. Constants and shape arithmetic are left as they are: a runtime computes them
    beforehand and would not run them. So is what only gives the same bytes another shape: as an output it would have
    to be copied, which no fusion spares. ``graph`` is an export.OnnxGraph or a path. Raises BadInput where the type of
    a tensor is not known.
    """
    import onnx

    from labsupport.fusion.onnx_nodes import nodes_of
    from labsupport.fusion.roofline import FREE

    graph = export.load(graph)
    nodes, model = nodes_of(graph), graph.model()
    values = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    outputs = {value.name for value in model.graph.output}
    for node in nodes.nodes:
        if node.name in nodes.constant_nodes or node.name in nodes.shape_nodes or node.op in FREE:
            continue
        for tensor in node.outputs:
            if tensor in outputs or not tensor:
                continue
            if tensor not in values:
                raise BadInput(
                    f"ONNX cannot tell type and shape of {tensor!r}, which {node.name} writes, so it cannot "
                    "become an output; use operators that ONNX's shape inference knows"
                )
            model.graph.output.append(values[tensor])
    return export.save(model, graph.path.with_name(f"{graph.path.stem}.unfused.onnx"))
