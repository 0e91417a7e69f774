"""The accuracy of anything that runs, and what a model must answer before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from labsupport import data
from labsupport.data.datasets import Split
from labsupport.errors import BadInput, NotAvailable, at_least, first_line


def accuracy(
    runtime: nn.Module | Callable,
    split: Split,
    *,
    batch_size: int = 256,
    preprocess: Callable[[np.ndarray], np.ndarray] = data.preprocess,
) -> float:
    """Share of the split that a module or any runtime (`run(feed) -> outputs`) classifies right, from 0 to 1.

    A runtime built for a fixed batch gets batches of that size, the last one filled up; inputs are
    converted to the float type it wants. Raises BadInput for an empty split and for answers that are not numbers.
    """
    check_options(batch_size=batch_size)
    check_filled(split)
    answer, fixed_batch = _answerer(runtime)
    right = 0
    for images, labels in split.batches(fixed_batch or batch_size):
        padding = (fixed_batch or len(images)) - len(images)
        feed = preprocess(images if not padding else np.concatenate([images, images[:1].repeat(padding, axis=0)]))
        logits = answer(feed)[: len(images)]
        if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] <= split.labels.max():
            raise BadInput(
                f"{_name(runtime)} answered {tuple(logits.shape)} for {len(images)} images; wanted one row "
                f"for each image with a number for each of the {len(split.classes)} classes"
            )
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise BadInput(
                f"{_name(runtime)} answered NaN or infinity for {bad} of {len(images)} images; its accuracy "
                "would mean nothing. In fp16, look for activations above 65504"
            )
        right += int((logits.argmax(axis=1) == labels).sum())
    return right / len(split)


def _answerer(runtime: nn.Module | Callable) -> tuple[Callable[[np.ndarray], np.ndarray], int | None]:
    """A function from preprocessed images to logits in NumPy, and the batch size if only one will do."""
    if isinstance(runtime, nn.Module):
        return lambda images: evaluate(runtime, images), None
    inputs = getattr(runtime, "inputs", None)
    if not callable(runtime) or not isinstance(inputs, Mapping) or len(inputs) != 1:
        came = f"inputs {list(inputs)}" if isinstance(inputs, Mapping) else f"a {type(runtime).__name__}"
        raise BadInput(f"accuracy wants a PyTorch module or a runtime with one input; {came} came")
    ((name, spec),) = inputs.items()
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) and spec.shape[0] > 0 else None

    def answer(images: np.ndarray) -> np.ndarray:
        outputs = runtime({name: images.astype(spec.dtype, copy=False)})
        if len(outputs) > 1 and "logits" not in outputs:
            raise BadInput(f"{_name(runtime)} has the outputs {list(outputs)}; one of them must be called 'logits'")
        return np.asarray(outputs.get("logits", next(iter(outputs.values()))), np.float32)

    return answer, fixed


def evaluate(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits of a module in eval mode, on its own device and in its own float type; its mode is put back."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            answer = model(torch.from_numpy(images).to(weight))
    except (RuntimeError, ValueError) as error:  # layers refuse a shape with either
        raise BadInput(
            f"{type(model).__name__} cannot take images of shape {images.shape[1:]} (C, H, W): {first_line(error)}"
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(answer, Tensor):
        raise BadInput(
            f"{type(model).__name__} answers with a {type(answer).__name__}; wanted one tensor of logits (N, classes)"
        )
    return answer.float().cpu().numpy()


def check_fits(model: nn.Module, split: Split, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
    """Try two images before training, so that a mismatch is named before any work is done."""
    check_filled(split)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(
            f"{type(model).__name__} has no weights to train; all are frozen. Unfreeze some with requires_grad_(True)"
        )
    images = preprocess(split.images[:2])
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise BadInput(
            f"preprocess gave {getattr(images, 'dtype', type(images).__name__)}; "
            "training wants a float32 NumPy array (N, C, H, W)"
        )
    logits = evaluate(model, images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise BadInput(
            f"{type(model).__name__} answers {logits.shape} for {len(images)} images; "
            "training wants one row of logits for each image"
        )
    if logits.shape[1] <= split.labels.max():
        raise BadInput(
            f"labels run up to {split.labels.max()}, but {type(model).__name__} tells {logits.shape[1]} "
            f"classes apart; make it with classes={len(split.classes)}"
        )


def check_filled(split: Split) -> None:
    """Refuse with BadInput what is no split, and an empty one."""
    if not isinstance(split, Split):
        raise BadInput(f"a {type(split).__name__} came; wanted a split, such as dataset.train or dataset.test")
    if not len(split):
        raise BadInput("the split is empty; it takes at least one image")


def check_device(device: str) -> None:
    """Refuse with BadInput an unknown device, with NotAvailable a GPU that is not there."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device={device!r}; choose one of ['cpu', 'cuda']")
    if device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable("device='cuda', but this PyTorch sees no GPU; train with device='cpu'")


def check_options(**options: float) -> None:
    """Refuse with BadInput numbers out of range, by their names."""
    for name, value in options.items():
        if name == "learning_rate":
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise BadInput(f"learning_rate={value!r}; wanted a number above 0, such as 3e-3")
            continue
        least = 0 if name in ("seed", "shift_pixels") else 1
        at_least(least, **{name: value})


def _name(runtime: nn.Module | Callable) -> str:
    return getattr(runtime, "name", type(runtime).__name__)
