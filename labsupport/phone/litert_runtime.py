"""Google's runtime for phones, once TensorFlow Lite: converted from PyTorch, quantized, and run behind the protocol."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from labsupport import environment, export
from labsupport.errors import BadInput, LabError, at_least, first_line, one_of
from labsupport.phone.silence import silently
from labsupport.runtimes.protocol import Base, TensorSpec

RECIPES = ("dynamic_wi8_afp32", "static_wi8_ai8")


def to_litert(model, example) -> Path:
    """Write a `.tflite` file in FP32; ``example`` (1, …) fixes the shape. No TensorFlow takes part.

    Raises NotAvailable; LabError with the reason when the network cannot be converted.
    Source: https://github.com/google-ai-edge/litert-torch
    """
    environment.require("litert")
    path = export.fresh_folder() / "model.tflite"
    try:
        with silently():
            import litert_torch

            litert_torch.convert(model, (example,)).export(str(path))
    except Exception as error:
        raise LabError(f"LiteRT could not convert the network: {type(error).__name__}: {first_line(error)}") from error
    return path


def true_ranges(path: str | Path, images) -> dict:
    """Calibration by the smallest and the largest value that any of the images (n, …) gives: tensor name → min and max.

    The quantizer's own calibration keeps a moving average of both, and clips what lies beyond. Raises NotAvailable,
    BadInput.
    """
    environment.require("litert")
    from ai_edge_quantizer import quantizer, recipe

    path, ranges = Path(path), {}
    with silently():
        tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        for image in images:
            one = tool.calibrate(_feeds(path, image[None]))
            for tensor, seen in one.items():
                span = ranges.setdefault(tensor, dict(seen))
                span["min"], span["max"] = (
                    np.minimum(span["min"], seen["min"]),
                    np.maximum(span["max"], seen["max"]),
                )
    return ranges


def quantize_litert(path: str | Path, *, recipe: str = "dynamic_wi8_afp32", calibration=None) -> Path:
    """Write the INT8 twin of a `.tflite` file.

    "dynamic_wi8_afp32" stores weights in INT8 and needs no data. "static_wi8_ai8" computes in INT8 and needs
    ``calibration``: images (n, …), or ranges as ``true_ranges`` gives them. Inputs and outputs are INT8, too.
    Raises NotAvailable, BadInput. Source: https://github.com/google-ai-edge/ai-edge-quantizer
    """
    environment.require("litert")
    one_of(RECIPES, recipe=recipe)
    static = recipe.startswith("static")
    if static != (calibration is not None):
        wish = "needs calibration: images (n, …)" if static else "takes no calibration"
        raise BadInput(f"recipe={recipe!r} {wish}")
    path = Path(path)
    out = export.fresh_folder() / f"{path.stem}_{recipe.split('_')[0]}.tflite"
    with silently():
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer import recipe as recipes

        tool = quantizer.Quantizer(str(path), getattr(recipes, recipe)())
        ranges = (
            calibration if isinstance(calibration, dict) or not static else tool.calibrate(_feeds(path, calibration))
        )
        out.write_bytes(tool.quantize(ranges).quantized_model)
    return out


def _feeds(path: Path, images) -> dict:
    from ai_edge_litert.interpreter import Interpreter

    images = np.asarray(images)
    if not len(images) or not np.isfinite(images).all():
        raise BadInput(f"calibration has shape {images.shape}; wanted are finite images, the data of later use")
    ((key, signature),) = Interpreter(str(path)).get_signature_list().items()
    return {key: [{signature["inputs"][0]: image[None]} for image in images]}


class LiteRt(Base):
    """A `.tflite` file, executed with XNNPACK's kernels; FP32 goes in and comes out, INT8 is scaled on the way.

    Batches larger than the file's are fed in parts. ``load_ms`` is what reading and planning took; ``scale_in`` is the
    input's (scale, zero point), None for FP32. Raises NotAvailable, BadInput.
    Source: https://ai.google.dev/edge/api/tflite/python/tf/lite/Interpreter
    """

    def __init__(self, path: str | Path, *, threads: int = 1):
        environment.require("litert")
        self.path, self.name = Path(path), f"litert/{Path(path).stem}"
        at_least(threads=threads)
        with silently():
            from ai_edge_litert.interpreter import Interpreter

            start = time.perf_counter()
            try:
                self._run = Interpreter(str(self.path), num_threads=threads)
                self._run.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise BadInput(f"LiteRT cannot load {self.path.name}: {str(error)[:200]}") from error
            self.load_ms = (time.perf_counter() - start) * 1e3
        self._in, self._out = self._run.get_input_details()[0], self._run.get_output_details()[0]
        self.scale_in, self.scale_out = _scale(self._in), _scale(self._out)
        self.inputs = {"images": TensorSpec((None, *map(int, self._in["shape"][1:])), "float32")}
        self.outputs = {"logits": TensorSpec((None, *map(int, self._out["shape"][1:])), "float32")}

    def __call__(self, feed) -> dict:
        images = np.asarray(self.checked(feed)["images"])
        step = int(self._in["shape"][0])
        parts = [self._part(images[at : at + step]) for at in range(0, len(images), step)]
        answers = np.concatenate(parts)
        if isinstance(feed, np.ndarray):
            return {"logits": answers}
        import torch

        return {"logits": torch.from_numpy(answers)}

    def _part(self, images: np.ndarray) -> np.ndarray:
        if self.scale_in:
            scale, zero = self.scale_in
            images = np.clip(np.round(images / scale) + zero, -128, 127).astype(np.int8)
        self._run.set_tensor(self._in["index"], images)
        self._run.invoke()
        answers = self._run.get_tensor(self._out["index"])
        if self.scale_out:
            scale, zero = self.scale_out
            answers = (answers.astype(np.float32) - zero) * np.float32(scale)
        return answers

    def close(self) -> None:
        """Free the interpreter."""
        self.closed, self._run = True, None


def _scale(details) -> tuple[float, int] | None:
    return details["quantization"] if details["dtype"] == np.int8 else None
