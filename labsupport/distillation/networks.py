"""A teacher and its smaller sisters: one family of small convolutional networks with stages that hints can name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput, at_least
from labsupport.models.networks import ImageNetwork


class StagedCnn(ImageNetwork):
    """Three stages, each halving height and width and doubling the channels; mean over space; one dense layer."""

    def __init__(self, width: int, depth: int, classes: int, channels: int, size: int) -> None:
        super().__init__(channels, size)
        self.stages, inputs = nn.Sequential(), channels
        for stage in range(3):
            outputs = width << stage
            blocks = [_block(inputs if i == 0 else outputs, outputs, stride=2 if i == 0 else 1) for i in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(images)  # (N, C, H, W) → (N, 4·width, H/8, W/8)
        return self.head(x.mean(dim=(2, 3)))


def staged_cnn(
    classes: int = 15, *, width: int = 20, depth: int = 1, channels: int = 3, size: int = 24, seed: int = 0
) -> StagedCnn:
    """A StagedCnn in eval mode with reproducible random weights; `depth` convolutions a stage, `width` channels in the
    first.
    """
    at_least(classes=classes, width=width, depth=depth, channels=channels)
    at_least(0, seed=seed)
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise BadInput(f"size={size!r}; three stages halve it three times: wanted a whole number of at least 8")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return StagedCnn(width, depth, classes, channels, size).eval()


def parameters(model: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
