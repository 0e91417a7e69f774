"""The operator in Triton: a kernel written in Python, compiled when it first runs. Import it only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated_rms_norm_kernel(
    x, gate, weight, columns, x_stride, gate_stride, y, EPSILON: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a row. Inputs, then whole numbers, then the output: the order that TensorRT's ahead-of-time plugins
    call with.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns  # without the mask, a row that is no power of two would read its neighbor
    a = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    v = a * b * tl.sigmoid(b)
    scale = tl.rsqrt(tl.sum(v * v, axis=0) / columns + EPSILON)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + column, (v * scale * w).to(y.dtype.element_ty), mask=inside)


def block_of(columns: int) -> int:
    """The smallest power of two that holds a row; Triton's blocks have no other sizes."""
    return 1 << max(0, columns - 1).bit_length()


def _warps_of(block: int) -> int:
    """Warps for a block: 16 to 32 values a thread keep enough loads under way without spilling registers."""
    return min(16, max(1, block // 512))


def gated_rms_norm(x, gate, weight, epsilon: float, *, out=None):
    """y for CUDA tensors on the current stream; rows may lie apart, values in a row may not. Raises BadInput."""
    import torch

    from labsupport.plugins.cuda_kernels import checked

    rows, columns = checked(x, gate, weight, out, device=x.device.index or 0)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if rows:
        block = block_of(columns)
        strides = [tensor.stride(-2) if tensor.dim() > 1 else columns for tensor in (x, gate)]
        gated_rms_norm_kernel[(rows,)](
            x, gate, weight, columns, *strides, y, EPSILON=epsilon, BLOCK=block, num_warps=_warps_of(block)
        )
    return y
