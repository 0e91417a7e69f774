"""A network that reads raw pixels, and in which FP16 goes wrong in three natural places."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport import data
from labsupport.errors import at_least
from labsupport.models.networks import ImageNetwork


class RawPixels(ImageNetwork):
    """Digits from pixels as a camera gives them, 0 to 255: contrast, two convolutions, attention over places, a
    direction.

    Each step is written as its formula: the contrast of a picture from the sum of its squared pixels, the softmax as an
    exponential over a sum, the length of a vector as the root of its squares, and small steps by a layer scale, which
    ConvNeXt starts at 1e-6 (arXiv:2201.03545). FP32 minds none of it.
    """

    any_size = False
    heads = 4

    def __init__(self, classes: int = 10) -> None:
        super().__init__(1, 28)
        at_least(classes=classes)
        places = 7 * 7  # two poolings halve 28 twice
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(places, 32))
        self.query, self.value = nn.Linear(32, self.heads, bias=False), nn.Linear(32, 32)
        self.out = nn.Linear(32 * self.heads, classes)
        self.register_buffer("layer_scale", torch.full((1,), 1e-4))
        nn.init.normal_(self.place, std=0.5)
        nn.init.normal_(self.query.weight, std=1.4)

    def example_input(self, batch: int = 1, seed: int = 0, *, size: int | None = None) -> Tensor:
        """Noise in the range of pixels: float32 (batch, channels, size, size), 0 to 255."""
        return (super().example_input(batch, seed, size=size) * 64 + 128).clamp(0, 255).round()

    def forward(self, images: Tensor) -> Tensor:
        centered = images - images.mean((2, 3), keepdim=True)  # (N, C, H, W)
        energy = (centered * centered).sum((2, 3), keepdim=True)  # (N, C, 1, 1)
        x = centered / torch.sqrt(energy / self.size**2 + 1e-5)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # → (N, 32, H/4, W/4)
        places = x.flatten(2).transpose(1, 2) + self.place  # → (N, places, 32)
        weights = torch.exp(self.query(places))  # → (N, places, heads)
        weights = weights / weights.sum(1, keepdim=True)
        seen = weights.transpose(1, 2) @ self.value(places) * self.layer_scale  # → (N, heads, 32)
        seen = seen.flatten(1)
        length = torch.sqrt((seen * seen).sum(1, keepdim=True))
        return self.out(seen / length) * 10  # → (N, classes)


def raw(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C) → float32 (N, C, H, W), the values as they are: 0 to 255."""
    return data.preprocess(images, mean=0.0, std=1 / 255)
