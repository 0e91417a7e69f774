"""PyTorch's own runtime for phones: a network lowered to XNNPACK's kernels, and run behind the runtime protocol."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from labsupport import environment, export
from labsupport.errors import BadInput, LabError, at_least, first_line
from labsupport.phone.silence import silently
from labsupport.runtimes.protocol import Base, TensorSpec


def to_executorch(model, example, *, calibration=None) -> Path:
    """Write a `.pte` file for XNNPACK: FP32, or INT8 with ``calibration``, images (N, …) that settle the ranges.

    ``example`` (1, …) fixes the shape. INT8 goes the PT2E way of torchao: signed, weights per channel. Raises
    NotAvailable, BadInput; LabError with the reason when the network cannot be lowered.
    Source: https://docs.pytorch.org/executorch/stable/backends-xnnpack.html
    """
    environment.require("executorch")
    path = export.fresh_folder() / ("model_int8.pte" if calibration is not None else "model.pte")
    images = None if calibration is None else _images(calibration, example)
    try:
        with silently():
            program = _lowered(_quantized(model, example, images) if images is not None else model, example)
    except Exception as error:
        raise LabError(
            f"ExecuTorch could not lower the network: {type(error).__name__}: {first_line(error)}"
        ) from error
    path.write_bytes(program.buffer)
    return path


def _lowered(model, example):
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, (example,))
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()


def _quantized(model, example, images):
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(settings)
    observed = prepare_pt2e(torch.export.export(model, (example,)).module(), quantizer)
    with torch.inference_mode():
        for image in images.split(1):
            observed(image)
    return convert_pt2e(observed)


def _images(calibration, example):
    import torch

    images = torch.as_tensor(np.asarray(calibration))
    if images.shape[1:] != example.shape[1:] or not len(images) or not images.isfinite().all():
        raise BadInput(
            f"calibration has shape {tuple(images.shape)}; wanted are finite images (n, "
            f"{', '.join(map(str, example.shape[1:]))}), the data that the network will see"
        )
    return images.to(example.dtype)


def use_threads(threads: int) -> None:
    """How many threads XNNPACK may use, in this whole process; before the first program is loaded, or never.

    A loaded program holds the pool of threads, and ExecuTorch crashes when it is replaced; then it is a LabError.
    """
    at_least(threads=threads)
    environment.require("executorch")
    with silently():
        from executorch.extension.pybindings import portable_lib

        count = portable_lib._threadpool_get_thread_count()
        if count != threads and not _loaded:
            portable_lib._unsafe_reset_threadpool(threads)
            count = threads
    if count != threads:
        raise LabError(
            f"ExecuTorch has {count} threads in this process, and programs that use them; "
            "phone.executorch_latency takes another number in a process of its own"
        )
    _loaded.append(threads)


_loaded: list[int] = []  # grows with the first program; then the number stands


class ExecuTorch(Base):
    """A `.pte` file, executed on one thread (``use_threads`` before the first asks for more).

    Batches larger than the file's are fed in parts. ``load_ms`` is what reading and planning took. Raises NotAvailable,
    BadInput. Source: https://docs.pytorch.org/executorch/stable/runtime-python-api-reference.html
    """

    def __init__(self, path: str | Path):
        environment.require("executorch")
        self.path, self.name = Path(path), f"executorch/{Path(path).stem}"
        if not _loaded:
            use_threads(1)
        with silently():
            from executorch.runtime import Runtime

            start = time.perf_counter()
            try:
                program = Runtime.get().load_program(self.path.read_bytes())
                self._method = program.load_method("forward")
            except (RuntimeError, OSError) as error:
                raise BadInput(f"ExecuTorch cannot load {self.path.name}: {str(error)[:200]}") from error
            self.load_ms = (time.perf_counter() - start) * 1e3
        self._program, facts = program, self._method.metadata
        self._shape_in = tuple(facts.input_tensor_meta(0).sizes())
        shape_out = tuple(facts.output_tensor_meta(0).sizes())
        self.inputs = {"images": TensorSpec((None, *self._shape_in[1:]), "float32")}
        self.outputs = {"logits": TensorSpec((None, *shape_out[1:]), "float32")}

    def __call__(self, feed) -> dict:
        import torch

        images = torch.as_tensor(self.checked(feed)["images"])
        parts = [self._method.execute([part])[0] for part in images.split(self._shape_in[0])]
        answers = torch.cat(parts).clone()
        return {"logits": answers.numpy() if isinstance(feed, np.ndarray) else answers}

    def close(self) -> None:
        """Free the program."""
        self.closed, self._method, self._program = True, None, None
