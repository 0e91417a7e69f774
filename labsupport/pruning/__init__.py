"""Weights taken away: zeros anywhere, whole channels, two of every four; and which of these a machine makes fast.

Every transform returns a new object and leaves its argument alone. The parts: ``masks`` (zeros anywhere, training on
with the zeros held), ``channels`` (importance, smaller networks), ``dependencies`` (coupled layers), ``macs`` (what a
network costs), ``sparse24`` (the pattern of Tensor Cores), ``sparse_kernels`` (who computes it: TensorRT, PyTorch).
"""

from __future__ import annotations

from labsupport.pruning.channels import (
    CRITERIA,
    Slim,
    drop_channels,
    shrink,
    slice_pair,
)
from labsupport.pruning.dependencies import Coupled, coupled
from labsupport.pruning.macs import Cost, cost
from labsupport.pruning.masks import Masked, fine_tune, keep_largest, magnitude, masked, zeros
from labsupport.pruning.sparse24 import (
    Layer24,
    Permutation,
    magnitude24,
    magnitude_kept,
    mask24,
    permute,
    report24,
    share24,
)
from labsupport.pruning.sparse_kernels import (
    SparseChoice,
    chosen,
    gemm,
    kernel_families,
    product,
    sparse_tactics,
    with_sparse_kernels,
)

__all__ = [
    "CRITERIA", "Cost", "Coupled", "Layer24", "Masked", "Permutation", "Slim", "SparseChoice",
    "chosen", "cost", "coupled", "drop_channels", "fine_tune", "gemm",
    "keep_largest", "kernel_families", "magnitude", "magnitude24", "magnitude_kept", "mask24", "masked", "permute",
    "product", "report24", "share24", "shrink", "slice_pair", "sparse_tactics", "with_sparse_kernels",
    "zeros",
]  # fmt: skip
