"""The networks behind `models`, in plain PyTorch: convolutional ones first, then the two transformers.

Layers are named as in torchvision, so published ResNet and MobileNetV2 weights load into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport.errors import BadInput, at_least


class ImageNetwork(nn.Module):
    """A network from float32 images (N, channels, size, size) to logits (N, classes)."""

    input_name = "images"
    output_name = "logits"
    any_size = True

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def example_input(self, batch: int = 1, seed: int = 0, *, size: int | None = None) -> Tensor:
        """Noise like normalized images: float32 (batch, channels, size, size); size defaults to the network's own."""
        at_least(batch=batch, size=self.size if size is None else size)
        if size not in (None, self.size) and not self.any_size:
            raise BadInput(
                f"size={size}, but the dense layer of this network was made for {self.size}×{self.size} "
                f"images; make another network with size={size}"
            )
        shape = (batch, self.channels, size or self.size, size or self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TokenNetwork(nn.Module):
    """A network from int64 token ids (N, length) to one vector for each token."""

    input_name = "token_ids"

    def __init__(self, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.vocabulary, self.positions = vocabulary, positions

    def example_input(self, batch: int = 1, seed: int = 0, *, length: int = 32) -> Tensor:
        """Random token ids: int64 (batch, length), each below the vocabulary size."""
        at_least(batch=batch, length=length)
        self.check_length(length)
        return torch.randint(self.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))

    def check_length(self, length: int) -> None:
        # An index beyond the position table is a bare IndexError on the CPU and kills the CUDA context on a GPU.
        # While an exporter traces, the length is symbolic, and asking about it would bake in a limit.
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not tracing and length > self.positions:
            raise BadInput(
                f"a sequence of {length} tokens came; this network has {self.positions} positions. "
                f"Shorten the sequence, or make the network with positions={length}"
            )


class ArticleCnn(ImageNetwork):
    """Convolution, pooling, two dense layers; logits, because the softmax belongs to the loss while training."""

    any_size = False

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__(channels, size)
        side = (size - 2) // 2  # 3×3 without padding, then a 2×2 pool: 28 → 26 → 13
        self.conv = nn.Conv2d(channels, 32, 3)
        self.dense = nn.Linear(32 * side * side, 128)
        self.out = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(images)), 2)  # (N, C, 28, 28) → (N, 32, 13, 13)
        x = F.relu(self.dense(torch.flatten(x, 1)))  # → (N, 128)
        return self.out(x)  # → (N, classes)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, fig. 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, 1), nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up (fig. 5 right); the stride sits on the 3×3, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1, 1), nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


class ResNet(ImageNetwork):
    """A stem that quarters the resolution, four stages of residual blocks, mean over space, one dense layer."""

    def __init__(self, block: Any, depths: Sequence[int], classes: int, width: int, channels: int, size: int) -> None:
        super().__init__(channels, size)
        self.conv1, self.bn1 = _conv(channels, width, 7, 2), nn.BatchNorm2d(width)
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(inputs, width << stage, stride))
                inputs = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # (N, C, H, W) → (N, width, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # → (N, width, H/4, W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter each channel alone by 3×3, project by 1×1 with no activation after."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [] if expand == 1 else [_conv_bn_relu6(inputs, hidden, 1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            _conv(hidden, outputs, 1, 1),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(ImageNetwork):
    """Depthwise-separable residual blocks (Sandler et al. 2018, table 2)."""

    #         expand, channels, repeats, stride of the first
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int, width: float, channels: int, size: int) -> None:
        super().__init__(channels, size)
        inputs = _multiple_of_8(32 * width)
        layers = [_conv_bn_relu6(channels, inputs, 3, 2)]
        for expand, outputs, repeats, stride in self.stages:
            outputs = _multiple_of_8(outputs * width)
            for i in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expand))
                inputs = outputs
        last = _multiple_of_8(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, _conv_bn_relu6(inputs, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V for each head (Vaswani et al. 2017, eq. 1), in two MatMuls and a Softmax.

    Written out, not F.scaled_dot_product_attention: opset 17 has no attention operator, and the
    lesson is to see which of these nodes the builder merges.
    """

    def __init__(self, hidden: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = heads, hidden // heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.heads, self.head_width).transpose(1, 2)  # (N, heads, length, head_width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-2, -1) * self.head_width**-0.5  # (N, heads, length, length)
        if self.causal:
            step = torch.arange(x.shape[1], device=x.device)
            # -1e4, not -inf: it fits in fp16 and its exponential is zero all the same.
            scores = torch.where(step[:, None] >= step, scores, -1e4)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2)  # (N, length, heads, head_width)
        return self.out(mixed.reshape(x.shape))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by add and LayerNorm ("post-norm", as in BERT)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(hidden, heads, causal=False), nn.LayerNorm(hidden, eps=1e-12)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(TokenNetwork):
    """Token and position embeddings, LayerNorm, encoder layers; no segments, no padding mask, no pooler."""

    output_name = "hidden_states"

    def __init__(self, layers: int, hidden: int, heads: int, vocabulary: int, positions: int) -> None:
        super().__init__(vocabulary, positions)
        self.token, self.position = nn.Embedding(vocabulary, hidden), nn.Embedding(positions, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.Sequential(*(EncoderLayer(hidden, heads) for _ in range(layers)))

    def forward(self, token_ids: Tensor) -> Tensor:
        self.check_length(token_ids.shape[1])
        position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)
        x = self.norm(self.token(token_ids) + self.position(position_ids))  # (N, length) → (N, length, hidden)
        return self.layers(x)


class DecoderLayer(nn.Module):
    """LayerNorm before causal attention and before feed-forward ("pre-norm", as in GPT-2)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(hidden), Attention(hidden, heads, causal=True)
        self.norm2 = nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Decoder(TokenNetwork):
    """Embeddings, decoder layers, LayerNorm, and the token table once more as output layer; no key-value cache."""

    output_name = "logits"

    def __init__(self, layers: int, hidden: int, heads: int, vocabulary: int, positions: int) -> None:
        super().__init__(vocabulary, positions)
        self.token, self.position = nn.Embedding(vocabulary, hidden), nn.Embedding(positions, hidden)
        self.layers = nn.Sequential(*(DecoderLayer(hidden, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, token_ids: Tensor) -> Tensor:
        self.check_length(token_ids.shape[1])
        position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)
        x = self.layers(self.token(token_ids) + self.position(position_ids))  # (N, length, hidden)
        return F.linear(self.norm(x), self.token.weight)  # → (N, length, vocabulary)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    # No bias: the BatchNorm that follows subtracts the mean, and any bias with it.
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6())


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _multiple_of_8(channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth (the rule of the MobileNet authors)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
