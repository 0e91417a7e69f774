"""How much of a split a narrow network answers, and answers right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labsupport import data
from labsupport.errors import BadInput


@dataclass(frozen=True)
class Score:
    """Share of a labelled split that was answered right, and the share answered with NaN or infinity; 0 to 1."""

    accuracy: float
    unanswered: float
    images: int

    def __repr__(self) -> str:
        return (
            f"{self.accuracy:.1%} right, {self.unanswered:.1%} answered with NaN or infinity, of {self.images} images"
        )


def accuracy(run, split, *, preprocess: Callable = data.preprocess, batch_size: int = 100) -> Score:
    """How much of a split a runtime gets right, an answer of NaN or infinity counted as wrong instead of refused.

    training.accuracy stops at such an answer; here it is the thing to be measured. Feeds BF16 runtimes, too. Raises
    BadInput for an empty split and for preprocessed images with NaN.
    """
    import torch

    if not len(split):
        raise BadInput("the split is empty; it takes at least one image")
    ((name, spec),) = run.inputs.items()
    size, right, lost = spec.shape[0] or batch_size, 0, 0
    for images, labels in split.batches(size):
        feed = preprocess(np.concatenate([images, images[:1].repeat(size - len(images), axis=0)]))
        if not np.isfinite(feed).all():
            raise BadInput(
                "the preprocessed images hold NaN or infinity; look at preprocess, the answers would be NaN in every "
                "precision"
            )
        whole = torch.from_numpy(feed).to(getattr(torch, spec.dtype))
        answer = run({name: whole if spec.dtype == "bfloat16" else whole.numpy()})
        logits = torch.as_tensor(answer.get("logits", next(iter(answer.values())))).float().cpu().numpy()[: len(labels)]
        sound = np.isfinite(logits).all(axis=1)
        right += int(((logits.argmax(axis=1) == labels) & sound).sum())
        lost += int((~sound).sum())
    return Score(right / len(split), lost / len(split), len(split))
