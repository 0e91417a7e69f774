"""Networks for tests, in PyTorch: layers by name and a function that runs them."""

from __future__ import annotations

from torch import nn


class Net(nn.Module):
    """Layers by name, and a function that runs them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(i, o, k=3, **options):
    return nn.Conv2d(i, o, k, padding=k // 2, **options)
