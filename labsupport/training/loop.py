"""One short training loop, and the accuracy of anything that runs."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport import data, environment
from labsupport.data.datasets import Split
from labsupport.errors import LabError
from labsupport.training import checkpoints
from labsupport.training.kept_state import KeptState, random_state
from labsupport.training.scoring import check_device, check_fits, check_options

# (model, images (N, C, H, W), labels (N,)) → logits (N, classes) and the loss to be lowered
Objective = Callable[[nn.Module, Tensor, Tensor], "tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class History:
    """A trained model (on the CPU, in eval mode) and, for each epoch, its mean loss and its accuracy while training."""

    model: nn.Module
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def epochs(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        return (
            f"History({type(self.model).__name__}: {self.epochs} epoch{'s' * (self.epochs != 1)}, "
            f"loss {self.losses[-1]:.3f}, training accuracy {self.accuracies[-1]:.1%}, {self.seconds:.1f} s)"
        )


def fit(
    model: nn.Module,
    split: Split,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    shift_pixels: int = 2,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    preprocess: Callable[[np.ndarray], np.ndarray] = data.preprocess,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    objective: Objective | None = None,
    facts: Mapping[str, object] | None = None,
) -> History:
    """Train a copy of an image classifier with AdamW, the learning rate rising and falling once (Smith 2018).

    Each batch is moved by up to `shift_pixels` each way (borders repeated): a few thousand images are soon learned by
    heart, moved ones are not. The model given stays as it was. The same seed on the same CPU gives the same weights.
    With `checkpoint`, each epoch is saved to that file, or every `checkpoint_every`-th and the last, and a training
    that was interrupted goes on where it stood. `objective(model, images, labels) -> (logits, loss)` takes the place of
    cross entropy on the labels; `facts` say in the checkpoint what it was, so that nothing goes on with another one.
    Raises BadInput for data the model cannot take, LabError when the loss is no longer a number, and for a checkpoint
    of another model, training or other images.
    """
    run = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "shift_pixels": shift_pixels,
        "seed": seed,
    }
    check_options(**run, checkpoint_every=checkpoint_every)
    check_device(device)
    check_fits(model, split, preprocess)
    started = time.perf_counter()
    student = copy.deepcopy(model).to(device).train()
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate)
    steps = epochs * len(_orders(len(split), batch_size, torch.Generator()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, steps))
    losses, accuracies = [], []
    with (
        random_state(seed, device),
        environment.bar(total=steps, label="training", unit="batches", shown=progress) as bar,
    ):
        shuffler = torch.Generator().manual_seed(seed)
        epoch_of = _Epoch(student, optimizer, schedule, shuffler, split, preprocess, objective or cross_entropy, bar)
        described = {"trained by": "training.fit", **_of_the_start(model, split), **run, **(facts or {})}
        kept = checkpoint and KeptState(Path(checkpoint), student, optimizer, schedule, shuffler, described)
        done = kept.resume(losses, accuracies) if kept else 0
        bar.start_at(done * steps // epochs)
        for epoch in range(done, epochs):
            loss, right = epoch_of.trained(batch_size, shift_pixels, f"epoch {epoch + 1} of {epochs}")
            losses.append(loss)
            accuracies.append(right)
            if kept and ((epoch + 1) % checkpoint_every == 0 or epoch + 1 == epochs):
                kept.save(losses, accuracies)
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{right:.1%}")
    return History(student.cpu().eval(), tuple(losses), tuple(accuracies), time.perf_counter() - started)


@dataclass
class _Epoch:
    """What one pass over the split needs; the same objects for every epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    shuffler: torch.Generator
    split: Split
    preprocess: Callable[[np.ndarray], np.ndarray]
    objective: Objective
    bar: Any

    def trained(self, batch_size: int, shift_pixels: int, name: str) -> tuple[float, float]:
        """One pass; the mean loss and the share of images that were right on the way."""
        split, loss_sum, right = self.split, 0.0, 0
        for order in _orders(len(split), batch_size, self.shuffler):
            images = self.preprocess(_moved(split.images[order], shift_pixels, self.shuffler))
            loss, correct = _step(self.model, self.optimizer, images, split.labels[order], self.objective)
            if not np.isfinite(loss):
                rate = self.optimizer.defaults["lr"]
                raise LabError(
                    f"the loss became {loss} in {name}; lower learning_rate (now {rate:g}), or look for non-finite "
                    "weights or preprocessed images"
                )
            self.schedule.step()
            loss_sum, right = loss_sum + loss * len(order), right + correct
            self.bar.update()
        return loss_sum / len(split), right / len(split)


def _of_the_start(model: nn.Module, split: Split) -> dict[str, object]:
    """What a checkpoint must find again before the training goes on: the weights it began with, and the images."""
    return {
        "start": checkpoints.fingerprint(model),
        "images": len(split),
        "pixels and labels": _checksum(split),
    }


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The objective that `fit` has by default: logits (N, classes) and the mean loss on the labels (N,)."""
    logits = model(images)
    return logits, F.cross_entropy(logits, labels)  # log-softmax and negative log-likelihood in one, stable in fp32


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: np.ndarray, labels: np.ndarray, objective: Objective
) -> tuple[float, int]:
    """One batch forward, back, and one move of the weights; returns its mean loss and how many it had right."""
    device = next(model.parameters()).device
    targets = torch.from_numpy(labels).to(device)
    logits, loss = objective(model, torch.from_numpy(images).to(device), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(dim=1) == targets).sum())


def _orders(count: int, batch_size: int, shuffler: torch.Generator) -> list[np.ndarray]:
    batches = [part.numpy() for part in torch.randperm(count, generator=shuffler).split(batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        # BatchNorm cannot train on one value for a channel, so a lone last image joins the batch before it.
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _moved(images: np.ndarray, most: int, shuffler: torch.Generator) -> np.ndarray:
    if not most:
        return images
    down, right = torch.randint(2 * most + 1, (2,), generator=shuffler).tolist()
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    return wide[:, down : down + images.shape[1], right : right + images.shape[2]]


def _checksum(split: Split) -> int:
    return zlib.crc32(np.ascontiguousarray(split.labels), zlib.crc32(np.ascontiguousarray(split.images)))
