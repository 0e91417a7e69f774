"""An encoder as in BERT and a decoder as in Llama, in plain PyTorch, with the layer names of Hugging Face.

So published weights load by name. Both are written in operators that opset 17 and TensorRT 8.6 know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = -1e4  # added to a score that must not count: it fits in FP16, and its exponential is zero all the same


@dataclass(frozen=True)
class Shape:
    """How large a network is; ``kv_heads`` below ``heads`` makes groups of heads share keys and values."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    positions: int
    epsilon: float = 1e-5
    rope_base: float = 1e5

    @property
    def head_width(self) -> int:
        """Values in one head."""
        return self.hidden // self.heads

    def cache_bytes(self, batch: int, tokens: int, value_bytes: int = 4) -> int:
        """Bytes of keys and values of ``tokens`` positions: two tensors a layer, ``kv_heads`` heads each."""
        return 2 * self.layers * batch * tokens * self.kv_heads * self.head_width * value_bytes


class EncoderLayer(nn.Module):
    """Self-attention and two dense layers, each followed by sum and LayerNorm (Devlin et al. 2018)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        self.query, self.key, self.value, self.out = (nn.Linear(shape.hidden, shape.hidden) for _ in range(4))
        self.norm1, self.norm2 = (nn.LayerNorm(shape.hidden, eps=shape.epsilon) for _ in range(2))
        self.up, self.down = nn.Linear(shape.hidden, shape.inner), nn.Linear(shape.inner, shape.hidden)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads × width) → (B, heads, L, width)."""
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d + mask) V, one matrix a head; x (B, L, hidden), mask (B, 1, 1, L)."""
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-2, -1) * self.head_width**-0.5 + mask  # (B, heads, L, L)
        mixed = scores.softmax(-1) @ value  # (B, heads, L, width)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token ids (B, L) int32 and how many of each row are real (B,) int32 → one unit vector a text (B, hidden)."""

    input_name, output_name = ("tokens", "lengths"), "vectors"

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.token = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position = nn.Embedding(shape.positions, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B, L, hidden)."""
        return self.norm(self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device)))

    def pool(self, x: Tensor, real: Tensor) -> Tensor:
        """Mean over the real tokens, scaled to length 1: x (B, L, hidden), real (B, L) → (B, hidden)."""
        mean = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return mean / mean.norm(dim=1, keepdim=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int32)
        x = self.embed(tokens)
        real = (steps < lengths[:, None]).to(x.dtype)  # (B, L): 1 for a token, 0 for padding
        mask = ((1 - real) * HIDDEN)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.pool(x, real)

    def example_input(self, batch: int = 2, length: int = 16, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random token ids (batch, length) without padding, and their lengths."""
        dice = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.shape.vocabulary, (batch, length), generator=dice, dtype=torch.int32)
        return tokens, torch.full((batch,), length, dtype=torch.int32)


class RmsNorm(nn.Module):
    """x / √(mean of x² + ε) times a weight (Zhang and Sennrich 2019); ``scale`` shrinks x before it is squared."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight, self.epsilon, self.scale = nn.Parameter(torch.ones(width)), epsilon, 1.0

    def forward(self, x: Tensor) -> Tensor:
        small = x * self.scale
        mean = (small * small).mean(-1, keepdim=True)
        return small / torch.sqrt(mean + self.epsilon * self.scale**2) * self.weight


class DecoderLayer(nn.Module):
    """Norm, grouped attention on the past and the new tokens; norm, gated dense layers (Touvron et al. 2023)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, wide, narrow = shape, shape.hidden, shape.kv_heads * shape.head_width
        self.norm1, self.norm2 = RmsNorm(wide, shape.epsilon), RmsNorm(wide, shape.epsilon)
        self.query, self.out = nn.Linear(wide, wide, bias=False), nn.Linear(wide, wide, bias=False)
        self.key, self.value = nn.Linear(wide, narrow, bias=False), nn.Linear(wide, narrow, bias=False)
        self.gate, self.up = nn.Linear(wide, shape.inner, bias=False), nn.Linear(wide, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, wide, bias=False)

    def attention(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]):
        """x (B, T, hidden), past two of (B, C, kv_heads, width) → mixed (B, T, hidden), new key, new value."""
        batch, new, groups, width = x.shape[0], x.shape[1], self.shape.kv_heads, self.shape.head_width
        key = rotated(self.key(x).reshape(batch, new, groups, width), *turn)
        value = self.value(x).reshape(batch, new, groups, width)
        query = rotated(self.query(x).reshape(batch, new, -1, width), *turn)  # (B, T, heads, width)
        keys = torch.cat([past[0], key], 1).permute(0, 2, 3, 1)  # (B, kv_heads, width, C + T)
        values = torch.cat([past[1], value], 1).transpose(1, 2)  # (B, kv_heads, C + T, width)
        query = query.reshape(batch, new, groups, -1, width).permute(0, 2, 3, 1, 4)  # (B, kv_heads, group, T, width)
        scores = query @ keys[:, :, None] * width**-0.5 + mask  # (B, kv_heads, group, T, C + T)
        mixed = scores.softmax(-1) @ values[:, :, None]  # (B, kv_heads, group, T, width)
        mixed = mixed.permute(0, 3, 1, 2, 4).reshape(batch, new, -1)  # (B, T, hidden)
        return self.out(mixed), key, value

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]):
        mixed, key, value = self.attention(self.norm1(x), turn, mask, past)
        x = x + mixed
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), key, value


