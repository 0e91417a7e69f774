"""The workpieces: six networks in plain PyTorch, small enough to read and real enough to optimize.

Weights are random but reproducible, and every network comes in eval mode. The classes are in `networks`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from labsupport.errors import BadInput, at_least
from labsupport.models.networks import (
    ArticleCnn,
    BasicBlock,
    Bottleneck,
    Decoder,
    Encoder,
    MobileNetV2,
    ResNet,
)


def article_cnn(classes: int = 10, *, channels: int = 1, size: int = 28, seed: int = 0) -> ArticleCnn:
    """The article's digit network: conv 32 3×3, pool, dense 128, dense `classes`; 693,962 weights at 28×28×1."""
    at_least(classes=classes, channels=channels)
    at_least(4, size=size)
    return _seeded(seed, lambda: ArticleCnn(classes, channels, size))


def resnet18(classes: int = 1000, *, width: int = 64, size: int = 224, seed: int = 0) -> ResNet:
    """ResNet-18, 11,689,512 weights as published; `width` is the channel count of stage 1. arXiv:1512.03385."""
    return _resnet(BasicBlock, (2, 2, 2, 2), classes, width, size, seed)


def resnet50(classes: int = 1000, *, width: int = 64, size: int = 224, seed: int = 0) -> ResNet:
    """ResNet-50, 25,557,032 weights as published; `width` is the channel count of stage 1. arXiv:1512.03385."""
    return _resnet(Bottleneck, (3, 4, 6, 3), classes, width, size, seed)


def mobilenet_v2(classes: int = 1000, *, width: float = 1.0, size: int = 224, seed: int = 0) -> MobileNetV2:
    """MobileNetV2, 3,504,872 weights as published; `width` multiplies every channel count. arXiv:1801.04381."""
    at_least(classes=classes, size=size)
    if not 0 < width <= 8:
        raise BadInput(f"width={width!r}; for MobileNetV2 it is a factor on the channel counts, above 0 and at most 8")

    def build() -> MobileNetV2:
        return _initialize_convolutions(MobileNetV2(classes, width, 3, size))

    return _seeded(seed, build)


def encoder(
    layers: int = 4, hidden: int = 256, heads: int = 4, vocabulary: int = 8192, *, positions: int = 512, seed: int = 0
) -> Encoder:
    """A BERT-shaped encoder: token ids (N, length) → hidden states (N, length, hidden). arXiv:1810.04805.

    BERT-base is encoder(12, 768, 12, 30522).
    """
    _check_transformer(layers, hidden, heads, vocabulary, positions)
    return _seeded(seed, lambda: Encoder(layers, hidden, heads, vocabulary, positions).apply(_initialize_transformer))


def decoder(
    layers: int = 4, hidden: int = 256, heads: int = 4, vocabulary: int = 8192, *, positions: int = 512, seed: int = 0
) -> Decoder:
    """A GPT-shaped decoder: token ids (N, length) → logits of each next token (N, length, vocabulary).

    GPT-2 small is decoder(12, 768, 12, 50257, positions=1024). Radford et al. 2019.
    """
    _check_transformer(layers, hidden, heads, vocabulary, positions)
    return _seeded(seed, lambda: Decoder(layers, hidden, heads, vocabulary, positions).apply(_initialize_transformer))


def settle(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose batch norms know the mean and variance that `images` (N, C, H, W) give them; in eval mode.

    A fresh BatchNorm claims mean 0 and variance 1, so random-weight activations drift from layer to
    layer, in a deep net beyond what fp16 holds. One pass in training mode gives them real statistics.
    """
    images = torch.as_tensor(images)
    if images.ndim != 4 or not images.is_floating_point() or len(images) < 2:
        raise BadInput(
            f"settle wants at least 2 float images (N, C, H, W); "
            f"{images.dtype} of shape {tuple(images.shape)} came. data.preprocess makes such images"
        )
    channels = getattr(model, "channels", images.shape[1])
    if images.shape[1] != channels:
        raise BadInput(
            f"images of {images.shape[1]} channels came, the network takes {channels}; "
            f"the order is (N, C, H, W), here {tuple(images.shape)}"
        )
    settled = copy.deepcopy(model).eval()
    norms = [m for m in settled.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # None: the plain average of what passes, not a moving one
    with torch.no_grad():
        settled(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if not (norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            raise BadInput("the images or the weights gave non-finite activations; look for NaN in the images")
    return settled.eval()


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    at_least(0, seed=seed)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed every GPU too, and fork_rng would not put those back.
        torch.default_generator.manual_seed(seed)
        return build().eval()


def _resnet(block: type, depths: Sequence[int], classes: int, width: int, size: int, seed: int) -> ResNet:
    at_least(classes=classes, width=width, size=size)
    return _seeded(seed, lambda: _initialize_convolutions(ResNet(block, depths, classes, width, 3, size)))


def _initialize_convolutions(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _initialize_transformer(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _check_transformer(layers: int, hidden: int, heads: int, vocabulary: int, positions: int) -> None:
    at_least(layers=layers, hidden=hidden, heads=heads, vocabulary=vocabulary, positions=positions)
    if hidden % heads:
        raise BadInput(
            f"hidden={hidden} cannot be shared evenly by heads={heads}; choose hidden as a multiple of heads"
        )
