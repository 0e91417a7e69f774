"""The workpieces: networks in plain PyTorch, each seeded, each with its ``example_input()``.

The parts: ``catalog`` (the networks by name), ``networks`` (their layers) and ``depthwise`` (one that quantizes badly).
"""

from __future__ import annotations

from labsupport.models.catalog import article_cnn, decoder, encoder, mobilenet_v2, resnet18, resnet50, settle
from labsupport.models.networks import ArticleCnn, BasicBlock, Bottleneck, Decoder, Encoder, MobileNetV2, ResNet

__all__ = [
    "ArticleCnn", "BasicBlock", "Bottleneck", "Decoder", "Encoder", "MobileNetV2", "ResNet", "article_cnn", "decoder",
    "encoder", "mobilenet_v2", "resnet18", "resnet50", "settle",
]  # fmt: skip
