"""A small network of depthwise convolutions whose channels differ as much as those of a large one that trained for
weeks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput, at_least
from labsupport.models.networks import ImageNetwork

#         expand, channels, stride
STAGES = ((1, 16, 1), (4, 24, 2), (4, 24, 1))


class DepthwiseNet(ImageNetwork):
    """MobileNetV2's blocks in a network of 28×28 images; ReLU in place of ReLU6, which would hide large values."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__(channels, size)
        self.stem = _conv(channels, 16, 3, stride=2)
        inputs, blocks = 16, []
        for expand, outputs, stride in STAGES:
            blocks.append(Block(inputs, outputs, stride, expand))
            inputs = outputs
        self.blocks, self.head = nn.Sequential(*blocks), _conv(inputs, 128, 1)
        self.classifier = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(images)))  # (N, C, H, W) → (N, 128, H/4, W/4)
        return self.classifier(x.mean((2, 3)))  # → (N, classes)


class Block(nn.Module):
    """Expand by 1×1, filter each channel alone by 3×3, project by 1×1; a shortcut where the shape stays (Sandler et
    al. 2018).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = _conv(inputs, hidden, 1) if expand > 1 else nn.Identity()
        self.depthwise = _conv(hidden, hidden, 3, stride, groups=hidden)
        self.project = _conv(hidden, outputs, 1)[:2]
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def network(
    classes: int = 10, *, channels: int = 1, size: int = 28, spread: float = 1.0, seed: int = 0
) -> DepthwiseNet:
    """A depthwise network, ready to be trained; ``spread`` is how much the scales of its channels differ at the start.

    The scale of each batch norm is drawn from a log-normal distribution with this deviation. In a published MobileNetV2
    the ranges of one layer's channels differ by a factor of hundreds after training; training for seconds does not get
    there, so this network starts there. ``spread=0`` is the usual start. Source: Nagel et al. 2019, arXiv:1906.04721,
    figure 2.
    """
    at_least(classes=classes, channels=channels, size=size)
    at_least(0, seed=seed)
    if not 0 <= spread <= 3:
        raise BadInput(f"spread={spread!r}; give the deviation of the logarithm of the channels' scales, 0 to 3")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DepthwiseNet(classes, channels, size)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = torch.exp(spread * torch.randn(module.num_features))
    return model.eval()


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