class Decoder(nn.Module):
    """New tokens (B, T) int32, rows of the past that count (B,) int32, the past → logits (B, T, vocabulary), new rows.

    ``past`` are keys and values of all layers, each (B, C, kv_heads, width); so are the new rows, with T for C. The
    caller owns the cache and puts the new rows where it wants them.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.token = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.epsilon)
        names = [f"{kind}.{i}" for i in range(shape.layers) for kind in ("key", "value")]
        self.input_name = ("tokens", "past_length", *(f"past_{name}" for name in names))
        self.output_name = ("logits", *(f"new_{name}" for name in names))
        angle = (
            torch.arange(shape.positions)[:, None]
            * shape.rope_base ** -torch.linspace(0, 1, shape.head_width // 2 + 1)[:-1]
        )
        self.register_buffer("cos", angle.cos(), persistent=False)  # (positions, width / 2)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor, past_length: Tensor, *past: Tensor):
        steps = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int32)
        places = past_length[:, None] + steps  # (B, T): where each new token stands
        turn = F.embedding(places, self.cos)[:, :, None], F.embedding(places, self.sin)[:, :, None]
        mask = self.mask(steps, past_length, past[0].shape[1])
        x, new = self.token(tokens), []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, turn, mask, past[2 * i : 2 * i + 2])
            new += [key, value]
        return F.linear(self.norm(x), self.token.weight), *new

    def mask(self, steps: Tensor, past_length: Tensor, rows: int) -> Tensor:
        """(B, 1, 1, T, C + T): past rows that count, and of the new tokens those that are not later."""
        past = torch.arange(rows, device=steps.device, dtype=torch.int32) < past_length[:, None]  # (B, C)
        new = steps <= steps[:, None]  # (T, T)
        past, new = (1 - past.to(self.cos.dtype)) * HIDDEN, (1 - new.to(self.cos.dtype)) * HIDDEN
        nothing = torch.zeros_like(new[:, :1])
        return torch.cat([past[:, None] + nothing, new[None] + 0 * past_length[:, None, None]], 2)[:, None, None]

    def example_input(self, batch: int = 1, new: int = 4, rows: int = 8, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Random tokens, all ``rows`` of the past in use, and noise for a past."""
        dice, shape = torch.Generator().manual_seed(seed), self.shape
        tokens = torch.randint(shape.vocabulary, (batch, new), generator=dice, dtype=torch.int32)
        past = [
            torch.randn(batch, rows, shape.kv_heads, shape.head_width, generator=dice) for _ in range(2 * shape.layers)
        ]
        return tokens, torch.full((batch,), rows, dtype=torch.int32), *past


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + width / 2) turned by the angle of its position (Su et al. 2021); x (B, T, heads, width)."""
    half = cos.shape[-1]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def seeded(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with reproducible random weights, in eval mode: the same shapes and speed, no sense."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=dice) * 0.05)
            elif name.endswith("bias"):
                weight.zero_()
    return network.eval().requires_grad_(False)
