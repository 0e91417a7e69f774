"""The material: handwritten digits, drawn road signs, token ids; seeded, and replaceable by folders of your own.

The parts: ``datasets`` (splits, readers, preprocessing) and ``signs`` (who draws the road signs).
"""

from __future__ import annotations

from labsupport.data.datasets import (
    IMAGE_ENDINGS,
    MNIST_FILE,
    MNIST_SHA256,
    Dataset,
    Split,
    image_folder,
    mnist,
    mnist_idx,
    preprocess,
    road_signs,
    token_ids,
)

__all__ = [
    "IMAGE_ENDINGS", "MNIST_FILE", "MNIST_SHA256", "Dataset", "Split", "image_folder", "mnist", "mnist_idx",
    "preprocess", "road_signs", "token_ids",
]  # fmt: skip
