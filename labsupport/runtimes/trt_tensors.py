"""Types and repeated calls of a TensorRT engine."""

from __future__ import annotations

import numpy as np

from labsupport.errors import BadInput, EngineError
from labsupport.runtimes.protocol import TensorSpec


class RepeatedCall:
    """What a repeated call needs, looked up once: on a small engine the host's work is longer than the GPU's."""

    __slots__ = (
        "current_stream",
        "dtype",
        "execute",
        "index",
        "kind",
        "name",
        "out",
        "pointer",
        "set_address",
        "shape",
    )

    def __init__(self, run, name: str, x, out):
        import torch

        self.kind, self.name, self.shape, self.dtype, self.out = type(x), name, x.shape, x.dtype, out
        self.pointer, self.index = x.data_ptr(), x.device.index
        self.execute, self.set_address = run.context.execute_async_v3, run.context.set_tensor_address
        # Triton and torch.compile ask for the stream this way; torch.cuda.current_stream() makes a Python object first.
        raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        self.current_stream = raw or (lambda index: torch.cuda.current_stream(index).cuda_stream)


def narrowed(array, spec: TensorSpec):
    """Token ids in INT64 as the INT32 that TensorRT 8.6 reads; BadInput for values that do not fit."""

    if spec.dtype != "int32" or not str(array.dtype).endswith("int64"):
        return array
    # both ends: the least INT64 has no absolute value in INT64; and a single number has no length
    if 0 not in tuple(array.shape) and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise BadInput(
            "an int64 input holds values beyond 32 bits, and TensorRT 8.6 has no INT64; use TensorRT 10 or newer"
        )
    return array.astype("int32") if isinstance(array, np.ndarray) else array.int()


def torch_dtype(trt, dtype):
    """PyTorch's type for a TensorRT DataType; EngineError for one that it does not have."""

    import torch

    table = {
        "FLOAT": "float32",
        "HALF": "float16",
        "INT8": "int8",
        "INT32": "int32",
        "BOOL": "bool",
        "UINT8": "uint8",
        "BF16": "bfloat16",
        "INT64": "int64",
    }
    if dtype.name not in table:
        raise EngineError(
            f"the engine has a {dtype.name} tensor at its border, which PyTorch cannot hold; keep inputs and outputs "
            "in a wider type"
        )
    return getattr(torch, table[dtype.name])
